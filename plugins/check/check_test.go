package check

import (
	"bytes"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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
		"nothing":             {nil, ""},
		"namespaces":          {[]string{"-n", "shop", "--namespace", "office"}, ""},
		"workload":            {[]string{"-n", "shop", "--workload", "deploy/db"}, ""},
		"schedule":            {[]string{"--schedule", "nightly", "-o", "json", "-n", "shop"}, ""},
		"argument":            {[]string{"shop"}, `unknown argument "shop"`},
		"flag":                {[]string{"--include-namespaces", "shop"}, "unknown flag: --include-namespaces"},
		"output":              {[]string{"-o", "yaml"}, `--output "yaml": must be table or json`},
		"empty namespace":     {[]string{"-n", ""}, "check: --namespace is empty"},
		"workload, all":       {[]string{"--workload", "deploy/db"}, "--workload needs the --namespace that it is in, and no other"},
		"workload, two":       {[]string{"-n", "a,b", "--workload", "deploy/db"}, "--workload needs the --namespace that it is in, and no other"},
		"workload, no kind":   {[]string{"-n", "a", "--workload", "db"}, `--workload "db": must be kind/name, such as deployment/db`},
		"workload, no name":   {[]string{"-n", "a", "--workload", "sts/"}, `--workload "sts/": must be kind/name, such as deployment/db`},
		"schedule and policy": {[]string{"--schedule", "nightly", "--policy", "p"}, "--policy and --schedule: the schedule says what the backup is like"},
		"schedule and moving": {[]string{"--schedule", "nightly", "--snapshot-move-data=false"}, "--snapshot-move-data and --schedule: the schedule says what the backup is like"},
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
	f, err := parse([]string{"-n", "shop", "--workload", "STS/db", "--snapshot-move-data=false", "--server-args", "--features=EnableCSI  X=y"})
	require.NoError(t, err)
	assert.Equal(t, "StatefulSet", f.Kind)
	assert.Equal(t, "db", f.Name)
	require.NotNil(t, f.SnapshotMoveData)
	assert.False(t, *f.SnapshotMoveData)
	assert.Equal(t, []string{"--features=EnableCSI", "X=y"}, f.ServerArgs)
	f, err = parse(nil)
	require.NoError(t, err)
	assert.Nil(t, f.SnapshotMoveData, "which is the server's then")
}

func TestRun(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	t.Setenv("HOME", t.TempDir())
	var stdout, stderr bytes.Buffer
	run := func(args ...string) int {
		return command.Execute(t.Context(), command.Tree(&cobra.Command{Use: "stillpoint"}, New()), append([]string{"check"}, args...), &stdout, &stderr)
	}
	assert.Equal(t, 0, run("--help"))
	assert.Contains(t, stdout.String(), "--schedule name")
	assert.Empty(t, stderr.String())

	assert.Equal(t, 2, run("-x"))
	assert.Equal(t, "stillpoint check: unknown shorthand flag: 'x' in -x; see stillpoint check --help\n", stderr.String())

	stderr.Reset()
	assert.Equal(t, 2, run("--kubeconfig", "/nowhere"))
	assert.Contains(t, stderr.String(), "stillpoint check: find the API server: ")
}
