package stage

import (
	"context"
	"errors"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// SnapshotsLeft names every snapshot that there is of a claim that a backup with
// data movement has exported: objects of its namespace, copies that Velero's
// exporter makes in its own, named after the DataUpload, and what the storage
// holds. What it holds in its bucket alone is not left but exported.
func (s *Stage) SnapshotsLeft(ctx context.Context, namespace, claim, backup string) ([]string, error) {
	uploads := &velerov2alpha1.DataUploadList{}
	objects := &snapshotv1.VolumeSnapshotList{}
	contents := &snapshotv1.VolumeSnapshotContentList{}
	err := errors.Join(
		s.Objects().List(ctx, uploads, client.InNamespace(cluster.VeleroNamespace), client.MatchingLabels{velerov1.BackupNameLabel: backup}),
		s.Objects().List(ctx, objects),
		s.Objects().List(ctx, contents),
	)
	if err != nil {
		return nil, err
	}
	ours := func(in, name string) bool {
		if in == cluster.VeleroNamespace {
			for i := range uploads.Items {
				if uploads.Items[i].Name == name {
					return true
				}
			}
		}
		return in == namespace
	}
	var found []string
	for _, vs := range objects.Items {
		if ours(vs.Namespace, vs.Name) {
			found = append(found, "VolumeSnapshot "+vs.Namespace+"/"+vs.Name)
		}
	}
	for _, content := range contents.Items {
		if ref := content.Spec.VolumeSnapshotRef; ours(ref.Namespace, ref.Name) {
			found = append(found, "VolumeSnapshotContent "+content.Name)
		}
	}
	handles, err := s.StoredSnapshots(ctx, namespace, claim)
	if err != nil {
		return found, err
	}
	stored, err := s.Snapshots(ctx)
	for _, snapshot := range stored {
		if slices.Contains(handles, snapshot.ID) && (!snapshot.Remote || snapshot.Size > 0) {
			found = append(found, "snapshot "+snapshot.ID+" of the storage")
		}
	}
	return found, err
}
