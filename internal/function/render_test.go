package function

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/render"
)

const password = `it's "$ecret"`

func pod(namespace, name string, containers ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	p.Status.Phase = corev1.PodRunning
	for _, c := range containers {
		// A container that is down starts with "-".
		c, down := strings.CutPrefix(c, "-")
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: c})
		status := corev1.ContainerStatus{Name: c}
		if !down {
			status.State.Running = &corev1.ContainerStateRunning{}
		}
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, status)
	}
	return p
}

func secret(namespace, name string, data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"role": "db"}}, Data: map[string][]byte{}}
	for key, value := range data {
		s.Data[key] = []byte(value)
	}
	return s
}

// tenants is what the tests of rendering run against: a tenant in shop, and
// others that are none of its business.
func tenants() []runtime.Object {
	gone := pod("shop", "db-2", "mongodb")
	gone.Status.Phase = corev1.PodSucceeded
	return []runtime.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "payments"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "dumper"}},
		pod("shop", "app-1", "date", "sidecar"),
		pod("shop", "db-0", "mongodb", "-metrics"),
		pod("shop", "db-1", "mongodb", "metrics"),
		gone,
		pod("payments", "ledger-0", "postgres"),
		secret("shop", "db", map[string]string{"mongodb-root-password": password, "pin": "12"}),
		secret("shop", "other", map[string]string{"pin": "1234"}),
		secret("payments", "ledger", map[string]string{"password": "pay-secret"}),
		secret("velero", "cloud-credentials", map[string]string{"cloud": "aws-secret"}),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "settings"}, Data: map[string]string{"user": "root"}},
	}
}

func renderer(confineTo string) *render.Renderer {
	client := fake.NewClientset(tenants()...)
	functions := KubeFunctions(client)
	maps.Copy(functions, TaskFunctions(someTasks()))
	functions["Elsewhere"] = render.Function{Calls: func(context.Context, render.Args) ([]render.Call, error) {
		return []render.Call{{Namespace: "payments", Pod: "ledger-0", Container: "postgres", Command: []string{"id"}}}, nil
	}}
	return &render.Renderer{Functions: functions, Kube: client, ConfineTo: confineTo}
}

func deployment() render.Params {
	return render.Params{
		Object: map[string]any{
			"kind":     "Deployment",
			"metadata": map[string]any{"name": "app", "namespace": "shop", "labels": map[string]any{"tier": "web"}},
			"spec":     map[string]any{"replicas": int64(1000000), "template": nil},
		},
		Deployment: &render.Deployment{
			Name: "app", Namespace: "shop", Pods: []string{"app-1"}, Containers: [][]string{{"date", "sidecar"}},
			PersistentVolumeClaims: map[string]map[string]string{"app-1": {"data": "/mnt"}},
		},
		Options: map[string]string{"container": "sidecar", "ns": "payments", "other": "ledger", "own": "shop"},
		Time:    "2026-02-03T04:05:06.000000007Z",
	}
}

func statefulSet() render.Params {
	return render.Params{
		Object: map[string]any{"kind": "StatefulSet", "metadata": map[string]any{"name": "db", "namespace": "shop"}},
		StatefulSet: &render.StatefulSet{
			Name: "db", Namespace: "shop", Pods: []string{"db-0", "db-1"}, Containers: [][]string{{"mongodb", "metrics"}, {"mongodb", "metrics"}},
		},
	}
}

// command is a call in the tenant's own namespace.
func command(pod, container string, words ...string) render.Call {
	return render.Call{Namespace: "shop", Pod: pod, Container: container, Command: words}
}

func load(t *testing.T, file string) *blueprint.Blueprint {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("testdata", file))
	require.NoError(t, err)
	bp, warnings, err := blueprint.Parse(doc)
	require.NoError(t, err)
	require.Empty(t, warnings)
	return bp
}

func stepsOf(script *render.Script, action string) []*render.Step {
	return map[string][]*render.Step{blueprint.Prehook: script.Pre, blueprint.Posthook: script.Post}[action]
}

func TestPublishedFsfreeze(t *testing.T) {
	bp := load(t, "fsfreeze-hooks-deployment.yaml")
	for action, want := range map[string]*render.Step{
		blueprint.Prehook:  {Phase: "freeze", Func: "KubeExec", Calls: []render.Call{command("app-1", "sidecar", "fsfreeze", "--freeze", "/mnt")}},
		blueprint.Posthook: {Phase: "unfreeze", Func: "KubeExec", Calls: []render.Call{command("app-1", "sidecar", "fsfreeze", "--unfreeze", "/mnt")}},
	} {
		for _, confineTo := range []string{"", "shop"} {
			script, _, err := renderer(confineTo).Script(t.Context(), bp, deployment())
			require.NoError(t, err)
			require.Equal(t, []*render.Step{want}, stepsOf(script, action))
		}
	}
}

func TestPublishedMongo(t *testing.T) {
	bp := load(t, "mongodb-hooks.yaml")
	for action, want := range map[string]string{
		blueprint.Prehook:  "export MONGODB_ROOT_PASSWORD='" + password + "'\nmongosh --username=root --password=\"${MONGODB_ROOT_PASSWORD}\" --eval=\"db.fsyncLock()\"\n",
		blueprint.Posthook: "export MONGODB_ROOT_PASSWORD='" + password + "'\nmongosh --username=root --password=\"${MONGODB_ROOT_PASSWORD}\" --eval=\"db.fsyncUnlock()\"\n",
	} {
		script, masker, err := renderer("shop").Script(t.Context(), bp, statefulSet())
		require.NoError(t, err)
		steps := stepsOf(script, action)
		require.Len(t, steps, 1)
		call := steps[0].Calls[0]
		require.Equal(t, command("db-0", "mongodb", "bash", "-o", "errexit", "-o", "pipefail", "-c", want), call)
		require.Equal(t, strings.ReplaceAll(want, password, "***"), masker.Mask(want))
	}
}

// steps renders a blueprint whose backupPrehook has the given phases (YAML).
func steps(ctx context.Context, r *render.Renderer, phases string, p render.Params) ([]*render.Step, render.Masker, error) {
	bp, _, err := blueprint.Parse([]byte("metadata: {name: test}\nactions:\n  backupPrehook:\n    phases:\n" + phases))
	if err != nil {
		return nil, render.Masker{}, err
	}
	bp.Source = "Blueprint velero/test"
	script, masker, err := r.Script(ctx, bp, p)
	if err != nil {
		return nil, masker, err
	}
	return script.Pre, masker, nil
}

// exec is a phase that runs one shell command, whose text is a template.
func exec(template string) string {
	return fmt.Sprintf("    - {func: KubeExec, name: run, args: {namespace: shop, pod: app-1, command: [sh, -c, %q]}}\n", template)
}

// withSecret is exec with the database's Secret in scope.
func withSecret(template string) string {
	return fmt.Sprintf("    - {func: KubeExec, name: run, objects: {db: {kind: Secret, namespace: shop, name: db}}, args: {namespace: shop, pod: app-1, command: [sh, -c, %q]}}\n", template)
}

func TestRender(t *testing.T) {
	object := deployment()
	for template, want := range map[string]string{
		"plain":       "plain",
		"{{ .Time }}": "2026-02-03T04:05:06.000000007Z",

		"{{ .Deployment.Name | upper }}":            "APP",
		"{{ .Object.metadata.namespace }}":          "shop",
		"{{ .Object.spec.replicas }}":               "1000000",
		"{{ .Options.container }}":                  "sidecar",
		`{{ index .Options "none" | default "x" }}`: "x",

		`{{ index .Deployment.PersistentVolumeClaims "app-1" "data" }}`: "/mnt",

		"{{ if .StatefulSet }}a{{ else }}b{{ end }}":           "b",
		"{{ if .Namespace }}a{{ end }}{{ if .PVC }}b{{ end }}": "",
		`{{ set .Object "kind" "changed" | len }}`:             "3",
	} {
		t.Run(template, func(t *testing.T) {
			got, _, err := steps(t.Context(), renderer("shop"), exec(template), object)
			require.NoError(t, err)
			require.Equal(t, command("app-1", "date", "sh", "-c", want), got[0].Calls[0])
		})
	}
	require.Equal(t, "Deployment", object.Object["kind"], "a template changed the caller's object")

	for template, want := range map[string]string{
		`{{ index .Phases.run.Secrets.db.Data "mongodb-root-password" | toString }}`:            password,
		`{{ .Phases.run.Secrets.db.Name }} {{ .Phases.run.Secrets.db.ObjectMeta.Namespace }}`:   "db shop",
		`{{ .Phases.run.Secrets.db.Labels.role }}{{ .Phases.run.Secrets.db.StringData | len }}`: "db0",
		`{{ index .Phases.run.Secrets.db.Data "absent" | toString }}`:                           "",
	} {
		t.Run(template, func(t *testing.T) {
			got, _, err := steps(t.Context(), renderer("shop"), withSecret(template), object)
			require.NoError(t, err)
			require.Equal(t, want, got[0].Calls[0].Command[2])
		})
	}
}

func TestRenderKeysAndDepth(t *testing.T) {
	var got render.Args
	r := &render.Renderer{Functions: map[string]render.Function{"F": {Required: []string{"shop-arg"}, Calls: func(_ context.Context, args render.Args) ([]render.Call, error) {
		got = args
		return nil, nil
	}}}}
	_, _, err := steps(t.Context(), r, `    - {func: F, name: f, args: {"{{ .Options.own }}-arg": [{"{{ .Options.own }}": ["{{ .Options.ns }}", 7, true, null]}]}}`, deployment())
	require.NoError(t, err)
	require.Equal(t, render.Args{"shop-arg": []any{map[string]any{"shop": []any{"payments", int64(7), true, nil}}}}, got)
}

func TestPhasesSeeEarlierObjects(t *testing.T) {
	got, _, err := steps(t.Context(), renderer("shop"), `
    - func: KubeExec
      name: first
      objects: {cm: {kind: configmap, namespace: '{{ .Options.own }}', name: settings}}
      args: {namespace: shop, pod: app-1, command: 'true'}
    - func: KubeExecAll
      name: second
      objects: {db: {kind: Secret, namespace: shop, name: '{{ "db" }}'}}
      args: {namespace: shop, pods: ' db-0  db-1', containers: mongodb, command: [echo, '{{ .Phases.first.ConfigMaps.cm.Data.user }}', 1, 2.5, true]}
`, deployment())
	require.NoError(t, err)
	said := []string{"echo", "root", "1", "2.5", "1"}
	require.Equal(t, []*render.Step{
		{Phase: "first", Func: "KubeExec", Calls: []render.Call{command("app-1", "date", "true")}},
		{Phase: "second", Func: "KubeExecAll", Calls: []render.Call{command("db-0", "mongodb", said...), command("db-1", "mongodb", said...)}},
	}, got)
}

func TestAbsentActions(t *testing.T) {
	parse := func(doc string) *blueprint.Blueprint {
		bp, _, err := blueprint.Parse([]byte(doc))
		require.NoError(t, err)
		return bp
	}
	got, _, err := renderer("").Script(t.Context(), parse("{metadata: {name: b}, actions: {backupPosthook: {phases: []}}}"), render.Params{})
	require.NoError(t, err)
	require.Empty(t, got.Pre)
	require.Empty(t, got.Post)
	_, _, err = renderer("").Script(t.Context(), parse("{metadata: {name: b}, actions: {restore: {}, backup: {}, backupPrehook: null}}"), render.Params{})
	require.EqualError(t, err, "blueprint b: neither backupPrehook nor backupPosthook is among its actions: backup, backupPrehook, restore")
}

func TestErrors(t *testing.T) {
	var report strings.Builder
	add := func(phases string, p render.Params) {
		_, _, err := steps(t.Context(), renderer("shop"), phases, p)
		require.Error(t, err, phases)
		text := err.Error()
		require.NotContains(t, text, "runtime error")
		require.NotContains(t, strings.ToLower(text), "$ecret")
		const prefix = "blueprint test (Blueprint velero/test): action backupPrehook: "
		require.True(t, strings.HasPrefix(text, prefix), text)
		fmt.Fprintf(&report, "%s\n  => %s\n\n", strings.TrimSpace(phases), strings.TrimPrefix(text, prefix))
	}
	for _, template := range []string{
		"{{ .Options.user }}", "{{ $.Options.user }}", "{{ .Object.metadata.labels.user }}", "{{ .Object.spec.template.x }}",
		"{{ .StatefulSet.Name }}", "{{ index .StatefulSet.Pods 0 }}", "{{ .PVC.Name }}", "{{ .DeploymentConfig.Name }}",
		"{{ .Workload.Name }}", "{{ .Deployment.Replicas }}", "{{ index .Deployment.Pods 3 }}",
		"{{ .Profile.Location.Bucket }}", "{{ .ArtifactsIn.x.KeyValue.y }}", "{{ .Secrets.x.Data }}",
		"{{ .Phases.run.Output.x }}", "{{ .Phases.before.Secrets.x }}", `{{ (index .Phases "before").Secrets }}`, "{{ .Phases.run.Secrets.db.Data }}",
		`{{ bcrypt "x" }}`, `{{ htpasswd "a" "b" }}`, `{{ derivePassword 1 "long" "a" "b" "c" }}`, `{{ genPrivateKey "dsa" }}`,
		`{{ env "HOME" }}`, `{{ expandenv "$HOME" }}`, `{{ getHostByName "example.com" }}`,
		"{{ .Options.user", "{{ nosuch }}", "{{ fail \"the option user is needed\" }}", "{{ upper }}", "{{ upper 1 }}",
		`{{ range 2000000 }}x{{ end }}`, "{{ range .Time }}{{ end }}",
	} {
		add(exec(template), deployment())
	}
	for _, template := range []string{
		`{{ .Phases.run.Secrets.db.Data.user }}`, `{{ .Phases.run.Secrets.mongo.Data.user }}`,
		`{{ fail (index .Phases.run.Secrets.db.Data "mongodb-root-password" | toString | upper) }}`, `{{ fail "literal" }}`,
		`{{ range (index .Phases.run.Secrets.db.Data "pin" | toString) }}{{ end }}`,
		`{{ eq (list (index .Phases.run.Secrets.db.Data "mongodb-root-password" | toString)) (list 1) }}`,
		`{{ mustRegexMatch (index .Phases.run.Secrets.db.Data "mongodb-root-password" | toString | printf "(%s") "x" }}`,
	} {
		add(withSecret(template), deployment())
	}
	for _, phases := range []string{
		"- {func: BackupData, name: dump, args: {image: x, command: [x]}}",
		"- {func: KubeExec, name: run, args: {namespace: shop, pod: app-1, command: [a], timeout: 5}}",
		"- {func: KubeExec, name: run, args: {namespace: shop, command: [a]}}",
		"- {func: KubeExec, name: run, args: {namespace: shop, pod: app-1, command: [sh, {a: b}]}}",
		"- {func: KubeExec, name: run, args: {namespace: shop, pod: app-1, command: []}}",
		"- {func: KubeExec, name: run, args: {namespace: '', pod: app-1, command: [a]}}",
		"- {func: KubeExec, name: run, args: {namespace: shop, pod: '{{ index .Options \"x\" }}', command: [a]}}",
		"- {func: KubeExec, name: run, args: {namespace: shop, pod: nope, command: [a]}}",
		"- {func: KubeExec, name: run, args: {namespace: shop, pod: db-2, command: [a]}}",
		"- {func: KubeExec, name: run, args: {namespace: shop, pod: db-0, container: metrics, command: [a]}}",
		"- {func: KubeExec, name: run, args: {namespace: shop, pod: app-1, container: db, command: [a]}}",
		"- {func: KubeExecAll, name: run, args: {namespace: shop, pods: app-1 nope, containers: sidecar, command: [a]}}",
		"- {func: KubeExecAll, name: run, args: {namespace: shop, pods: ' ', containers: sidecar, command: [a]}}",
		"- {func: KubeExec, args: {'{{ .Options.x }}': shop}}",
		"- {func: KubeExec, name: run, args: {pod: a, '{{ \"pod\" }}': b}}",
		"- {func: KubeExec, name: run, objects: {db: {kind: Secret, namespace: shop, name: nope}}, args: {namespace: shop, pod: app-1, command: [a]}}",
		"- {func: KubeExec, name: run, objects: {db: {kind: Secret, name: db}}, args: {namespace: shop, pod: app-1, command: [a]}}",
		"- {func: KubeExec, name: run, objects: {db: {kind: Deployment, namespace: shop, name: db}}, args: {namespace: shop, pod: app-1, command: [a]}}",
		"- {func: KubeExec, name: run, objects: {db: {kind: Secret, namespace: shop, name: '{{ .Options.secret }}'}}, args: {namespace: shop, pod: app-1, command: [a]}}",
		// A pod whose name comes out of a Secret.
		"- {func: KubeExec, name: run, objects: {db: {kind: Secret, namespace: shop, name: db}}, args: {namespace: shop, pod: '{{ index .Phases.run.Secrets.db.Data \"mongodb-root-password\" | toString }}', command: [a]}}",
		"- {func: KubeExec, name: run, objects: {db: {kind: Secret, namespace: shop, name: db}}, args: {namespace: '{{ index .Phases.run.Secrets.db.Data \"mongodb-root-password\" | toString }}', pod: a, command: [a]}}",
	} {
		add("    "+phases+"\n", deployment())
	}
	golden(t, "errors.golden", report.String())
}

func TestConfinement(t *testing.T) {
	var report strings.Builder
	for _, phases := range []string{
		// Commands in another tenant's pods.
		"- {func: KubeExec, name: run, args: {namespace: payments, pod: ledger-0, command: [id]}}",
		"- {func: KubeExec, name: run, args: {namespace: '{{ .Options.ns }}', pod: ledger-0, command: [id]}}",
		"- {func: KubeExec, name: run, args: {'{{ \"namespace\" }}': '{{ .Options.ns }}', pod: ledger-0, command: [id]}}",
		"- {func: KubeExec, name: run, args: {namespace: [payments], pod: ledger-0, command: [id]}}",
		"- {func: KubeExecAll, name: run, args: {namespace: '{{ .Options.ns }}', pods: ledger-0, containers: postgres, command: [id]}}",
		"- {func: KubeExec, name: run, args: {namespace: '{{ set .Object.metadata \"namespace\" \"payments\" | len }}{{ .Object.metadata.namespace }}', pod: ledger-0, command: [id]}}",
		"- {func: KubeExec, name: run, args: {namespace: shop, pod: ../../payments/pods/ledger-0, command: [id]}}",
		"- {func: Elsewhere, name: run}",
		// Another tenant's, and Velero's, Secrets.
		"- {func: KubeExec, name: run, objects: {x: {kind: Secret, namespace: '{{ .Options.ns }}', name: ledger}}, args: {namespace: shop, pod: app-1, command: [a]}}",
		"- {func: KubeExec, name: run, objects: {x: {kind: Secret, namespace: payments, name: '{{ .Options.other }}'}}, args: {namespace: shop, pod: app-1, command: [a]}}",
		"- {func: KubeExec, name: run, objects: {x: {kind: Secret, namespace: velero, name: cloud-credentials}}, args: {namespace: shop, pod: app-1, command: [id]}}",
		"- {func: KubeExec, name: run, objects: {x: {kind: ConfigMap, namespace: velero, name: x}}, args: {namespace: shop, pod: app-1, command: [a]}}",
	} {
		fmt.Fprintf(&report, "%s\n", phases)
		for _, confineTo := range []string{"shop", ""} {
			got, masker, err := steps(t.Context(), renderer(confineTo), "    "+phases+"\n", deployment())
			text := "allowed"
			if err != nil {
				text = strings.TrimPrefix(err.Error(), "blueprint test (Blueprint velero/test): action backupPrehook: ")
			}
			if confineTo != "" {
				require.Error(t, err)
				require.Empty(t, got)
				require.Equal(t, "ledger pay-secret aws-secret", masker.Mask("ledger pay-secret aws-secret"), "a Secret out of reach was read")
				require.NotContains(t, strings.ReplaceAll(text, "../../payments/pods/ledger-0", ""), "postgres", "what is in the other namespace was shown")
			}
			fmt.Fprintf(&report, "  confined to %q => %s\n", confineTo, text)
		}
		report.WriteString("\n")
	}
	golden(t, "confinement.golden", report.String())
}

func TestScriptEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := steps(ctx, renderer(""), exec("{{ .Time }}"), deployment())
	require.ErrorIs(t, err, context.Canceled)
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
