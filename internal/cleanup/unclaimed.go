package cleanup

import (
	"context"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	"k8s.io/apimachinery/pkg/util/sets"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// Unclaimed returns the snapshots of a backup that none of its claims uses. A snapshot
// that Velero has processed has its annotation or a DataUpload.
func Unclaimed(ctx context.Context, clients *cluster.Clients, backup *velerov1.Backup, all []snapshotv1.VolumeSnapshot) ([]snapshot.Target, error) {
	uploaded := sets.New[string]()
	if boolptr.IsSetToTrue(backup.Spec.SnapshotMoveData) {
		uploads, err := cluster.All[velerov2alpha1.DataUpload](ctx, "DataUploads", "",
			clients.Velero(&velerov2alpha1.DataUploadList{}, crclient.MatchingLabels{velerov1.BackupUIDLabel: string(backup.UID)}))
		if err != nil {
			return nil, err
		}
		for i := range uploads {
			uploaded.Insert(uploads[i].Labels[velerov1.PVCUIDLabel])
		}
	}
	return unclaimed(all, uploaded), nil
}

// unclaimed judges by the UIDs of the claims that have a DataUpload. A kept snapshot is
// treated like the claim's other snapshot.
func unclaimed(all []snapshotv1.VolumeSnapshot, uploaded sets.Set[string]) (targets []snapshot.Target) {
	for i := range all {
		vs := &all[i]
		_, ours := vs.Annotations[api.AnnotationClassReason] // Velero's own are marked with the backup's UID, too
		if ours && vs.Annotations[velerov1.VolumeSnapshotHandleAnnotation] == "" && !uploaded.Has(vs.Labels[velerov1.PVCUIDLabel]) {
			targets = append(targets, snapshot.TargetOf(vs))
		}
	}
	return targets
}
