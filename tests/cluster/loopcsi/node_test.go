package loopcsi

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"stillpoint.io/stillpoint/tests/cluster/freeze"
)

// stage stages a volume and undoes it when the test ends; it returns where.
func stage(t *testing.T, d *Driver, id string, as *csi.VolumeCapability) string {
	t.Helper()
	at := filepath.Join(t.TempDir(), "staged")
	t.Cleanup(func() { unstage(t, d, id, at) }) // also of what is staged by half
	for range 2 {                               // the same again finds it done
		_, err := d.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: at, VolumeCapability: as})
		require.NoError(t, err)
	}
	return at
}

func unstage(t *testing.T, d *Driver, id, at string) {
	t.Helper()
	for range 2 {
		_, err := d.NodeUnstageVolume(context.Background(), &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: at})
		require.NoError(t, err)
	}
	device, err := findLoop(d.store.Image(id))
	require.NoError(t, err)
	require.Empty(t, device, "no loop device is left")
}

func publish(t *testing.T, d *Driver, id, staged string, as *csi.VolumeCapability, readOnly bool) string {
	t.Helper()
	at := filepath.Join(t.TempDir(), "pods", "published")
	for range 2 {
		_, err := d.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{
			VolumeId: id, StagingTargetPath: staged, TargetPath: at, VolumeCapability: as, Readonly: readOnly,
		})
		require.NoError(t, err)
	}
	t.Cleanup(func() {
		for range 2 {
			_, err := d.NodeUnpublishVolume(context.Background(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: at})
			require.NoError(t, err)
		}
		require.NoFileExists(t, at)
	})
	return at
}

func create(t *testing.T, d *Driver, r *csi.CreateVolumeRequest) {
	t.Helper()
	_, err := d.CreateVolume(t.Context(), r)
	require.NoError(t, err)
}

// What every figure rests on: a snapshot holds what had reached the device when
// it was cut. On a frozen volume that is everything, and nothing written later;
// on a running one a write without fsync may be missing, and here is.
func TestSnapshotHoldsWhatTheDeviceHeld(t *testing.T) {
	d := newDriver(t)
	create(t, d, volume("v", 32*mib))
	at := stage(t, d, "v", asMount())
	write := func(name string) { require.NoError(t, os.WriteFile(filepath.Join(at, name), []byte(name), 0o600)) }

	write("synced")
	fd, err := os.Open(at)
	require.NoError(t, err)
	require.NoError(t, unix.Syncfs(int(fd.Fd())))
	require.NoError(t, fd.Close())
	write("in-memory")
	_, err = d.CreateSnapshot(t.Context(), snapshot("running", "v"))
	require.NoError(t, err)

	frozen := freezeFor(t, at)
	_, err = d.CreateSnapshot(t.Context(), snapshot("frozen", "v"))
	require.NoError(t, err)
	frozen()
	write("later")

	contents := func(name, from string) []string {
		create(t, d, volume(name, 32*mib, fromSnapshot(from)))
		entries, err := os.ReadDir(stage(t, d, name, asMount()))
		require.NoError(t, err)
		var names []string
		for _, e := range entries {
			if e.Name() != "lost+found" {
				names = append(names, e.Name())
			}
		}
		return names
	}
	require.Equal(t, []string{"synced"}, contents("r1", "running"))
	require.Equal(t, []string{"in-memory", "synced"}, contents("r2", "frozen"))
}

// freezeFor freezes a file system until the returned function is called.
func freezeFor(t *testing.T, at string) (thaw func()) {
	t.Helper()
	require.NoError(t, run(t.Context(), "fsfreeze", "--freeze", at))
	thaw = func() {
		_, err := freeze.Thaw(at)
		require.NoError(t, err)
	}
	t.Cleanup(thaw) // whatever fails meanwhile
	is, err := freeze.Frozen(at)
	require.NoError(t, err)
	require.True(t, is)
	return thaw
}

func TestRestoredVolumeGrows(t *testing.T) {
	d := newDriver(t)
	create(t, d, volume("v", 32*mib))
	stage(t, d, "v", asMount())
	_, err := d.CreateSnapshot(t.Context(), snapshot("s", "v")) // of a mounted file system: its journal is not empty
	require.NoError(t, err)
	create(t, d, volume("r", 128*mib, fromSnapshot("s")))
	at := stage(t, d, "r", asMount())
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(at, &st))
	require.Greater(t, int64(st.Blocks)*st.Bsize, int64(100*mib))
}

func TestPublish(t *testing.T) {
	d := newDriver(t)
	create(t, d, volume("v", 0))
	staged := stage(t, d, "v", asMount())
	writable := publish(t, d, "v", staged, asMount(), false)
	readOnly := publish(t, d, "v", staged, asMount(), true)
	require.NoError(t, os.WriteFile(filepath.Join(writable, "f"), []byte("x"), 0o600))
	require.FileExists(t, filepath.Join(readOnly, "f"))
	require.ErrorIs(t, os.WriteFile(filepath.Join(readOnly, "g"), nil, 0o600), unix.EROFS)

	_, err := d.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: "v", StagingTargetPath: t.TempDir(), TargetPath: filepath.Join(t.TempDir(), "x"), VolumeCapability: asMount(),
	})
	require.Error(t, err, "it is not staged there")
	_, err = d.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: "none", StagingTargetPath: "/x", VolumeCapability: asMount()})
	require.Equal(t, codes.NotFound, status.Code(err))
}

func TestDirectoryIsNoFilesystemOfItsOwn(t *testing.T) {
	d := newDriver(t)
	create(t, d, volume("v", 0, with("directory", "true")))
	at := stage(t, d, "v", asMount())
	require.NoError(t, os.WriteFile(filepath.Join(at, "f"), []byte("x"), 0o600))
	require.FileExists(t, filepath.Join(d.store.Tree("v"), "f"))
	own, err := ownFilesystem(at)
	require.NoError(t, err)
	require.False(t, own)
}

func TestBlockVolume(t *testing.T) {
	d := newDriver(t)
	create(t, d, volume("v", 32*mib, used(asBlock())))
	staged := stage(t, d, "v", asBlock())
	at := publish(t, d, "v", staged, asBlock(), false)
	info, err := os.Stat(at)
	require.NoError(t, err)
	require.Equal(t, os.ModeDevice, info.Mode().Type())

	device, err := os.OpenFile(at, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = device.WriteAt([]byte("on the device"), 4096)
	require.NoError(t, err)
	require.NoError(t, device.Sync())
	require.NoError(t, device.Close())
	_, err = d.CreateSnapshot(t.Context(), snapshot("s", "v"))
	require.NoError(t, err)
	create(t, d, volume("r", 32*mib, used(asBlock()), fromSnapshot("s")))
	content := make([]byte, len("on the device"))
	image, err := os.Open(d.store.Image("r"))
	require.NoError(t, err)
	defer image.Close()
	_, err = image.ReadAt(content, 4096)
	require.NoError(t, err)
	require.Equal(t, "on the device", string(content))

	_, err = d.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "v"})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "it is in use")
}

// A file system that is unmounted while frozen could never be thawed.
func TestUnstageThaws(t *testing.T) {
	d := newDriver(t)
	create(t, d, volume("v", 0))
	at := stage(t, d, "v", asMount())
	freezeFor(t, at)
	unstage(t, d, "v", at)
	require.NoError(t, os.MkdirAll(at, 0o700)) // for the clean-up's thaw
}
