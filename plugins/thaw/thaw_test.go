package thaw

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"stillpoint.io/stillpoint/internal/journal"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/plugins/command"
)

func parse(args []string) (*flags, error) {
	f := &flags{}
	c := f.command()
	if err := c.ParseFlags(args); err != nil {
		return nil, err
	}
	return f, f.validate(c, c.Flags().Args())
}

func TestParse(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		text string
	}{
		"nothing":              {nil, ""},
		"all":                  {[]string{"--all", "--timeout", "30s"}, ""},
		"namespaces":           {[]string{"-n", "shop", "--namespace", "office"}, ""},
		"names":                {[]string{"stillpoint-intent-a", "stillpoint-intent-b"}, ""},
		"forget":               {[]string{"--forget", "stillpoint-intent-a"}, ""},
		"json":                 {[]string{"-o", "json"}, ""},
		"flag":                 {[]string{"--force"}, "unknown flag: --force"},
		"output":               {[]string{"-o", "yaml"}, `--output "yaml": must be table or json`},
		"json and release":     {[]string{"-o", "json", "--all"}, "--output json is for the list: releases are reported line by line"},
		"empty namespace":      {[]string{"-n", ""}, "a name or --namespace is empty"},
		"empty name":           {[]string{""}, "a name or --namespace is empty"},
		"all and names":        {[]string{"--all", "a"}, "--all, --abandoned, --namespace and names: give one of them"},
		"forget what":          {[]string{"--forget"}, "--forget needs names of the list"},
		"forget all":           {[]string{"--forget", "--all"}, "--forget needs names of the list"},
		"no timeout":           {[]string{"--all", "--timeout", "0s"}, "thaw: --timeout 0s: must be longer than 0"},
		"timeout, no releases": {[]string{"--timeout", "5s"}, "--timeout needs something to release"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(test.args)
			if test.text == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, test.text)
			}
		})
	}
}

func TestRun(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	t.Setenv("HOME", t.TempDir())
	var stdout, stderr bytes.Buffer
	run := func(args ...string) int {
		return command.Execute(t.Context(), command.Tree(&cobra.Command{Use: "stillpoint"}, New()), append([]string{"thaw"}, args...), &stdout, &stderr)
	}
	assert.Equal(t, 0, run("--help"))
	golden(t, "help.txt", stdout.Bytes())
	assert.Empty(t, stderr.String())

	assert.Equal(t, 2, run("-x"))
	assert.Equal(t, "stillpoint thaw: unknown shorthand flag: 'x' in -x; see stillpoint thaw --help\n", stderr.String())

	stderr.Reset()
	assert.Equal(t, 2, run("--kubeconfig", "/nowhere"))
	assert.Contains(t, stderr.String(), "stillpoint thaw: find the API server: ")
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		require.NoError(t, os.WriteFile(file, got, 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, string(want), string(got), "set UPDATE_GOLDEN=1 to accept")
}

func quiesced() *list {
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	holder := journal.Holder{Pod: "velero-6d5b8", PodUID: "1", Host: "velero-6d5b8", PID: 31}
	return &list{now: noon, entries: []journal.Status{
		{Entry: &journal.Entry{
			ID: "stillpoint-intent-b5kqz8w2xn", Name: "Deployment shop/web", Namespace: "shop", Backup: "nightly-20260301",
			Since: noon.Add(-26 * time.Hour), Until: noon.Add(-25 * time.Hour),
			Tried: noon.Add(-3 * time.Minute), Failure: "blueprint dump, phase unlock: phase unlock needs the output of phase dump, which ended with the process that knew it; do by hand what phase unlock of backupPosthook would: KubeExec\nblueprint scale-down, phase up: deployments.apps \"web\" not found; do by hand what phase up would: ScaleWorkload Deployment shop/web to 3 replicas",
			Undo: []journal.Undo{
				{Blueprint: "dump", Phase: "unlock", Unknown: "phase unlock needs the output of phase dump, which ended with the process that knew it", ByHand: "do by hand what phase unlock of backupPosthook would: KubeExec"},
				{Blueprint: "scale-down", Phase: "up", Task: &render.Task{Func: "ScaleWorkload", Args: render.Args{"replicas": "3"}}, ByHand: "do by hand what phase up would: ScaleWorkload Deployment shop/web to 3 replicas"},
			},
		}, HolderGone: "the last try has failed"},
		{Entry: &journal.Entry{
			ID: "stillpoint-intent-x7t2m4vq9c", Name: "StatefulSet office/db", Namespace: "office", Backup: "office-1",
			Since: noon.Add(-8 * time.Second), Until: noon.Add(10 * time.Minute), Holder: holder,
			Undo: []journal.Undo{{
				Blueprint: "fsfreeze", Phase: "thaw", Guarded: true, ByHand: "run by hand: kubectl exec -n office db-0 -c db -- 'fsfreeze' '--unfreeze' '/data'",
				Call:    &render.Call{Namespace: "office", Pod: "db-0", Container: "db", Command: []string{"sh", "-c", "SECRET"}},
				Volumes: []journal.Volume{{Claim: "data-db-0", MountPath: "/data", Node: "node1", Path: "/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/pv1/mount"}},
			}},
		}},
	}}
}

func TestTable(t *testing.T) {
	var table, nothing, document bytes.Buffer
	require.NoError(t, quiesced().table(&table))
	golden(t, "table.txt", table.Bytes())
	require.NoError(t, quiesced().json(&document))
	golden(t, "list.json", document.Bytes())
	assert.NotContains(t, table.String()+document.String(), "SECRET", "commands can hold secrets")
	require.NoError(t, (&list{}).table(&nothing))
	assert.Equal(t, "Nothing is quiesced.\n", nothing.String())
}

func TestChoose(t *testing.T) {
	for name, test := range map[string]struct {
		flags flags
		want  []string
	}{
		"all":       {flags{all: true}, []string{"Deployment shop/web", "StatefulSet office/db"}},
		"abandoned": {flags{abandoned: true}, []string{"Deployment shop/web"}},
		"namespace": {flags{namespaces: []string{"office", "other"}}, []string{"StatefulSet office/db"}},
		"name":      {flags{names: []string{"stillpoint-intent-x7t2m4vq9c"}}, []string{"StatefulSet office/db"}},
	} {
		t.Run(name, func(t *testing.T) {
			chosen, err := quiesced().choose(&test.flags)
			require.NoError(t, err)
			var names []string
			for _, e := range chosen {
				names = append(names, e.Name)
			}
			assert.Equal(t, test.want, names)
		})
	}
	_, err := quiesced().choose(&flags{names: []string{"web"}})
	require.EqualError(t, err, "web does not exist; stillpoint thaw lists the names")
}
