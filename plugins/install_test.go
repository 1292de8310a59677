package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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

// left are the names of what is in a directory.
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
		require.NoError(t, install([]string{directory}))
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
	const usage = `stillpoint is a Velero plugin set: the Velero server starts it.

  velero plugin add IMAGE      adds it to a server
  stillpoint check             tells what a backup would do, and what would fail;
                               see stillpoint check --help
  stillpoint sweep             finds snapshots that are left of backups that are
                               over; see stillpoint sweep --help
  stillpoint thaw              tells what is quiesced now, and releases it; see
                               stillpoint thaw --help
  stillpoint [DIRECTORY]       copies itself into DIRECTORY, /target by default,
                               which is what its image does in the server's pod`
	for name, test := range map[string]struct {
		args []string
		text string
	}{
		"-h":                  {[]string{"-h"}, usage},
		"--help":              {[]string{"--help"}, usage},
		"too many":            {[]string{"a", "b"}, usage},
		"no directory":        {[]string{file + "-gone"}, file + "-gone is not a directory\n\n" + usage},
		"a file":              {[]string{file}, file + " is not a directory\n\n" + usage},
		"flags of the server": {[]string{"--features", "EnableCSI"}, usage},
	} {
		t.Run(name, func(t *testing.T) {
			require.EqualError(t, install(test.args), test.text)
		})
	}
	t.Run("no argument", func(t *testing.T) {
		if _, err := os.Stat(target); err == nil {
			t.Skip(target, "is there")
		}
		require.EqualError(t, install(nil), "/target is not a directory\n\n"+usage)
	})
}
