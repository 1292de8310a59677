package group

import (
	"context"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
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
	uploaded, err := r.uploaded(ctx)
	if err != nil {
		return err
	}
	targets := unclaimed(list, uploaded)
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
			r.log.Errorf("Claim %s/%s cannot be restored from this backup: VolumeSnapshot %s was deleted before Velero backed it up", vs.Namespace, m.claim.Name, vs.Name)
		}
	}
}

// uploaded are the UIDs of the claims of a backup that have a DataUpload.
func (r *run) uploaded(ctx context.Context) (map[string]bool, error) {
	claims := map[string]bool{}
	if !boolptr.IsSetToTrue(r.backup.Spec.SnapshotMoveData) {
		return claims, nil
	}
	uploads, err := cluster.All[velerov2alpha1.DataUpload](ctx, "DataUploads", "",
		r.clients.Velero(&velerov2alpha1.DataUploadList{}, crclient.MatchingLabels{velerov1.BackupUIDLabel: string(r.backup.UID)}))
	for _, upload := range uploads {
		claims[upload.Labels[velerov1.PVCUIDLabel]] = true
	}
	return claims, err
}

// unclaimed are the snapshots among Stillpoint's that Velero did not take. One
// that is kept beside an upload has the fate of the claim's other one.
func unclaimed(all []snapshotv1.VolumeSnapshot, uploaded map[string]bool) []snapshot.Target {
	var targets []snapshot.Target
	for i := range all {
		vs := &all[i]
		_, ours := vs.Annotations[api.AnnotationClassReason] // Velero's are marked with the backup's UID, too
		if ours && vs.Annotations[velerov1.VolumeSnapshotHandleAnnotation] == "" && !uploaded[vs.Labels[velerov1.PVCUIDLabel]] {
			targets = append(targets, snapshot.TargetOf(vs))
		}
	}
	return targets
}
