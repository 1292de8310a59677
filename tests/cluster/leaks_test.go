package cluster

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func content(name, handle, backup string, annotations map[string]string) *snapshotv1.VolumeSnapshotContent {
	return &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{velerov1.BackupNameLabel: backup}, Annotations: annotations},
		Status:     &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle},
	}
}

func TestOwnedHandles(t *testing.T) {
	keptContent := "snapcontent-2"
	items := map[string]any{
		"resources/volumesnapshotcontents.snapshot.storage.k8s.io/cluster/snapcontent-1.json":                     content("snapcontent-1", "local", "b", nil),
		"resources/volumesnapshotcontents.snapshot.storage.k8s.io/v1-preferredversion/cluster/snapcontent-1.json": content("snapcontent-1", "local", "b", nil),
		"resources/volumesnapshotcontents.snapshot.storage.k8s.io/cluster/snapcontent-2.json":                     content(keptContent, "kept", "b", nil),
		"resources/volumesnapshotcontents.snapshot.storage.k8s.io/cluster/snapcontent-3.json":                     content("snapcontent-3", "wished", "b", map[string]string{keepAnnotation: "true"}),
		"resources/volumesnapshotcontents.snapshot.storage.k8s.io/cluster/snapcontent-4.json":                     content("snapcontent-4", "another's", "a", nil),
		"resources/volumesnapshotcontents.snapshot.storage.k8s.io/cluster/snapcontent-5.json":                     content("snapcontent-5", "not wished", "b", map[string]string{keepAnnotation: "false"}),
		"resources/volumesnapshots.snapshot.storage.k8s.io/namespaces/shop/s.json": &snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{Name: "s", Labels: map[string]string{keptLabel: "uid"}},
			Status:     &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &keptContent},
		},
		"metadata/version": "1.1.0",
	}
	for _, c := range []struct {
		name  string
		moved *bool
		want  []string
	}{
		{"the snapshots are the backup", nil, []string{"local", "local", "kept", "wished", "not wished"}},
		{"the data was moved", new(true), []string{"kept", "wished"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			backup := velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: velerov1.BackupSpec{SnapshotMoveData: c.moved}}
			about, err := json.Marshal(backup)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "velero-backup.json"), about, 0o600))
			_, err = ownedHandles(dir)
			require.ErrorIs(t, err, os.ErrNotExist, "it has no content yet")

			f, err := os.Create(filepath.Join(dir, "b.tar.gz"))
			require.NoError(t, err)
			compressed := gzip.NewWriter(f)
			archive := tar.NewWriter(compressed)
			for name, item := range items {
				b, err := json.Marshal(item)
				require.NoError(t, err)
				require.NoError(t, archive.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(b))}))
				_, err = archive.Write(b)
				require.NoError(t, err)
			}
			require.NoError(t, archive.Close())
			require.NoError(t, compressed.Close())
			require.NoError(t, f.Close())

			handles, err := ownedHandles(dir)
			require.NoError(t, err)
			require.ElementsMatch(t, c.want, handles)
		})
	}
}
