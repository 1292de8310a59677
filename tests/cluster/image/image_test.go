package image

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A tree keeps its links, modes and places; what is found in a root of its own
// is not looked for on this machine.
func TestRoot(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "usr", "share", "x"), 0o700))
	require.NoError(t, os.MkdirAll(filepath.Join(root, "lib64"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(root, "usr", "share", "x", "file"), []byte("text"), 0o640))
	require.NoError(t, os.Symlink("file", filepath.Join(root, "usr", "share", "x", "link")))
	require.NoError(t, os.Symlink("/usr/share/x/link", filepath.Join(root, "lib64", "libx.so.1")))
	c := &Contents{Root: root}

	require.NoError(t, c.Tree("/usr/share"))
	require.Equal(t, map[string]entry{
		"usr": {dir: true, mode: 0o755}, "usr/share": {dir: true, mode: 0o755}, "usr/share/x": {dir: true, mode: 0o755},
		"usr/share/x/file": {source: filepath.Join(root, "usr", "share", "x", "file"), mode: 0o640},
		"usr/share/x/link": {link: "file"},
	}, c.entries)
	require.ErrorContains(t, c.Tree("/nosuch"), "add the files below "+filepath.Join(root, "nosuch"))

	at, err := c.findLibrary("libx.so.1")
	require.NoError(t, err)
	require.Equal(t, "/lib64/libx.so.1", at)
	file, err := c.resolve(at)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(root, "usr", "share", "x", "file"), file, "an absolute link stays below the root")
	_, err = c.findLibrary("libc.so.6")
	require.EqualError(t, err, "no libc.so.6 in the library directories of "+root)

	require.NoError(t, os.Symlink("/lib64/round", filepath.Join(root, "lib64", "round")))
	_, err = c.resolve("/lib64/round")
	require.EqualError(t, err, "/lib64/round: too many links")
}
