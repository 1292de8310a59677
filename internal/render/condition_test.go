package render

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestConditions(t *testing.T) {
	object := map[string]any{
		"status": map[string]any{"phase": "Running", "ready": int64(2), "list": []any{map[string]any{"type": "Ready", "status": "True"}}},
		"data":   map[string]any{"x": "aHVzaA=="},
	}
	for _, test := range []struct{ function, condition, want, err string }{
		{"Wait", `{{ if eq "{ $.status.phase }" "Running" }}true{{ else }}false{{ end }}`, "true", ""},
		{"Wait", `{{ if and (eq {$.status.ready} 2) (eq "{ $.status.list[?(@.type=='Ready')].status }" "True") }} true {{ end }}`, "true", ""},
		{"Wait", `{{ if eq "{ $.status.nope }" "x" }}true{{ end }}`, "", "{ $.status.nope } does not exist"},
		{"Wait", `{{ if eq "{ $.status.phase }" "Gone" | not }}{{ "tru" | printf "%se" }}{{ end }}`, "true", ""},
		{"Wait", `{{ env "HOME" }}`, "", "the condition fails on the object as it is now"},
		{"WaitV2", `{{ eq .status.phase "Running" }}`, "true", ""},
		{"WaitV2", `{{ range .status.list }}{{ if eq .type "Ready" }}{{ eq .status "True" }}{{ end }}{{ end }}`, "true", ""},
		{"WaitV2", `{{ if .status.nope }}true{{ else }}not yet{{ end }}`, "not yet", ""},
		{"WaitV2", `{{ exists .status "list" 0 "type" }} {{ exists .status "list" 1 }} {{ exists .status "nope" "x" }}`, "true false false", ""},
		{"WaitV2", `{{ if eq (base64decode .data.x) "hush" }}true{{ end }}`, "true", ""},
		{"WaitV2", `{{ base64decode .status.phase }}`, "", "the condition fails on the object as it is now"},
	} {
		t.Run(test.condition, func(t *testing.T) {
			got, err := Condition(t.Context(), test.function, test.condition, object)
			if test.err != "" {
				require.EqualError(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

// A field of the object that is waited for is data: a user who may write it does not
// write the condition.
func TestWaitedForFieldsAreData(t *testing.T) {
	for _, value := range []string{
		`Running" "Running`, `x" }}{{ end }}true{{ if eq "1" "2`, `{{ "Running" }}`, "`", `\`, `"`, "{{ fail `x` }}", "}}", "{{/*", "a\nb", "{$.status.phase}", "\xff",
	} {
		object := map[string]any{"status": map[string]any{"phase": value, "list": []any{map[string]any{"type": "Ready", "phase": value}}}}
		for condition, want := range map[string]string{
			`{{ if eq "{ $.status.phase }" "Running" }}true{{ end }}`:                          "",
			"{{ if eq `{ $.status.phase }` `Running` }}true{{ end }}":                          "",
			`{{ if eq {$.status.phase} "Running" }}true{{ end }}`:                              "",
			`{{ if eq "{ $.status.list[?(@.type=="Ready")].phase }" "Running" }}true{{ end }}`: "",
			`{{ if (eq ("{$.status.phase}" | len) 0) }}true{{ end }}`:                          "",
			`<{$.status.phase}>`:                              "<" + value + ">",
			`{{ with "<{$.status.phase}>" }}{{ . }}{{ end }}`: "<" + value + ">",
			`{{ printf "<%s>" {$.status.phase} }}`:            "<" + value + ">",
		} {
			got, err := Condition(t.Context(), WaitFunction, condition, object)
			require.NoError(t, err, "%s with %q", condition, value)
			require.Equal(t, strings.ToValidUTF8(want, "\ufffd"), got, "%s with %q", condition, value)
		}
	}
	for value, want := range map[any]string{int64(3): "int 3", 2.5: "float64 2.5", true: "bool true", "nan": "string nan", "-7": "int -7", "": "string "} {
		got, err := Condition(t.Context(), WaitFunction, `{{ printf "%T %v" {$.x} {$.x} }}`, map[string]any{"x": value})
		require.NoError(t, err)
		require.Equal(t, strings.TrimSpace(want), got)
	}
}
