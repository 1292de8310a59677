package function

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/render"
)

// everything renders with all functions there are, against the objects of
// tenants. It gives what Tasks warn of, too.
func everything(t *testing.T, confineTo string) (*render.Renderer, *fake.Clientset, *[]string) {
	t.Helper()
	client := fake.NewClientset(tenants()...)
	scales := dynamicfake.NewSimpleDynamicClient(runtime.NewScheme())
	scales.PrependReactor("get", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		require.Contains(t, []string{"scale", ""}, action.GetSubresource())
		return true, &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"replicas": int64(3)}}}, nil
	})
	tasks := NewTasks(&cluster.Clients{Kube: client, Dynamic: scales})
	tasks.mapper = serverKinds()
	var warnings []string
	tasks.Warn = func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	functions := KubeFunctions(client)
	for name, function := range TaskFunctions(tasks) {
		functions[name] = function
	}
	return &render.Renderer{Functions: functions, Kube: client, ConfineTo: confineTo}, client, &warnings
}

// serverKinds are what the API server has.
func serverKinds() meta.RESTMapper {
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, kind := range []string{"v1 Pod", "v1 Secret", "v1 ConfigMap", "v1 PersistentVolumeClaim", "apps/v1 StatefulSet", "apps/v1 Deployment", "rbac.authorization.k8s.io/v1 RoleBinding"} {
		version, name, _ := strings.Cut(kind, " ")
		mapper.Add(schema.FromAPIVersionAndKind(version, name), meta.RESTScopeNamespace)
	}
	for _, kind := range []string{"v1 Namespace", "v1 Node", "v1 PersistentVolume", "rbac.authorization.k8s.io/v1 ClusterRoleBinding"} {
		version, name, _ := strings.Cut(kind, " ")
		mapper.Add(schema.FromAPIVersionAndKind(version, name), meta.RESTScopeRoot)
	}
	return mapper
}

// Hooks in the shapes that people have published are rendered as a session
// renders them: as far as can be known, and the rest phase by phase.
func TestPublishedShapes(t *testing.T) {
	stream, err := os.ReadFile(filepath.Join("testdata", "published.yaml"))
	require.NoError(t, err)
	blueprints, warnings, err := blueprint.ParseAll(stream)
	require.NoError(t, err)
	require.Equal(t, []string{`document 2: unknown field "actions.backupPrehook.type" is ignored`}, warnings)

	p := statefulSet()
	p.Object["metadata"] = map[string]any{"name": "db", "namespace": "shop", "labels": map[string]any{"app.kubernetes.io/instance": "db"}}
	outputs := map[string]map[string]any{"dump": {"where": "here", "whose": "ours"}}
	var report strings.Builder
	for _, bp := range blueprints {
		renderer, client, warned := everything(t, "")
		script, masker, err := renderer.Script(t.Context(), bp, p)
		require.NoError(t, err, bp.Name)
		fmt.Fprintf(&report, "%s\n", bp.Name)
		say := func(when string, steps []*render.Step) {
			for _, step := range steps {
				text := fmt.Sprintf("needs %s", step.Needs)
				switch {
				case step.Needs != "":
				case step.Task != nil:
					text = Describe(step.Task)
				default:
					var calls []string
					for _, call := range step.Calls {
						calls = append(calls, fmt.Sprintf("%s/%s/%s %q", call.Namespace, call.Pod, call.Container, call.Command))
					}
					text = strings.Join(calls, ", ")
				}
				fmt.Fprintf(&report, "  %s %s: %s\n", when, step.Phase, masker.Mask(text))
			}
		}
		say("before, pre", script.Pre)
		say("before, post", script.Post)
		session := pod("shop", "db-session", "client")
		for _, step := range script.Pre {
			waits := step.Needs != ""
			require.NoError(t, script.Render(t.Context(), step))
			if waits {
				say("then, pre", []*render.Step{step})
			}
			script.Done(step, outputs[step.Phase])
			if step.Phase == "makePod" {
				require.NoError(t, client.Tracker().Add(session))
			}
		}
		require.NoError(t, script.Finish(t.Context()))
		for _, step := range script.Post {
			if step.Needs != "" {
				require.NoError(t, script.Render(t.Context(), step))
				say("then, post", []*render.Step{step})
			}
			script.Done(step, nil)
		}
		for _, warning := range *warned {
			fmt.Fprintf(&report, "  warning: %s\n", warning)
		}
	}
	golden(t, "published.golden", report.String())
}

// A pod that is not there is an error at once where nothing could make it, and
// when whatever could make it has run.
func TestPodThatNobodyMakes(t *testing.T) {
	renderer, _, _ := everything(t, "")
	waiting := "- {func: Wait, name: wait, args: {timeout: 1s, conditions: {anyOf: [{condition: 'true', objectReference: {apiVersion: v1, resource: pods, name: ghost, namespace: shop}}]}}}\n"
	exec := "- {func: KubeExec, name: run, args: {namespace: shop, pod: ghost, command: [id]}}\n"
	action := func(phases ...string) string {
		return "{phases: [" + strings.Join(slices.Collect(func(yield func(string) bool) {
			for _, phase := range phases {
				yield(strings.TrimPrefix(strings.TrimSpace(phase), "- "))
			}
		}), ", ") + "]}"
	}
	_, _, err := renderer.Script(t.Context(), parsed(t, "{metadata: {name: b}, actions: {backupPrehook: "+action(waiting, exec)+"}}"), deployment())
	require.ErrorContains(t, err, "phase run: function KubeExec: pod shop/ghost does not exist; running pods: app-1, db-0, db-1")

	scales := "- {func: ScaleWorkload, name: up, args: {replicas: 1}}"
	script, _, err := renderer.Script(t.Context(), parsed(t, "{metadata: {name: b}, actions: {backupPrehook: "+action(scales)+", backupPosthook: "+action(exec)+"}}"), deployment())
	require.NoError(t, err)
	require.Equal(t, "the pod shop/ghost of phase up", script.Post[0].Needs)
	require.NoError(t, script.Render(t.Context(), script.Post[0]), "the prehook may have ended half-way")
	require.Equal(t, "the pod shop/ghost of phase up", script.Post[0].Needs)
	script.Done(script.Pre[0], nil)
	require.ErrorContains(t, script.Render(t.Context(), script.Post[0]), "pod shop/ghost does not exist")
}

func parsed(t *testing.T, doc string) *blueprint.Blueprint {
	t.Helper()
	bp, _, err := blueprint.Parse([]byte(doc))
	require.NoError(t, err)
	return bp
}
