package function

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/render"
)

// rendered has the actions of a blueprint (YAML) rendered.
func rendered(t *testing.T, r *render.Renderer, actions string, p render.Params) (*render.Script, error) {
	t.Helper()
	bp, _, err := blueprint.Parse([]byte("metadata: {name: test}\nactions:\n" + actions))
	require.NoError(t, err)
	s, _, err := r.Script(t.Context(), bp, p)
	return s, err
}

// needs says of each step what it waits for, or what it runs.
func needs(steps []*render.Step) []string {
	var said []string
	for _, step := range steps {
		switch {
		case step.Needs != "":
			said = append(said, step.Phase+" needs "+step.Needs)
		case step.Task != nil:
			said = append(said, Describe(step.Task))
		default:
			said = append(said, step.Phase+": "+strings.Join(step.Calls[0].Command, " "))
		}
	}
	return said
}

const lazy = `
  backupPrehook:
    outputArtifacts:
      dump: {keyValue: {position: '{{ .Phases.measure.Output.position }}', fixed: '{{ .Deployment.Name }}'}}
      known: {keyValue: {name: '{{ .Deployment.Name }}', said: '{{ .Time }}'}, kopiaSnapshot: 'snap-{{ .Deployment.Name }}'}
      last: {keyValue: {a: '{{ .DeferPhase.Output.a }}'}}
    phases:
      - {func: KubeExec, name: measure, args: {namespace: shop, pod: app-1, command: [measure]}}
      - {func: KubeExec, name: plain, args: {namespace: shop, pod: app-1, command: [plain]}}
      - {func: KubeExec, name: uses, args: {namespace: shop, pod: app-1, command: [uses, '{{ .Phases.measure.Output.position }}', '{{ index .Phases.measure.Output "position" | upper }}']}}
      - func: KubeExec
        name: secret
        objects: {db: {kind: Secret, namespace: shop, name: '{{ .Phases.measure.Output.secret }}'}}
        args: {namespace: shop, pod: app-1, command: [secret, '{{ index .Phases.secret.Secrets.db.Data "pin" | toString }}']}
      - {func: KubeExec, name: chain, args: {namespace: shop, pod: app-1, command: [chain, '{{ .Phases.uses.Output | toJson }}']}}
    deferPhase: {func: KubeExec, name: tidy, args: {namespace: shop, pod: app-1, command: [tidy, '{{ .Phases.chain.Output.x }}']}}
  backupPosthook:
    inputArtifactNames: [dump, known]
    phases:
      - {func: KubeExec, name: known, args: {namespace: shop, pod: app-1, command: [known, '{{ .ArtifactsIn.known.KeyValue.name }}', '{{ .ArtifactsIn.known.KopiaSnapshot }}']}}
      - {func: KubeExec, name: dump, args: {namespace: shop, pod: app-1, command: [dump, '{{ .ArtifactsIn.dump.KeyValue.position }}']}}
      - {func: KubeExec, name: last, args: {namespace: shop, pod: app-1, command: [last, '{{ .ArtifactsIn.last.KeyValue.a }}']}}
`

func TestPhasesWaitForWhatTheyUse(t *testing.T) {
	s, err := rendered(t, renderer("shop"), lazy, deployment())
	require.NoError(t, err)
	require.Equal(t, []string{
		"measure: measure", "plain: plain", "uses needs the output of phase measure", "secret needs the output of phase measure",
		"chain needs the output of phase uses", "tidy needs the output of phase chain",
	}, needs(s.Pre))
	require.Equal(t, []string{"known: known app snap-app", "dump needs the artifacts of backupPrehook", "last needs the artifacts of backupPrehook"}, needs(s.Post))
	require.True(t, s.Pre[5].Last)

	// Nothing has happened yet.
	require.NoError(t, s.Render(t.Context(), s.Pre[2]))
	require.Equal(t, "the output of phase measure", s.Pre[2].Needs)
	require.Empty(t, s.Pre[2].Calls)
	require.Equal(t, "pin 1234", s.Masker().Mask("pin 1234"))

	s.Done(s.Pre[0], map[string]any{"position": "at-42", "secret": "other"})
	for _, step := range s.Pre[2:4] {
		require.NoError(t, s.Render(t.Context(), step))
	}
	s.Done(s.Pre[2], map[string]any{"b": int64(2), "a": "1"})
	require.NoError(t, s.Render(t.Context(), s.Pre[4]))
	require.Equal(t, []string{
		"measure: measure", "plain: plain", "uses: uses at-42 AT-42", "secret: secret 1234", `chain: chain {"a":"1","b":2}`,
		"tidy needs the output of phase chain",
	}, needs(s.Pre))
	require.Equal(t, "pin ***", s.Masker().Mask("pin 1234"), "secrets that are read later are masked, too")

	s.Done(s.Pre[4], nil)
	require.EqualError(t, s.Render(t.Context(), s.Pre[5]),
		`blueprint test: action backupPrehook: deferPhase tidy: args.command[1]: {{.Phases.chain.Output.x}}: there is no key "x"; the keys are: none`)

	// The deferPhase has failed.
	require.EqualError(t, s.Finish(t.Context()), "blueprint test: action backupPrehook: outputArtifacts.last needs the output of phase tidy, which never came")
	for _, step := range s.Post {
		require.NoError(t, s.Render(t.Context(), step))
	}
	require.Equal(t, []string{"known: known app snap-app", "dump: dump at-42", "last needs the artifacts of backupPrehook"}, needs(s.Post))
}

func TestReplicasAreForetold(t *testing.T) {
	actions := `
  backupPrehook:
    outputArtifacts: {db: {keyValue: {replicas: '{{ .Phases.stop.Output.originalReplicaCount }}'}}}
    phases:
      - {func: ScaleWorkload, name: stop, args: {replicas: 0, kind: statefulset, name: db}}
      - {func: ScaleWorkload, name: again, args: {replicas: 1, kind: StatefulSet, name: db}}
      - {func: KubeExec, name: tell, args: {namespace: shop, pod: app-1, command: [tell, '{{ .Phases.again.Output.originalReplicaCount }}']}}
  backupPosthook:
    phases:
      - {func: ScaleWorkload, name: start, args: {replicas: '{{ .ArtifactsIn.db.KeyValue.replicas }}', kind: StatefulSet, name: db}}
      - {func: KubeExec, name: tell, args: {namespace: shop, pod: app-1, command: [tell, '{{ .Phases.start.Output.originalReplicaCount }}']}}
`
	s, err := rendered(t, renderer("shop"), actions, deployment())
	require.NoError(t, err)
	require.Equal(t, []string{"ScaleWorkload StatefulSet shop/db to 0 replicas", "ScaleWorkload StatefulSet shop/db to 1 replicas", "tell: tell 0"}, needs(s.Pre))
	require.Equal(t, []string{"ScaleWorkload StatefulSet shop/db to 3 replicas", "tell needs the output of phase start"}, needs(s.Post))

	_, err = rendered(t, renderer("shop"), strings.ReplaceAll(actions, "name: db", "name: nope"), deployment())
	require.EqualError(t, err, `blueprint test: action backupPrehook: phase stop: function ScaleWorkload: get the scale of StatefulSet shop/nope: statefulsets.apps "nope" not found`)
}

// stateful is what ScaleWorkload reads.
func stateful(name string, replicas int32) *appsv1.StatefulSet {
	return &appsv1.StatefulSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "StatefulSet"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: appsv1.StatefulSetSpec{Replicas: &replicas},
	}
}

// What can never be rendered is refused while the plan is made, also behind
// the place where a template has to wait.
func TestPendingErrors(t *testing.T) {
	var report strings.Builder
	phase := func(name, template string) string {
		return fmt.Sprintf("      - {func: KubeExec, name: %s, args: {namespace: shop, pod: app-1, command: [sh, -c, %q]}}\n", name, template)
	}
	for _, template := range []string{
		"{{ .Phases.first.Output.x }} {{ .Options.typo }}",
		"{{ .Phases.first.Output.x | printf .Options.typo }}",
		"{{ if .Phases.first.Output.x }}{{ .Options.typo }}{{ end }}",
		"{{ or .Phases.first.Output.x .Options.typo }}",
		"{{ .Phases.first.Output.x }}{{ with .Options }}{{ .typo }}{{ end }}",
		"{{ .Phases.first.Output.x }}{{ .Phases.third.Output.y }}",
		"{{ .Phases.first.Output.x }}{{ (.Options.typo | upper) }}",
		"{{ .Phases.first.Output.x }}{{ $.Nothing.at.all }}",
		"{{ .Phases.first.Output.x }}{{ nosuch }}",
		"{{ .Phases.third.Output.y }}",
		"{{ .Phases.second.Output.y }}",
		"{{ toJson .Phases.first }}",
		"{{ toJson .Phases.third }}",
		"{{ .ArtifactsIn.a.KeyValue.b }}",
		"{{ .DeferPhase.Output.x }}",
		"{{ .CurrentPhase.Secrets | len }} {{ .PodOverride | toJson }} {{ len .PodLabels }} {{ if .Profile }}x{{ end }}",
	} {
		s, err := rendered(t, renderer("shop"), "  backupPrehook:\n    phases:\n"+phase("first", "first")+phase("second", template)+phase("third", "third"), deployment())
		text := ""
		if err != nil {
			text = strings.TrimPrefix(err.Error(), "blueprint test: action backupPrehook: ")
		} else {
			text = needs(s.Pre)[1]
		}
		fmt.Fprintf(&report, "%s\n  => %s\n\n", template, text)
	}
	for _, actions := range []string{
		"  backupPrehook: {inputArtifactNames: [x]}\n",
		"  backupPosthook: {inputArtifactNames: [x]}\n",
		"  backupPrehook: {outputArtifacts: {art: {keyValue: {z: '{{ .Phases.x.Output }}'}}}}\n",
		"  backupPrehook: {outputArtifacts: {art: {keyValue: {z: '{{ .Options.typo }}'}}}}\n",
		"  backupPrehook:\n    outputArtifacts: {art: {keyValue: {z: '{{ .Phases.p.Output.o }}'}}}\n    phases:\n" + phase("p", "p") +
			"  backupPosthook:\n    phases:\n" + phase("q", "{{ .ArtifactsIn.art.KeyValue.typo }}"),
		"  backupPosthook:\n    phases:\n" + phase("q", "{{ .ArtifactsIn.art.KeyValue.z }}"),
		"  backupPosthook:\n    phases:\n" + phase("q", "{{ (index .ArtifactsIn \"art\").KeyValue.z }}"),
		"  backupPrehook: {secretNames: [nope]}\n",
		"  backupPrehook: {configMapNames: [nope]}\n",
		"  backupPrehook: {deferPhase: {func: Nothing, name: x}}\n",
		"  backupPrehook: {deferPhase: {func: KubeExec, name: x, args: {pods: a}}}\n",
		"  backupPrehook: {deferPhase: {func: KubeExec, name: x}}\n",
		"  backupPrehook: {deferPhase: {func: WaitV2, args: {timeout: 1s}}}\n",
	} {
		_, err := rendered(t, renderer("shop"), actions, deployment())
		require.Error(t, err, actions)
		fmt.Fprintf(&report, "%s  => %s\n\n", actions, strings.TrimPrefix(err.Error(), "blueprint test: "))
	}
	golden(t, "pending.golden", report.String())
}

func TestNamedSecretsAndConfigMaps(t *testing.T) {
	actions := `
  backupPrehook:
    secretNames: [login]
    configMapNames: [settings]
    phases:
      - {func: KubeExec, name: x, args: {namespace: shop, pod: app-1, command: [x, '{{ index .Secrets.login.Data "pin" | toString }}', '{{ .ConfigMaps.settings.Data.user }}']}}
`
	p := deployment()
	p.Options = map[string]string{"secret.login": "other"}
	s, err := rendered(t, renderer("shop"), actions, p)
	require.NoError(t, err)
	require.Equal(t, []string{"x: x 1234 root"}, needs(s.Pre))
	require.Equal(t, "***", s.Masker().Mask("1234"))
	_, err = rendered(t, renderer("shop"), actions, deployment())
	require.EqualError(t, err, `blueprint test: action backupPrehook: secretNames: login: get Secret shop/login: secrets "login" not found (the option secret.login can name another one)`)
}

func TestAnnotatedSecretIsMasked(t *testing.T) {
	p := render.Params{Object: map[string]any{
		"kind": "Secret", "metadata": map[string]any{"namespace": "shop", "name": "db"}, "data": map[string]any{"password": "aHVzaC1odXNo"},
	}}
	s, err := rendered(t, renderer("shop"), `
  backupPrehook:
    phases:
      - {func: KubeExec, name: x, args: {namespace: shop, pod: app-1, command: [x, '{{ .Object.data.password | b64dec }}']}}
`, p)
	require.NoError(t, err)
	require.Equal(t, []string{"x: x hush-hush"}, needs(s.Pre))
	require.Equal(t, "x ***, ***", s.Masker().Mask("x hush-hush, aHVzaC1odXNo"))
	_, err = rendered(t, renderer("shop"), `
  backupPrehook:
    phases:
      - {func: KubeExec, name: x, args: {namespace: shop, pod: '{{ .Object.data.password | b64dec }}', command: [x]}}
`, p)
	require.ErrorContains(t, err, "pod shop/*** does not exist")
}

func TestOutputsMayQuoteSecrets(t *testing.T) {
	s, err := rendered(t, renderer("shop"), `
  backupPrehook:
    phases:
      - {func: KubeExec, name: a, args: {namespace: shop, pod: app-1, command: [a]}}
      - {func: KubeExec, name: b, args: {namespace: shop, pod: app-1, command: ['{{ fail .Phases.a.Output.x }}']}}
`, deployment())
	require.NoError(t, err)
	s.Done(s.Pre[0], map[string]any{"x": "hush"})
	err = s.Render(t.Context(), s.Pre[1])
	require.ErrorContains(t, err, "the reason is not shown")
	require.NotContains(t, err.Error(), "hush")
}

func TestScriptOfOthers(t *testing.T) {
	s, err := rendered(t, renderer("shop"), lazy, deployment())
	require.NoError(t, err)
	s.Done(&render.Step{}, nil)
	require.ErrorContains(t, s.Render(t.Context(), &render.Step{Needs: "x"}), "the step does not belong to this script")
}

func TestCallsAreWrittenWithoutWhatTheyLack(t *testing.T) {
	text, err := json.Marshal(render.Call{Namespace: "a", Pod: "b", Container: "c", Command: []string{"d"}})
	require.NoError(t, err)
	require.JSONEq(t, `{"Namespace":"a","Pod":"b","Container":"c","Command":["d"]}`, string(text))
}
