package check

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	snapshotfake "github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned/fake"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	metadatafake "k8s.io/client-go/metadata/fake"
	kubetesting "k8s.io/client-go/testing"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
	crfake "sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/podexec"
)

const (
	driver = "csi.example.com"
	// twoClasses is a driver with two VolumeSnapshotClasses and no mark on either.
	twoClasses = "two.example.com"
	password   = "s3cret pass'word"
)

// scene is a cluster. Its containers answer probes as privileged ones do, with
// each claim a file system of its own.
type scene struct {
	t       *testing.T
	objects []runtime.Object
	custom  []*unstructured.Unstructured // of group db.example.com
	answers map[string]string            // by pod/container
	deny    string                       // a resource that may not be listed
}

func newScene(t *testing.T, serverArgs ...string) *scene {
	t.Helper()
	s := &scene{t: t, answers: map[string]string{}}
	s.add(
		&appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "velero"},
			Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{
				Name: "velero", Command: []string{"/velero"}, Args: append([]string{"server", "--features=EnableCSI"}, serverArgs...),
			}}}}},
		},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Provisioner: driver},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "two"}, Provisioner: twoClasses},
		class("snap", driver, velerov1.VolumeSnapshotClassSelectorLabel), class("a", twoClasses), class("b", twoClasses),
		policies("policies",
			"pvcLabels: {path: group} → custom, parameters: {snapshotter: stillpoint.io}",
			"pvcLabels: {path: near} → custom, parameters: {snapshotter: stillpoint}",
			"pvcLabels: {path: skip} → skip"),
	)
	return s
}

func (s *scene) add(objects ...runtime.Object) { s.objects = append(s.objects, objects...) }

func class(name, driver string, labels ...string) *snapshotv1.VolumeSnapshotClass {
	c := &snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}, Driver: driver, DeletionPolicy: "Delete"}
	for _, label := range labels {
		c.Labels[label] = "true"
	}
	return c
}

// policies is a ConfigMap with volume policies, as in "csi: {} → skip".
func policies(name string, lines ...string) *corev1.ConfigMap {
	text := "version: v1\nvolumePolicies:\n"
	for _, line := range lines {
		condition, action, _ := strings.Cut(line, " → ")
		text += "- conditions: {" + condition + "}\n  action: {type: " + action + "}\n"
	}
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: name}, Data: map[string]string{"p.yaml": text}}
}

// claim is a bound one of namespace shop, with the storage class and the label
// path that a test gives it.
func (s *scene) claim(name, class, path string, change ...func(*corev1.PersistentVolumeClaim)) string {
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("8Gi")}
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"path": path}, Annotations: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, VolumeName: "pv-" + name,
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{Requests: size},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: size},
	}
	for _, f := range change {
		f(claim)
	}
	s.add(claim)
	if claim.Spec.VolumeName != "" {
		provisioner := map[string]string{"fast": driver, "two": twoClasses}[class]
		s.add(&corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: claim.Spec.VolumeName},
			Spec: corev1.PersistentVolumeSpec{
				StorageClassName: class, ClaimRef: &corev1.ObjectReference{Namespace: "shop", Name: name},
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: provisioner}},
			},
		})
	}
	return name
}

func pending(claim *corev1.PersistentVolumeClaim) {
	claim.Spec.VolumeName, claim.Status = "", corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
}

// statefulSet has one pod that mounts the claims, with a container db.
func (s *scene) statefulSet(name string, annotations map[string]string, claims ...string) {
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Annotations: annotations}}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name + "-0", UID: types.UID("uid-" + name + "-0"),
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: name, UID: set.UID, Controller: ptr.To(true)}},
		},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "db"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{
			Name: "db", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
		}}},
	}
	probe := "CapEff:\t000001ffffffffff\nfsfreeze\n"
	for _, claim := range claims {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: claim, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}})
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: claim, MountPath: "/" + claim})
		device := fnv.New32()
		fmt.Fprint(device, claim)
		probe += fmt.Sprintf("mount 2120 2101 8:%d / /%s rw,relatime - ext4 /dev/sdx rw\n", device.Sum32()%100000, claim)
	}
	s.answers[pod.Name+"/db"] = probe
	s.add(set, pod)
}

// Exec answers a probe; what is no probe would change something.
func (s *scene) Exec(_ context.Context, container podexec.Container, command []string, streams podexec.Streams) error {
	if !strings.Contains(strings.Join(command, " "), "/proc/self/mountinfo") {
		s.t.Errorf("%s: %q is run", container, command)
	}
	_, err := io.WriteString(streams.Stdout, s.answers[container.Pod+"/"+container.Name])
	return err
}

var schemeOf = func() func(t *testing.T) *runtime.Scheme {
	var known *runtime.Scheme
	return func(t *testing.T) *runtime.Scheme {
		t.Helper()
		if known == nil {
			file := filepath.Join(t.TempDir(), "config")
			require.NoError(t, os.WriteFile(file, []byte(`{"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
				"contexts": [{"name": "c", "context": {"cluster": "c"}}], "current-context": "c"}`), 0o600))
			clients, err := cluster.Connection{Kubeconfig: file}.Open() // which reaches no server
			require.NoError(t, err)
			known = clients.Objects.Scheme()
		}
		return known
	}
}()

func kindOf(kind, resource string, short ...string) metav1.APIResource {
	return metav1.APIResource{Kind: kind, Name: resource, ShortNames: short, Namespaced: true, Verbs: metav1.Verbs{"get", "list"}}
}

func partOf(object metav1.Object, kind schema.GroupVersionKind) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{APIVersion: kind.GroupVersion().String(), Kind: kind.Kind},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: object.GetNamespace(), Name: object.GetName(), UID: object.GetUID(),
			Annotations: object.GetAnnotations(), OwnerReferences: object.GetOwnerReferences(),
		},
	}
}

// database is a custom resource that owns StatefulSets which are there already.
func (s *scene) database(name string, annotations map[string]string, owns ...string) {
	object := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"members": int64(3)}}}
	object.SetAPIVersion("db.example.com/v1")
	object.SetKind("Database")
	object.SetNamespace("shop")
	object.SetName(name)
	object.SetUID(types.UID("uid-database-" + name))
	object.SetAnnotations(annotations)
	s.custom = append(s.custom, object)
	for _, o := range s.objects {
		if set, ok := o.(*appsv1.StatefulSet); ok && slices.Contains(owns, set.Name) {
			set.OwnerReferences = []metav1.OwnerReference{{APIVersion: "db.example.com/v1", Kind: "Database", Name: name, UID: object.GetUID(), Controller: ptr.To(true)}}
		}
	}
}

func (s *scene) configMap(name string, annotations map[string]string) {
	s.add(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-map-" + name), Annotations: annotations}})
}

func (s *scene) check(options Options) (*Report, error) {
	s.t.Helper()
	s.add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	scheme := schemeOf(s.t)
	var typed, snapshots, all []runtime.Object
	for _, object := range s.objects {
		switch o := object.(type) {
		case *snapshotv1.VolumeSnapshotClass:
			snapshots = append(snapshots, o)
			content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
			require.NoError(s.t, err)
			content["apiVersion"], content["kind"] = "snapshot.storage.k8s.io/v1", "VolumeSnapshotClass"
			all = append(all, &unstructured.Unstructured{Object: content})
		case *velerov1.Schedule:
			all = append(all, o)
		default:
			typed, all = append(typed, o), append(all, o)
		}
	}
	kube := fake.NewClientset(typed...)
	if s.deny != "" {
		kube.PrependReactor("list", s.deny, func(kubetesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(corev1.Resource(s.deny), "", nil)
		})
	}
	kube.Resources = []*metav1.APIResourceList{
		{GroupVersion: "v1", APIResources: []metav1.APIResource{kindOf("ConfigMap", "configmaps", "cm"), kindOf("Secret", "secrets")}},
		{GroupVersion: "apps/v1", APIResources: []metav1.APIResource{kindOf("StatefulSet", "statefulsets", "sts")}},
		{GroupVersion: "db.example.com/v1", APIResources: []metav1.APIResource{kindOf("Database", "databases", "db")}},
	}
	metadataScheme := runtime.NewScheme()
	require.NoError(s.t, metav1.AddMetaToScheme(metadataScheme))
	var parts, whole []runtime.Object
	for _, object := range s.custom {
		whole = append(whole, object)
		parts = append(parts, partOf(object, object.GroupVersionKind()))
	}
	for _, object := range s.objects {
		switch object.(type) {
		case *corev1.ConfigMap, *appsv1.StatefulSet, *corev1.Secret:
			kinds, _, err := clientscheme.Scheme.ObjectKinds(object)
			require.NoError(s.t, err)
			content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
			require.NoError(s.t, err)
			full := &unstructured.Unstructured{Object: content}
			full.SetGroupVersionKind(kinds[0])
			parts = append(parts, partOf(full, kinds[0]))
			if kinds[0].Kind == "ConfigMap" {
				whole = append(whole, full)
			}
		}
	}
	clock := clocktesting.NewFakePassiveClock(time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC))
	objects := crfake.NewClientBuilder().WithScheme(scheme).WithRuntimeObjects(all...).WithInterceptorFuncs(interceptor.Funcs{
		List: func(ctx context.Context, client crclient.WithWatch, list crclient.ObjectList, options ...crclient.ListOption) error {
			if kind := list.GetObjectKind().GroupVersionKind().Kind; s.deny != "" && strings.EqualFold(kind, strings.TrimSuffix(s.deny, "s")+"List") {
				return apierrors.NewForbidden(corev1.Resource(s.deny), "", nil)
			}
			return client.List(ctx, list, options...)
		},
	}).Build()
	metadata := metadatafake.NewSimpleMetadataClient(metadataScheme, parts...)
	metadata.PrependReactor("list", "secrets", func(kubetesting.Action) (bool, runtime.Object, error) {
		return s.deny == "secrets", nil, apierrors.NewForbidden(corev1.Resource(s.deny), "", nil)
	})
	clients := &cluster.Clients{
		Kube: kube, Objects: objects, Remembered: cluster.Remember(objects, clock), VeleroNamespace: "velero",
		Snapshots: snapshotfake.NewSimpleClientset(snapshots...),
		Dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
			blueprint.Resource:                                              "BlueprintList",
			{Version: "v1", Resource: "configmaps"}:                         "ConfigMapList",
			{Group: "db.example.com", Version: "v1", Resource: "databases"}: "DatabaseList",
		}, whole...),
		Metadata: metadata,
	}
	if options.Deployment == "" {
		options.Deployment = "velero"
	}
	return New(clients, s, clock, func(string) {}).Check(s.t.Context(), options)
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "set UPDATE_GOLDEN=1 to accept")
}

func asks(blueprints string, more ...string) map[string]string {
	annotations := map[string]string{api.AnnotationQuiesce: blueprints}
	for i := 0; i < len(more); i += 2 {
		annotations[more[i]] = more[i+1]
	}
	return annotations
}

// postgres is a blueprint in a ConfigMap, with a Secret.
func (s *scene) postgres() {
	document := `apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata: {name: postgres}
actions:
  backupPrehook:
    phases:
    - func: KubeExec
      name: checkpoint
      objects: {login: {kind: Secret, namespace: "{{ .StatefulSet.Namespace }}", name: login}}
      args:
        namespace: "{{ .StatefulSet.Namespace }}"
        pod: "{{ index .StatefulSet.Pods 0 }}"
        container: db
        command: [env, 'PGPASSWORD={{ index .Phases.checkpoint.Secrets.login.Data "password" | toString }}', psql, -c, CHECKPOINT]
`
	s.add(
		&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "databases", Labels: map[string]string{api.LabelBlueprint: ""}},
			Data:       map[string]string{"postgres.yaml": document},
		},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "login"}, Data: map[string][]byte{"password": []byte(password)}},
	)
}

// execBlueprint is one that runs the name of its object in a container.
func (s *scene) execBlueprint(name, pod, container string) {
	phase := func(name string) string {
		return fmt.Sprintf("{func: KubeExec, name: %[1]s, args: {namespace: '{{ .Namespace.Name }}', pod: %[2]s, container: %[3]s, command: [%[1]s, '{{ .Object.kind }}']}}", name, pod, container)
	}
	s.add(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: name, Labels: map[string]string{api.LabelBlueprint: ""}},
		Data:       map[string]string{name: fmt.Sprintf("actions:\n  backupPrehook: {phases: [%s]}\n  backupPosthook: {phases: [%s]}\n", phase("stop"), phase("go-on"))},
	})
}

// What users read: one file for each kind of outcome.
func TestTable(t *testing.T) {
	for name, test := range map[string]struct {
		server []string
		make   func(s *scene)
		fails  bool
	}{
		"fine": {nil, func(s *scene) {
			s.postgres()
			s.statefulSet("db", asks("fsfreeze,postgres", "stillpoint.io/quiesce-timeout", "45s"), s.claim("db-data", "fast", "group"), s.claim("db-wal", "fast", "group"))
			s.statefulSet("files", asks("fsfreeze"), s.claim("files-data", "fast", ""))
			s.statefulSet("plain", nil, s.claim("plain-data", "fast", "group"))
			s.statefulSet("cache", asks("fsfreeze"), s.claim("cache-data", "fast", "skip"))
			s.claim("left", "fast", "skip")
		}, false},
		"warnings": {[]string{"--item-block-worker-count", "4"}, func(s *scene) {
			s.add(class("safe", driver))
			s.statefulSet("files", asks("fsfreeze"), s.claim("files-data", "fast", ""))
			for _, object := range s.objects {
				if of, ok := object.(*storagev1.StorageClass); ok && of.Name == "fast" {
					of.Annotations = map[string]string{"stillpoint.io/volume-snapshot-class": "safe"}
				}
			}
			s.statefulSet("near", nil, s.claim("near-data", "fast", "near"))
			s.statefulSet("lax", asks("nosuch", "stillpoint.io/on-quiesce-error", "continue"), s.claim("lax-data", "fast", "group"))
		}, false},
		"failures": {nil, func(s *scene) {
			s.statefulSet("unknown", asks("nosuch"), s.claim("unknown-data", "fast", "group"), s.claim("unknown-wal", "fast", "group"))
			s.claim("waiting", "fast", "group", pending)
			s.claim("waiting-too", "fast", "", pending)
			s.statefulSet("classes", nil, s.claim("classes-data", "two", "group"))
			s.statefulSet("split", asks("fsfreeze"), s.claim("split-data", "fast", "group"), s.claim("split-wal", "fast", ""))
			var seven []string
			for i := range 7 {
				seven = append(seven, s.claim(fmt.Sprintf("many-%d", i), "fast", ""))
			}
			s.statefulSet("many", asks("fsfreeze"), seven...)
			s.statefulSet("typo", asks("fsfreeze", "stillpoint.io/quiesce-timout", "1m"), s.claim("typo-data", "fast", "group"), s.claim("typo-wal", "fast", "group"))
			s.statefulSet("frozen-classes", asks("fsfreeze"), s.claim("frozen-data", "two", "group"))
			s.statefulSet("lax-classes", asks("fsfreeze", "stillpoint.io/on-quiesce-error", "continue"), s.claim("lax-data", "two", "group"))
			s.statefulSet("no-class", asks("fsfreeze"), s.claim("no-class-data", "two", ""))
		}, true},
		"objects": {nil, func(s *scene) {
			s.postgres()
			s.execBlueprint("mongo", "db-0", "db")
			s.statefulSet("db", asks("mongo,fsfreeze", "stillpoint.io/quiesce-timeout", "45s"), s.claim("db-0", "fast", "group"))
			s.statefulSet("shard", asks("mongo"), s.claim("db-1", "fast", "group"))
			s.database("db", asks("mongo"), "db", "shard")
			s.statefulSet("gone", nil)
			s.database("gone", asks("mongo"), "gone")
			s.statefulSet("stateless", asks("fsfreeze"))
			s.deny = "secrets"
		}, false},
		"object-of-namespace": {nil, func(s *scene) {
			s.execBlueprint("pause", "web-0", "db")
			s.statefulSet("web", nil, s.claim("files", "fast", "group"))
			s.statefulSet("own", nil, s.claim("own", "fast", "group", func(c *corev1.PersistentVolumeClaim) { c.Annotations = asks("fsfreeze") }))
			s.claim("idle", "fast", "group")
			s.configMap("hooks", asks("pause"))
			s.configMap("typo", map[string]string{"stillpoint.io/quiesc": "pause"})
		}, true},
		"nothing": {nil, func(s *scene) { s.statefulSet("plain", nil, s.claim("data", "fast", "")) }, false},
		"configuration": {nil, func(s *scene) {
			s.add(&corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "stillpoint", Labels: map[string]string{"velero.io/plugin-config": "", "stillpoint.io/stillpoint": "Configuration"}},
				Data:       map[string]string{"config.yaml": "version: v1\nblueprintNamespace: [x]\n"},
			})
			s.statefulSet("files", asks("fsfreeze"), s.claim("files-data", "fast", ""))
			s.statefulSet("plain", nil, s.claim("plain-data", "fast", ""))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, test.server...)
			test.make(s)
			report, err := s.check(Options{Namespaces: []string{"shop"}, VolumePolicies: "policies"})
			require.NoError(t, err)
			var table bytes.Buffer
			require.NoError(t, report.Table(&table))
			golden(t, name+".golden", table.String())
			assert.Equal(t, test.fails, report.Fails)
			assert.NotContains(t, table.String(), password)
			var document bytes.Buffer
			require.NoError(t, report.JSON(&document))
			assert.NotContains(t, document.String(), "s3cret")
			if name == "fine" {
				golden(t, name+".json.golden", document.String())
			}
		})
	}
}

func schedule(change func(*velerov1.Schedule)) *velerov1.Schedule {
	s := &velerov1.Schedule{ObjectMeta: metav1.ObjectMeta{
		Namespace: "velero", Name: "nightly",
		Labels:      map[string]string{"team": "shop"},
		Annotations: map[string]string{"velero.io/csi-volumesnapshot-class_two.example.com": "b"},
	}}
	s.Spec.Template.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: "policies"}
	if change != nil {
		change(s)
	}
	return s
}

// A Schedule's template and annotations make the backup.
func TestSchedule(t *testing.T) {
	s := newScene(t)
	s.add(schedule(nil))
	s.statefulSet("db", nil, s.claim("data", "two", "group"))
	report, err := s.check(Options{Schedule: "nightly"})
	require.NoError(t, err)
	require.Len(t, report.Units, 1)
	assert.Equal(t, "b", report.Units[0].Volumes[0].SnapshotClass)
	assert.Equal(t, "policies", report.Backup.VolumePolicies)
	assert.False(t, report.Fails)

	s = newScene(t)
	s.add(schedule(func(s *velerov1.Schedule) { s.Spec.Template.IncludedNamespaces = []string{"office"} }))
	s.statefulSet("db", nil, s.claim("data", "two", "group"))
	report, err = s.check(Options{Schedule: "nightly"})
	require.NoError(t, err)
	assert.Empty(t, report.Units)
	s.objects = s.objects[:len(s.objects)-1]
	report, err = s.check(Options{Schedule: "nightly", Namespaces: []string{"shop"}})
	require.NoError(t, err)
	assert.Equal(t, "namespace shop is not in the backup", report.Units[0].Volumes[0].Reason)
}

// The global volume policies hand over what the backup says nothing of.
func TestGlobalPolicies(t *testing.T) {
	s := newScene(t, "--global-backup-volume-policies-configmap=policies")
	s.statefulSet("db", nil, s.claim("data", "fast", "group"))
	report, err := s.check(Options{})
	require.NoError(t, err)
	assert.Equal(t, PathGroup, report.Units[0].Volumes[0].Path)

	s = newScene(t, "--global-backup-volume-policies-configmap=gone")
	s.statefulSet("db", nil, s.claim("data", "fast", "group"))
	report, err = s.check(Options{})
	require.NoError(t, err)
	assert.True(t, report.Fails)
	require.Len(t, report.Failures, 1)
	assert.Contains(t, report.Failures[0], `configmaps "gone" not found`)
}

func TestWorkload(t *testing.T) {
	s := newScene(t)
	s.statefulSet("db", nil, s.claim("data", "fast", ""))
	s.statefulSet("web", asks("nosuch"), s.claim("files", "fast", ""))
	report, err := s.check(Options{Namespaces: []string{"shop"}, Kind: "StatefulSet", Name: "db"})
	require.NoError(t, err)
	require.Len(t, report.Units, 1)
	assert.Equal(t, "StatefulSet shop/db", report.Units[0].Name)
	assert.False(t, report.Fails)

	s.objects = s.objects[:len(s.objects)-1]
	_, err = s.check(Options{Namespaces: []string{"shop"}, Kind: "Deployment", Name: "db"})
	require.EqualError(t, err, "namespace shop has no workload Deployment/db with a volume in a running pod, nor such an object with quiesce annotations; there are: statefulset/db, statefulset/web")
}

// An annotated object can be asked for as with kubectl.
func TestObject(t *testing.T) {
	for _, kind := range []string{"Database", "databases", "db", "DB.db.example.com"} {
		s := newScene(t)
		s.statefulSet("web", nil, s.claim("files", "fast", ""))
		s.statefulSet("db", nil, s.claim("data", "fast", ""))
		s.database("db", asks("fsfreeze"), "db")
		s.statefulSet("other", nil, s.claim("more", "fast", ""))
		s.database("other", asks("fsfreeze"), "other")
		report, err := s.check(Options{Namespaces: []string{"shop"}, Kind: kind, Name: "db"})
		require.NoError(t, err)
		require.Len(t, report.Units, 1)
		assert.Equal(t, "Database shop/db", report.Units[0].Name)
		assert.Len(t, report.Units[0].Volumes, 1)
	}
	s := newScene(t)
	s.statefulSet("db", nil, s.claim("data", "fast", ""))
	s.statefulSet("idle", asks("fsfreeze"))
	_, err := s.check(Options{Namespaces: []string{"shop"}, Kind: "StatefulSet", Name: "idle"})
	require.EqualError(t, err, "Nothing is run for StatefulSet shop/idle, which is annotated: none of its pods runs and mounts a claim.")
}

// What cannot be read is no report.
func TestUnreadable(t *testing.T) {
	for name, test := range map[string]struct {
		deny    string
		options Options
		text    string
	}{
		"pods":         {"pods", Options{Namespaces: []string{"shop"}}, "list the pods of namespace shop: "},
		"ConfigMaps":   {"configmaps", Options{Namespaces: []string{"shop"}}, "list ConfigMaps of namespace velero with label stillpoint.io/stillpoint: "},
		"namespaces":   {"namespaces", Options{Namespaces: []string{"shop"}}, "list the namespaces with label velero.io/exclude-from-backup: "},
		"no namespace": {"", Options{Namespaces: []string{"office"}}, `get namespace office: namespaces "office" not found`},
		"no schedule":  {"", Options{Schedule: "weekly"}, "get Schedule velero/weekly: "},
		"no server":    {"", Options{Deployment: "server"}, `read the Velero server's Deployment: deployments.apps "server" not found; name it by --velero-namespace and --velero-deployment, or say the server's flags by --server-args`},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.deny = test.deny
			_, err := s.check(test.options)
			require.ErrorContains(t, err, test.text)
		})
	}
}
