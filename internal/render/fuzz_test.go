package render

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// soon fails when something takes long: templates are bounded.
func soon(t *testing.T, do func()) {
	t.Helper()
	started := time.Now()
	do()
	require.Less(t, time.Since(started), 20*time.Second)
}

// shape is a document without its scalars, and with its keys counted.
func shape(value any) any {
	switch v := value.(type) {
	case map[string]any:
		var shapes []any
		for _, key := range slices.Sorted(maps.Keys(v)) {
			shapes = append(shapes, shape(v[key]))
		}
		return map[string]any{"map": shapes}
	case []any:
		var shapes []any
		for _, element := range v {
			shapes = append(shapes, shape(element))
		}
		return shapes
	default:
		return nil
	}
}

// FuzzRender feeds templates to a command, to a spec and to a condition, with a
// Secret and a value of a tenant's in scope. No error shows the Secret, and no
// value writes YAML.
func FuzzRender(f *testing.F) {
	for _, seed := range []string{
		"{{ .Deployment.Name }}", `{{ index .Phases.run.Secrets.db.Data "pin" | toString }}`, "{{ .Phases.run.Secrets.db.Data.pin }}",
		"{{ with .Phases.run }}{{ .Secrets }}{{ end }}", "{{ .Time", `{{ $x := .Object }}{{ fail (toJson $x) }}`, "{{ .StatefulSet.Pods }}",
		`{{ atoi (index .Phases.run.Secrets.db.Data "mongodb-root-password" | toString | printf "%s") | index .Deployment.Pods }}`,
		"{{ range until 10 }}{{ . }}{{ end }}", `{{ define "a" }}{{ . }}{{ end }}{{ template "a" .Options }}`, `{{ repeat 3 "x" | indent 4 }}`,
		"{{ .ArtifactsIn.x.KeyValue.y }}", "{{ toJson .Phases }}", "{{ .CurrentPhase.Output }}", "{{ .Options.x | quote }}", "a: {{ .Options.x }}",
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  a: {{ .Options.x }}\n", `{{ if eq "{ $.status.phase }" "x" }}true{{ end }}`,
	} {
		f.Add(seed, "x")
	}
	f.Add("a: {{ .Options.x }}", "b\nc: d")
	f.Add("{a: {{ .Options.x }}}", "b}, {c: d")
	r := renderer("shop")
	f.Fuzz(func(t *testing.T, template, value string) {
		p := deployment()
		p.Options = map[string]string{"x": value}
		soon(t, func() {
			_, _, err := steps(t.Context(), r, withSecret(template), p)
			if err != nil && strings.Contains(err.Error(), password) {
				t.Fatalf("the error shows a secret: %v", err)
			}
		})
		soon(t, func() {
			run := r.newRendering(&blueprint.Blueprint{}, blueprint.Prehook, p, &secrecy{})
			run.enter(0)
			_, err := run.Document(t.Context(), "spec", template)
			_ = err // of any kind; what counts is that there is an end
			for _, spec := range []string{
				"a: {{ .Options.x }}\nb: c", "a: [{{ .Options.x }}, d]", "{a: {b: \"{{ .Options.x }}\"}}", "a: '{{ .Options.x }}'",
				"a: |\n  {{ .Options.x | nindent 2 }}\nb: c", "a: >-\n  {{ .Options.x }}\n", "a: x{{ .Options.x }}{{ .Options.x }}", "a: {{ .Options.x | quote }}",
				"{{ .Options.x | quote }}: b",
			} {
				object, err := run.Document(t.Context(), "spec", spec)
				if err != nil {
					continue
				}
				meant := *run.data
				meant.Options = map[string]string{"x": "x"}
				other := *run
				other.data = &meant
				plain, err := other.Document(t.Context(), "spec", spec)
				require.NoError(t, err)
				require.Equal(t, shape(plain), shape(object), "%s with %q", spec, value)
			}
		})
		soon(t, func() {
			for _, function := range []string{WaitFunction, WaitV2Function} {
				if _, err := Condition(t.Context(), function, template, p.Object); err != nil {
					continue
				}
			}
		})
	})
}
