package loopcsi

import (
	"context"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func deleteSnapshot(ctx context.Context, d *Driver, handle string) error {
	_, err := d.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: handle})
	return err
}

func TestDeletionFailsAsOrdered(t *testing.T) {
	for _, c := range []struct {
		name       string
		handle     string
		parameters []string
	}{
		{"local", "s", nil},
		{"exported", "s3:s", []string{"export", "s3"}},
		{"exported, not kept locally", "s3:s", []string{"export", "s3", "delete-local", "true"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, m := newExporter(t)
			_, err := d.CreateVolume(t.Context(), volume("v", 0))
			require.NoError(t, err)

			awaitReady(t, d, snapshot("s", "v", append(c.parameters, "failDelete", "busy", "failDeleteTimes", "2")...))
			for range 2 {
				err := deleteSnapshot(t.Context(), d, c.handle)
				require.Equal(t, codes.Internal, status.Code(err), "%v", err)
				require.ErrorContains(t, err, "busy")
			}
			require.NoError(t, deleteSnapshot(t.Context(), d, c.handle))

			awaitReady(t, d, snapshot("s", "v", append(c.parameters, "failDelete", "busy")...))
			for range 3 {
				require.ErrorContains(t, deleteSnapshot(t.Context(), d, c.handle), "busy")
			}
			// The order is part of the snapshot, wherever it is asked for.
			if c.handle != "s" {
				other := newDriver(t)
				other.bucket = m
				require.ErrorContains(t, deleteSnapshot(t.Context(), other, c.handle), "busy")
			}
			require.NoError(t, d.AllowDelete(t.Context(), c.handle))
			require.NoError(t, deleteSnapshot(t.Context(), d, c.handle))
			require.NoError(t, d.AllowDelete(t.Context(), c.handle), "it is gone")
			require.Empty(t, keys(t, m))
		})
	}
}

func TestSlowDeletion(t *testing.T) {
	d := newDriver(t)
	_, err := d.CreateVolume(t.Context(), volume("v", 0))
	require.NoError(t, err)
	cutSnapshot := func(name, delay string) {
		_, err := d.CreateSnapshot(t.Context(), snapshot(name, "v", "delayDelete", delay))
		require.NoError(t, err)
	}

	cutSnapshot("s", "600ms")
	began := time.Now()
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.Equal(t, codes.DeadlineExceeded, status.Code(deleteSnapshot(short, d, "s")))
	time.Sleep(200 * time.Millisecond)
	require.NoError(t, deleteSnapshot(t.Context(), d, "s"))
	took := time.Since(began)
	require.GreaterOrEqual(t, took, 600*time.Millisecond)
	require.Less(t, took, 880*time.Millisecond, "the second request does not begin anew")

	cutSnapshot("s", "1h")
	ended := make(chan error)
	go func() { ended <- deleteSnapshot(t.Context(), d, "s") }()
	time.Sleep(50 * time.Millisecond)
	// Meanwhile others are served, those for the same volume and snapshot too.
	quick, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = d.CreateVolume(quick, volume("r", 0, fromSnapshot("s")))
	require.NoError(t, err)
	_, err = d.CreateSnapshot(quick, snapshot("other", "v"))
	require.NoError(t, err)
	require.NoError(t, deleteSnapshot(quick, d, "other"))
	require.NoError(t, d.AllowDelete(quick, "s"))
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(2 * time.Second):
		t.Fatal("it is allowed and still not deleted")
	}
}

func TestDeletionOrdersRefused(t *testing.T) {
	d := newDriver(t)
	_, err := d.CreateVolume(t.Context(), volume("v", 0))
	require.NoError(t, err)
	for name, parameters := range map[string][]string{
		"no number":           {"failDelete", "busy", "failDeleteTimes", "often"},
		"never":               {"failDelete", "busy", "failDeleteTimes", "0"},
		"times of no failure": {"failDeleteTimes", "2"},
		"no duration":         {"delayDelete", "long"},
	} {
		_, err := d.CreateSnapshot(t.Context(), snapshot("x", "v", parameters...))
		require.Equal(t, codes.InvalidArgument, status.Code(err), "%s: %v", name, err)
	}
}

func TestLocks(t *testing.T) {
	var l locks
	release, err := l.acquire(t.Context(), "b", "a", "b")
	require.NoError(t, err)
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = l.acquire(short, "0", "a")
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	other, err := l.acquire(t.Context(), "0", "c")
	require.NoError(t, err, "what was given up is free")
	other()
	got := make(chan error)
	go func() {
		release, err := l.acquire(t.Context(), "a")
		if err == nil {
			release()
		}
		got <- err
	}()
	release()
	require.NoError(t, <-got)
	require.Empty(t, l.held)
}
