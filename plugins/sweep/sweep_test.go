package sweep

import (
	"bytes"
	"testing"
	"time"

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
		"namespaces":          {[]string{"-n", "shop", "--namespace", "office", "--all"}, ""},
		"delete":              {[]string{"--delete", "--timeout", "30s"}, ""},
		"names":               {[]string{"--delete", "shop/velero-data-1", "content/snapcontent-1"}, ""},
		"json":                {[]string{"-o", "json", "shop/velero-data-1"}, ""},
		"name only":           {[]string{"velero-data-1"}, `argument "velero-data-1": must be namespace/name of a VolumeSnapshot, or content/name`},
		"name in three parts": {[]string{"volumesnapshot/shop/velero"}, `argument "volumesnapshot/shop/velero": must be namespace/name of a VolumeSnapshot, or content/name`},
		"no name":             {[]string{"shop/"}, `argument "shop/": must be namespace/name of a VolumeSnapshot, or content/name`},
		"flag":                {[]string{"--force"}, "unknown flag: --force"},
		"output":              {[]string{"-o", "yaml"}, `--output "yaml": must be table or json`},
		"json and delete":     {[]string{"-o", "json", "--delete"}, "--output json and --delete: deletions are reported line by line"},
		"empty namespace":     {[]string{"-n", ""}, "sweep: --namespace is empty"},
		"namespace and names": {[]string{"-n", "shop", "shop/a"}, "--namespace and names: what is named has its namespace in the name"},
		"no timeout":          {[]string{"--delete", "--timeout", "0s"}, "sweep: --timeout 0s: must be longer than 0"},
		"timeout, no delete":  {[]string{"--timeout", "5s"}, "--timeout needs --delete"},
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
	f, err := parse([]string{"--delete", "shop/a", "content/b"})
	require.NoError(t, err)
	assert.Equal(t, []string{"shop/a", "content/b"}, f.Objects)
	assert.Equal(t, 2*time.Minute, f.timeout)
}

func TestRun(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	t.Setenv("HOME", t.TempDir())
	var stdout, stderr bytes.Buffer
	run := func(args ...string) int {
		return command.Execute(t.Context(), command.Tree(&cobra.Command{Use: "stillpoint"}, New()), append([]string{"sweep"}, args...), &stdout, &stderr)
	}
	assert.Equal(t, 0, run("--help"))
	assert.Contains(t, stdout.String(), "--delete")
	assert.Empty(t, stderr.String())

	assert.Equal(t, 2, run("-x"))
	assert.Equal(t, "stillpoint sweep: unknown shorthand flag: 'x' in -x; see stillpoint sweep --help\n", stderr.String())

	stderr.Reset()
	assert.Equal(t, 2, run("--kubeconfig", "/nowhere"))
	assert.Contains(t, stderr.String(), "stillpoint sweep: find the API server: ")
}
