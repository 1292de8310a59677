package render

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// A value that goes into a spec may fill the scalar that it was meant for, and
// must not write YAML of its own.
func TestValuesStayInTheirPlace(t *testing.T) {
	const (
		configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Options.x }}\n  namespace: shop\ndata:\n  key: v\n"
		job       = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  containers:\n    - name: {{ .Options.x }}\n      image: i\n"
		data      = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: n\ndata:\n  key: "
		two       = "apiVersion: v1\nmetadata:\n  name: {{ .Options.x }}\nkind: ConfigMap\ndata: {k: \"{{ .Options.y }}\"}\n"
	)
	for _, test := range []struct {
		name, spec, x, y string
		want             string // at data.key, or the error
	}{
		{"plain", data + "{{ .Options.x }}", "hello", "", "hello"},
		{"a number", data + "{{ .Options.x }}", "15", "", "15"},
		{"two in one", data + "{{ .Options.x }}{{ .Options.y }}", "1", "5", "15"},
		{"within a word", data + "at-{{ .Options.x }}!", "b c", "", "at-b c!"},
		{"in quotes", data + `"{{ .Options.x }}"`, "a: b # c", "", "a: b # c"},
		{"by quote", data + "{{ .Options.x | quote }}", "a: \"b\"\n# c", "", "a: \"b\"\n# c"},
		{"by squote", data + "{{ .Options.x | squote }}", "a: b", "", "a: b"},
		{"lines in a block", data + "|\n    {{ .Options.x | nindent 4 }}\n    end", "one\ntwo: 2", "", "\none\ntwo: 2\nend"},
		{"list by toJson", data + "{{ list .Options.x .Options.y | toJson }}", "a", "b: c\nd", "[a b: c\nd]"},
		{"map by toPrettyJson", data + "{{ dict \"a\" .Options.x | toPrettyJson | nindent 4 }}", "{", "", "map[a:{]"},
		{"literal JSON", `{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "n"}, "data": {"key": "{{ .Options.x }}"}}`, "a", "", "a"},
		{"nothing", data + "{{ .Options.x }}", "", "", "<nil>"},
		{"a comment", data + "{{ .Options.x }}", "a # b", "", "a"},
		{"a block by if", data + "{{ if .Options.x }}\n    deep: {{ .Options.x }}\n{{ end }}", "a", "", "map[deep:a]"},

		{"another kind", configMap, "a\nkind: RoleBinding\nroleRef: {}", "", "refused"},
		{"one more key", configMap, "a\n  labels: {a: b}", "", "refused"},
		{"a second document", configMap, "a\n---\nkind: Secret", "", "refused"},
		{"the end of the document", configMap, "a\n...\n", "", "refused"},
		{"a privileged container", job, "c\n      securityContext: {privileged: true}", "", "refused"},
		{"one more container", job, "c\n    - name: d", "", "refused"},
		{"a map in place of a word", job, "{a: b}", "", "refused"},
		{"a list in place of a word", job, "[a]", "", "refused"},
		{"an anchor", data + "{{ .Options.x }}\n  other: {{ .Options.y }}", "&a {b: c}", "*a", "refused"},
		{"kind inside a quotation", two, `"a`, "\nkind: RoleBinding\nz: {k: \"", "refused"},
		{"out of a quotation", data + `"{{ .Options.x }}"`, "a\"\nmore: \"b", "", "refused"},
		{"out of a block", data + "|\n    {{ .Options.x }}\n", "a\nkind: Secret", "", "refused"},
		{"key that merges", data + "\n    \"{{ .Options.x }}\": {a: b}", `a": {}, "b`, "", "refused"},
		{"a mark of its own", configMap, "markAAAAx0x", "", "v"},
		{"JSON by hand", data + "{{ printf \"{\\\"a\\\": %s}\" .Options.x }}", "1", "", "refused"},
		{"toJson in a word", data + "a{{ .Options.x | toJson }}", "b\nc", "", "a\"b\\nc\""},
		{"dashes", configMap, "---", "", "v"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := deployment()
			p.Options = map[string]string{"x": test.x, "y": test.y}
			r := renderer("").newRendering(&blueprint.Blueprint{}, blueprint.Prehook, p, &secrecy{})
			r.enter(0)
			object, err := r.Document(t.Context(), "args.spec", test.spec)
			if test.want == "refused" {
				require.Error(t, err, "%v", object)
				return
			}
			require.NoError(t, err)
			values, ok := object["data"].(map[string]any)
			require.True(t, ok)
			require.Equal(t, test.want, fmt.Sprint(values["key"]))
		})
	}
}

func TestSpecAdvice(t *testing.T) {
	p := deployment()
	p.Options = map[string]string{"x": "{a: b}"}
	r := renderer("").newRendering(&blueprint.Blueprint{}, blueprint.Prehook, p, &secrecy{})
	r.enter(0)
	_, err := r.Document(t.Context(), "args.spec", "a:\n  b: [1, {{ .Options.x }}]")
	require.EqualError(t, err, "args.spec: at a.b[1]: a value that is rendered into it may fill one scalar only: put it in quotes ({{ … | quote }}), or write what is more by toJson")
}

func TestFunctionsOfTemplates(t *testing.T) {
	for template, want := range map[string]string{
		`{{ range until 3 }}{{ . }}{{ end }}{{ seq 3 1 }}{{ repeat 3 "x" }}{{ until -2 }}`: "0123 2 1xxx[0 -1]",
		`{{ range 1000 }}{{ end }}{{ join "," (untilStep 0 6 2) }}`:                        "0,2,4",
		`{{ printf "%05d %-8s|" 7 "a" }}{{ print 1 nil }}{{ html "<" }}`:                   "00007 a       |1 <nil>&lt;",
		`{{ $x := 1 }}{{ $x }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}`:                  "12",
		`{{ with .Deployment }}{{ .Name }}{{ end }}{{ block "b" . }}{{ .Time }}{{ end }}`:  "app2026-02-03T04:05:06.000000007Z",
		`{{ toJson nil }}{{ .Object.spec.template }}{{ index .Options "none" }}`:           "null<no value>",
	} {
		got, _, err := steps(t.Context(), renderer("shop"), exec(template), deployment())
		require.NoError(t, err, template)
		require.Equal(t, want, strings.TrimSpace(got[0].Calls[0].Command[2]), template)
	}
}
