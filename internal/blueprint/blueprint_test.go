package blueprint

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	for name, test := range map[string]struct {
		doc      string
		warnings []string
		err      string
	}{
		"YAML":             {doc: "apiVersion: cr.kanister.io/v1alpha1\nkind: Blueprint\nmetadata: {name: b}\nactions: {backupPrehook: {phases: []}}"},
		"JSON":             {doc: `{"metadata":{"name":"b"},"actions":{}}`},
		"comments before":  {doc: "# about\n---\n---\n# more {}\nmetadata: {name: b}\n...\n"},
		"text behind ---":  {doc: "--- # about\nmetadata: {name: b}"},
		"Windows":          {doc: "---\r\nmetadata: {name: b}\r\n---\r\n"},
		"dashes in a text": {doc: "metadata: {name: b}\nactions: {a: {phases: [{func: F, name: p, args: {x: \"---\"}}]}}"},
		"unknown fields": {
			doc:      "metadata: {name: b}\ntype: x\nactions: {a: {type: Deployment, phases: [{func: F, name: p, Args: {}}]}}",
			warnings: []string{`unknown field "actions.a.phases[0].Args" is ignored`, `unknown field "actions.a.type" is ignored`, `unknown field "type" is ignored`},
		},
		"action in wrong case": {
			doc:      "metadata: {name: b}\nactions: {backupPreHook: {}, other: null}",
			warnings: []string{`action "backupPreHook" never runs: the name is "backupPrehook"`},
		},
		"phase name twice": {
			doc:      "metadata: {name: b}\nactions: {a: {phases: [{name: p}, {name: p}]}}",
			warnings: []string{`action "a" has two phases named "p"`},
		},

		"empty":         {doc: "\n# nothing\n", err: "the document is empty; a blueprint has apiVersion, kind, metadata and actions"},
		"two":           {doc: "a: 1\n---\nb: 2", err: "2 documents where one is expected"},
		"no YAML":       {doc: "a: [", err: "read as YAML: yaml: line 1: did not find expected node content"},
		"key twice":     {doc: "kind: Blueprint\nkind: Blueprint", err: "read as YAML: yaml: unmarshal errors:\n  line 2: key \"kind\" already set in map"},
		"wrong kind":    {doc: "kind: Profile", err: `kind is "Profile", a blueprint's is "Blueprint"`},
		"wrong version": {doc: "apiVersion: cr.kanister.io/v2", err: `apiVersion is "cr.kanister.io/v2", a blueprint's is "cr.kanister.io/v1alpha1"`},
		"wrong type":    {doc: "actions: [a]", err: "read as a blueprint: json: cannot unmarshal array into Go struct field Blueprint.actions of type map[string]*blueprint.Action"},
	} {
		t.Run(name, func(t *testing.T) {
			bp, warnings, err := Parse([]byte(test.doc))
			if test.err != "" {
				require.EqualError(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, "b", bp.Name)
			require.ElementsMatch(t, test.warnings, warnings)
		})
	}
}

func TestParseAll(t *testing.T) {
	all, warnings, err := ParseAll([]byte("metadata: {name: a}\n---\n---\nmetadata: {name: b}\nx: 1\n"))
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Equal(t, "b", all[1].Name)
	require.Equal(t, []string{`document 2: unknown field "x" is ignored`}, warnings)

	_, _, err = ParseAll([]byte("metadata: {name: a}\n---\nkind: X"))
	require.EqualError(t, err, `document 2: kind is "X", a blueprint's is "Blueprint"`)
}
