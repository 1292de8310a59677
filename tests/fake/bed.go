package fake

import (
	"fmt"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/utils/ptr"
)

// What the cluster of New has.
const (
	VeleroNamespace = "velero"
	// Driver is the CSI driver, Class the name of its StorageClass and of its
	// VolumeSnapshotClass, NodeName the only node.
	Driver   = "disk.example.com"
	Class    = "fast"
	NodeName = "node-1"
	// Policy is the ConfigMap of the volume policy that hands all CSI volumes to
	// Stillpoint.
	Policy = "stillpoint-volume-policy"
)

// Bed is a whole cluster.
type Bed struct {
	T       testing.TB
	API     *API
	Node    *Node
	Storage *Storage
}

// New starts a cluster with a Velero namespace, one driver, one node and Policy.
func New(t testing.TB) *Bed {
	api := NewAPI(t)
	b := &Bed{T: t, API: api, Node: NewNode(t, api)}
	b.Storage = NewStorage(t, api, func(claim types.NamespacedName) bool {
		return b.Node.FileSystem(claim.Namespace, claim.Name).Frozen()
	})
	deletion := snapshotv1.VolumeSnapshotContentDelete
	api.Put(t,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: VeleroNamespace}},
		&appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Namespace: VeleroNamespace, Name: "velero"},
			Spec: appsv1.DeploymentSpec{Replicas: ptr.To(int32(1)), Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
				Containers: []corev1.Container{{Name: "velero", Image: "velero/velero:v1.18.3", Args: []string{"server", "--features=EnableCSI"}}},
			}}},
		},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: NodeName}},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: Class}, Provisioner: Driver, VolumeBindingMode: ptr.To(storagev1.VolumeBindingImmediate), ReclaimPolicy: ptr.To(corev1.PersistentVolumeReclaimDelete)},
		&storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: Driver}},
		&snapshotv1.VolumeSnapshotClass{
			ObjectMeta: metav1.ObjectMeta{Name: Class, Labels: map[string]string{velerov1.VolumeSnapshotClassSelectorLabel: "true"}},
			Driver:     Driver, DeletionPolicy: deletion,
		},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: VeleroNamespace, Name: Policy}, Data: map[string]string{"policy.yaml": `version: v1
volumePolicies:
- conditions: {csi: {}}
  action: {type: custom, parameters: {snapshotter: stillpoint.io}}
`}},
	)
	return b
}

// Configure writes Stillpoint's configuration.
func (b *Bed) Configure(document string) {
	b.T.Helper()
	b.API.Put(b.T, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: VeleroNamespace, Name: "stillpoint",
			Labels: map[string]string{"velero.io/plugin-config": "", "stillpoint.io/stillpoint": "Configuration"},
		},
		Data: map[string]string{"config.yaml": document},
	})
}

// App describes a workload.
type App struct {
	// Namespace is "shop", Name "db" and Kind "Deployment" where they are empty;
	// StatefulSet and "" for bare pods with Kind "Pod" are known besides.
	Namespace, Name, Kind string
	// Annotations are the controller's; of a bare pod, its own.
	Annotations map[string]string
	// Volumes is how many claims each pod has (default 1): Name-data0 and so on, of
	// a StatefulSet data0-Name-0 and so on. They are mounted at /data0 and so on.
	Volumes int
	// Replicas is 1 where it is 0. Only the pods of a StatefulSet have claims each
	// of its own.
	Replicas int
	// Pod changes a pod, Claim a claim and its volume, before they are stored.
	Pod   func(pod *corev1.Pod)
	Claim func(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume)
}

// Workload is an App that runs.
type Workload struct {
	Namespace string
	Pods      []*corev1.Pod
	// Claims are the names of all claims, in the order of the pods.
	Claims []string
}

// Deploy makes a workload that runs, with its volumes.
func (b *Bed) Deploy(app App) *Workload {
	b.T.Helper()
	if app.Namespace == "" {
		app.Namespace = "shop"
	}
	if app.Name == "" {
		app.Name = "db"
	}
	if app.Kind == "" {
		app.Kind = "Deployment"
	}
	app.Volumes, app.Replicas = max(app.Volumes, 1), max(app.Replicas, 1)
	if namespace := (&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: app.Namespace}}); !b.API.Get(b.T, namespace) {
		b.API.Put(b.T, namespace)
	}
	w := &Workload{Namespace: app.Namespace}
	owner := b.controller(app)
	for i := range app.Replicas {
		pod := b.pod(app, i, owner)
		for v := range app.Volumes {
			name := fmt.Sprintf("%s-data%d", app.Name, v)
			if app.Kind == "StatefulSet" {
				name = fmt.Sprintf("data%d-%s", v, pod.Name)
			}
			if app.Kind == "StatefulSet" || i == 0 {
				b.claim(app, name)
				w.Claims = append(w.Claims, name)
			}
			volume := fmt.Sprintf("data%d", v)
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
			}})
			pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: "/" + volume})
		}
		if app.Pod != nil {
			app.Pod(pod)
		}
		b.RunPod(pod)
		w.Pods = append(w.Pods, pod)
	}
	return w
}

// RunPod stores a pod and runs its containers.
func (b *Bed) RunPod(pod *corev1.Pod) {
	b.T.Helper()
	b.API.Put(b.T, pod)
	b.Node.Run(pod)
}

func (b *Bed) controller(app App) *metav1.OwnerReference {
	b.T.Helper()
	labels := map[string]string{"app": app.Name}
	replicas := ptr.To(int32(app.Replicas))
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}}
	for v := range app.Volumes {
		if app.Kind != "StatefulSet" {
			template.Spec.Volumes = append(template.Spec.Volumes, corev1.Volume{Name: fmt.Sprintf("data%d", v), VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: fmt.Sprintf("%s-data%d", app.Name, v)},
			}})
		}
	}
	meta := metav1.ObjectMeta{Namespace: app.Namespace, Name: app.Name, UID: uuid.NewUUID(), Annotations: app.Annotations, Labels: labels, Generation: 1}
	switch app.Kind {
	case "Deployment":
		d := &appsv1.Deployment{
			ObjectMeta: meta,
			Spec:       appsv1.DeploymentSpec{Replicas: replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template},
			Status:     appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: *replicas, ReadyReplicas: *replicas, AvailableReplicas: *replicas, UpdatedReplicas: *replicas},
		}
		d.Annotations = with(d.Annotations, "deployment.kubernetes.io/revision", "1")
		rs := &appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: app.Namespace, Name: app.Name + "-6d4f", UID: uuid.NewUUID(), Labels: labels, Generation: 1,
				Annotations:     with(app.Annotations, "deployment.kubernetes.io/revision", "1"),
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("Deployment"))},
			},
			Spec:   appsv1.ReplicaSetSpec{Replicas: replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template},
			Status: appsv1.ReplicaSetStatus{ObservedGeneration: 1, Replicas: *replicas, ReadyReplicas: *replicas, AvailableReplicas: *replicas},
		}
		b.API.Put(b.T, d, rs)
		return metav1.NewControllerRef(rs, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))
	case "StatefulSet":
		s := &appsv1.StatefulSet{
			ObjectMeta: meta,
			Spec:       appsv1.StatefulSetSpec{Replicas: replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template, ServiceName: app.Name},
			Status:     appsv1.StatefulSetStatus{ObservedGeneration: 1, Replicas: *replicas, ReadyReplicas: *replicas, CurrentReplicas: *replicas, UpdatedReplicas: *replicas, CurrentRevision: "r1", UpdateRevision: "r1"},
		}
		for v := range app.Volumes {
			s.Spec.VolumeClaimTemplates = append(s.Spec.VolumeClaimTemplates, corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("data%d", v)}})
		}
		b.API.Put(b.T, s)
		return metav1.NewControllerRef(s, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))
	case "Pod":
		return nil
	}
	b.T.Fatalf("App.Kind: %q is not valid; valid: Deployment, StatefulSet, Pod", app.Kind)
	return nil
}

func with(annotations map[string]string, key, value string) map[string]string {
	all := map[string]string{key: value}
	for k, v := range annotations {
		all[k] = v
	}
	return all
}

func (b *Bed) pod(app App, i int, owner *metav1.OwnerReference) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: app.Namespace, Name: app.Name + "-6d4f-" + string(rune('a'+i)), UID: uuid.NewUUID(), Labels: map[string]string{"app": app.Name}},
		Spec: corev1.PodSpec{NodeName: NodeName, Containers: []corev1.Container{{
			Name: "main", Image: "app:1", SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true)},
		}}},
	}
	switch {
	case app.Kind == "StatefulSet":
		pod.Name = fmt.Sprintf("%s-%d", app.Name, i)
		pod.Labels["controller-revision-hash"] = "r1"
	case owner == nil:
		pod.Name, pod.Annotations = app.Name, app.Annotations
	default:
		pod.Labels["pod-template-hash"] = "6d4f"
	}
	if owner != nil {
		pod.OwnerReferences = []metav1.OwnerReference{*owner}
	}
	Started(pod)
	return pod
}

// Started gives a pod the status of one that runs and is ready.
func Started(pod *corev1.Pod) {
	started := metav1.NewTime(time.Now().Add(-time.Hour).Truncate(time.Second))
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, StartTime: &started,
		Conditions: []corev1.PodCondition{
			{Type: corev1.PodReady, Status: corev1.ConditionTrue},
			{Type: corev1.ContainersReady, Status: corev1.ConditionTrue},
			{Type: corev1.PodInitialized, Status: corev1.ConditionTrue},
		},
	}
	for _, c := range pod.Spec.Containers {
		pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: true, Started: ptr.To(true),
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: started}},
		})
	}
}

// claim makes a bound claim and its volume.
func (b *Bed) claim(app App, name string) {
	b.T.Helper()
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: app.Namespace, Name: name, UID: uuid.NewUUID(), Labels: map[string]string{"app": app.Name},
			Finalizers: []string{"kubernetes.io/pvc-protection"},
		},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: ptr.To(Class),
			Resources: corev1.VolumeResourceRequirements{Requests: size}, VolumeMode: ptr.To(corev1.PersistentVolumeFilesystem),
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: size, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}},
	}
	claim.Spec.VolumeName = "pvc-" + string(claim.UID)
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: claim.Spec.VolumeName, UID: uuid.NewUUID()},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: size, AccessModes: claim.Spec.AccessModes, StorageClassName: Class, VolumeMode: claim.Spec.VolumeMode,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: Driver, VolumeHandle: "vol-" + string(claim.UID), FSType: "ext4",
			}},
			ClaimRef: &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID},
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
	}
	if app.Claim != nil {
		app.Claim(claim, volume)
	}
	b.API.Put(b.T, claim, volume)
}

// Backup is a Backup that is in progress. Its name is "nightly".
func (b *Bed) Backup(changes ...func(backup *velerov1.Backup)) *velerov1.Backup {
	b.T.Helper()
	backup := &velerov1.Backup{
		TypeMeta:   metav1.TypeMeta{APIVersion: velerov1.SchemeGroupVersion.String(), Kind: "Backup"},
		ObjectMeta: metav1.ObjectMeta{Namespace: VeleroNamespace, Name: "nightly", UID: uuid.NewUUID()},
		Spec: velerov1.BackupSpec{
			StorageLocation: "default", CSISnapshotTimeout: metav1.Duration{Duration: 10 * time.Second},
			ItemOperationTimeout: metav1.Duration{Duration: 4 * time.Hour},
		},
		Status: velerov1.BackupStatus{Phase: velerov1.BackupPhaseInProgress, StartTimestamp: ptr.To(metav1.Now())},
	}
	for _, change := range changes {
		change(backup)
	}
	b.API.Put(b.T, backup)
	return backup
}

// WithPolicy has a Backup hand all volumes to Stillpoint.
func WithPolicy(backup *velerov1.Backup) {
	backup.Spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: Policy}
}

// Named gives a Backup another name.
func Named(name string) func(*velerov1.Backup) {
	return func(backup *velerov1.Backup) { backup.Name = name }
}
