package csi

import (
	"context"
	"fmt"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/snapshot"
	"stillpoint.io/stillpoint/internal/upload"
)

// operation begins the ids of the operations that follow snapshots of locations.
const operation = "stillpoint-location."

// Settler takes the VolumeSnapshots away that snapshots were taken by, once they
// are ready and the backup is stored: the storage's snapshots are the backup's.
// Velero asks for it again and again, each time in a new process.
type Settler struct{ clients *cluster.Clients }

// NewSettler returns a Settler.
func NewSettler(clients *cluster.Clients) *Settler { return &Settler{clients: clients} }

// Operation is the id of the operation that follows the snapshot of a claim, ""
// where this backup has none through a location.
func (s *Settler) Operation(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (string, error) {
	list, err := s.list(ctx, claim.Namespace, string(claim.UID), backup)
	if err != nil || len(list) == 0 {
		return "", err
	}
	return operation + claim.Namespace + "." + string(claim.UID), nil
}

// Follows tells whether an operation is one of these.
func Follows(id string) bool { return strings.HasPrefix(id, operation) }

func (s *Settler) list(ctx context.Context, namespace, claim string, backup *velerov1.Backup) ([]snapshotv1.VolumeSnapshot, error) {
	return snapshot.List(ctx, s.clients.Snapshots, namespace, labels.Set{velerov1.BackupUIDLabel: string(backup.UID), velerov1.PVCUIDLabel: claim}.String())
}

func (s *Settler) find(ctx context.Context, id string, backup *velerov1.Backup) ([]snapshotv1.VolumeSnapshot, error) {
	namespace, claim, ok := strings.Cut(strings.TrimPrefix(id, operation), ".")
	if !ok {
		return nil, fmt.Errorf("operation ID %s is not one of a location", id)
	}
	return s.list(ctx, namespace, claim, backup)
}

// stored tells whether Velero has the backup in its object store: until then
// nothing but the objects knows of the snapshots.
func stored(backup *velerov1.Backup) bool {
	switch backup.Status.Phase {
	case velerov1.BackupPhaseNew, velerov1.BackupPhaseInProgress, "":
		return false
	default:
		return true
	}
}

// Progress tells how far a snapshot is, and takes its objects away when it is
// ready. What is in the way is told in the description: it may pass.
func (s *Settler) Progress(ctx context.Context, id string, backup *velerov1.Backup) (velero.OperationProgress, error) {
	left, err := s.find(ctx, id, backup)
	if err != nil {
		return velero.OperationProgress{Description: err.Error()}, nil //nolint:nilerr // Velero never asks again after an error
	}
	if len(left) == 0 {
		return velero.OperationProgress{Completed: true, Description: "The storage holds the snapshot for this backup"}, nil
	}
	progress := upload.ProgressOfSnapshot(&left[0])
	switch {
	case !progress.Completed || progress.Err != "":
		return progress, nil
	case !stored(backup):
		progress.Completed = false
		return progress, nil
	}
	for i := range left {
		target := snapshot.TargetOf(&left[i])
		target.Policy = snapshotv1.VolumeSnapshotContentRetain
		remains, err := snapshot.Remove(ctx, s.clients.Snapshots, target)
		if err != nil {
			remains = err.Error()
		}
		if remains != "" {
			progress.Completed = false
			progress.Description += "; " + remains
		}
	}
	return progress, nil
}

// Cancel takes the objects away of a snapshot that Velero waits for no longer.
func (s *Settler) Cancel(ctx context.Context, id string, backup *velerov1.Backup) error {
	left, err := s.find(ctx, id, backup)
	if err != nil {
		return err
	}
	var targets []snapshot.Target
	for i := range left {
		target := snapshot.TargetOf(&left[i])
		target.Policy = snapshotv1.VolumeSnapshotContentRetain
		targets = append(targets, target)
	}
	_, err = snapshot.RemoveAll(ctx, s.clients.Snapshots, targets...)
	return err
}
