package group

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/snapshot"
	"stillpoint.io/stillpoint/internal/upload"
	velerofacts "stillpoint.io/stillpoint/internal/velero"
)

// removalLimit is how long one call of Velero waits for the deletion of unusable or
// unclaimed snapshots. It is longer than a deletion without a snapshot controller takes.
// The claim's operation continues to wait, and the next backup deletes the rest.
const removalLimit = 15 * time.Second

// reasonLimit limits api.AnnotationNoSnapshot, in bytes: all annotations of an object
// share 256 KiB.
const reasonLimit = 4096

// Answer is the result of an action as Velero's own action for claims returns it.
type Answer struct {
	// Claim is the claim to back up.
	Claim *corev1.PersistentVolumeClaim
	// Additional items are backed up at once.
	Additional []velero.ResourceIdentifier
	// Operation is the ID of the operation, "" if none. Velero backs up the items in
	// Update again when it has ended.
	Operation string
	Update    []velero.ResourceIdentifier
}

// answer takes the group's snapshots on the first call, and returns the answer for a
// claim.
func (g *group) answer(ctx context.Context, claim *corev1.PersistentVolumeClaim) *Answer {
	g.once(ctx)
	m := g.members[claim.Name]
	switch {
	case g.failed != nil:
		return g.without(claim, g.failed)
	case m.failed != nil:
		return g.without(claim, m.failed)
	}
	vs, err := g.secure(ctx, m)
	if err != nil {
		g.drop(ctx, m)
		return g.without(claim, fmt.Errorf("VolumeSnapshot %s: %w", m.key(), err))
	}
	if m.kept != nil {
		kept, _ := g.snapshots.State(m.keptKey())
		g.unkept(m, kept.Failure)
	}
	answer := &Answer{Claim: withSnapshot(claim, vs, g.backup)}
	g.provisionable(ctx, answer.Claim)
	if boolptr.IsSetToTrue(g.backup.Spec.SnapshotMoveData) {
		moving, err := g.upload(ctx, answer.Claim, vs)
		if err != nil {
			g.drop(ctx, m)
			return g.without(claim, err)
		}
		metav1.SetMetaDataAnnotation(&answer.Claim.ObjectMeta, velerov1.DataUploadNameAnnotation, moving.Namespace+"/"+moving.Name)
		answer.Operation = moving.Labels[velerov1.AsyncOperationIDLabel]
		answer.Update = []velero.ResourceIdentifier{{GroupResource: velerofacts.DataUploads, Namespace: moving.Namespace, Name: moving.Name}}
		return answer
	}
	answer.Additional = []velero.ResourceIdentifier{{GroupResource: kuberesource.VolumeSnapshots, Namespace: vs.Namespace, Name: vs.Name}}
	m.answered.Store(vs)
	raiseRequest(answer.Claim, vs)
	answer.Operation = upload.SnapshotOperation(claim)
	return answer
}

// provisionable prepares a claim in the backup whose volume was created by hand. A
// restore provisions a new volume, which needs a StorageClass and accepts no selector.
func (g *group) provisionable(ctx context.Context, claim *corev1.PersistentVolumeClaim) {
	claim.Spec.Selector = nil
	class, reason, err := g.decisions.StorageClass(ctx, claim)
	switch {
	case err != nil:
		g.log.Warnf("The snapshot of a claim cannot be restored as things are: claim %s/%s: %v", claim.Namespace, claim.Name, err)
	case reason != "":
		g.log.Infof("Set the StorageClass for the restore: claim %s/%s is restored with StorageClass %s: %s", claim.Namespace, claim.Name, class, reason)
		claim.Spec.StorageClassName = &class
	}
}

// drop deletes the unusable snapshot of a member. If it was not cut, drop does not wait,
// because the CSI sidecar deletes it only after the driver has answered.
func (g *group) drop(ctx context.Context, m *member) {
	if state, _ := g.snapshots.State(m.key()); !state.Cut {
		ctx = context.WithoutCancel(ctx)
		go func() {
			if err := g.remove(ctx, m.claim.Name); err != nil { // the claim has an error already
				g.log.Info(err)
			}
		}()
		return
	}
	if err := g.remove(ctx, m.claim.Name); err != nil {
		g.log.Error(err)
	}
}

// without keeps a claim without a snapshot in the backup, and logs the reason. It does
// not mark a claim that was never bound, which has no data.
func (r *run) without(claim *corev1.PersistentVolumeClaim, reason error) *Answer {
	r.log.WithField("claim", claim.Namespace+"/"+claim.Name).
		Errorf("No snapshot of a volume: claim %s/%s is backed up without a snapshot of its volume: %v", claim.Namespace, claim.Name, reason)
	marked := claim.DeepCopy()
	delete(marked.Annotations, velerov1.VolumeSnapshotLabel) // of an earlier backup
	delete(marked.Annotations, velerov1.DataUploadNameAnnotation)
	if claim.Status.Phase != corev1.ClaimPending {
		text := reason.Error()
		metav1.SetMetaDataAnnotation(&marked.ObjectMeta, api.AnnotationNoSnapshot, text[:min(len(text), reasonLimit)])
	}
	// The operation deletes the remains of a snapshot.
	return &Answer{Claim: marked, Operation: upload.SnapshotOperation(claim)}
}

// secureAll secures all snapshots as soon as they are cut, before Velero calls for their
// claims.
func (g *group) secureAll(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	for _, m := range g.members {
		if m.failed != nil || m.snapshot == nil {
			continue
		}
		go func() { _, _ = g.secure(ctx, m) }() // the claim's own call has the error
		if kept := m.kept; kept != nil {
			go g.markKept(ctx, m, keyOfSnapshot(kept))
		}
	}
}

// secure waits until a member's snapshot is cut and bound, and marks its content, so
// that the storage's snapshot outlives the VolumeSnapshot. After an error the claim
// cannot be restored from the snapshot.
func (g *group) secure(ctx context.Context, m *member) (*snapshotv1.VolumeSnapshot, error) {
	waiting, cancel := context.WithDeadlineCause(ctx, m.deadline, fmt.Errorf("it was not cut within csiSnapshotTimeout %s", g.timeout()))
	defer cancel()
	vs, err := g.snapshots.Bound(waiting, m.key(), m.created, g.reaction())
	if err != nil {
		return nil, err
	}
	m.securing.Do(func() { m.insecure = snapshot.MarkContent(ctx, g.clients.Snapshots, vs) })
	if m.insecure != nil {
		m.warned.Do(func() {
			g.log.Warnf("If VolumeSnapshot %s is deleted before the backup ends, its snapshot may be lost with it: %v", m.key(), m.insecure)
		})
	}
	live, err := g.clients.Snapshots.SnapshotV1().VolumeSnapshots(vs.Namespace).Get(ctx, vs.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err), err == nil && (live.UID != vs.UID || live.DeletionTimestamp != nil):
		return nil, errors.New("it was deleted while the backup was running")
	case err != nil:
		return nil, fmt.Errorf("get VolumeSnapshot %s: %w", m.key(), err)
	}
	return vs, nil
}

// markKept marks the content of a kept snapshot, so that later backups count it.
func (g *group) markKept(ctx context.Context, m *member, kept types.NamespacedName) {
	ctx, cancel := context.WithDeadline(ctx, m.deadline)
	defer cancel()
	vs, err := g.snapshots.Bound(ctx, kept, m.created, g.reaction())
	if err == nil {
		err = snapshot.MarkContent(ctx, g.clients.Snapshots, vs)
	}
	if err != nil {
		g.log.Warnf("A kept snapshot does not count for keepLast: VolumeSnapshot %s: %v", kept, err)
	}
}

// withSnapshot returns a claim as Velero's own action leaves it (Execute in
// pkg/backup/actions/csi/pvc_action.go of Velero 1.18).
func withSnapshot(claim *corev1.PersistentVolumeClaim, vs *snapshotv1.VolumeSnapshot, backup *velerov1.Backup) *corev1.PersistentVolumeClaim {
	claim = claim.DeepCopy()
	delete(claim.Annotations, api.AnnotationNoSnapshot) // of the backup that it was restored from
	delete(claim.Annotations, api.AnnotationLevel)
	if level := vs.Annotations[api.AnnotationLevel]; level != "" {
		metav1.SetMetaDataAnnotation(&claim.ObjectMeta, api.AnnotationLevel, level)
	}
	metav1.SetMetaDataLabel(&claim.ObjectMeta, velerov1.VolumeSnapshotLabel, vs.Name)
	metav1.SetMetaDataLabel(&claim.ObjectMeta, velerov1.BackupNameLabel, label.GetValidName(backup.Name))
	metav1.SetMetaDataAnnotation(&claim.ObjectMeta, velerov1.VolumeSnapshotLabel, vs.Name)
	metav1.SetMetaDataAnnotation(&claim.ObjectMeta, velerov1.MustIncludeAdditionalItemAnnotation, "true")
	return claim
}

// raiseRequest raises the claim's request to the size of the snapshot. A volume may be
// larger than its request, and cannot be restored into a smaller one.
func raiseRequest(claim *corev1.PersistentVolumeClaim, vs *snapshotv1.VolumeSnapshot) {
	if vs.Status == nil || vs.Status.RestoreSize == nil {
		return
	}
	requests := maps.Clone(claim.Spec.Resources.Requests)
	if requests == nil {
		requests = corev1.ResourceList{}
	}
	size := *resource.NewQuantity(vs.Status.RestoreSize.Value(), resource.BinarySI)
	if request, ok := requests[corev1.ResourceStorage]; !ok || request.Cmp(size) < 0 {
		requests[corev1.ResourceStorage] = size
	}
	claim.Spec.Resources.Requests = requests
}
