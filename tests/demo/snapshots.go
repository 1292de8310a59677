package main

import (
	"context"
	"errors"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// snapshots names every snapshot of the application that there is: objects of
// its namespace, copies that Velero's exporter makes in its own, named after
// the DataUpload, and what the storage holds.
func (d *demo) snapshots(ctx context.Context) ([]string, error) {
	uploads := &velerov2alpha1.DataUploadList{}
	objects := &snapshotv1.VolumeSnapshotList{}
	contents := &snapshotv1.VolumeSnapshotContentList{}
	err := errors.Join(
		d.Objects().List(ctx, uploads, client.InNamespace(cluster.VeleroNamespace), client.MatchingLabels{velerov1.BackupNameLabel: d.backup}),
		d.Objects().List(ctx, objects),
		d.Objects().List(ctx, contents),
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
	stored, err := d.StoredSnapshots(ctx, namespace, claim)
	for _, id := range stored {
		found = append(found, "snapshot "+id+" of the storage")
	}
	return found, err
}
