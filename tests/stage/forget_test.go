package stage

import (
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestHandlesIn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "b-volumeinfo.json.gz")
	none, err := handlesIn(file)
	require.NoError(t, err)
	assert.Empty(t, none)

	write := func(content string) {
		f, err := os.Create(file)
		require.NoError(t, err)
		zipped := gzip.NewWriter(f)
		_, err = zipped.Write([]byte(content))
		require.NoError(t, err)
		require.NoError(t, zipped.Close())
		require.NoError(t, f.Close())
	}
	write(`[{"pvcName":"a","csiSnapshotInfo":{"snapshotHandle":"s1","driver":"d"}},{"pvcName":"b","skipped":true},` +
		`{"pvcName":"c","csiSnapshotInfo":{"snapshotHandle":"","driver":"d"}},{"pvcName":"d","csiSnapshotInfo":{"snapshotHandle":"s2","driver":"e"}},` +
		`{"pvcName":"e","snapshotDataMoved":true,"csiSnapshotInfo":{"snapshotHandle":"unknown","driver":"d"}}]`)
	found, err := handlesIn(file)
	require.NoError(t, err)
	assert.Equal(t, []Kept{{"s1", "d"}, {"s2", "e"}}, found)

	write("{}")
	_, err = handlesIn(file)
	require.ErrorContains(t, err, file)
}
