package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

// The cluster of API objects: Deployments with a pod each, spread over the
// namespaces, and the same number of claims for each.
const (
	planNamespaces, planWorkloads, planClaims = 200, 500, 2000

	planDriver = "planning.csi.stillpoint.io" // nobody's
	planClass  = "bench-planning"
	planImage  = cluster.Image // of containers that nobody runs

	// planWorkers is how many requests are under way at once.
	planWorkers = 32
	planLimit   = 10 * time.Minute
)

// ofPlanning marks the objects that only planning is measured with.
var ofPlanning = client.MatchingLabels{"stillpoint.io/bench-planning": "true"}

// planned is what planning a backup takes where there are only API objects and
// nothing is snapshotted.
type planned struct {
	// Claims, Workloads and Namespaces are the size of the cluster.
	Claims     *int `json:"claims"`
	Workloads  *int `json:"workloads"`
	Namespaces *int `json:"namespaces"`
	// Requests to the API server, and the time and memory that planning takes.
	Requests *int     `json:"requests"`
	Seconds  *float64 `json:"seconds"`
	Memory   *float64 `json:"memoryMiB"`
}

// planner is what the measurement of planning needs.
type planner interface {
	// Plan decides for all workloads of these namespaces what a backup of them
	// would do, without doing it.
	Plan(ctx context.Context, config *rest.Config, namespaces []string) (planned, error)
}

// measurePlanning makes the API objects and has the planner plan for them. As
// long as there is none it only shows that they can be made.
func (b *bench) measurePlanning(ctx context.Context, found *results) error {
	ctx, cancel := context.WithTimeout(ctx, planLimit)
	defer cancel()
	objects, err := b.planObjects()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := objects.make(ctx); err != nil {
		return fmt.Errorf("make the objects: %w", err)
	}
	b.Say("made %d namespaces, %d workloads and %d claims in %.0f s", planNamespaces, planWorkloads, planClaims, time.Since(began).Seconds())
	if b.planner == nil {
		b.Say("there is no planner to measure")
		return nil
	}
	namespaces := make([]string, planNamespaces)
	for i := range namespaces {
		namespaces[i] = planNamespace(i)
	}
	if found.planning, err = b.planner.Plan(ctx, b.RESTConfig(), namespaces); err != nil {
		return err
	}
	claims, workloads := planClaims, planWorkloads
	size := planNamespaces
	found.planning.Claims, found.planning.Workloads, found.planning.Namespaces = &claims, &workloads, &size
	return nil
}

// planObjects makes and deletes the objects, with a client in a hurry.
type planObjects struct {
	client.Client
}

func (b *bench) planObjects() (planObjects, error) {
	config := b.RESTConfig()
	config.QPS, config.Burst = 2000, 4000
	c, err := client.New(config, client.Options{Scheme: b.Objects().Scheme()})
	return planObjects{c}, err
}

func planNamespace(i int) string { return fmt.Sprintf("bench-planning-%d", i) }

// place of the i-th workload, and of the i-th claim, which is one of its.
func placeOf(workload int) types.NamespacedName {
	return types.NamespacedName{Namespace: planNamespace(workload % planNamespaces), Name: fmt.Sprintf("app-%d", workload)}
}

func claimOf(claim int) types.NamespacedName {
	at := placeOf(claim % planWorkloads)
	return types.NamespacedName{Namespace: at.Namespace, Name: fmt.Sprintf("%s-data%d", at.Name, claim/planWorkloads)}
}

func (o planObjects) make(ctx context.Context) error {
	waits := storagev1.VolumeBindingWaitForFirstConsumer // so that nothing is done for claims without a volume
	for _, class := range []client.Object{
		&storagev1.StorageClass{ObjectMeta: planMeta(types.NamespacedName{Name: planClass}), Provisioner: planDriver, VolumeBindingMode: &waits},
		&snapshotv1.VolumeSnapshotClass{ObjectMeta: planMeta(types.NamespacedName{Name: planClass}), Driver: planDriver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete},
	} {
		if err := o.Create(ctx, class); err != nil {
			return err
		}
	}
	for _, step := range []struct {
		n  int
		do func(ctx context.Context, i int) error
	}{
		{planNamespaces, func(ctx context.Context, i int) error {
			return o.Create(ctx, &corev1.Namespace{ObjectMeta: planMeta(types.NamespacedName{Name: planNamespace(i)})})
		}},
		{planWorkloads, func(ctx context.Context, i int) error { return o.Create(ctx, planDeployment(i)) }},
		{planClaims, o.makeClaim},
	} {
		if err := inParallel(ctx, step.n, step.do); err != nil {
			return err
		}
	}
	return o.awaitWorkloads(ctx)
}

func planMeta(name types.NamespacedName) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, Labels: ofPlanning}
}

// planDeployment is one whose pod no scheduler and no kubelet ever looks at.
func planDeployment(i int) *appsv1.Deployment {
	at := placeOf(i)
	labels := map[string]string{"app": at.Name}
	for key, value := range ofPlanning {
		labels[key] = value
	}
	container := corev1.Container{Name: "app", Image: planImage}
	var volumes []corev1.Volume
	for claim := i; claim < planClaims; claim += planWorkloads {
		name := claimOf(claim).Name
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: "/data/" + name})
		volumes = append(volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}})
	}
	return &appsv1.Deployment{ObjectMeta: planMeta(at), Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": at.Name}},
		Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec:       corev1.PodSpec{SchedulerName: planDriver, Containers: []corev1.Container{container}, Volumes: volumes},
		},
	}}
}

// makeClaim makes a claim and its volume, bound to each other. The controller
// that binds others would take minutes for so many.
func (o planObjects) makeClaim(ctx context.Context, i int) error {
	at := claimOf(i)
	class, size := planClass, corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	access := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: planMeta(at), Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: access, StorageClassName: &class, Resources: corev1.VolumeResourceRequirements{Requests: size},
	}}
	if err := o.Create(ctx, claim); err != nil {
		return err
	}
	volume := &corev1.PersistentVolume{
		ObjectMeta: planMeta(types.NamespacedName{Name: fmt.Sprintf("bench-planning-%d", i)}),
		Spec: corev1.PersistentVolumeSpec{
			AccessModes: access, StorageClassName: class, Capacity: size, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef: &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: at.Namespace, Name: at.Name, UID: claim.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{Driver: planDriver, VolumeHandle: fmt.Sprintf("volume-%d", i)},
			},
		},
	}
	if err := o.Create(ctx, volume); err != nil {
		return err
	}
	bind := `{"metadata":{"annotations":{"pv.kubernetes.io/bind-completed":"yes"}},"spec":{"volumeName":"` + volume.Name + `"}}`
	return errors.Join(
		o.Status().Patch(ctx, volume, client.RawPatch(types.MergePatchType, []byte(`{"status":{"phase":"Bound"}}`))),
		o.Patch(ctx, claim, client.RawPatch(types.MergePatchType, []byte(bind))),
		o.Status().Patch(ctx, claim, client.RawPatch(types.MergePatchType,
			[]byte(`{"status":{"phase":"Bound","accessModes":["ReadWriteOnce"],"capacity":{"storage":"1Gi"}}}`))),
	)
}

// awaitWorkloads has each pod run as soon as there is one, by its status, and
// waits until no controller has anything left to do.
func (o planObjects) awaitWorkloads(ctx context.Context) error {
	return stage.Until(ctx, "the workloads of API objects are ready", func(ctx context.Context) (bool, error) {
		pods := &corev1.PodList{}
		if err := o.List(ctx, pods, ofPlanning); err != nil {
			return false, err
		}
		err := inParallel(ctx, len(pods.Items), func(ctx context.Context, i int) error {
			pod := &pods.Items[i]
			if pod.Status.Phase == corev1.PodRunning {
				return nil
			}
			before := pod.DeepCopy()
			now := metav1.Now()
			pod.Status.Phase = corev1.PodRunning
			pod.Status.Conditions = []corev1.PodCondition{
				{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now},
				{Type: corev1.ContainersReady, Status: corev1.ConditionTrue, LastTransitionTime: now},
			}
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
				Name: "app", Image: planImage, Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
			}}
			return o.Status().Patch(ctx, pod, client.MergeFrom(before))
		})
		if err != nil {
			return false, err
		}
		deployments := &appsv1.DeploymentList{}
		if err := o.List(ctx, deployments, ofPlanning); err != nil {
			return false, err
		}
		ready := 0
		for i := range deployments.Items {
			if deployments.Items[i].Status.ReadyReplicas == 1 {
				ready++
			}
		}
		claims := &corev1.PersistentVolumeClaimList{}
		err = o.List(ctx, claims, ofPlanning)
		bound := 0
		for i := range claims.Items {
			if claims.Items[i].Status.Phase == corev1.ClaimBound {
				bound++
			}
		}
		return ready == planWorkloads && bound == planClaims, err
	})
}

// clear deletes the objects of this or an earlier run, and waits until they are
// gone.
func (o planObjects) clear(ctx context.Context) error {
	all := []client.ObjectList{&corev1.NamespaceList{}, &corev1.PersistentVolumeList{}, &storagev1.StorageClassList{}, &snapshotv1.VolumeSnapshotClassList{}}
	return stage.Until(ctx, "the API objects of planning are gone", func(ctx context.Context) (bool, error) {
		left := 0
		for _, list := range all {
			n, err := o.clearSome(ctx, list)
			if err != nil {
				return false, err
			}
			left += n
		}
		if left == 0 {
			return true, nil
		}
		// Those of namespaces that are being deleted.
		_, err := o.clearSome(ctx, &corev1.PersistentVolumeClaimList{})
		return false, err
	})
}

// clearSome deletes the objects of one kind and tells how many there were. The
// controllers that would release claims and volumes take minutes for so many.
func (o planObjects) clearSome(ctx context.Context, list client.ObjectList) (int, error) {
	if err := o.List(ctx, list, ofPlanning); err != nil {
		return 0, err
	}
	objects, err := itemsOf(list)
	if err != nil {
		return 0, err
	}
	return len(objects), inParallel(ctx, len(objects), func(ctx context.Context, i int) error {
		object := objects[i]
		if object.GetDeletionTimestamp() == nil {
			if err := client.IgnoreNotFound(o.Delete(ctx, object)); err != nil {
				return err
			}
		}
		if len(object.GetFinalizers()) == 0 {
			return nil
		}
		return client.IgnoreNotFound(o.Patch(ctx, object, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))))
	})
}

// inParallel calls do for 0 to n-1, some side by side. It stops at an error.
func inParallel(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var working sync.WaitGroup
	for range min(n, planWorkers) {
		working.Go(func() {
			for i := range next {
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := 0; i < n && ctx.Err() == nil; i++ {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	working.Wait()
	return context.Cause(ctx)
}

// itemsOf are the objects of a list.
func itemsOf(list client.ObjectList) ([]client.Object, error) {
	var objects []client.Object
	err := meta.EachListItem(list, func(item runtime.Object) error {
		object, ok := item.(client.Object)
		if !ok {
			return fmt.Errorf("%T is no object", item)
		}
		objects = append(objects, object)
		return nil
	})
	return objects, err
}
