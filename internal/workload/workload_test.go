package workload

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// meta returns the metadata of an object of namespace shop. The controller is given as
// apiVersion, kind, name.
func meta(name string, controller ...string) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name)}
	if len(controller) == 3 {
		yes := true
		m.OwnerReferences = []metav1.OwnerReference{
			{APIVersion: "example.com/v1", Kind: "Backer", Name: "no-controller"},
			{APIVersion: controller[0], Kind: controller[1], Name: controller[2], UID: types.UID("uid-" + controller[2]), Controller: &yes},
		}
	}
	return m
}

// pod returns a running pod with a volume for each claim.
func pod(m metav1.ObjectMeta, claims ...string) corev1.Pod {
	p := corev1.Pod{ObjectMeta: m, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	for _, claim := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: claim, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}})
	}
	return p
}

func (u Component) pods() []string {
	var names []string
	for _, w := range u.Workloads {
		for _, p := range w.Pods {
			names = append(names, p.Name)
		}
	}
	return names
}

func TestConnected(t *testing.T) {
	of := func(kind, name string, p corev1.Pod) member {
		return member{pod: p, owner: Ref{Kind: kind, Namespace: "shop", Name: name}}
	}
	for name, test := range map[string]struct {
		members   []member
		claim     string
		component string
		pods      []string
		claims    []string
	}{
		"nothing": {nil, "data", "", nil, nil},
		"no pod mounts it": {
			[]member{of("StatefulSet", "db", pod(meta("db-0"), "data-db-0"))}, "data", "", nil, nil,
		},
		"one pod": {
			[]member{of("StatefulSet", "db", pod(meta("db-0"), "data")), of("Deployment", "web", pod(meta("web-1"), "www"))},
			"data",
			"StatefulSet shop/db",
			[]string{"db-0"},
			[]string{"data"},
		},
		"all pods of the controller, with their claims": {
			[]member{of("StatefulSet", "db", pod(meta("db-1"), "data-1", "wal-1")), of("StatefulSet", "db", pod(meta("db-0"), "data-0"))},
			"data-0",
			"StatefulSet shop/db",
			[]string{"db-0", "db-1"},
			[]string{"data-0", "data-1", "wal-1"},
		},
		"a chain, in whatever order": {
			[]member{
				of("Deployment", "d", pod(meta("d-1"), "x", "y")), of("Deployment", "c", pod(meta("c-1"), "w", "x")),
				of("Deployment", "b", pod(meta("b-2"), "w")), of("Deployment", "b", pod(meta("b-1"), "v")), of("Pod", "a", pod(meta("a"), "v")),
				of("Deployment", "e", pod(meta("e-1"), "z")),
			},
			"v",
			"Deployment shop/b and Deployment shop/c and Deployment shop/d and Pod shop/a",
			[]string{"b-1", "b-2", "c-1", "d-1", "a"},
			[]string{"v", "w", "x", "y"},
		},
		"one name, two kinds": {
			[]member{of("StatefulSet", "db", pod(meta("db-0"), "data")), of("Deployment", "db", pod(meta("db-x"), "data"))},
			"data",
			"Deployment shop/db and StatefulSet shop/db",
			[]string{"db-x", "db-0"},
			[]string{"data"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			component := connected(test.members, test.claim, true)
			assert.Equal(t, test.component, component.String())
			assert.Equal(t, test.pods, component.pods())
			assert.Equal(t, test.claims, component.Claims)
		})
	}
}

func TestMounts(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	up := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	done := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
	p := pod(meta("db-0"), "data", "raw")
	p.Spec.Volumes = append(p.Spec.Volumes,
		corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
		corev1.Volume{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	)
	p.Spec.InitContainers = []corev1.Container{
		{Name: "setup", VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/setup"}}},
		{Name: "sidecar", RestartPolicy: &always, VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/side"}}},
	}
	p.Spec.Containers = []corev1.Container{
		{
			Name: "pg",
			VolumeMounts: []corev1.VolumeMount{
				{Name: "tmp", MountPath: "/tmp"},
				{Name: "data", MountPath: "/data", SubPath: "pg"},
				{Name: "scratch", MountPath: "/scratch"},
				{Name: "data", MountPath: "/whole"},
			},
			VolumeDevices: []corev1.VolumeDevice{{Name: "raw", DevicePath: "/dev/raw0"}},
		},
		{Name: "crashed", VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/crashed"}}},
		{Name: "no-status", VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/no-status"}}},
		{Name: "exporter"},
	}
	p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "sidecar", State: up}, {Name: "setup", State: done}}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{
		{Name: "exporter", State: up},
		{Name: "pg", State: up},
		{Name: "crashed", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}},
	}

	assert.Equal(t, []string{"sidecar", "pg", "exporter"}, RunningContainers(&p))
	assert.Equal(t, []string{"data", "raw", "db-0-scratch"}, Claims(&p))
	assert.Equal(t, []Mount{
		{Pod: "db-0", Container: "sidecar", Claim: "data", Path: "/side"},
		{Pod: "db-0", Container: "pg", Claim: "data", Path: "/data", SubPath: "pg"},
		{Pod: "db-0", Container: "pg", Claim: "db-0-scratch", Path: "/scratch"},
		{Pod: "db-0", Container: "pg", Claim: "data", Path: "/whole"},
		{Pod: "db-0", Container: "pg", Claim: "raw", Path: "/dev/raw0", Block: true},
	}, Mounts(&p))
}

func objects(all ...runtime.Object) []runtime.Object { return all }

func ptr[T any](value T) *T { return &value }

// find returns the component of a claim of namespace shop.
func find(t *testing.T, kube kubernetes.Interface, claim string) (Component, error) {
	t.Helper()
	inventory, err := Take(t.Context(), kube, "shop")
	if err != nil {
		return Component{}, err
	}
	return inventory.ComponentOf(claim), nil
}

func TestComponentOf(t *testing.T) {
	revised := func(m metav1.ObjectMeta, revision string) metav1.ObjectMeta {
		m.Annotations = map[string]string{revisionAnnotation: revision}
		return m
	}
	in := func(p corev1.Pod, phase corev1.PodPhase) *corev1.Pod {
		p.Status.Phase = phase
		return &p
	}
	terminating := func(p corev1.Pod) *corev1.Pod {
		p.DeletionTimestamp = ptr(metav1.Now())
		p.Finalizers = []string{"example.com/x"}
		return &p
	}
	elsewhere := pod(meta("db-0"), "data")
	elsewhere.Namespace = "other"

	for name, test := range map[string]struct {
		objects   []runtime.Object
		component string
		ref       Ref
		known     bool // Object is set
		pods      []string
		current   []string
	}{
		"Deployment": {
			objects: objects(
				&appsv1.Deployment{ObjectMeta: revised(meta("web"), "2")},
				&appsv1.ReplicaSet{ObjectMeta: revised(meta("web-1", "apps/v1", "Deployment", "web"), "1")},
				&appsv1.ReplicaSet{ObjectMeta: revised(meta("web-2", "apps/v1", "Deployment", "web"), "2")},
				ptr(pod(meta("web-1-a", "apps/v1", "ReplicaSet", "web-1"), "data")),
				ptr(pod(meta("web-2-c", "apps/v1", "ReplicaSet", "web-2"), "data")),
				ptr(pod(meta("web-2-b", "apps/v1", "ReplicaSet", "web-2"), "data")),
			),
			component: "Deployment shop/web", ref: Ref{"apps/v1", "Deployment", "shop", "web", "uid-web"}, known: true,
			pods: []string{"web-1-a", "web-2-b", "web-2-c"}, current: []string{"web-2-b", "web-2-c"},
		},
		"Deployment that is gone": {
			objects: objects(
				&appsv1.ReplicaSet{ObjectMeta: revised(meta("web-1", "apps/v1", "Deployment", "web"), "1")},
				ptr(pod(meta("web-1-a", "apps/v1", "ReplicaSet", "web-1"), "data")),
			),
			component: "Deployment shop/web", ref: Ref{"apps/v1", "Deployment", "shop", "web", "uid-web"},
			pods: []string{"web-1-a"}, current: []string{"web-1-a"},
		},
		"StatefulSet": {
			objects: objects(&appsv1.StatefulSet{ObjectMeta: meta("db")},
				ptr(pod(meta("db-1", "apps/v1", "StatefulSet", "db"), "data-db-1")), ptr(pod(meta("db-0", "apps/v1", "StatefulSet", "db"), "data"))),
			component: "StatefulSet shop/db", ref: Ref{"apps/v1", "StatefulSet", "shop", "db", "uid-db"}, known: true,
			pods: []string{"db-0", "db-1"}, current: []string{"db-0", "db-1"},
		},
		"DaemonSet": {
			objects:   objects(&appsv1.DaemonSet{ObjectMeta: meta("agent")}, ptr(pod(meta("agent-x", "apps/v1", "DaemonSet", "agent"), "data"))),
			component: "DaemonSet shop/agent", ref: Ref{"apps/v1", "DaemonSet", "shop", "agent", "uid-agent"}, known: true,
			pods: []string{"agent-x"}, current: []string{"agent-x"},
		},
		"bare ReplicaSet": {
			objects:   objects(&appsv1.ReplicaSet{ObjectMeta: meta("rs")}, ptr(pod(meta("rs-x", "apps/v1", "ReplicaSet", "rs"), "data"))),
			component: "ReplicaSet shop/rs", ref: Ref{"apps/v1", "ReplicaSet", "shop", "rs", "uid-rs"}, known: true,
			pods: []string{"rs-x"}, current: []string{"rs-x"},
		},
		"ReplicaSet that is gone": {
			objects:   objects(ptr(pod(meta("rs-x", "apps/v1", "ReplicaSet", "rs"), "data"))),
			component: "ReplicaSet shop/rs", ref: Ref{"apps/v1", "ReplicaSet", "shop", "rs", "uid-rs"},
			pods: []string{"rs-x"}, current: []string{"rs-x"},
		},
		"bare Pod": {
			objects:   objects(ptr(pod(meta("db"), "data")), ptr(pod(meta("no-volumes")))),
			component: "Pod shop/db", ref: Ref{"v1", "Pod", "shop", "db", "uid-db"}, known: true,
			pods: []string{"db"}, current: []string{"db"},
		},
		"Job": {
			objects:   objects(&batchv1.Job{ObjectMeta: meta("load")}, ptr(pod(meta("load-x", "batch/v1", "Job", "load"), "data"))),
			component: "Job shop/load", ref: Ref{"batch/v1", "Job", "shop", "load", "uid-load"}, known: true,
			pods: []string{"load-x"}, current: []string{"load-x"},
		},
		"Job that is gone": {
			objects:   objects(ptr(pod(meta("load-x", "batch/v1", "Job", "load"), "data"))),
			component: "Job shop/load", ref: Ref{"batch/v1", "Job", "shop", "load", "uid-load"},
			pods: []string{"load-x"}, current: []string{"load-x"},
		},
		"CronJob": {
			objects: objects(&batchv1.CronJob{ObjectMeta: meta("nightly")}, &batchv1.Job{ObjectMeta: meta("nightly-1", "batch/v1", "CronJob", "nightly")},
				ptr(pod(meta("nightly-1-x", "batch/v1", "Job", "nightly-1"), "data"))),
			component: "CronJob shop/nightly", ref: Ref{"batch/v1", "CronJob", "shop", "nightly", "uid-nightly"}, known: true,
			pods: []string{"nightly-1-x"}, current: []string{"nightly-1-x"},
		},
		"a kind that is not known here": {
			objects:   objects(ptr(pod(meta("pg-1", "postgresql.cnpg.io/v1", "Cluster", "pg"), "data")), ptr(pod(meta("pg-2", "postgresql.cnpg.io/v1", "Cluster", "pg"), "data-2"))),
			component: "Cluster shop/pg", ref: Ref{"postgresql.cnpg.io/v1", "Cluster", "shop", "pg", "uid-pg"},
			pods: []string{"pg-1", "pg-2"}, current: []string{"pg-1", "pg-2"},
		},
		"a ReplicaSet of a kind that is not known here": {
			objects: objects(&appsv1.ReplicaSet{ObjectMeta: meta("web-1", "argoproj.io/v1alpha1", "Rollout", "web")},
				ptr(pod(meta("web-1-a", "apps/v1", "ReplicaSet", "web-1"), "data"))),
			component: "Rollout shop/web", ref: Ref{"argoproj.io/v1alpha1", "Rollout", "shop", "web", "uid-web"},
			pods: []string{"web-1-a"}, current: []string{"web-1-a"},
		},
		"finished, pending and terminating pods do not count": {
			objects: objects(&appsv1.StatefulSet{ObjectMeta: meta("db")},
				ptr(pod(meta("db-0", "apps/v1", "StatefulSet", "db"), "data")),
				terminating(pod(meta("db-1", "apps/v1", "StatefulSet", "db"), "data")),
				in(pod(meta("db-2", "apps/v1", "StatefulSet", "db"), "data"), corev1.PodPending),
				in(pod(meta("load", "batch/v1", "Job", "load"), "data"), corev1.PodSucceeded),
				in(pod(meta("crash"), "data"), corev1.PodFailed)),
			component: "StatefulSet shop/db", ref: Ref{"apps/v1", "StatefulSet", "shop", "db", "uid-db"}, known: true,
			pods: []string{"db-0"}, current: []string{"db-0"},
		},
		"none left":                              {objects: objects(in(pod(meta("load", "batch/v1", "Job", "load"), "data"), corev1.PodSucceeded), terminating(pod(meta("db"), "data")))},
		"another namespace's claim of that name": {objects: objects(&elsewhere)},
	} {
		t.Run(name, func(t *testing.T) {
			component, err := find(t, fake.NewClientset(test.objects...), "data")
			require.NoError(t, err)
			require.Equal(t, test.component, component.String())
			assert.Equal(t, test.pods, component.pods())
			if test.component == "" {
				assert.Empty(t, component.Claims)
				return
			}
			require.Len(t, component.Workloads, 1)
			w := component.Workloads[0]
			assert.Equal(t, test.ref, w.Ref)
			if test.known {
				require.NotNil(t, w.Object)
				assert.Equal(t, w.Name, w.Object.GetName())
			} else {
				assert.Nil(t, w.Object)
			}
			var current []string
			for _, p := range w.CurrentPods {
				current = append(current, p.Name)
			}
			assert.Equal(t, test.current, current)
		})
	}
}

func TestComponentOfPod(t *testing.T) {
	db := pod(meta("db-0", "apps/v1", "StatefulSet", "db"), "data", "wal")
	kube := fake.NewClientset(&db, ptr(pod(meta("copy"), "wal")))
	finished := db
	finished.Status.Phase = corev1.PodSucceeded
	for name, test := range map[string]struct {
		pod       corev1.Pod
		component string
	}{
		"by its volumes": {db, "Pod shop/copy and StatefulSet shop/db"},
		"no volumes":     {pod(meta("proxy")), ""},
		"not running":    {finished, ""},
	} {
		t.Run(name, func(t *testing.T) {
			inventory, err := Take(t.Context(), kube, "shop")
			require.NoError(t, err)
			assert.Equal(t, test.component, inventory.ComponentOfPod(&test.pod).String())
		})
	}
}

// The number of requests does not depend on the number of workloads.
func TestRequestsDoNotGrow(t *testing.T) {
	for name, test := range map[string]struct {
		workloads int
		requests  []string
	}{
		"few":  {1, []string{"list pods", "get replicasets", "get deployments"}},
		"many": {300, []string{"list pods", "list replicasets", "list deployments"}},
	} {
		t.Run(name, func(t *testing.T) {
			var all []runtime.Object
			for i := range test.workloads {
				web := fmt.Sprintf("web%d", i)
				all = append(all, &appsv1.Deployment{ObjectMeta: meta(web)}, &appsv1.ReplicaSet{ObjectMeta: meta(web+"-1", "apps/v1", "Deployment", web)},
					ptr(pod(meta(web+"-1-a", "apps/v1", "ReplicaSet", web+"-1"), web)))
			}
			kube := fake.NewClientset(all...)
			inventory, err := Take(t.Context(), kube, "shop")
			require.NoError(t, err)
			component := inventory.ComponentOf("web0")
			assert.Equal(t, "Deployment shop/web0", component.String())
			assert.NotNil(t, component.Workloads[0].Object)
			var requests []string
			for _, action := range kube.Actions() {
				requests = append(requests, action.GetVerb()+" "+action.GetResource().Resource)
			}
			assert.Equal(t, test.requests, requests)
		})
	}
}

func TestFindSaysWhatCannotBeRead(t *testing.T) {
	for resource, text := range map[string]string{
		"pods":        `list the pods of namespace shop: pods is forbidden: no`,
		"replicasets": `get ReplicaSet shop/web-1: replicasets.apps "web-1" is forbidden: no`,
		"deployments": `get Deployment shop/web: deployments.apps "web" is forbidden: no`,
		"jobs":        `get Job shop/load: jobs.batch "load" is forbidden: no`,
	} {
		t.Run(resource, func(t *testing.T) {
			kube := fake.NewClientset(
				&appsv1.ReplicaSet{ObjectMeta: meta("web-1", "apps/v1", "Deployment", "web")},
				ptr(pod(meta("web-1-a", "apps/v1", "ReplicaSet", "web-1"), "data")),
				ptr(pod(meta("load-x", "batch/v1", "Job", "load"), "data")),
			)
			kube.PrependReactor("*", resource, func(action clienttesting.Action) (bool, runtime.Object, error) {
				name := ""
				if get, ok := action.(clienttesting.GetAction); ok {
					name = get.GetName()
				}
				return true, nil, apierrors.NewForbidden(action.GetResource().GroupResource(), name, errors.New("no"))
			})
			inventory, err := Take(t.Context(), kube, "shop")
			if resource == "pods" {
				require.EqualError(t, err, text)
				return
			}
			require.NoError(t, err, "the pods are known")
			require.EqualError(t, inventory.Unread(), text)
			assert.Equal(t, []string{"data"}, inventory.ComponentOf("data").Claims)
			assert.Len(t, inventory.Pods(), 2)
		})
	}
}
