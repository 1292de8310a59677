package velero

import (
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	uploader "github.com/vmware-tanzu/velero/pkg/uploader/util"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// DataUploads is the resource of Velero's DataUploads.
var DataUploads = schema.GroupResource{Group: velerov2alpha1.SchemeGroupVersion.Group, Resource: "datauploads"}

// BuiltInMover reports whether the data mover of a Backup is Velero's own. It copies
// a function whose package adds the client libraries of every cloud to the plugin.
func BuiltInMover(name string) bool { return name == "" || name == "velero" }

// UploadOperation returns the ID of the operation that follows the DataUpload of a
// claim. It is a label's value, too, and so at most 63 characters long.
func UploadOperation(backup *velerov1.Backup, claim types.UID) string {
	return label.GetValidName(string(velerov1.AsyncOperationIDPrefixDataUpload) + string(backup.UID) + "." + string(claim))
}

// DownloadOperation returns the ID of the operation that follows the DataDownload of
// a claim.
func DownloadOperation(restore *velerov1.Restore, claim types.UID) string {
	return label.GetValidName(string(velerov1.AsyncOperationIDPrefixDataDownload) + string(restore.UID) + "." + string(claim))
}

// NewDataUpload returns the DataUpload that Velero's own action creates for a
// VolumeSnapshot of a claim.
func NewDataUpload(backup *velerov1.Backup, claim *corev1.PersistentVolumeClaim, vs *snapshotv1.VolumeSnapshot, driver string) *velerov2alpha1.DataUpload {
	upload := &velerov2alpha1.DataUpload{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:    backup.Namespace,
			GenerateName: backup.Name + "-",
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: velerov1.SchemeGroupVersion.String(), Kind: "Backup",
				Name: backup.Name, UID: backup.UID, Controller: ptr.To(true),
			}},
			Labels: map[string]string{
				velerov1.BackupNameLabel:       label.GetValidName(backup.Name),
				velerov1.BackupUIDLabel:        string(backup.UID),
				velerov1.PVCUIDLabel:           string(claim.UID),
				velerov1.AsyncOperationIDLabel: UploadOperation(backup, claim.UID),
			},
		},
		Spec: velerov2alpha1.DataUploadSpec{
			SnapshotType: velerov2alpha1.SnapshotTypeCSI,
			CSISnapshot: &velerov2alpha1.CSISnapshotSpec{
				VolumeSnapshot: vs.Name,
				StorageClass:   ptr.Deref(claim.Spec.StorageClassName, ""),
				SnapshotClass:  ptr.Deref(vs.Spec.VolumeSnapshotClassName, ""),
				Driver:         driver,
			},
			SourcePVC:             claim.Name,
			SourceNamespace:       claim.Namespace,
			DataMover:             backup.Spec.DataMover,
			BackupStorageLocation: backup.Spec.StorageLocation,
			OperationTimeout:      backup.Spec.CSISnapshotTimeout,
		},
	}
	if uploaders := backup.Spec.UploaderConfig; uploaders != nil && uploaders.ParallelFilesUpload > 0 {
		upload.Spec.DataMoverConfig = uploader.StoreBackupConfig(uploaders)
	}
	return upload
}
