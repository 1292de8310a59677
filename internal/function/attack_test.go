package function

import (
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/kubernetes/fake"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/render"
)

// attack is a blueprint by which somebody in namespace shop wants what is not
// theirs. In all of them shop is the namespace of the annotated object, and the
// options are an annotation's.
type attack struct {
	pre, post string
	// shared tells that a blueprint of the administrator's may do it, who has
	// written the other namespace out.
	shared bool
}

func attacks() map[string]attack {
	own := func(more string) string { return "args: {namespace: shop, pod: app-1, command: [id], " + more + "}" }
	give := "{func: KubeTask, name: give, args: {image: x, command: [x]}}"
	found := map[string]attack{
		"a pod":                             {pre: "{func: KubeExec, name: run, args: {namespace: payments, pod: ledger-0, command: [id]}}", shared: true},
		"a path in the place of a pod":      {pre: "{func: KubeExec, name: run, " + own("container: '../../../payments/pods/ledger-0'") + "}"},
		"pods":                              {pre: "{func: KubeExecAll, name: run, args: {namespace: payments, pods: ledger-0, containers: postgres, command: [id]}}", shared: true},
		"a task":                            {pre: "{func: KubeTask, name: run, args: {namespace: payments, image: x, command: [id]}}", shared: true},
		"containers":                        {pre: "{func: MultiContainerRun, name: run, args: {namespace: payments, backgroundImage: x, backgroundCommand: [x], outputImage: x, outputCommand: [x]}}", shared: true},
		"replicas":                          {pre: "{func: ScaleWorkload, name: run, args: {namespace: payments, kind: StatefulSet, name: ledger, replicas: 0}}", shared: true},
		"an object in the spec's namespace": {pre: "{func: KubeOps, name: run, args: {operation: create, spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: payments}}'}}", shared: true},
		"a spec's namespace beside another": {pre: "{func: KubeOps, name: run, args: {operation: create, namespace: shop, spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: payments}}'}}", shared: true},
		"a patch":                           {pre: "{func: KubeOps, name: run, args: {operation: patch, spec: '{data: {x: y}}', objectReference: {apiVersion: v1, resource: configmaps, name: x, namespace: payments}}}", shared: true},
		"a patch beside its namespace":      {pre: "{func: KubeOps, name: run, args: {operation: patch, namespace: shop, spec: '{data: {x: y}}', objectReference: {apiVersion: v1, resource: configmaps, name: x, namespace: payments}}}", shared: true},
		"a deletion":                        {pre: "{func: KubeOps, name: run, args: {operation: delete, namespace: payments, objectReference: {apiVersion: v1, resource: secrets, name: ledger}}}", shared: true},
		"a path in the place of a name":     {pre: "{func: KubeOps, name: run, args: {operation: delete, namespace: shop, objectReference: {apiVersion: v1, resource: secrets, name: ../../payments/secrets/ledger}}}"},
		"a path in the place of a resource": {pre: "{func: KubeOps, name: run, args: {operation: delete, namespace: shop, objectReference: {apiVersion: v1, resource: ../payments/secrets, name: ledger}}}"},
		"an object of no namespace":         {pre: "{func: KubeOps, name: run, args: {operation: create, spec: '{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: x, namespace: shop}}'}}", shared: true},
		"a namespace itself":                {pre: "{func: KubeOps, name: run, args: {operation: delete, objectReference: {apiVersion: v1, resource: namespaces, name: payments, namespace: shop}}}", shared: true},
		"a wait":                            {pre: "{func: Wait, name: run, args: {timeout: 1s, conditions: {anyOf: [{condition: 'true', objectReference: {apiVersion: v1, resource: secrets, name: ledger, namespace: payments}}]}}}", shared: true},
		"a wait beside an own object":       {pre: "{func: WaitV2, name: run, args: {timeout: 1s, conditions: {anyOf: [{condition: 'true', objectReference: {apiVersion: v1, resource: pods, name: app-1, namespace: shop}}], allOf: [{condition: 'true', objectReference: {apiVersion: v1, resource: secrets, name: ledger, namespace: payments}}]}}}", shared: true},
		"a wait for a node":                 {pre: "{func: WaitV2, name: run, args: {timeout: 1s, conditions: {anyOf: [{condition: 'true', objectReference: {apiVersion: v1, resource: nodes, name: n}}]}}}", shared: true},
		"a secret":                          {pre: "{func: KubeExec, name: run, objects: {x: {kind: Secret, namespace: payments, name: ledger}}, " + own("") + "}", shared: true},
		"Velero's secret":                   {pre: "{func: KubeExec, name: run, objects: {x: {kind: secret, namespace: velero, name: cloud-credentials}}, " + own("") + "}", shared: true},
		"a named secret by a path":          {pre: "{func: KubeExec, name: run, " + own("") + "}], secretNames: [path], xs: [a"},
		"the environment":                   {pre: "{func: KubeExec, name: '{{ env \"PATH\" }}', args: {namespace: shop, pod: app-1, command: ['{{ env \"PATH\" }}']}}"},
		"the environment in other words":    {pre: "{func: KubeExec, name: run, args: {namespace: shop, pod: app-1, command: ['{{ \"$PATH\" | expandenv }}']}}"},

		// A second document, another kind, a privilege: by what is rendered in.
		"a second document":        {pre: "{func: KubeOps, name: run, args: {operation: create, namespace: shop, spec: \"apiVersion: v1\\nkind: ConfigMap\\nmetadata:\\n  name: {{ .Options.document }}\\n\"}}"},
		"a namespace by injection": {pre: "{func: KubeOps, name: run, args: {operation: create, namespace: shop, spec: \"apiVersion: v1\\nkind: ConfigMap\\nmetadata:\\n  name: {{ .Options.lines }}\\n\"}}"},
		"a flow mapping":           {pre: "{func: KubeOps, name: run, args: {operation: create, namespace: shop, spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: {{ .Options.flow }}}}'}}"},
		"an end of quotes":         {pre: "{func: KubeOps, name: run, args: {operation: create, namespace: shop, spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: \"{{ .Options.quotes }}\"}}'}}"},
		"an anchor":                {pre: "{func: KubeOps, name: run, args: {operation: create, namespace: shop, spec: \"apiVersion: v1\\nkind: ConfigMap\\nmetadata: {name: x, labels: {{ .Options.anchor }}}\\n\"}}"},
		"a kind":                   {pre: "{func: KubeOps, name: run, args: {operation: create, spec: '{apiVersion: v1, kind: {{ .Options.kind }}, metadata: {name: x}}'}}"},
		"a podOverride of text":    {pre: "{func: KubeTask, name: run, args: {image: x, command: [x], podOverride: '{{ .Options.override }}'}}"},
	}
	// What is known late is held against the same bounds.
	for _, from := range []struct{ name, template string }{
		{"an option", "{{ .Options.ns }}"},
		{"the object", "{{ .Object.metadata.labels.ns }}"},
		{"what a template has changed", "{{ $_ := set .Object.metadata \"namespace\" \"payments\" }}{{ .Object.metadata.namespace }}"},
		{"an output", "{{ .Phases.give.Output.ns }}"},
		{"an artifact", "{{ .ArtifactsIn.a.KeyValue.ns }}"},
	} {
		namespace := fmt.Sprintf("%q", from.template)
		for what, phase := range map[string]string{
			"a pod":                        "{func: KubeExec, name: run, args: {namespace: " + namespace + ", pod: ledger-0, command: [id]}}",
			"pods":                         "{func: KubeExecAll, name: run, args: {namespace: " + namespace + ", pods: ledger-0, containers: postgres, command: [id]}}",
			"a task":                       "{func: KubeTask, name: run, args: {namespace: " + namespace + ", image: x, command: [id]}}",
			"replicas":                     "{func: ScaleWorkload, name: run, args: {namespace: " + namespace + ", kind: StatefulSet, name: ledger, replicas: 0}}",
			"an object":                    "{func: KubeOps, name: run, args: {operation: create, namespace: " + namespace + ", spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: x}}'}}",
			"a patch":                      "{func: KubeOps, name: run, args: {operation: patch, spec: '{data: {x: y}}', objectReference: {apiVersion: v1, resource: configmaps, name: x, namespace: " + namespace + "}}}",
			"a patch beside its namespace": "{func: KubeOps, name: run, args: {operation: patch, namespace: " + namespace + ", spec: '{data: {x: y}}', objectReference: {apiVersion: v1, resource: configmaps, name: x}}}",
			"a deletion":                   "{func: KubeOps, name: run, args: {operation: delete, objectReference: {apiVersion: v1, resource: secrets, name: ledger, namespace: " + namespace + "}}}",
			"a wait":                       "{func: WaitV2, name: run, args: {timeout: 1s, conditions: {anyOf: [{condition: 'true', objectReference: {apiVersion: v1, resource: secrets, name: ledger, namespace: " + namespace + "}}]}}}",
			"a secret":                     "{func: KubeExec, name: run, objects: {x: {kind: Secret, namespace: " + namespace + ", name: ledger}}, " + own("") + "}",
		} {
			one := attack{pre: give + ", " + phase}
			if from.name == "an artifact" {
				one = attack{pre: give, post: phase}
			}
			found[what+" by "+from.name] = one
		}
	}
	return found
}

// Every attack fails, at the latest when the phase is rendered, and neither the
// error nor what has been read shows anything that is not the attacker's.
func TestAttacks(t *testing.T) {
	p := deployment()
	p.Object["metadata"] = map[string]any{"name": "app", "namespace": "shop", "labels": map[string]any{"ns": "payments"}}
	p.Options = map[string]string{
		"ns": "payments", "secret.path": "../../payments/secrets/ledger", "kind": "ClusterRoleBinding",
		"document": "x\n---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: y", "lines": "x\n  namespace: payments",
		"flow": "x, namespace: payments", "quotes": `x", "namespace": "payments`, "anchor": "&a {x: *a}",
		"override": "{hostPID: true, containers: [{name: container, securityContext: {privileged: true}}]}",
	}
	for name, attack := range attacks() {
		for _, confineTo := range []string{"shop", ""} {
			if confineTo == "" && attack.shared {
				continue
			}
			t.Run(fmt.Sprintf("%s, confined to %q", name, confineTo), func(t *testing.T) {
				bp := parsed(t, "{metadata: {name: b}, actions: {backupPrehook: {outputArtifacts: {a: {keyValue: {ns: '{{ .Phases.give.Output.ns }}'}}}, phases: ["+attack.pre+"]}, backupPosthook: {phases: ["+attack.post+"]}}}")
				if !strings.Contains(attack.pre, "name: give") {
					bp.Actions[blueprint.Prehook].OutputArtifacts = nil
				}
				renderer, client, _ := everything(t, confineTo)
				script, masker, err := renderer.Script(t.Context(), bp, p)
				if err == nil {
					for _, step := range script.Pre {
						if err == nil && step.Needs != "" {
							err = script.Render(t.Context(), step)
							require.Empty(t, step.Calls)
							require.Nil(t, step.Task)
						}
						script.Done(step, map[string]any{"ns": "payments"})
					}
					if err == nil {
						require.NoError(t, script.Finish(t.Context()))
						for _, step := range script.Post {
							err = script.Render(t.Context(), step)
							require.Empty(t, step.Calls)
							require.Nil(t, step.Task)
						}
					}
					masker = script.Masker()
				}
				require.Error(t, err)
				t.Log(err)
				require.NotContains(t, err.Error(), "secret\"")
				const others = "pay-secret aws-secret"
				require.Equal(t, others, masker.Mask(others), "a Secret out of reach was read")
				for _, action := range client.Actions() {
					require.NotContains(t, []string{"payments", "velero"}, action.GetNamespace(), "%v", action)
				}
			})
		}
	}
}

// What options and Secrets say is data for the commands of our own recipes,
// whatever it is: a shell runs them here, with clients that write down how they
// are called.
func TestValuesInRecipesAreNoCode(t *testing.T) {
	secretPassword := "p'\"; touch canary; $(touch canary)`touch canary`\n;touch canary #"
	hostile := strings.Replace(secretPassword, "p", "-o", 1)
	p := statefulSet()
	p.Options = map[string]string{
		"secret": "hostile", "secret-key": "password", "user": hostile, "database": hostile, "host": hostile, "port": hostile, "auth-database": hostile,
	}
	clients := map[string]string{"postgresql": "psql", "mysql": "mysql", "mariadb": "mariadb", "mongodb": "mongosh", "redis": "redis-cli"}
	for name, client := range clients {
		t.Run(name, func(t *testing.T) {
			record := &recorder{}
			objects := fake.NewClientset(append(tenants(), secret("shop", "hostile", map[string]string{"password": secretPassword}))...)
			renderer := &render.Renderer{Functions: record.functions(), Kube: objects}
			_, _, err := renderer.Script(t.Context(), blueprint.BuiltIns()[name].Blueprint, p)
			require.NoError(t, err)

			here := t.TempDir()
			called := filepath.Join(here, "called")
			program := "#!/bin/sh\nprintf '%s\\0' \"$0\" \"$@\" >>" + called + "\n"
			require.NoError(t, os.WriteFile(filepath.Join(here, client), []byte(program), 0o700))
			ran := 0
			for _, args := range record.called {
				if args["command"] == nil {
					continue
				}
				command, err := args.Strings("command")
				require.NoError(t, err)
				require.NotContains(t, fmt.Sprint(command, args["begin"], args["end"], args["container"], args["pods"]), "canary")
				env, err := args.Texts("env")
				require.NoError(t, err)
				shell := osexec.CommandContext(t.Context(), command[0], command[1:]...)
				shell.Dir, shell.Env = here, []string{"PATH=" + here + ":/usr/bin:/bin"}
				for variable, value := range env {
					shell.Env = append(shell.Env, variable+"="+value)
				}
				said, err := shell.CombinedOutput()
				t.Logf("%s (%v)", said, err)
				ran++
			}
			require.Positive(t, ran)
			require.NoFileExists(t, filepath.Join(here, "canary"))
			calls, err := os.ReadFile(called)
			require.NoError(t, err, "the client was never called")
			require.NotContains(t, string(calls), secretPassword, "a password is in a list of processes")
		})
	}
}
