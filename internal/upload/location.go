package upload

import (
	"context"
	"fmt"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"stillpoint.io/stillpoint/internal/cleanup"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// Located returns the ID of the operation that follows a claim's snapshot through a
// VolumeSnapshotLocation, "" if this backup has none. Stillpoint deletes the
// VolumeSnapshot once it is ready and the backup is stored. The storage's snapshot stays
// with the backup.
func (t *Tracker) Located(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (string, error) {
	operation := locationPrefix + claim.Namespace + "." + string(claim.UID)
	all, err := t.ofLocation(ctx, operation, backup)
	if err != nil || len(all) == 0 {
		return "", err
	}
	return operation, nil
}

func (t *Tracker) ofLocation(ctx context.Context, operation string, backup *velerov1.Backup) ([]snapshotv1.VolumeSnapshot, error) {
	namespace, claim, ok := strings.Cut(strings.TrimPrefix(operation, locationPrefix), ".")
	if !ok {
		return nil, fmt.Errorf("operation ID %s is not %s<namespace>.<UID of the claim>", operation, locationPrefix)
	}
	return snapshot.List(ctx, t.clients.Snapshots, namespace, labels.Set{velerov1.BackupUIDLabel: string(backup.UID), velerov1.PVCUIDLabel: claim}.String())
}

// located returns the progress of a location's snapshot, and deletes its objects when it
// is ready.
func (t *Tracker) located(ctx context.Context, operation string, backup *velerov1.Backup) (velero.OperationProgress, error) {
	all, err := t.ofLocation(ctx, operation, backup)
	if err != nil {
		return velero.OperationProgress{}, err
	}
	if len(all) == 0 {
		return velero.OperationProgress{Completed: true, Description: "The storage holds the snapshot for this backup"}, nil
	}
	progress := ProgressOfSnapshot(&all[0])
	if !progress.Completed || progress.Err != "" || !cleanup.Stored(backup) {
		progress.Completed = false
		return progress, nil
	}
	for _, target := range objectsOnly(all) {
		left, err := snapshot.Remove(ctx, t.clients.Snapshots, target)
		if err != nil {
			left = err.Error()
		}
		if left != "" {
			progress.Completed = false
			progress.Description += "; " + left
		}
	}
	return progress, nil
}

// cancelLocated deletes the objects of a snapshot that Velero no longer waits for.
func (t *Tracker) cancelLocated(ctx context.Context, operation string, backup *velerov1.Backup) error {
	all, err := t.ofLocation(ctx, operation, backup)
	if err != nil {
		return err
	}
	return snapshot.DeleteAll(ctx, t.clients.Snapshots, objectsOnly(all)...)
}

func objectsOnly(all []snapshotv1.VolumeSnapshot) (targets []snapshot.Target) {
	for i := range all {
		target := snapshot.TargetOf(&all[i])
		target.Policy = snapshotv1.VolumeSnapshotContentRetain
		targets = append(targets, target)
	}
	return targets
}
