package group

import (
	"context"
	"fmt"
	"strconv"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/upload"
)

// uploads are Velero's DataUploads, as resources.
var uploads = schema.GroupResource{Group: velerov2alpha1.SchemeGroupVersion.Group, Resource: "datauploads"}

// parallelFilesUpload is the key of a DataUpload's configuration that Velero's
// package uploader/util has, which would bring the mover into the plugin.
const parallelFilesUpload = "ParallelFilesUpload"

// upload has the snapshot's data moved: it creates the DataUpload that Velero's
// own action would have (newDataUpload in pkg/backup/actions/csi of Velero 1.18).
func (g *group) upload(ctx context.Context, claim *corev1.PersistentVolumeClaim, vs *snapshotv1.VolumeSnapshot) (*velerov2alpha1.DataUpload, error) {
	volume, err := g.selection.Volume(ctx, claim)
	if err != nil {
		return nil, err
	}
	upload := newUpload(g.backup, claim, vs, volume.Spec.CSI.Driver)
	if err := g.clients.Objects.Create(ctx, upload); err != nil {
		return nil, fmt.Errorf("create the DataUpload of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return upload, nil
}

func newUpload(backup *velerov1.Backup, claim *corev1.PersistentVolumeClaim, vs *snapshotv1.VolumeSnapshot, driver string) *velerov2alpha1.DataUpload {
	created := &velerov2alpha1.DataUpload{
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
				velerov1.AsyncOperationIDLabel: upload.Operation(backup, claim.UID),
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
	if vs.Status != nil && vs.Status.BoundVolumeSnapshotContentName != nil {
		created.Annotations = map[string]string{api.AnnotationContent: *vs.Status.BoundVolumeSnapshotContentName}
	}
	if backup.Spec.UploaderConfig != nil && backup.Spec.UploaderConfig.ParallelFilesUpload > 0 {
		created.Spec.DataMoverConfig = map[string]string{parallelFilesUpload: strconv.Itoa(backup.Spec.UploaderConfig.ParallelFilesUpload)}
	}
	return created
}
