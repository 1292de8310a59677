package function

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic/fake"
	kubefake "k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/render"
)

// someTasks are of a cluster with a few kinds and one StatefulSet.
func someTasks() *Tasks {
	objects := fake.NewSimpleDynamicClient(scheme.Scheme, stateful("db", 3))
	objects.PrependReactor("get", "statefulsets", func(action clienttesting.Action) (bool, runtime.Object, error) {
		get, ok := action.(clienttesting.GetAction)
		if !ok || get.GetSubresource() != "scale" {
			return false, nil, nil
		}
		if get.GetName() != "db" {
			return true, nil, apierrors.NewNotFound(schema.GroupResource{Group: "apps", Resource: "statefulsets"}, get.GetName())
		}
		return true, &unstructured.Unstructured{Object: map[string]any{
			"spec": map[string]any{"replicas": int64(3)}, "status": map[string]any{"selector": "app=db"},
		}}, nil
	})
	// As the API server says of custom resources.
	objects.PrependReactor("patch", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if patch, ok := action.(clienttesting.PatchAction); ok && patch.GetPatchType() == types.StrategicMergePatchType {
			return true, nil, apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "patch", schema.GroupResource{}, "", "", 0, false)
		}
		return false, nil, nil
	})
	mapper := meta.NewDefaultRESTMapper(nil)
	for kind, scope := range map[schema.GroupVersionKind]meta.RESTScope{
		corev1.SchemeGroupVersion.WithKind("ConfigMap"):                       meta.RESTScopeNamespace,
		corev1.SchemeGroupVersion.WithKind("Secret"):                          meta.RESTScopeNamespace,
		corev1.SchemeGroupVersion.WithKind("Pod"):                             meta.RESTScopeNamespace,
		corev1.SchemeGroupVersion.WithKind("Node"):                            meta.RESTScopeRoot,
		rbacv1.SchemeGroupVersion.WithKind("RoleBinding"):                     meta.RESTScopeNamespace,
		rbacv1.SchemeGroupVersion.WithKind("ClusterRole"):                     meta.RESTScopeRoot,
		{Group: "apps", Version: "v1", Kind: "Deployment"}:                    meta.RESTScopeNamespace,
		{Group: "apps", Version: "v1", Kind: "StatefulSet"}:                   meta.RESTScopeNamespace,
		{Group: "apps.openshift.io", Version: "v1", Kind: "DeploymentConfig"}: meta.RESTScopeNamespace,
	} {
		mapper.Add(kind, scope)
	}
	client := kubefake.NewClientset(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "payments"}}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	return &Tasks{
		clients: &cluster.Clients{Kube: client, Dynamic: objects}, mapper: mapper,
		as: func(user string) (*access, error) {
			if user != "system:serviceaccount:shop:default" {
				return nil, fmt.Errorf("nobody is to act as %s", user)
			}
			return &access{client, objects}, nil
		},
	}
}

// TestTaskConfinement has every function reach for what is another tenant's.
func TestTaskConfinement(t *testing.T) {
	var report strings.Builder
	for _, phases := range []string{
		"- {func: KubeTask, name: x, args: {image: i, command: [c]}}",
		"- {func: KubeTask, name: x, args: {image: i, command: [c], namespace: payments}}",
		"- {func: KubeTask, name: x, args: {image: i, command: [c], namespace: '{{ .Options.ns }}'}}",
		"- {func: KubeTask, name: x, args: {image: i, command: [c], namespace: '{{ .Deployment.Namespace }}'}}",
		"- {func: MultiContainerRun, name: x, args: {outputImage: i, outputCommand: [c], backgroundImage: i, backgroundCommand: [c], namespace: '{{ .Options.ns }}'}}",
		"- {func: ScaleWorkload, name: x, args: {replicas: 0}}",
		"- {func: ScaleWorkload, name: x, args: {replicas: 0, kind: StatefulSet, name: db}}",
		"- {func: ScaleWorkload, name: x, args: {replicas: 0, kind: StatefulSet, name: db, namespace: '{{ .Options.ns }}'}}",
		"- {func: KubeOps, name: x, args: {operation: create, spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}'}}",
		"- {func: KubeOps, name: x, args: {operation: create, spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: {{ .Options.own }}}}'}}",
		"- {func: KubeOps, name: x, args: {operation: create, namespace: '{{ .Options.own }}', spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}'}}",
		"- {func: KubeOps, name: x, args: {operation: create, spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: payments}}'}}",
		"- {func: KubeOps, name: x, args: {operation: create, namespace: shop, spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: {{ .Options.ns }}}}'}}",
		"- {func: KubeOps, name: x, args: {operation: create, namespace: payments, spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: {{ .Options.own }}}}'}}",
		"- {func: KubeOps, name: x, args: {operation: create, spec: '{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: a}}'}}",
		"- {func: KubeOps, name: x, args: {operation: create, namespace: shop, spec: '{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: {{ .Options.own }}}}'}}",
		"- {func: KubeOps, name: x, args: {operation: delete, objectReference: {apiVersion: v1, resource: secrets, name: a, namespace: payments}}}",
		"- {func: KubeOps, name: x, args: {operation: delete, objectReference: {apiVersion: v1, resource: secrets, name: '{{ .Options.other }}', namespace: payments}}}",
		"- {func: KubeOps, name: x, args: {operation: delete, objectReference: {apiVersion: v1, resource: nodes, name: a}}}",
		"- {func: KubeOps, name: x, args: {operation: delete, objectReference: {apiVersion: v1, resource: nodes, name: '{{ .Options.own }}'}}}",
		"- {func: KubeOps, name: x, args: {operation: patch, spec: '{data: {a: b}}', objectReference: {apiVersion: v1, resource: configmaps, name: a}}}",
		"- {func: KubeOps, name: x, args: {operation: patch, spec: '{data: {a: {{ .Options.own }}}}', objectReference: {apiVersion: v1, resource: configmaps, name: a, namespace: '{{ .Options.ns }}'}}}",
		"- {func: KubeOps, name: x, args: {operation: delete, objectReference: {apiVersion: v1, resource: pods/../../namespaces/payments/pods, name: a, namespace: shop}}}",
		"- {func: KubeOps, name: x, args: {operation: delete, objectReference: {apiVersion: v1, resource: pods, name: ../../payments/pods/ledger-0, namespace: shop}}}",
		"- {func: Wait, name: x, args: {timeout: 1s, conditions: {allOf: [{condition: 'true', objectReference: {apiVersion: v1, resource: secrets, name: a, namespace: payments}}]}}}",
		"- {func: WaitV2, name: x, args: {timeout: 1s, conditions: {anyOf: [{condition: 'true', objectReference: {apiVersion: v1, resource: secrets, name: '{{ .Options.other }}', namespace: payments}}]}}}",
		"- {func: WaitV2, name: x, args: {timeout: 1s, conditions: {anyOf: [{condition: 'true', objectReference: {apiVersion: v1, resource: nodes, name: a}}]}}}",
		"- {func: WaitV2, name: x, args: {timeout: 1s, conditions: {anyOf: [{condition: 'true', objectReference: {apiVersion: v1, resource: nodes, name: '{{ .Options.own }}'}}]}}}",
	} {
		fmt.Fprintf(&report, "%s\n", phases)
		for _, confineTo := range []string{"shop", ""} {
			got, _, err := steps(t.Context(), renderer(confineTo), "    "+phases+"\n", deployment())
			text := "allowed"
			if err != nil {
				text = strings.TrimPrefix(err.Error(), "blueprint test (Blueprint velero/test): action backupPrehook: ")
			} else {
				require.Equal(t, confineTo, got[0].Task.ConfinedTo)
				text += ": " + Describe(got[0].Task)
			}
			fmt.Fprintf(&report, "  confined to %q => %s\n", confineTo, text)
		}
		report.WriteString("\n")
	}
	golden(t, "tasks.golden", report.String())
}

func TestTaskErrors(t *testing.T) {
	var report strings.Builder
	for _, phases := range []string{
		"- {func: KubeTask, name: x, args: {image: '', command: [c]}}",
		"- {func: KubeTask, name: x, args: {image: i, command: []}}",
		"- {func: KubeTask, name: x, args: {image: i}}",
		"- {func: KubeTask, name: x, args: {image: i, command: [c], timeout: 1s}}",
		"- {func: KubeTask, name: x, args: {image: i, command: [c], podOverride: 'a: b'}}",
		"- {func: KubeTask, name: x, args: {image: i, command: [c], podOverride: {containers: [{name: container, $patch: delete}]}}}",
		"- {func: KubeTask, name: x, args: {image: i, command: [c], podLabels: [a]}}",
		"- {func: KubeTask, name: x, args: {image: i, command: [c], podAnnotations: {a: {b: c}}}}",
		"- {func: MultiContainerRun, name: x, args: {outputImage: i, outputCommand: [c], backgroundImage: i}}",
		"- {func: MultiContainerRun, name: x, args: {outputImage: i, outputCommand: [c], backgroundImage: i, backgroundCommand: [c], initCommand: [c]}}",
		"- {func: MultiContainerRun, name: x, args: {outputImage: i, outputCommand: [c], backgroundImage: i, backgroundCommand: [c], sharedVolumeSizeLimit: much}}",
		"- {func: ScaleWorkload, name: x, args: {replicas: -1}}",
		"- {func: ScaleWorkload, name: x, args: {replicas: some}}",
		"- {func: ScaleWorkload, name: x, args: {replicas: 1, kind: Deployment, name: ../../payments/deployments/a}}",
		"- {func: ScaleWorkload, name: x, args: {replicas: 1, kind: DaemonSet, name: a}}",
		"- {func: ScaleWorkload, name: x, args: {replicas: 1, waitForReady: perhaps}}",
		"- {func: KubeOps, name: x, args: {operation: apply}}",
		"- {func: KubeOps, name: x, args: {operation: create}}",
		"- {func: KubeOps, name: x, args: {operation: create, spec: {kind: ConfigMap}}}",
		"- {func: KubeOps, name: x, args: {operation: create, spec: 'kind: ConfigMap'}}",
		"- {func: KubeOps, name: x, args: {operation: create, spec: '{apiVersion: v1, kind: ConfigMap}'}}",
		"- {func: KubeOps, name: x, args: {operation: create, spec: '{apiVersion: v1, kind: Widget, metadata: {name: a}}'}}",
		"- {func: KubeOps, name: x, args: {operation: create, spec: 'just text'}}",
		"- {func: KubeOps, name: x, args: {operation: create, spec: \"a: 1\\n---\\nb: 2\"}}",
		"- {func: KubeOps, name: x, args: {operation: create, spec: \"a: 1\\na: 2\"}}",
		"- {func: KubeOps, name: x, args: {operation: patch, objectReference: {apiVersion: v1, resource: configmaps, name: a}}}",
		"- {func: KubeOps, name: x, args: {operation: delete}}",
		"- {func: KubeOps, name: x, args: {operation: delete, objectReference: {apiVersion: v1, name: a}}}",
		"- {func: KubeOps, name: x, args: {operation: delete, objectReference: {apiVersion: v1, resource: deployments, name: a}}}",
		"- {func: KubeOps, name: x, args: {operation: delete, objectReference: {apiVersion: apps/v1, resource: deployments, name: a}}}",
		"- {func: KubeOps, name: x, args: {operation: delete, objectReference: {apiVersion: v1, resources: pods, name: a}}}",
		"- {func: KubeOps, name: x, args: {operation: delete, objectReference: pods}}",
		"- {func: Wait, name: x, args: {timeout: soon, conditions: {anyOf: [{condition: a, objectReference: {apiVersion: v1, resource: pods, name: a, namespace: shop}}]}}}",
		"- {func: Wait, name: x, args: {timeout: 1s, conditions: {anyOf: [{condition: '{ $.status[ }', objectReference: {apiVersion: v1, resource: pods, name: a, namespace: shop}}]}}}",
		"- {func: WaitV2, name: x, args: {timeout: 1s, conditions: {anyOf: [{condition: '{{ if', objectReference: {apiVersion: v1, resource: pods, name: a, namespace: shop}}]}}}",
		"- {func: WaitV2, name: x, args: {timeout: 1s, conditions: {anyOf: [{condition: 'true', objectReference: {apiVersion: v1, resource: pods, name: a}}]}}}",
		"- {func: WaitV2, name: x, args: {timeout: 1s, conditions: {anyOf: [{condition: 'true'}]}}}",
		"- {func: WaitV2, name: x, args: {timeout: 1s, conditions: {anyOf: [{objectReference: {}}]}}}",
		"- {func: WaitV2, name: x, args: {timeout: 1s, conditions: {}}}",
		"- {func: WaitV2, name: x, args: {timeout: 1s, conditions: {oneOf: []}}}",
		"- {func: WaitV2, name: x, args: {conditions: {oneOf: []}}}",
	} {
		_, _, err := steps(t.Context(), renderer("shop"), "    "+phases+"\n", deployment())
		require.Error(t, err, phases)
		fmt.Fprintf(&report, "%s\n  => %s\n\n", phases, strings.TrimPrefix(err.Error(), "blueprint test (Blueprint velero/test): action backupPrehook: "))
	}
	golden(t, "taskerrors.golden", report.String())
}

// A record of a task lies in the cluster before it is run; what it may do is
// checked again.
func TestTasksAreCheckedAgain(t *testing.T) {
	ref := map[string]any{"apiVersion": "v1", "resource": "secrets", "name": "ledger", "namespace": "payments"}
	for _, task := range []*render.Task{
		{Func: "KubeTask", Args: render.Args{"image": "i", "command": "c", "namespace": "payments"}},
		{Func: "ScaleWorkload", Args: render.Args{"replicas": "0", "kind": "StatefulSet", "name": "db", "namespace": "payments"}},
		{Func: "KubeOps", Args: render.Args{"operation": "delete", "objectReference": ref}},
		{Func: "KubeOps", Args: render.Args{"operation": "delete", "objectReference": map[string]any{"apiVersion": "v1", "resource": "nodes", "name": "n"}}},
		{Func: "WaitV2", Args: render.Args{"timeout": "1s", "conditions": map[string]any{"anyOf": []any{map[string]any{"condition": "true", "objectReference": ref}}}}},
	} {
		task.Namespace, task.ConfinedTo = "shop", "shop"
		_, err := someTasks().Run(t.Context(), task)
		require.ErrorContains(t, err, "is out of reach: a blueprint of namespace shop acts there only", task.Func)
	}
	_, err := someTasks().Run(t.Context(), &render.Task{Func: "KubeOps", ConfinedTo: "shop", ServiceAccount: "robot"})
	require.ErrorContains(t, err, "nobody is to act as system:serviceaccount:shop:robot")
	_, err = someTasks().Run(t.Context(), &render.Task{Func: "KubeOps", ConfinedTo: "shop", ServiceAccount: "a:b"})
	require.ErrorContains(t, err, `option service-account is "a:b", must be the name of a ServiceAccount`)
	_, err = someTasks().Run(t.Context(), &render.Task{Func: "KubeExec"})
	require.EqualError(t, err, `function "KubeExec" is no task; tasks are: KubeOps, KubeTask, MultiContainerRun, ScaleWorkload, Wait, WaitV2`)
}

func TestServiceAccountIsAnOption(t *testing.T) {
	p := deployment()
	p.Options["service-account"] = "robot"
	got, _, err := steps(t.Context(), renderer("shop"), "    - {func: KubeTask, name: x, args: {image: i, command: [c]}}\n", p)
	require.NoError(t, err)
	require.Equal(t, "robot", got[0].Task.ServiceAccount)
	text, err := json.Marshal(got[0].Task)
	require.NoError(t, err)
	read := &render.Task{}
	require.NoError(t, json.Unmarshal(text, read))
	require.Equal(t, got[0].Task, read)
}

func TestTaskPods(t *testing.T) {
	var report strings.Builder
	for _, task := range []*render.Task{
		{Func: "KubeTask", Namespace: "shop", Owner: "session-1", Args: render.Args{"image": "tool:1", "command": []any{"sh", "-c", "true"}}},
		{Func: "KubeTask", Namespace: "shop", Args: render.Args{
			"namespace": "other", "image": "tool:1", "command": "true",
			"podLabels": map[string]any{"a": "b", "n": int64(1)}, "podAnnotations": map[string]any{"c": "d"},
			"podOverride": map[string]any{
				"serviceAccountName": "robot",
				"containers": []any{
					map[string]any{"name": "sidecar", "image": "side:1"},
					map[string]any{"name": "container", "securityContext": map[string]any{"runAsUser": int64(1000)}, "env": []any{map[string]any{"name": "A", "value": "b"}}},
				},
			},
		}},
		{Func: "MultiContainerRun", Namespace: "shop", Args: render.Args{
			"initImage": "init:1", "backgroundImage": "back:1", "backgroundCommand": []any{"b"}, "outputImage": "out:1", "outputCommand": []any{"o"},
			"initCommand": []any{"i"}, "sharedVolumeMedium": "Memory", "sharedVolumeSizeLimit": "1Gi", "sharedVolumeDir": "/shared",
		}},
		{Func: "MultiContainerRun", Namespace: "shop", Args: render.Args{
			"backgroundImage": "back:1", "backgroundCommand": []any{"b"}, "outputImage": "out:1", "outputCommand": []any{"o"},
		}},
	} {
		pod, err := podOf(task)
		require.NoError(t, err)
		text, err := yaml.Marshal(pod)
		require.NoError(t, err)
		fmt.Fprintf(&report, "# %s\n%s---\n", Describe(task), text)
	}
	golden(t, "pods.golden", report.String())
}

func TestOperations(t *testing.T) {
	configMap := func(data map[string]any) map[string]any {
		return map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "note"}, "data": data}
	}
	ref := map[string]any{"apiVersion": "v1", "resource": "configmaps", "name": "note", "namespace": "shop"}
	run := someTasks()
	do := func(args render.Args) (map[string]any, error) {
		return run.Run(t.Context(), &render.Task{Func: "KubeOps", Namespace: "shop", Args: args})
	}
	stored := func() map[string]any {
		object, err := run.clients.Dynamic.Resource(corev1.SchemeGroupVersion.WithResource("configmaps")).Namespace("shop").Get(t.Context(), "note", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		require.NoError(t, err)
		data, _, _ := unstructured.NestedMap(object.Object, "data")
		return data
	}
	outputs, err := do(render.Args{"operation": "create", "namespace": "shop", "spec": configMap(map[string]any{"a": "b"})})
	require.NoError(t, err)
	require.Equal(t, map[string]any{"apiVersion": "v1", "group": "", "resource": "configmaps", "kind": "", "name": "note", "namespace": "shop"}, outputs)
	require.Equal(t, map[string]any{"a": "b"}, stored())
	_, err = do(render.Args{"operation": "create", "namespace": "shop", "spec": configMap(nil)})
	require.ErrorContains(t, err, "create ConfigMap shop/note: ")
	require.True(t, apierrors.IsAlreadyExists(err))
	for _, owner := range []string{"one", "one", "two"} { // an object is created once for each session
		other := configMap(nil)
		other["metadata"] = map[string]any{"name": "of-a-session"}
		outputs, err = run.Run(t.Context(), &render.Task{Func: "KubeOps", Namespace: "shop", Owner: owner, Args: render.Args{"operation": "create", "namespace": "shop", "spec": other}})
		if owner == "two" {
			require.True(t, apierrors.IsAlreadyExists(err))
		} else {
			require.NoError(t, err)
			require.Equal(t, "of-a-session", outputs["name"])
		}
	}

	outputs, err = do(render.Args{"operation": "patch", "objectReference": ref, "spec": map[string]any{"data": map[string]any{"c": "d"}}})
	require.NoError(t, err)
	require.Equal(t, "note", outputs["name"])
	require.Equal(t, map[string]any{"a": "b", "c": "d"}, stored())

	for range 2 { // the second time there is nothing left
		_, err = do(render.Args{"operation": "delete", "objectReference": ref})
		require.NoError(t, err)
		require.Nil(t, stored())
	}
}

func TestUnready(t *testing.T) {
	now := metav1.Now()
	of := func(name, owner, kind string, change func(*corev1.Pod)) corev1.Pod {
		yes := true
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{"pod-template-hash": "1a", "deploymentconfig": "app"},
			OwnerReferences: []metav1.OwnerReference{{Kind: kind, Name: owner, Controller: &yes}},
		}}
		p.Status.Phase = corev1.PodRunning
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		if change != nil {
			change(&p)
		}
		return p
	}
	ready := of("app-0", "app-1a", "ReplicaSet", nil)
	leaving := of("app-1", "app-1a", "ReplicaSet", func(p *corev1.Pod) { p.DeletionTimestamp = &now })
	left := of("app-2", "app-1a", "ReplicaSet", func(p *corev1.Pod) { p.DeletionTimestamp = &now; p.Status.Phase = corev1.PodFailed })
	evicted := of("app-3", "app-1a", "ReplicaSet", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
	starting := of("app-4", "app-1a", "ReplicaSet", func(p *corev1.Pod) { p.Status.Conditions = nil })
	stranger := of("job", "app-1b", "Job", nil)
	for name, test := range map[string]struct {
		kind       string
		replicas   int32
		pods       []corev1.Pod
		generation int64
		want       string
	}{
		"as wanted":            {"Deployment", 1, []corev1.Pod{ready, evicted, stranger}, 1, ""},
		"all gone":             {"Deployment", 0, []corev1.Pod{evicted, stranger}, 1, ""},
		"one leaves":           {"Deployment", 0, []corev1.Pod{leaving}, 1, "there are 1 pods, 0 of them ready; others: app-1 (terminating)"},
		"one has stopped only": {"Deployment", 0, []corev1.Pod{left}, 1, "there are 1 pods, 0 of them ready; others: app-2 (terminating)"},
		"one comes":            {"Deployment", 2, []corev1.Pod{ready, starting}, 1, "there are 2 pods, 1 of them ready; others: app-4 (not ready)"},
		"unseen":               {"Deployment", 0, nil, 2, "its controller has not seen the change yet"},
		"set":                  {"StatefulSet", 1, []corev1.Pod{of("app-0", "app", "StatefulSet", nil), of("b-0", "b", "StatefulSet", nil)}, 1, ""},
		"OpenShift":            {"DeploymentConfig", 1, []corev1.Pod{of("app-0", "app-7", "ReplicationController", nil)}, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := scalingOf(&render.Task{Namespace: "shop", Args: render.Args{"kind": test.kind, "name": "app", "replicas": int64(test.replicas)}})
			require.NoError(t, err)
			object := &unstructured.Unstructured{Object: map[string]any{
				"metadata": map[string]any{"generation": test.generation},
				"status":   map[string]any{"observedGeneration": int64(1), "replicas": int64(test.replicas)},
			}}
			require.Equal(t, test.want, s.unready(object, test.pods))
		})
	}
}

func TestWaitEndsWithItsTimeout(t *testing.T) {
	condition := func(name, condition string) any {
		return map[string]any{"condition": condition, "objectReference": map[string]any{
			"group": "apps", "apiVersion": "v1", "resource": "statefulsets", "name": name, "namespace": "shop",
		}}
	}
	wait := func(timeout string, conditions map[string]any) error {
		_, err := someTasks().Run(t.Context(), &render.Task{Func: "WaitV2", Namespace: "shop", Args: render.Args{"timeout": timeout, "conditions": conditions}})
		return err
	}
	met, unmet, absent := condition("db", "{{ .spec.replicas | eq 3 }}"), condition("db", "{{ .spec.replicas | eq 7 }}"), condition("nope", "true")
	require.NoError(t, wait("1m", map[string]any{"allOf": []any{met}}))
	require.NoError(t, wait("1m", map[string]any{"anyOf": []any{absent, unmet, met}}))
	require.NoError(t, wait("1m", map[string]any{"anyOf": []any{met}, "allOf": []any{unmet}}))
	require.EqualError(t, wait("2s", map[string]any{"allOf": []any{met, unmet, absent}}), `WaitV2 up to 2s for statefulsets shop/db, statefulsets shop/db, statefulsets shop/nope: not within 2s: `+
		`StatefulSet shop/db: the condition {{ .spec.replicas | eq 7 }} is not met; statefulsets.apps "nope" not found`)
	require.ErrorContains(t, wait("2s", map[string]any{"anyOf": []any{unmet}}), "is not met")
	// The last look of a busy client ends before its time and has seen nothing.
	busy := someTasks()
	looks := 0
	client, ok := busy.clients.Dynamic.(*fake.FakeDynamicClient)
	require.True(t, ok)
	client.PrependReactor("get", "statefulsets", func(clienttesting.Action) (bool, runtime.Object, error) {
		looks++
		return looks > 2, nil, errors.New("client rate limiter Wait returned an error: rate: Wait(n=1) would exceed context deadline")
	})
	_, err := busy.Run(t.Context(), &render.Task{Func: "WaitV2", Args: render.Args{"timeout": "2s", "conditions": map[string]any{"anyOf": []any{unmet}}}})
	require.ErrorContains(t, err, "not within 2s: StatefulSet shop/db: the condition {{ .spec.replicas | eq 7 }} is not met")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = someTasks().Run(ctx, &render.Task{Func: "WaitV2", Args: render.Args{"timeout": "1h", "conditions": map[string]any{"allOf": []any{unmet}}}})
	require.ErrorIs(t, err, context.Canceled)
}
