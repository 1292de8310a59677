package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"stillpoint.io/stillpoint/internal/api"
	stillpoint "stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/function"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/tests/cluster"
)

// everyFunction uses what an earlier phase gave in each place where that can
// stand, and hands an artifact to the posthook.
const everyFunction = `
apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata: {name: e2e-functions}
actions:
  backupPrehook:
    secretNames: [login]
    outputArtifacts:
      state:
        keyValue:
          position: "{{ .Phases.measure.Output.position }}"
          worker: "{{ .Phases.stop.Output.originalReplicaCount }}"
          note: "{{ .Phases.note.Output.name }}"
    phases:
      - func: KubeTask
        name: measure
        args:
          image: ` + cluster.Image + `
          podOverride: {terminationGracePeriodSeconds: 1, containers: [{name: container, env: [{name: LOGIN, value: '{{ index .Secrets.login.Data "user" | toString }}'}]}]}
          podLabels: {tier: measure}
          command: [sh, -c, 'echo "it is ###Phase-output###: {\"key\": \"position\", \"value\": \"$LOGIN-42\"}"']
      - func: KubeOps
        name: note
        args:
          operation: create
          namespace: "{{ .Deployment.Namespace }}"
          spec: |
            apiVersion: v1
            kind: ConfigMap
            metadata:
              name: note-{{ .Phases.measure.Output.position }}
            data:
              state: new
      - func: KubeOps
        name: change
        args:
          operation: patch
          objectReference:
            apiVersion: "{{ .Phases.note.Output.apiVersion }}"
            resource: "{{ .Phases.note.Output.resource }}"
            name: "{{ .Phases.note.Output.name }}"
            namespace: "{{ .Phases.note.Output.namespace }}"
          spec: |
            data: {state: "ready"}
      - func: WaitV2
        name: changed
        args:
          timeout: 20s
          conditions:
            allOf:
              - condition: '{{ if eq .data.state "ready" }}true{{ end }}'
                objectReference: {apiVersion: v1, resource: configmaps, name: "{{ .Phases.note.Output.name }}", namespace: "{{ .Deployment.Namespace }}"}
      - func: Wait
        name: available
        args:
          timeout: 20s
          conditions:
            anyOf:
              - condition: '{{ if eq "{ $.status.availableReplicas }" "1" }}true{{ end }}'
                objectReference: {apiVersion: v1, group: apps, resource: deployments, name: "{{ .Deployment.Name }}", namespace: "{{ .Deployment.Namespace }}"}
      - func: ScaleWorkload
        name: stop
        args: {name: worker, kind: deployment, namespace: "{{ .Deployment.Namespace }}", replicas: 0}
      - func: KubeExec
        name: speak
        args:
          namespace: "{{ .Deployment.Namespace }}"
          pod: "{{ index .Deployment.Pods 0 }}"
          container: sidecar
          command: [sh, -c, 'echo "###Phase-output###: {\"key\": \"said\", \"value\": \"{{ .Phases.measure.Output.position }}\"}"']
    deferPhase:
      func: KubeExec
      name: last
      args:
        namespace: "{{ .Deployment.Namespace }}"
        pod: "{{ index .Deployment.Pods 0 }}"
        container: sidecar
        command: [sh, -c, 'echo last {{ .Phases.speak.Output.said }} >>/run/journal']
  backupPosthook:
    inputArtifactNames: [state]
    phases:
      - func: KubeExec
        name: journal
        args:
          namespace: "{{ .Deployment.Namespace }}"
          pod: "{{ index .Deployment.Pods 0 }}"
          container: sidecar
          command: [sh, -c, 'echo post {{ .ArtifactsIn.state.KeyValue.position }} >>/run/journal']
      - func: ScaleWorkload
        name: start
        args: {name: worker, kind: Deployment, replicas: "{{ .ArtifactsIn.state.KeyValue.worker }}"}
      - func: KubeOps
        name: forget
        args:
          operation: delete
          objectReference: {apiVersion: v1, resource: configmaps, name: "{{ .ArtifactsIn.state.KeyValue.note }}", namespace: "{{ .Deployment.Namespace }}"}
`

func testEveryFunctionOfKanister(t *testing.T, c *cluster.Cluster) {
	blueprint(t, c, everyFunction)
	a := newApp(t, c, shape{annotations: map[string]string{
		"stillpoint.io/quiesce":         "e2e-functions",
		"stillpoint.io/quiesce-timeout": "60s",
	}})
	a.kubectl("create", "secret", "generic", "login", "--from-literal=user=secret-user")
	a.kubectl("create", "deployment", "worker", "--image="+cluster.Image, "--replicas=2", "--", "sh", "-c", "trap exit TERM; sleep infinity & wait")
	a.kubectl("rollout", "status", "deployment/worker", "--timeout=60s")

	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	assert.Equal(t, "last secret-user-42\npost secret-user-42\n", a.kubectl("exec", "deployment/app", "-c", "sidecar", "--", "cat", "/run/journal"))
	assert.Equal(t, "2", a.kubectl("get", "deployment", "worker", "-o", "jsonpath={.spec.replicas}"))
	assert.NotContains(t, a.kubectl("get", "configmap", "-o", "name"), "note-")
	assert.NotContains(t, a.kubectl("get", "pod", "-o", "name"), "kanister-job-")
	assert.NotContains(t, b.log(), "secret-user")
}

// tasks run as quiesce runs them, without a backup around them.
func tasks(t *testing.T, c *cluster.Cluster) *function.Tasks {
	t.Helper()
	config := c.RESTConfig()
	clients := &stillpoint.Clients{Config: config, Objects: c.Objects(), VeleroNamespace: cluster.VeleroNamespace}
	var err error
	clients.Kube, err = kubernetes.NewForConfig(config)
	require.NoError(t, err)
	clients.Dynamic, err = dynamic.NewForConfig(config)
	require.NoError(t, err)
	made := function.NewTasks(clients)
	made.Warn = t.Logf
	return made
}

// task goes through JSON, as one that another process undoes.
func task(t *testing.T, namespace, confinedTo, function string, args render.Args) *render.Task {
	t.Helper()
	written, err := json.Marshal(render.Task{Func: function, Args: args, Namespace: namespace, ConfinedTo: confinedTo, Owner: "e2e"})
	require.NoError(t, err)
	read := &render.Task{}
	require.NoError(t, json.Unmarshal(written, read))
	return read
}

func shell(command string) render.Args {
	return render.Args{"image": cluster.Image, "command": []any{"sh", "-c", command}, "podOverride": map[string]any{
		"terminationGracePeriodSeconds": 1, "securityContext": map[string]any{"runAsUser": 65534},
	}}
}

// testTaskPods runs tasks where Pod Security is restricted and a quota holds.
func testTaskPods(t *testing.T, c *cluster.Cluster) {
	run := tasks(t, c)
	namespace := c.Namespace(t, "e2e")
	restrict(t, c, namespace)
	within := func(limit time.Duration) context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		t.Cleanup(cancel)
		return ctx
	}
	pods := func() []corev1.Pod {
		list, err := c.Client().CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: api.LabelTask + "=e2e"})
		require.NoError(t, err)
		return list.Items
	}

	outputs, err := run.Run(within(time.Minute), task(t, namespace, "", "KubeTask", shell(`echo '###Phase-output###: {"key":"a","value":"b"}'; echo tail`)))
	require.NoError(t, err)
	assert.Equal(t, map[string]any{"a": "b"}, outputs)

	meshed := shell(`echo '###Phase-output###: {"key":"a","value":"c"}'`)
	meshed["podOverride"] = map[string]any{"securityContext": map[string]any{"runAsUser": 65534}, "terminationGracePeriodSeconds": 1, "containers": []any{
		map[string]any{"name": "proxy", "image": cluster.Image, "command": []any{"sleep", "infinity"}},
	}}
	outputs, err = run.Run(within(time.Minute), task(t, namespace, "", "KubeTask", meshed))
	require.NoError(t, err, "a task is over when its own container has ended")
	assert.Equal(t, map[string]any{"a": "c"}, outputs)

	root := shell("true")
	delete(root, "podOverride")
	_, err = run.Run(within(time.Minute), task(t, namespace, "", "KubeTask", root))
	require.ErrorContains(t, err, "runAsUser chooses another user")

	_, err = run.Run(within(time.Minute), task(t, namespace, "", "KubeTask", shell("echo out of luck; exit 3")))
	require.ErrorContains(t, err, "container container ended with code 3")
	require.ErrorContains(t, err, "the end of its log: out of luck")

	_, err = run.Run(within(30*time.Second), task(t, namespace, "", "KubeTask", shell("echo busy; sleep infinity")))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "the end of its log: busy")

	bad := shell("true")
	bad["image"] = "nowhere.invalid/none:1"
	_, err = run.Run(within(30*time.Second), task(t, namespace, "", "KubeTask", bad))
	require.ErrorContains(t, err, "container container waits: ")

	outputs, err = run.Run(within(time.Minute), task(t, namespace, "", "MultiContainerRun", render.Args{
		"initImage": cluster.Image, "initCommand": []any{"sh", "-c", "mkfifo /shared/pipe"},
		"backgroundImage": cluster.Image, "backgroundCommand": []any{"sh", "-c", "echo 7 >/shared/pipe"},
		"outputImage": cluster.Image, "outputCommand": []any{"sh", "-c", `read n </shared/pipe; echo "###Phase-output###: {\"key\":\"n\",\"value\":\"$n\"}"`},
		"sharedVolumeDir": "/shared", "sharedVolumeMedium": "Memory", "sharedVolumeSizeLimit": "1Mi",
		"podOverride": map[string]any{"securityContext": map[string]any{"runAsUser": 65534}},
	}))
	require.NoError(t, err)
	assert.Equal(t, map[string]any{"n": "7"}, outputs)

	assert.Eventually(t, func() bool { return len(pods()) == 0 }, 30*time.Second, 200*time.Millisecond, "pods are deleted whatever happens")
}

// restrict has a namespace take only pods as Pod Security has them under
// "restricted", and with requests and limits.
func restrict(t *testing.T, c *cluster.Cluster, namespace string) {
	t.Helper()
	_, err := c.Client().CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	hard := corev1.ResourceList{}
	for name, most := range map[corev1.ResourceName]string{"requests.cpu": "1", "requests.memory": "1Gi", "limits.cpu": "8", "limits.memory": "4Gi"} {
		hard[name] = resource.MustParse(most)
	}
	quotas := c.Client().CoreV1().ResourceQuotas(namespace)
	_, err = quotas.Create(t.Context(), &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "small"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		quota, err := quotas.Get(t.Context(), "small", metav1.GetOptions{})
		return err == nil && len(quota.Status.Hard) == len(hard)
	}, 30*time.Second, 200*time.Millisecond, "the quota does not hold")
}

func testConfinedTasksHaveTheRightsOfTheirServiceAccount(t *testing.T, c *cluster.Cluster) {
	run := tasks(t, c)
	namespace := c.Namespace(t, "e2e")
	other := c.Namespace(t, "e2e")
	try := func(task *render.Task) error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, err := run.Run(ctx, task)
		return err
	}
	create := render.Args{"operation": "create", "spec": map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "made"}, "data": map[string]any{"a": "b"},
	}}
	for name, refused := range map[string]*render.Task{
		"KubeTask":      task(t, namespace, namespace, "KubeTask", shell("true")),
		"KubeOps":       task(t, namespace, namespace, "KubeOps", create),
		"ScaleWorkload": task(t, namespace, namespace, "ScaleWorkload", render.Args{"kind": "Deployment", "name": "app", "replicas": 0}),
		"WaitV2":        task(t, namespace, namespace, "WaitV2", waitForSecret(namespace)),
	} {
		err := try(refused)
		require.ErrorContains(t, err, "forbidden", name)
		if name != "WaitV2" { // which waits for the right, too
			require.ErrorContains(t, err, "acts with the rights of its ServiceAccount default", name)
		}
	}

	// It is the namespace that is looked at, not who may reach it.
	require.NoError(t, c.Objects().Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "blueprints"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "admin"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: namespace, Name: "default"}},
	}))
	require.Eventually(t, func() bool { return try(task(t, namespace, namespace, "KubeOps", create)) == nil }, 20*time.Second, time.Second)
	require.NoError(t, try(task(t, namespace, namespace, "KubeTask", shell("true"))))
	elsewhere := render.Args{"operation": "create", "namespace": other, "spec": create["spec"]}
	require.ErrorContains(t, try(task(t, namespace, namespace, "KubeOps", elsewhere)), "is out of reach")
	require.ErrorContains(t, try(task(t, namespace, namespace, "KubeOps", render.Args{"operation": "create", "spec": map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "made-by-a-tenant"},
	}})), "what is of no namespace is out of reach")
}

func waitForSecret(namespace string) render.Args {
	return render.Args{"timeout": "2s", "conditions": map[string]any{"anyOf": []any{map[string]any{
		"condition":       "true",
		"objectReference": map[string]any{"apiVersion": "v1", "resource": "secrets", "name": "any", "namespace": namespace},
	}}}}
}

func testScaleWaitsForPodsToGo(t *testing.T, c *cluster.Cluster) {
	run := tasks(t, c)
	namespace := c.Namespace(t, "e2e")
	kubectl := func(stdin string, args ...string) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		out, err := c.Kubectl(ctx, strings.NewReader(stdin), append([]string{"-n", namespace}, args...)...)
		require.NoError(t, err, out)
	}
	const pod = `
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 5
      containers: [{name: slow, image: ` + cluster.Image + `, command: [sh, -c, "trap '' TERM; sleep infinity"]}]`
	kubectl(fmt.Sprintf("apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: set}\nspec:\n  replicas: 1\n  selector: {matchLabels: {app: set}}\n  template:"+pod, "set"), "apply", "-f", "-")
	kubectl(fmt.Sprintf("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: deploy}\nspec:\n  replicas: 1\n  selector: {matchLabels: {app: deploy}}\n  template:"+pod, "deploy"), "apply", "-f", "-")
	kubectl("", "rollout", "status", "statefulset/set", "--timeout=60s")
	kubectl("", "rollout", "status", "deployment/deploy", "--timeout=60s")
	for kind, name := range map[string]string{"StatefulSet": "set", "deployment": "deploy"} {
		scale := func(replicas any) map[string]any {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			outputs, err := run.Run(ctx, task(t, namespace, "", "ScaleWorkload", render.Args{"kind": kind, "name": name, "replicas": replicas}))
			require.NoError(t, err)
			return outputs
		}
		assert.Equal(t, map[string]any{"originalReplicaCount": int32(1)}, scale(0))
		pods, err := c.Client().CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + name})
		require.NoError(t, err)
		assert.Empty(t, pods.Items, "a pod that is terminating still writes")
		assert.Equal(t, map[string]any{"originalReplicaCount": int32(0)}, scale("2"))
		pods, err = c.Client().CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + name})
		require.NoError(t, err)
		assert.Len(t, pods.Items, 2)
	}
}
