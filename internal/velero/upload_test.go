package velero

import (
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/ptr"
)

func TestNewDataUpload(t *testing.T) {
	upload := newUploadOfAll()
	assert.Equal(t, velerov2alpha1.DataUploadSpec{
		SnapshotType:          velerov2alpha1.SnapshotTypeCSI,
		CSISnapshot:           &velerov2alpha1.CSISnapshotSpec{VolumeSnapshot: "velero-data-1", StorageClass: "fast", SnapshotClass: "snap", Driver: "csi.example.com"},
		SourcePVC:             "data",
		SourceNamespace:       "shop",
		DataMover:             "acme",
		BackupStorageLocation: "default",
		DataMoverConfig:       map[string]string{"ParallelFilesUpload": "7"},
		OperationTimeout:      metav1.Duration{Duration: time.Minute},
	}, upload.Spec)
	assert.Equal(t, "velero", upload.Namespace)
	assert.Equal(t, "nightly-", upload.GenerateName)
	assert.Equal(t, []metav1.OwnerReference{{APIVersion: "velero.io/v1", Kind: "Backup", Name: "nightly", UID: "0f3a9b1e-7d52-4a55-8f0e-2f6f0a1f7c11", Controller: ptr.To(true)}}, upload.OwnerReferences)
	for key, value := range upload.Labels {
		assert.Empty(t, validation.IsValidLabelValue(value), key)
	}
	assert.Equal(t, "7d0c6b52-91c4-4d0e-8c35-b7b4ef1dfb02", upload.Labels[velerov1.PVCUIDLabel])
	assert.True(t, strings.HasPrefix(upload.Labels[velerov1.AsyncOperationIDLabel], "du-"))
}

// newUploadOfAll returns the DataUpload of a backup that sets everything.
func newUploadOfAll() *velerov2alpha1.DataUpload {
	backup := &velerov1.Backup{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "nightly", UID: types.UID("0f3a9b1e-7d52-4a55-8f0e-2f6f0a1f7c11")},
		Spec: velerov1.BackupSpec{
			StorageLocation: "default", DataMover: "acme", CSISnapshotTimeout: metav1.Duration{Duration: time.Minute},
			UploaderConfig: &velerov1.UploaderConfigForBackup{ParallelFilesUpload: 7},
		},
	}
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", UID: types.UID("7d0c6b52-91c4-4d0e-8c35-b7b4ef1dfb02")},
		Spec:       corev1.PersistentVolumeClaimSpec{StorageClassName: ptr.To("fast")},
	}
	vs := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "velero-data-1"},
		Spec:       snapshotv1.VolumeSnapshotSpec{VolumeSnapshotClassName: ptr.To("snap")},
	}
	return NewDataUpload(backup, claim, vs, "csi.example.com")
}
