package loopcsi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// memory is a bucket that can be out of order.
type memory struct {
	mu      sync.Mutex
	objects map[string][]byte
	down    bool
	puts    int
}

var errDown = errors.New("connection refused")

func (m *memory) use(f func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return errDown
	}
	f()
	return nil
}

func (m *memory) setDown(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
}

func (m *memory) Put(_ context.Context, key string, content io.Reader, size int64) error {
	b, err := io.ReadAll(content)
	if err != nil || int64(len(b)) != size {
		return errors.Join(err, io.ErrUnexpectedEOF)
	}
	return m.use(func() { m.objects[key] = b; m.puts++ })
}

func (m *memory) Get(_ context.Context, key string) (io.ReadCloser, error) {
	var b []byte
	var found bool
	if err := m.use(func() { b, found = m.objects[key] }); err != nil {
		return nil, err
	}
	if !found {
		return nil, ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (m *memory) Delete(_ context.Context, key string) error {
	return m.use(func() { delete(m.objects, key) })
}

func (m *memory) List(context.Context) ([]string, error) {
	var keys []string
	err := m.use(func() {
		for key := range m.objects {
			keys = append(keys, key)
		}
	})
	return keys, err
}

func newExporter(t *testing.T) (*Driver, *memory) {
	d := newDriver(t)
	m := &memory{objects: map[string][]byte{}}
	d.bucket = m
	t.Cleanup(d.Close)
	return d, m
}

// awaitReady asks for a snapshot until it is ready, as the sidecar does.
func awaitReady(t *testing.T, d *Driver, r *csi.CreateSnapshotRequest) *csi.Snapshot {
	t.Helper()
	var s *csi.Snapshot
	require.Eventually(t, func() bool {
		response, err := d.CreateSnapshot(t.Context(), r)
		require.NoError(t, err)
		s = response.GetSnapshot()
		return s.GetReadyToUse()
	}, 10*time.Second, 10*time.Millisecond)
	return s
}

func TestExportIsTheSnapshot(t *testing.T) {
	for _, c := range []struct {
		name        string
		deleteLocal string
		source      []func(*csi.CreateVolumeRequest)
	}{
		{name: "image", deleteLocal: "false"},
		{name: "image, not kept locally", deleteLocal: "true"},
		{name: "block", deleteLocal: "true", source: []func(*csi.CreateVolumeRequest){used(asBlock())}},
		{name: "directory", deleteLocal: "true", source: []func(*csi.CreateVolumeRequest){with("directory", "true")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, m := newExporter(t)
			_, err := d.CreateVolume(t.Context(), volume("v", 32*mib, c.source...))
			require.NoError(t, err)
			if file := d.store.Image("v"); exists(file) {
				writeAt(t, file, "kept", 20*mib)
			} else {
				require.NoError(t, os.WriteFile(filepath.Join(d.store.Tree("v"), "file"), []byte("kept"), 0o640))
				require.NoError(t, os.Chown(filepath.Join(d.store.Tree("v"), "file"), 12, 34))
				require.NoError(t, os.Symlink("file", filepath.Join(d.store.Tree("v"), "link")))
			}

			m.setDown(true)
			asked := snapshot("s", "v", "export", "s3", "delete-local", c.deleteLocal)
			first, err := d.CreateSnapshot(t.Context(), asked)
			require.NoError(t, err)
			require.Equal(t, "s3:s", first.GetSnapshot().GetSnapshotId(), "the handle is that of the copy from the first answer on")
			require.False(t, first.GetSnapshot().GetReadyToUse())
			require.NotZero(t, first.GetSnapshot().GetCreationTime().AsTime())
			_, err = d.CreateVolume(t.Context(), volume("early", 0, append(c.source, fromSnapshot("s3:s"))...))
			require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
			m.setDown(false)

			s := awaitReady(t, d, asked)
			require.Equal(t, "s3:s", s.GetSnapshotId())
			require.Equal(t, first.GetSnapshot().GetCreationTime().AsTime(), s.GetCreationTime().AsTime())
			require.EqualValues(t, 32*mib, s.GetSizeBytes())
			require.Less(t, len(m.objects["s"+contentKey]), mib, "an image is mostly holes")
			require.Eventually(t, func() bool { // it goes after it was said to be ready
				return d.store.HasContent("s") == (c.deleteLocal == "false")
			}, time.Second, time.Millisecond)

			// Another cluster has the bucket and nothing else.
			other := newDriver(t)
			other.bucket = m
			for _, d := range []*Driver{d, other} {
				_, err = d.CreateVolume(t.Context(), volume("r", 0, append(c.source, fromSnapshot("s3:s"))...))
				require.NoError(t, err)
				v, err := d.store.Volume("r")
				require.NoError(t, err)
				require.EqualValues(t, 32*mib, v.Capacity)
				if file := d.store.Image("r"); exists(file) {
					require.Equal(t, "kept", readAt(t, file, 4, 20*mib))
					info, err := os.Stat(file)
					require.NoError(t, err)
					require.EqualValues(t, 32*mib, info.Size())
				} else {
					content, err := os.ReadFile(filepath.Join(d.store.Tree("r"), "link"))
					require.NoError(t, err)
					require.Equal(t, "kept", string(content))
				}
			}

			for range 2 {
				_, err = d.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: "s3:s"})
				require.NoError(t, err)
				require.Empty(t, m.objects)
				_, err = d.store.Snapshot("s")
				require.ErrorIs(t, err, ErrNotFound)
			}
			_, err = d.CreateVolume(t.Context(), volume("late", 0, append(c.source, fromSnapshot("s3:s"))...))
			require.Equal(t, codes.NotFound, status.Code(err), "%v", err)
			rests, err := filepath.Glob(filepath.Join(d.store.dir, "*", unsettled+"*"))
			require.NoError(t, err)
			require.Empty(t, rests)
		})
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func writeAt(t *testing.T, path, text string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte(text), at)
	require.NoError(t, errors.Join(err, f.Close()))
}

func readAt(t *testing.T, path string, length int, at int64) string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	b := make([]byte, length)
	_, err = f.ReadAt(b, at)
	require.NoError(t, errors.Join(err, f.Close()))
	return string(b)
}

func TestUploadGoesOnAfterARestart(t *testing.T) {
	d, m := newExporter(t)
	_, err := d.CreateVolume(t.Context(), volume("v", 0))
	require.NoError(t, err)
	m.setDown(true)
	asked := snapshot("s", "v", "export", "s3")
	_, err = d.CreateSnapshot(t.Context(), asked)
	require.NoError(t, err)
	d.Close()
	m.setDown(false)

	elsewhere := NewDriver("other.csi.stillpoint.io", "node", d.store, m, testLog(t))
	require.NoError(t, elsewhere.ResumeUploads())
	elsewhere.Close()
	require.Empty(t, m.objects, "it is not this driver's")
	again := NewDriver(Name, "node", d.store, m, testLog(t))
	t.Cleanup(again.Close)
	require.NoError(t, again.ResumeUploads())
	awaitReady(t, again, asked)
	require.Equal(t, 2, m.puts)
	again.Close()

	done := NewDriver(Name, "node", d.store, m, testLog(t))
	require.NoError(t, done.ResumeUploads())
	done.Close()
	require.Equal(t, 2, m.puts, "what is there is not uploaded again")
}

func TestExportIsDeletedWhileItIsUploaded(t *testing.T) {
	d, m := newExporter(t)
	_, err := d.CreateVolume(t.Context(), volume("v", 0))
	require.NoError(t, err)
	_, err = d.CreateSnapshot(t.Context(), snapshot("s", "v", "export", "s3", "readyAfter", "300ms"))
	require.NoError(t, err)
	_, err = d.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: "s3:s"})
	require.NoError(t, err)
	time.Sleep(500 * time.Millisecond)
	require.Empty(t, m.objects)
}

func TestExportIsNotDeletedBehindTheBucketsBack(t *testing.T) {
	d, m := newExporter(t)
	_, err := d.CreateVolume(t.Context(), volume("v", 0))
	require.NoError(t, err)
	awaitReady(t, d, snapshot("s", "v", "export", "s3"))
	m.setDown(true)
	_, err = d.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: "s3:s"})
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	_, err = d.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: "s"})
	require.NoError(t, err)
	m.setDown(false)
	require.ElementsMatch(t, []string{"s" + contentKey, "s" + aboutKey}, keys(t, m))
	_, err = d.store.Snapshot("s")
	require.NoError(t, err, "s is not the handle of s3:s")
}

func keys(t *testing.T, m *memory) []string {
	t.Helper()
	keys, err := m.List(t.Context())
	require.NoError(t, err)
	slices.Sort(keys)
	return keys
}

func TestExportRefused(t *testing.T) {
	d, _ := newExporter(t)
	_, err := d.CreateVolume(t.Context(), volume("v", 0))
	require.NoError(t, err)
	for name, parameters := range map[string][]string{
		"another kind of export":    {"export", "nfs"},
		"neither true nor false":    {"export", "s3", "delete-local", "maybe"},
		"delete-local of no export": {"delete-local", "true"},
	} {
		_, err := d.CreateSnapshot(t.Context(), snapshot("x", "v", parameters...))
		require.Equal(t, codes.InvalidArgument, status.Code(err), "%s: %v", name, err)
	}
	d.bucket = nil
	_, err = d.CreateSnapshot(t.Context(), snapshot("x", "v", "export", "s3"))
	require.Equal(t, codes.InvalidArgument, status.Code(err), "%v", err)
}
