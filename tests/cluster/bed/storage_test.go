package bed

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"stillpoint.io/stillpoint/tests/cluster/loopcsi"
)

func TestStorage(t *testing.T) {
	assert.Equal(t, loopcsi.Name, StandardStorage.Driver())
	assert.Equal(t, "vault.csi.stillpoint.io", Storage("vault").Driver())
}

// used is a bed, down, of a cluster that calls its storage so.
func used(t *testing.T, storage Storage) *Bed {
	t.Helper()
	b, err := at(t.TempDir(), t.Logf)
	require.NoError(t, err)
	require.Equal(t, StandardStorage, b.Storage())
	require.NoError(t, b.settle(t.Context(), storage))
	for _, file := range []string{b.data("etcd", "db"), b.data("store.img"), filepath.Join(b.ObjectStore(), s3Bucket, "backups"), b.run("admin.kubeconfig")} {
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o750))
		require.NoError(t, os.WriteFile(file, nil, 0o600))
	}
	return b
}

func TestWipe(t *testing.T) {
	for wipe, want := range map[Wipe]struct{ etcd, objects bool }{
		WipeNothing: {true, true},
		WipeCluster: {false, true},
		WipeAll:     {false, false},
	} {
		b := used(t, "vault")
		require.NoError(t, b.wipe(wipe))
		_, etcd := os.Stat(b.data("etcd", "db"))
		_, store := os.Stat(b.data("store.img"))
		_, keys := os.Stat(b.run("admin.kubeconfig"))
		_, name := os.Stat(b.storageFile())
		_, objects := os.Stat(filepath.Join(b.ObjectStore(), s3Bucket, "backups"))
		assert.Equal(t, want.etcd, etcd == nil, "etcd of %d", wipe)
		assert.Equal(t, want.etcd, store == nil, "the store of %d", wipe)
		assert.Equal(t, want.etcd, keys == nil, "the keys of %d", wipe)
		assert.Equal(t, want.etcd, name == nil, "the storage's name of %d", wipe)
		assert.Equal(t, want.objects, objects == nil, "the object store of %d", wipe)
	}
}

// A cluster of before there was a choice is the standard one.
func TestSettleWithoutARecord(t *testing.T) {
	b := used(t, StandardStorage)
	require.NoError(t, os.Remove(b.storageFile()))
	require.NoError(t, b.settle(t.Context(), StandardStorage))
	assert.FileExists(t, b.data("etcd", "db"))
	assert.FileExists(t, b.storageFile())
}

func TestSettle(t *testing.T) {
	b := used(t, "vault")
	again, err := at(b.Dir, t.Logf)
	require.NoError(t, err)
	require.Equal(t, Storage("vault"), again.Storage())

	require.NoError(t, again.settle(t.Context(), "vault"))
	assert.FileExists(t, again.data("etcd", "db"), "the same cluster goes on")

	for _, bad := range []Storage{"", "Vault", "a/b", "a.b"} {
		require.ErrorContains(t, again.settle(t.Context(), bad), "it must be a lower-case word")
	}
	assert.FileExists(t, again.data("etcd", "db"))
}

// What takes a cluster down needs root, and finds nothing of this one.
func TestAnotherStorageIsAnotherCluster(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("this test needs root")
	}
	b := used(t, "vault")
	require.NoError(t, b.settle(t.Context(), StandardStorage))
	assert.NoFileExists(t, b.data("etcd", "db"))
	assert.NoFileExists(t, b.run("admin.kubeconfig"))
	assert.FileExists(t, filepath.Join(b.ObjectStore(), s3Bucket, "backups"))
	again, err := at(b.Dir, t.Logf)
	require.NoError(t, err)
	assert.Equal(t, StandardStorage, again.Storage())
}

func TestBeside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bed")
	b, err := at(dir, t.Logf)
	require.NoError(t, err)
	for range 2 {
		beside, err := b.Beside("other")
		require.NoError(t, err)
		require.NoError(t, beside.makeDirs())
		assert.Equal(t, dir+"-other", beside.Dir)
	}
	require.NoError(t, os.Mkdir(b.path("build", "kube-0123456789abcdef"), 0o750))
	assert.DirExists(t, filepath.Join(dir+"-other", "build", "kube-0123456789abcdef"))
	assert.NoDirExists(t, filepath.Join(dir, "data"))
}
