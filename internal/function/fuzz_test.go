package function

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// documentsOf are the published and built-in blueprints.
func documentsOf(f *testing.F) [][]byte {
	f.Helper()
	var docs [][]byte
	for _, pattern := range []string{"testdata/*.yaml", "../blueprint/builtin/*.yaml"} {
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
		bp, _, err := blueprint.Parse(doc)
		all, _, errAll := blueprint.ParseAll(doc)
		if err != nil {
			return
		}
		require.NoError(t, errAll)
		require.Len(t, all, 1)
		text, err := json.Marshal(bp)
		require.NoError(t, err)
		again, _, err := blueprint.Parse(text)
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
