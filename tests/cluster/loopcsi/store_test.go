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
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return NewDriver(Name, "node", store, nil, testLog(t))
}

func TestOpenStoreRemovesWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	half := filepath.Join(dir, volumes, unsettled+"1")
	require.NoError(t, os.MkdirAll(half, 0o700))
	store, err := OpenStore(dir)
	require.NoError(t, err)
	require.NoDirExists(t, half)

	require.NoError(t, os.MkdirAll(half, 0o700))
	second, err := OpenStore(dir)
	require.NoError(t, err)
	require.DirExists(t, half, "the first may be making it")
	require.NoError(t, second.Close())
	require.NoError(t, store.Close())
	third, err := OpenStore(dir)
	require.NoError(t, err)
	require.NoDirExists(t, half)
	require.NoError(t, third.Close())
}

func TestIDsStayInTheStore(t *testing.T) {
	store, err := OpenStore(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	for _, id := range []string{"", ".", "..", "../volumes/v", "a/b", unsettled + "1"} {
		_, err := store.Volume(id)
		require.ErrorIs(t, err, ErrBadID, "id %q", id)
		require.NoError(t, store.DeleteVolume(id), "id %q cannot exist, and so is deleted already", id)
	}
}

// Two drivers of different names are two to Kubernetes, and share what they keep.
func TestDriversShareAStore(t *testing.T) {
	first := newDriver(t)
	second := NewDriver("other.csi.stillpoint.io", "node", first.store, nil, testLog(t))
	info, err := second.GetPluginInfo(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, "other.csi.stillpoint.io", info.GetName())
	_, err = first.CreateVolume(t.Context(), volume("v", 0))
	require.NoError(t, err)
	_, err = first.CreateSnapshot(t.Context(), snapshot("s", "v"))
	require.NoError(t, err)
	_, err = second.CreateVolume(t.Context(), volume("r", 0, fromSnapshot("s")))
	require.NoError(t, err)
}
