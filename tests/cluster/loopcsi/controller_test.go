package loopcsi

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const mib = 1 << 20

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func asMount() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

func asBlock() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

func asShared() *csi.VolumeCapability {
	c := asMount()
	c.AccessMode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	return c
}

// volume is a request for a volume; change alters it.
func volume(name string, size int64, change ...func(*csi.CreateVolumeRequest)) *csi.CreateVolumeRequest {
	r := &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, VolumeCapabilities: []*csi.VolumeCapability{asMount()},
	}
	for _, c := range change {
		c(r)
	}
	return r
}

func used(as *csi.VolumeCapability) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = []*csi.VolumeCapability{as} }
}

func atMost(limit int64) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) { r.CapacityRange.LimitBytes = limit }
}

func with(key, value string) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) { r.Parameters = map[string]string{key: value} }
}

func fromSnapshot(id string) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id},
		}}
	}
}

func fromVolume(id string) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id},
		}}
	}
}

func snapshot(name, volume string, parameters ...string) *csi.CreateSnapshotRequest {
	r := &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: volume, Parameters: map[string]string{}}
	for i := 0; i < len(parameters); i += 2 {
		r.Parameters[parameters[i]] = parameters[i+1]
	}
	return r
}

func TestCreateVolume(t *testing.T) {
	d := newDriver(t)
	create := func(r *csi.CreateVolumeRequest) { // what the cases build on
		t.Helper()
		_, err := d.CreateVolume(t.Context(), r)
		require.NoError(t, err)
	}
	create(volume("have", 32*mib))
	create(volume("device", 32*mib, used(asBlock())))
	create(volume("directory", 32*mib, with("directory", "true")))
	_, err := d.CreateSnapshot(t.Context(), snapshot("have-snapshot", "have"))
	require.NoError(t, err)
	_, err = d.CreateSnapshot(t.Context(), snapshot("uploading", "have", "readyAfter", "1h"))
	require.NoError(t, err)

	for _, c := range []struct {
		name     string
		request  *csi.CreateVolumeRequest
		code     codes.Code
		capacity int64
	}{
		{name: "new", request: volume("new", 64*mib), capacity: 64 * mib},
		{name: "no size", request: volume("small", 0), capacity: minCapacity},
		{name: "sidecars' parameters", request: volume("named", 0, with("csi.storage.k8s.io/pvc/name", "x")), capacity: minCapacity},
		{name: "ReadWriteMany", request: volume("shared", 0, used(asShared())), capacity: minCapacity},
		{name: "again", request: volume("have", 32*mib), capacity: 32 * mib},
		{name: "again, the smaller size is met", request: volume("have", 20*mib), capacity: 32 * mib},
		{name: "restored", request: volume("restored", 32*mib, fromSnapshot("have-snapshot")), capacity: 32 * mib},
		{name: "restored again", request: volume("restored", 32*mib, fromSnapshot("have-snapshot")), capacity: 32 * mib},
		{name: "restored and grown", request: volume("grown", 64*mib, fromSnapshot("have-snapshot")), capacity: 64 * mib},
		{name: "restored, as large as its source", request: volume("as-large", 16*mib, fromSnapshot("have-snapshot")), capacity: 32 * mib},
		{name: "cloned", request: volume("cloned", 32*mib, fromVolume("have")), capacity: 32 * mib},
		{name: "a file system as a device", request: volume("raw", 32*mib, fromVolume("have"), used(asBlock())), capacity: 32 * mib},

		{name: "no name", request: volume("", 32*mib), code: codes.InvalidArgument},
		{name: "a name that leads elsewhere", request: volume("../x", 32*mib), code: codes.InvalidArgument},
		{name: "no capability", request: volume("x", 0, func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil }), code: codes.InvalidArgument},
		{name: "unknown parameter", request: volume("x", 0, with("replicas", "3")), code: codes.InvalidArgument},
		{name: "neither true nor false", request: volume("x", 0, with("directory", "maybe")), code: codes.InvalidArgument},
		{name: "a directory as a device", request: volume("x", 0, with("directory", "true"), used(asBlock())), code: codes.InvalidArgument},
		{name: "limit below size", request: volume("x", 32*mib, atMost(20*mib)), code: codes.InvalidArgument},
		{name: "limit below the least", request: volume("x", 0, atMost(mib)), code: codes.OutOfRange},
		{name: "limit below the source", request: volume("x", 0, atMost(20*mib), fromSnapshot("have-snapshot")), code: codes.OutOfRange},
		{name: "larger than the store", request: volume("x", 1<<40), code: codes.OutOfRange},
		{name: "no such snapshot", request: volume("x", 0, fromSnapshot("none")), code: codes.NotFound},
		{name: "no such volume", request: volume("x", 0, fromVolume("none")), code: codes.NotFound},
		{name: "a snapshot that is not ready", request: volume("x", 0, fromSnapshot("uploading")), code: codes.Unavailable},
		{name: "a device as a file system", request: volume("x", 32*mib, fromVolume("device")), code: codes.InvalidArgument},
		{name: "a directory as an image", request: volume("x", 32*mib, fromVolume("directory")), code: codes.InvalidArgument},
		{name: "another size", request: volume("have", 64*mib), code: codes.AlreadyExists},
		{name: "another limit", request: volume("have", 0, atMost(20*mib)), code: codes.AlreadyExists},
		{name: "another source", request: volume("have", 32*mib, fromSnapshot("have-snapshot")), code: codes.AlreadyExists},
		{name: "another use", request: volume("have", 32*mib, used(asBlock())), code: codes.AlreadyExists},
		{name: "another kind", request: volume("have", 32*mib, with("directory", "true")), code: codes.AlreadyExists},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := d.CreateVolume(t.Context(), c.request)
			require.Equal(t, c.code, status.Code(err), "%v", err)
			if err == nil {
				require.Equal(t, c.capacity, r.GetVolume().GetCapacityBytes())
				require.Equal(t, c.request.GetVolumeContentSource(), r.GetVolume().GetContentSource())
			}
		})
	}
	left, err := filepath.Glob(filepath.Join(d.store.dir, "*", unsettled+"*"))
	require.NoError(t, err)
	require.Empty(t, left, "what failed leaves nothing")
}

func TestDeleteVolume(t *testing.T) {
	d := newDriver(t)
	_, err := d.CreateVolume(t.Context(), volume("v", 0))
	require.NoError(t, err)
	for range 2 { // what is not there is deleted already
		_, err = d.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "v"})
		require.NoError(t, err)
		_, err = d.store.Volume("v")
		require.ErrorIs(t, err, ErrNotFound)
	}
	_, err = d.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
}

func TestCreateSnapshot(t *testing.T) {
	d := newDriver(t)
	for _, name := range []string{"v", "other"} {
		_, err := d.CreateVolume(t.Context(), volume(name, 32*mib))
		require.NoError(t, err)
	}
	before := time.Now()
	first, err := d.CreateSnapshot(t.Context(), snapshot("s", "v"))
	require.NoError(t, err)
	require.Equal(t, "v", first.GetSnapshot().GetSourceVolumeId())
	require.EqualValues(t, 32*mib, first.GetSnapshot().GetSizeBytes())
	require.True(t, first.GetSnapshot().GetReadyToUse())
	require.WithinRange(t, first.GetSnapshot().GetCreationTime().AsTime(), before, time.Now())

	again, err := d.CreateSnapshot(t.Context(), snapshot("s", "v"))
	require.NoError(t, err)
	require.Equal(t, first.GetSnapshot().GetCreationTime().AsTime(), again.GetSnapshot().GetCreationTime().AsTime(), "it is not cut twice")

	for name, c := range map[string]struct {
		request *csi.CreateSnapshotRequest
		code    codes.Code
	}{
		"no name":           {snapshot("", "v"), codes.InvalidArgument},
		"no volume":         {snapshot("x", ""), codes.InvalidArgument},
		"unknown parameter": {snapshot("x", "v", "compress", "yes"), codes.InvalidArgument},
		"no duration":       {snapshot("x", "v", "delay", "soon"), codes.InvalidArgument},
		"missing volume":    {snapshot("x", "none"), codes.NotFound},
		"another volume":    {snapshot("s", "other"), codes.AlreadyExists},
		"ordered to fail":   {snapshot("x", "v", "fail", "the array is on fire"), codes.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := d.CreateSnapshot(t.Context(), c.request)
			require.Equal(t, c.code, status.Code(err), "%v", err)
		})
	}
	_, err = d.CreateSnapshot(t.Context(), snapshot("x", "v", "fail", "the array is on fire"))
	require.ErrorContains(t, err, "the array is on fire")
	_, err = d.store.Snapshot("x")
	require.ErrorIs(t, err, ErrNotFound, "what failed leaves nothing")

	for range 2 {
		_, err = d.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: "s"})
		require.NoError(t, err)
	}
}

func TestSnapshotIsCutAfterItsDelay(t *testing.T) {
	d := newDriver(t)
	_, err := d.CreateVolume(t.Context(), volume("v", 0))
	require.NoError(t, err)
	began := time.Now()
	s, err := d.CreateSnapshot(t.Context(), snapshot("s", "v", "delay", "300ms"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, s.GetSnapshot().GetCreationTime().AsTime().Sub(began), 300*time.Millisecond)
}

func TestSnapshotIsReadyLaterThanCut(t *testing.T) {
	d := newDriver(t)
	_, err := d.CreateVolume(t.Context(), volume("v", 0))
	require.NoError(t, err)
	ready := func() bool {
		s, err := d.CreateSnapshot(t.Context(), snapshot("s", "v", "readyAfter", "200ms"))
		require.NoError(t, err)
		return s.GetSnapshot().GetReadyToUse()
	}
	require.False(t, ready())
	require.Eventually(t, ready, 2*time.Second, 20*time.Millisecond)
}

// A snapshot survives its volume, and one is a copy of one moment.
func TestSnapshotOfADirectory(t *testing.T) {
	d := newDriver(t)
	_, err := d.CreateVolume(t.Context(), volume("v", 0, with("directory", "true")))
	require.NoError(t, err)
	file := filepath.Join(d.store.Tree("v"), "sub", "file")
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o751))
	require.NoError(t, os.WriteFile(file, []byte("before"), 0o640))
	require.NoError(t, os.Symlink("file", filepath.Join(filepath.Dir(file), "link")))
	require.NoError(t, os.Chown(file, 12, 34))
	_, err = d.CreateSnapshot(t.Context(), snapshot("s", "v"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte("after"), 0o640))
	_, err = d.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "v"})
	require.NoError(t, err)

	_, err = d.CreateVolume(t.Context(), volume("r", 0, with("directory", "true"), fromSnapshot("s")))
	require.NoError(t, err)
	content, err := os.ReadFile(filepath.Join(d.store.Tree("r"), "sub", "link"))
	require.NoError(t, err)
	require.Equal(t, "before", string(content))
	info, err := os.Stat(filepath.Join(d.store.Tree("r"), "sub", "file"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode())
}
