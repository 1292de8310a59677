package loopcsi

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// newDriver serves a store on a small XFS of its own: reflinks are what is
// tested, and no file system that a test happens to lie on has them for sure.
func newDriver(t *testing.T) *Driver {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes and mounts file systems")
	}
	for _, program := range []string{"mkfs.xfs", "mkfs.ext4", "mount", "resize2fs"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs", program)
		}
	}
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "store.img"), filepath.Join(dir, "store")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 512<<20))
	require.NoError(t, os.Mkdir(mount, 0o700))
	require.NoError(t, run(t.Context(), "mkfs.xfs", "-q", "-m", "reflink=1", image))
	require.NoError(t, run(t.Context(), "mount", "-o", "loop", image, mount))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(mount, 0)) })
	return open(t, mount)
}

func open(t *testing.T, dir string) *Driver {
	t.Helper()
	store, err := OpenStore(dir)
	require.NoError(t, err)
	return NewDriver("node", store, testLog(t))
}

func TestOpenStoreRemovesWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	half := filepath.Join(dir, volumes, unsettled+"1")
	require.NoError(t, os.MkdirAll(half, 0o700))
	_, err := OpenStore(dir)
	require.NoError(t, err)
	require.NoDirExists(t, half)
}

func TestIDsStayInTheStore(t *testing.T) {
	store, err := OpenStore(t.TempDir())
	require.NoError(t, err)
	for _, id := range []string{"", ".", "..", "../volumes/v", "a/b", unsettled + "1"} {
		_, err := store.Volume(id)
		require.ErrorIs(t, err, ErrBadID, "id %q", id)
		require.NoError(t, store.DeleteVolume(id), "id %q cannot exist, and so is deleted already", id)
	}
}
