package blueprint

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// documentsOf are the published and built-in blueprints.
func documentsOf(f *testing.F) [][]byte {
	f.Helper()
	var docs [][]byte
	for _, pattern := range []string{"testdata/*.yaml", "builtin/*.yaml"} {
		files, err := filepath.Glob(pattern)
		require.NoError(f, err)
		for _, file := range files {
			doc, err := os.ReadFile(file)
			require.NoError(f, err)
			docs = append(docs, doc)
		}
	}
	return docs
}

// FuzzParse feeds documents to Parse. What it takes survives being written and
// read again, and rendering it ends, in steps or in an error.
func FuzzParse(f *testing.F) {
	for _, doc := range documentsOf(f) {
		f.Add(doc)
	}
	for _, seed := range []string{
		"metadata: {name: a}\n---\nkind: X", "{}", "actions: {a: null, b: {phases: [{args: {x: [1]}}]}}", "--- |\n a\n...", "\ufeff---",
		"", "---\n---\n", "a: &a [*a]", "actions: {backupPrehook: null}", "{\"actions\": {\"backupPrehook\": {\"phases\": [null]}}}",
		"metadata: {name: test}\nactions:" + lazy, "kind: Blueprint\n...\nkind: Blueprint", "actions: {BackupPrehook: {phases: [{name: a}, {name: a}]}}",
		"actions: {backupPrehook: {phases: [{func: Wait, args: {timeout: 1s, conditions: {anyOf: [{condition: '{ $.a }', objectReference: {resource: pods}}]}}}]}}",
		"actions: {backupPrehook: {phases: [{func: KubeOps, args: {operation: create, spec: '{{ .Object | toJson }}'}}]}}",
	} {
		f.Add([]byte(seed))
	}
	r := renderer("shop")
	f.Fuzz(func(t *testing.T, doc []byte) {
		bp, _, err := Parse(doc)
		all, _, errAll := ParseAll(doc)
		if err != nil {
			return
		}
		require.NoError(t, errAll)
		require.Len(t, all, 1)
		text, err := json.Marshal(bp)
		require.NoError(t, err)
		again, _, err := Parse(text)
		require.NoError(t, err, "%s", text)
		reread, err := json.Marshal(again)
		require.NoError(t, err)
		require.JSONEq(t, string(text), string(reread))
		soon(t, func() {
			s, _, err := r.Script(t.Context(), bp, deployment())
			if err == nil {
				for _, step := range append(s.Pre, s.Post...) {
					require.True(t, step.Needs != "" || step.Task != nil || len(step.Calls) > 0)
				}
			}
		})
	})
}

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
			run := r.newRendering(&Blueprint{}, Prehook, p, &secrecy{})
			run.enter(0)
			_, err := run.document(t.Context(), "spec", template)
			_ = err // of any kind; what counts is that there is an end
			for _, spec := range []string{
				"a: {{ .Options.x }}\nb: c", "a: [{{ .Options.x }}, d]", "{a: {b: \"{{ .Options.x }}\"}}", "a: '{{ .Options.x }}'",
				"a: |\n  {{ .Options.x | nindent 2 }}\nb: c", "a: >-\n  {{ .Options.x }}\n", "a: x{{ .Options.x }}{{ .Options.x }}", "a: {{ .Options.x | quote }}",
				"{{ .Options.x | quote }}: b",
			} {
				object, err := run.document(t.Context(), "spec", spec)
				if err != nil {
					continue
				}
				meant := *run.data
				meant.Options = map[string]string{"x": "x"}
				other := *run
				other.data = &meant
				plain, err := other.document(t.Context(), "spec", spec)
				require.NoError(t, err)
				require.Equal(t, shape(plain), shape(object), "%s with %q", spec, value)
			}
		})
		soon(t, func() {
			for _, function := range []string{waitFunction, waitV2Function} {
				if _, err := evaluate(t.Context(), function, template, p.Object); err != nil {
					continue
				}
			}
		})
	})
}
