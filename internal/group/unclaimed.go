package group

import (
	"context"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/cleanup"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// DeleteUnclaimed deletes the snapshots of a backup that no claim uses, because Velero
// omitted the claim, or because a process died before it passed the snapshot on. Velero
// asks for the progress of operations only after all items, so this is called then. A
// snapshot that Velero has processed has its annotation or a DataUpload, which works in
// any process. It waits briefly until the snapshots are gone; the sweep deletes the
// rest. It runs once in a process.
func (g *Groups) DeleteUnclaimed(ctx context.Context, backup *velerov1.Backup) error {
	r := g.run(backup)
	r.unclaimedOnce.Do(func() { r.unclaimedErr = r.deleteUnclaimed(ctx) })
	return r.unclaimedErr
}

func (r *run) deleteUnclaimed(ctx context.Context) error {
	r.taking.Wait() // a snapshot must not follow later
	list, err := snapshot.List(ctx, r.clients.Snapshots, metav1.NamespaceAll, snapshot.OwnedBy(r.backup).String())
	if err != nil {
		return err
	}
	targets, err := cleanup.Unclaimed(ctx, r.clients, r.backup, list)
	if err != nil {
		return err
	}
	for _, target := range targets { // the next process cannot write to the backup's log
		r.log.Infof("Deleting VolumeSnapshot %s: Velero left the claim out, or the plugin process ended before it was handed over", target)
	}
	r.reportLost(ctx, list)
	waiting, cancel := context.WithTimeout(ctx, removalLimit)
	defer cancel()
	// The operations of other claims do not wait for these snapshots.
	if _, err := snapshot.RemoveAll(waiting, r.clients.Snapshots, targets...); err != nil {
		r.log.Warnf("Snapshots that no claim of backup %s took are not gone yet, and the next backup tries again: %v", r.backup.Name, err)
	}
	return r.forget(ctx)
}

// reportLost logs the snapshots that were deleted before Velero backed them up.
func (r *run) reportLost(ctx context.Context, existing []snapshotv1.VolumeSnapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.groups {
		r.reportLostOf(ctx, g, existing)
	}
}

func (r *run) reportLostOf(ctx context.Context, g *group, existing []snapshotv1.VolumeSnapshot) {
	for _, m := range g.members {
		vs, _ := m.answered.Load().(*snapshotv1.VolumeSnapshot)
		if vs == nil || slices.ContainsFunc(existing, func(found snapshotv1.VolumeSnapshot) bool {
			return found.UID == vs.UID && found.Annotations[velerov1.VolumeSnapshotHandleAnnotation] != ""
		}) {
			continue
		}
		content, err := snapshot.ContentOf(ctx, r.clients.Snapshots, vs)
		if err == nil && (content == nil || content.Labels[velerov1.BackupNameLabel] == "") {
			r.log.Errorf("A VolumeSnapshot was deleted before Velero backed it up: claim %s/%s cannot be restored from this backup: VolumeSnapshot %s", vs.Namespace, m.claim.Name, vs.Name)
		}
	}
}
