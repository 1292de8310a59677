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

// Settle deletes the snapshots of a backup that no claim took: Velero left the
// claim out, or a process died before it could hand the snapshot over. It is
// called when all items are done, since Velero asks for the progress of
// operations only then. What Velero took carries its annotation, or has a
// DataUpload; so this process need not be the one that took the snapshots. It
// waits a little until they are gone; what stays is the sweep's. It is done once in
// a process: Velero asks again from the next one.
func (g *Groups) Settle(ctx context.Context, backup *velerov1.Backup) error {
	r := g.run(backup)
	r.settling.Do(func() { r.settled = r.settle(ctx) })
	return r.settled
}

func (r *run) settle(ctx context.Context) error {
	r.taking.Wait() // or a snapshot could come later
	list, err := snapshot.List(ctx, r.clients.Snapshots, metav1.NamespaceAll, snapshot.OwnedBy(r.backup).String())
	if err != nil {
		return err
	}
	targets, err := cleanup.Unclaimed(ctx, r.clients, r.backup, list)
	if err != nil {
		return err
	}
	for _, target := range targets { // the next process would not write into the backup's log
		r.log.Infof("Deleting VolumeSnapshot %s: Velero left the claim out, or the plugin process ended before it was handed over", target)
	}
	r.tellLost(ctx, list)
	waiting, cancel := context.WithTimeout(ctx, removalLimit)
	defer cancel()
	// The operations of other claims do not wait for what stays.
	if _, err := snapshot.RemoveAll(waiting, r.clients.Snapshots, targets...); err != nil {
		r.log.Warnf("Snapshots that no claim of backup %s took are not gone yet, and the next backup tries again: %v", r.backup.Name, err)
	}
	return r.forget(ctx)
}

// tellLost reports the snapshots that Velero was to back up and did not find.
func (r *run) tellLost(ctx context.Context, there []snapshotv1.VolumeSnapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.groups {
		r.tellLostOf(ctx, g, there)
	}
}

func (r *run) tellLostOf(ctx context.Context, g *group, there []snapshotv1.VolumeSnapshot) {
	for _, m := range g.members {
		vs, _ := m.answered.Load().(*snapshotv1.VolumeSnapshot)
		if vs == nil || slices.ContainsFunc(there, func(found snapshotv1.VolumeSnapshot) bool {
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
