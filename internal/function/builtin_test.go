package function

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/render"
)

// recorder stands in for Stillpoint's own functions, which package quiesce has,
// and keeps their args.
type recorder struct{ called []render.Args }

func (r *recorder) functions() map[string]render.Function {
	record := func(required, optional string) render.Function {
		return render.Function{
			Required: strings.Fields(required), Optional: strings.Fields(optional),
			Calls: func(_ context.Context, args render.Args) ([]render.Call, error) {
				r.called = append(r.called, args)
				return nil, nil
			},
		}
	}
	return map[string]render.Function{
		"FreezeFileSystems": record("", "container paths"), "ThawFileSystems": record("", "container paths"),
		"RunInPods":      record("command", "container pods env"),
		"HoldSession":    record("command begin end", "container pods env"),
		"ReleaseSession": record("phase", ""),
	}
}

// recipe renders a built-in blueprint for StatefulSet shop/db.
func recipe(t *testing.T, name string, p render.Params) ([]render.Args, render.Masker, error) {
	t.Helper()
	called, _, masker, err := script(t, name, p)
	return called, masker, err
}

func script(t *testing.T, name string, p render.Params) ([]render.Args, *render.Script, render.Masker, error) {
	t.Helper()
	require.Contains(t, blueprint.BuiltIns(), name)
	client := fake.NewClientset(tenants()...)
	workloads := dynamicfake.NewSimpleDynamicClient(scheme.Scheme, &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: appsv1.StatefulSetSpec{Replicas: ptr.To(int32(3))},
	})
	record := &recorder{}
	functions := record.functions()
	maps.Copy(functions, TaskFunctions(NewTasks(&cluster.Clients{Kube: client, Dynamic: workloads})))
	r := &render.Renderer{Functions: functions, Kube: client}
	script, masker, err := r.Script(t.Context(), blueprint.BuiltIns()[name].Blueprint, p)
	return record.called, script, masker, err
}

func TestBuiltIns(t *testing.T) {
	require.ElementsMatch(t, []string{"fsfreeze", "mariadb", "mongodb", "mysql", "postgresql", "redis", "scale-down"}, slices.Collect(maps.Keys(blueprint.BuiltIns())))
	for name, found := range blueprint.BuiltIns() {
		require.True(t, found.BuiltIn())
		require.Empty(t, found.Warnings, name)
		require.NotNil(t, found.Actions[blueprint.Prehook], name)
		if name != "redis" { // which has nothing to undo
			require.NotNil(t, found.Actions[blueprint.Posthook], name)
		}
	}
	for _, options := range []map[string]string{nil, {"container": "side"}, {"paths": "/a /b"}} {
		called, _, err := recipe(t, "fsfreeze", render.Params{Options: options})
		require.NoError(t, err)
		want := render.Args{"container": options["container"], "paths": options["paths"]}
		require.Equal(t, []render.Args{want, want}, called)
	}
}

// What the client of each database is told, without options and with all of
// them, as a user could read it.
func TestRecipes(t *testing.T) {
	all := map[string]string{
		"user": "keeper", "database": "shop", "auth-database": "users", "host": "10.1.2.3", "port": "1234", "mode": "checkpoint",
		"lock-timeout": "3", "secret": "db", "secret-key": "mongodb-root-password", "database-container": "db", "pods": "first",
	}
	var report strings.Builder
	for _, name := range slices.Sorted(maps.Keys(blueprint.BuiltIns())) {
		if name == "fsfreeze" || name == "scale-down" {
			continue
		}
		for _, options := range []map[string]string{nil, all} {
			p := statefulSet()
			p.Options = options
			called, masker, err := recipe(t, name, p)
			require.NoError(t, err, name)
			fmt.Fprintf(&report, "== %s, %d options\n", name, len(options))
			for _, args := range called {
				for _, arg := range slices.Sorted(maps.Keys(args)) {
					if arg == "command" {
						script := fmt.Sprint(args["command"])
						for key, value := range options {
							if len(value) > 5 && key != "secret-key" {
								require.NotContains(t, script, value, "%s: option %s is not for the command, which everybody can read", name, key)
							}
						}
						require.NotContains(t, script, password)
						continue
					}
					fmt.Fprintf(&report, "%s: %s\n", arg, masker.Mask(strings.TrimSpace(fmt.Sprint(args[arg]))))
				}
			}
		}
	}
	require.NotContains(t, report.String(), password)
	golden(t, "recipes.golden", report.String())
}

// Values that options must not have never reach a database.
func TestRecipesRefuse(t *testing.T) {
	for _, test := range []struct{ recipe, option, value, want string }{
		{"postgresql", "mode", "copy", "option.stillpoint.io/mode is not valid; valid: backup, checkpoint"},
		{"mariadb", "lock-timeout", "1; DROP TABLE account", "option.stillpoint.io/lock-timeout is not a number of seconds from 1 to 99999"},
		{"mysql", "lock-timeout", "0", "option.stillpoint.io/lock-timeout is not a number of seconds from 1 to 99999"},
		{"redis", "secret", "nosuch", `get Secret shop/nosuch`},
		{"redis", "secret-key", "nosuch", ""}, // without a secret it means nothing
	} {
		p := statefulSet()
		p.Options = map[string]string{test.option: test.value}
		_, _, err := recipe(t, test.recipe, p)
		if test.want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, test.want)
	}
}

// An annotated Namespace is where its Secrets are.
func TestRecipeOfANamespace(t *testing.T) {
	p := render.Params{
		Object:  map[string]any{"kind": "Namespace", "metadata": map[string]any{"name": "shop"}},
		Options: map[string]string{"secret": "db", "secret-key": "mongodb-root-password"},
	}
	called, _, err := recipe(t, "redis", p)
	require.NoError(t, err)
	require.Len(t, called, 1)
	env, ok := called[0]["env"].(map[string]any)
	require.True(t, ok)
	require.Equal(t, password, env["OPTION_PASSWORD"])
}

// What brings the pods back is known before any has ended.
func TestScaleDown(t *testing.T) {
	_, script, _, err := script(t, "scale-down", statefulSet())
	require.NoError(t, err)
	require.Len(t, script.Post, 1)
	require.Empty(t, script.Post[0].Needs)
	require.Contains(t, Describe(script.Post[0].Task), "ScaleWorkload StatefulSet shop/db to 3 replicas")
}
