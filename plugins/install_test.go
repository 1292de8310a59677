package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"stillpoint.io/stillpoint/internal/node"
	"stillpoint.io/stillpoint/plugins/command"
)

func TestEnabled(t *testing.T) {
	for features, want := range map[string]bool{
		"":                                 false,
		"EnableCSI":                        true,
		"EnableAPIGroupVersions,EnableCSI": true,
		" EnableCSI , Other":               true,
		"enablecsi":                        false,
		"EnableCSI2,NotEnableCSI":          false,
		"EnableCSI=false":                  false,
		",":                                false,
	} {
		t.Run(features, func(t *testing.T) {
			assert.Equal(t, want, enabled(features, "EnableCSI"))
		})
	}
}

// left returns the names of the files in a directory.
func left(t *testing.T, directory string) []string {
	t.Helper()
	entries, err := os.ReadDir(directory)
	require.NoError(t, err)
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func TestCopyProgram(t *testing.T) {
	from := filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(from, []byte("new"), 0o600))

	t.Run("new", func(t *testing.T) {
		to := filepath.Join(t.TempDir(), "stillpoint")
		require.NoError(t, copyProgram(from, to))
		content, err := os.ReadFile(to)
		require.NoError(t, err)
		assert.Equal(t, "new", string(content))
		info, err := os.Stat(to)
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o755), info.Mode())
		assert.Equal(t, []string{"stillpoint"}, left(t, filepath.Dir(to)))
	})
	t.Run("over a running one", func(t *testing.T) {
		to := filepath.Join(t.TempDir(), "stillpoint")
		require.NoError(t, os.WriteFile(to, []byte("old and longer"), 0o755))
		running, err := os.Open(to)
		require.NoError(t, err)
		defer running.Close()
		require.NoError(t, copyProgram(from, to))
		content, err := os.ReadFile(to)
		require.NoError(t, err)
		assert.Equal(t, "new", string(content))
		old := make([]byte, 32)
		n, err := running.Read(old)
		require.NoError(t, err)
		assert.Equal(t, "old and longer", string(old[:n]), "replaced, not written over")
		assert.Equal(t, []string{"stillpoint"}, left(t, filepath.Dir(to)))
	})
	t.Run("in the way", func(t *testing.T) {
		to := filepath.Join(t.TempDir(), "stillpoint")
		require.NoError(t, os.MkdirAll(filepath.Join(to, "x"), 0o755))
		require.ErrorContains(t, copyProgram(from, to), "install into "+filepath.Dir(to)+": rename ")
		assert.Equal(t, []string{"stillpoint"}, left(t, filepath.Dir(to)), "no half of it is left")
	})
	t.Run("nowhere", func(t *testing.T) {
		to := filepath.Join(t.TempDir(), "gone", "stillpoint")
		require.ErrorContains(t, copyProgram(from, to), "install into "+filepath.Dir(to)+": open ")
	})
	t.Run("nothing", func(t *testing.T) {
		require.EqualError(t, copyProgram(from+"-gone", filepath.Join(t.TempDir(), "stillpoint")),
			"read this program: open "+from+"-gone: no such file or directory")
	})
}

func TestInstall(t *testing.T) {
	t.Run("itself", func(t *testing.T) {
		directory := t.TempDir()
		require.NoError(t, copySelf(directory))
		self, err := os.Executable()
		require.NoError(t, err)
		want, err := os.Stat(self)
		require.NoError(t, err)
		got, err := os.Stat(filepath.Join(directory, "stillpoint"))
		require.NoError(t, err)
		assert.Equal(t, want.Size(), got.Size())
		assert.Equal(t, os.FileMode(0o755), got.Mode())
	})

	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for name, test := range map[string]struct {
		args []string
		code int
		text string
	}{
		"too many":            {[]string{"a", "b"}, 2, "stillpoint: accepts at most 1 arg(s), received 2; see stillpoint --help\n"},
		"no directory":        {[]string{file + "-gone"}, 1, "stillpoint: " + file + "-gone is not a directory; see stillpoint --help\n"},
		"a file":              {[]string{file}, 1, "stillpoint: " + file + " is not a directory; see stillpoint --help\n"},
		"flags of the server": {[]string{"--features", "EnableCSI"}, 2, "stillpoint: unknown flag: --features; see stillpoint --help\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			assert.Equal(t, test.code, command.Execute(t.Context(), root(), test.args, &stdout, &stderr))
			assert.Equal(t, test.text, stderr.String())
			assert.Empty(t, stdout.String())
		})
	}
	t.Run("no argument", func(t *testing.T) {
		if _, err := os.Stat(target); err == nil {
			t.Skip(target, "exists")
		}
		var stderr bytes.Buffer
		assert.Equal(t, 1, command.Execute(t.Context(), root(), nil, &stderr, &stderr))
		assert.Equal(t, "stillpoint: /target is not a directory; see stillpoint --help\n", stderr.String())
	})
	t.Run("help", func(t *testing.T) {
		var stdout, stderr bytes.Buffer
		assert.Equal(t, 0, command.Execute(t.Context(), root(), []string{"--help"}, &stdout, &stderr))
		for _, text := range []string{long, "\n  check ", "\n  sweep ", "\n  thaw ", "\n  version ", "\n  completion ", "-h, --help"} {
			assert.Contains(t, stdout.String(), text)
		}
		assert.NotContains(t, stdout.String(), node.Command)
		assert.Empty(t, stderr.String())
	})
}

func TestVersion(t *testing.T) {
	var stdout, stderr bytes.Buffer
	assert.Equal(t, 0, command.Execute(t.Context(), root(), []string{"version"}, &stdout, &stderr))
	assert.Regexp(t, `^version:    \S+
commit:     \S+
Go:         go1\.\S+
Velero API: v1\.\S+
$`, stdout.String())
	assert.Equal(t, 2, command.Execute(t.Context(), root(), []string{"version", "x"}, &stdout, &stderr))
}
