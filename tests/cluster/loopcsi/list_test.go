package loopcsi

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func TestListSnapshots(t *testing.T) {
	d, m := newExporter(t)
	for _, name := range []string{"v", "w"} {
		_, err := d.CreateVolume(t.Context(), volume(name, 32*mib))
		require.NoError(t, err)
	}
	awaitReady(t, d, snapshot("b", "v"))
	awaitReady(t, d, snapshot("a", "w"))
	_, err := d.CreateSnapshot(t.Context(), snapshot("late", "w", "readyAfter", "1h"))
	require.NoError(t, err)
	awaitReady(t, d, snapshot("c", "v", "export", "s3"))
	awaitReady(t, d, snapshot("elsewhere", "v", "export", "s3"))
	require.NoError(t, d.store.DeleteSnapshot("elsewhere"))

	for _, c := range []struct {
		name    string
		request *csi.ListSnapshotsRequest
		want    []string
		next    string
		code    codes.Code
	}{
		{name: "all", request: &csi.ListSnapshotsRequest{}, want: []string{"a", "b", "late", "s3:c", "s3:elsewhere"}},
		{name: "first page", request: &csi.ListSnapshotsRequest{MaxEntries: 2}, want: []string{"a", "b"}, next: "b"},
		{name: "second page", request: &csi.ListSnapshotsRequest{MaxEntries: 2, StartingToken: "b"}, want: []string{"late", "s3:c"}, next: "s3:c"},
		{name: "last page", request: &csi.ListSnapshotsRequest{MaxEntries: 2, StartingToken: "s3:c"}, want: []string{"s3:elsewhere"}},
		{name: "a full last page", request: &csi.ListSnapshotsRequest{MaxEntries: 5}, want: []string{"a", "b", "late", "s3:c", "s3:elsewhere"}},
		{name: "of a volume", request: &csi.ListSnapshotsRequest{SourceVolumeId: "w"}, want: []string{"a", "late"}},
		{name: "of a volume, first page", request: &csi.ListSnapshotsRequest{SourceVolumeId: "w", MaxEntries: 1}, want: []string{"a"}, next: "a"},
		{name: "one", request: &csi.ListSnapshotsRequest{SnapshotId: "b"}, want: []string{"b"}},
		{name: "one in the bucket only", request: &csi.ListSnapshotsRequest{SnapshotId: "s3:elsewhere"}, want: []string{"s3:elsewhere"}},
		{name: "none", request: &csi.ListSnapshotsRequest{SnapshotId: "none"}},
		{name: "none in the bucket", request: &csi.ListSnapshotsRequest{SnapshotId: "s3:none"}},
		{name: "one of another driver", request: &csi.ListSnapshotsRequest{SnapshotId: "arn:aws:x/y"}},
		{name: "one of another volume", request: &csi.ListSnapshotsRequest{SnapshotId: "b", SourceVolumeId: "w"}},
		{name: "bad token", request: &csi.ListSnapshotsRequest{StartingToken: "../x"}, code: codes.Aborted},
		{name: "less than none", request: &csi.ListSnapshotsRequest{MaxEntries: -1}, code: codes.InvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			response, err := d.ListSnapshots(t.Context(), c.request)
			require.Equal(t, c.code, status.Code(err), "%v", err)
			var got []string
			for _, entry := range response.GetEntries() {
				s := entry.GetSnapshot()
				got = append(got, s.GetSnapshotId())
				require.EqualValues(t, 32*mib, s.GetSizeBytes())
				require.Equal(t, s.GetSnapshotId() != "late", s.GetReadyToUse())
				require.False(t, s.GetCreationTime().AsTime().IsZero())
			}
			require.Equal(t, c.want, got)
			require.Equal(t, c.next, response.GetNextToken())
		})
	}
	m.setDown(true)
	_, err = d.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{})
	require.Equal(t, codes.Unavailable, status.Code(err), "half a list is none")
}

func TestStoredOverTheSocket(t *testing.T) {
	d, m := newExporter(t)
	_, err := d.CreateVolume(t.Context(), volume("v", 32*mib))
	require.NoError(t, err)
	awaitReady(t, d, snapshot("s", "v", "failDelete", "busy"))
	awaitReady(t, d, snapshot("e", "v", "export", "s3"))
	awaitReady(t, d, snapshot("g", "v", "export", "s3"))
	require.NoError(t, d.store.DeleteSnapshot("g"))
	require.Len(t, keys(t, m), 4)

	server := grpc.NewServer(grpc.UnaryInterceptor(d.LogCalls))
	d.Register(server)
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket) //nolint:noctx // it ends with the test
	require.NoError(t, err)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = connection.Close() })

	stored, err := StoredBy(t.Context(), connection)
	require.NoError(t, err)
	require.Len(t, stored, 3)
	require.Equal(t, []string{"s", "s3:e", "s3:g"}, []string{stored[0].ID, stored[1].ID, stored[2].ID})
	require.Equal(t, []bool{false, true, true}, []bool{stored[0].Remote, stored[1].Remote, stored[2].Remote})
	for i, held := range []bool{true, true, false} {
		require.Equal(t, held, stored[i].Size > 0, "%+v", stored[i])
		require.Less(t, stored[i].Size, int64(32*mib), "an image is mostly holes")
		require.Equal(t, "v", stored[i].Volume)
		require.True(t, stored[i].Ready)
		require.False(t, stored[i].Created.IsZero())
	}

	require.Error(t, deleteSnapshot(t.Context(), d, "s"))
	require.NoError(t, AllowDeleteBy(t.Context(), connection, "s"))
	require.NoError(t, deleteSnapshot(t.Context(), d, "s"))
	require.NoError(t, AllowDeleteBy(t.Context(), connection, "none"))
	m.setDown(true)
	require.Equal(t, codes.Unavailable, status.Code(AllowDeleteBy(t.Context(), connection, "s3:g")))
}
