package upload

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/clock"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cleanup"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/snapshot"
	velerofacts "stillpoint.io/stillpoint/internal/velero"
)

// Prefixes of operation IDs.
const (
	// uploadPrefix is for a DataUpload that Stillpoint created. The DataUpload has the
	// ID as a label.
	uploadPrefix = string(velerov1.AsyncOperationIDPrefixDataUpload)
	// foreignPrefix is for a DataUpload that Velero created. The claim's UID follows.
	foreignPrefix = "export-"
	// snapshotPrefix is for a snapshot that no data mover exports. The claim's UID
	// follows.
	snapshotPrefix = "snapshot-"
	// locationPrefix is for a snapshot of a VolumeSnapshotLocation. The claim's
	// namespace and UID follow.
	locationPrefix = "stillpoint-location."
)

const (
	// waitLimit is how long one process waits for the storage in all operation calls
	// together. Velero asks for one operation after another, and asks again.
	waitLimit = 5 * time.Second
	// minWait is the time of each call after waitLimit.
	minWait = 2 * time.Second
	// cancelWaitLimit is waitLimit in a process that Velero started to cancel. Velero
	// does not ask again, so the uploads must end and their snapshots must be deleted in
	// this time.
	cancelWaitLimit = 45 * time.Second
	// listTTL is how long a list of a backup's VolumeSnapshots is cached.
	listTTL = 2 * time.Second
)

// Tracker follows the snapshots of backups until they are exported, ready or deleted.
// Its state is in the cluster, because Velero asks from a new process each time. It is
// safe for concurrent use.
type Tracker struct {
	clients  *cluster.Clients
	settings func(context.Context) (*config.Config, error)
	clock    clock.PassiveClock
	log      logrus.FieldLogger

	mu        sync.Mutex
	waitUntil time.Time // until when this process waits
	lists     map[types.UID]list
}

type list struct {
	until time.Time
	items []snapshotv1.VolumeSnapshot
}

// NewTracker returns a Tracker; settings reads the configuration.
func NewTracker(clients *cluster.Clients, settings func(context.Context) (*config.Config, error), clock clock.PassiveClock, log logrus.FieldLogger) *Tracker {
	return &Tracker{clients: clients, settings: settings, clock: clock, log: log, lists: map[types.UID]list{}}
}

// SnapshotOperation returns the ID of the operation that follows the snapshot of a claim
// that no data mover exports.
func SnapshotOperation(claim *corev1.PersistentVolumeClaim) string {
	return snapshotPrefix + string(claim.UID)
}

// Progress returns the progress of an operation. A transient error is reported in the
// description, because Velero never asks again after an error.
func (t *Tracker) Progress(ctx context.Context, operation string, backup *velerov1.Backup) (velero.OperationProgress, error) {
	var progress velero.OperationProgress
	var err error
	switch {
	case strings.HasPrefix(operation, snapshotPrefix):
		progress, err = t.snapshot(ctx, strings.TrimPrefix(operation, snapshotPrefix), backup)
	case strings.HasPrefix(operation, locationPrefix):
		progress, err = t.located(ctx, operation, backup)
	case strings.HasPrefix(operation, uploadPrefix), strings.HasPrefix(operation, foreignPrefix):
		progress, err = t.upload(ctx, operation, backup)
	default:
		return progress, fmt.Errorf("operation ID %s is invalid", operation)
	}
	if err != nil {
		progress.Completed, progress.Err = false, ""
		progress.Description = strings.TrimPrefix(progress.Description+"; "+err.Error(), "; ")
	}
	return progress, nil
}

// snapshot returns the progress of a snapshot without a data mover.
func (t *Tracker) snapshot(ctx context.Context, claim string, backup *velerov1.Backup) (velero.OperationProgress, error) {
	all, err := t.list(ctx, backup)
	if err != nil {
		return velero.OperationProgress{}, err
	}
	i := slices.IndexFunc(all, func(vs snapshotv1.VolumeSnapshot) bool {
		return vs.Labels[velerov1.PVCUIDLabel] == claim && vs.Labels[api.LabelKept] == ""
	})
	if i < 0 {
		return velero.OperationProgress{Completed: true, Description: "No snapshot is left of the claim"}, nil
	}
	if vs := &all[i]; vs.DeletionTimestamp != nil && (vs.Status == nil || vs.Status.CreationTime == nil) {
		return velero.OperationProgress{Completed: true, Description: fmt.Sprintf("VolumeSnapshot %s/%s is being deleted, and was not cut: the CSI sidecar waits for the driver's answer", vs.Namespace, vs.Name)}, nil
	}
	return ProgressOfSnapshot(&all[i]), nil
}

func (t *Tracker) upload(ctx context.Context, operation string, backup *velerov1.Backup) (velero.OperationProgress, error) {
	upload, err := t.find(ctx, operation, backup)
	if err != nil {
		return velero.OperationProgress{}, err
	}
	progress := progressOfUpload(upload)
	if !progress.Completed {
		return progress, nil
	}
	text, err := t.cleanUp(ctx, operation, upload, backup)
	progress.Description += "; " + text
	return progress, err
}

// cleanUp deletes the snapshots of an upload that has ended, and the surplus kept
// snapshots. It returns a description of the result.
func (t *Tracker) cleanUp(ctx context.Context, operation string, upload *velerov2alpha1.DataUpload, backup *velerov1.Backup) (string, error) {
	keep, err := t.reasonToKeep(ctx, backup.Spec.DataMover)
	if err != nil {
		return "", err
	}
	var targets []snapshot.Target
	text := "the local snapshot stays: " + keep
	if keep == "" {
		text = "the local snapshot is deleted"
		if targets, err = t.targets(ctx, operation, upload, backup); err != nil {
			return "", err
		}
	}
	surplus, err := t.surplus(ctx, operation, upload, backup)
	if err != nil {
		return "", err
	}
	ctx, cancel := t.waiting(ctx)
	defer cancel()
	vetoed, err := snapshot.RemoveAll(ctx, t.clients.Snapshots, targets...)
	if err != nil {
		return "deleting the local snapshot", err
	}
	// The kept snapshots of earlier backups do not keep this operation open.
	more, err := snapshot.RemoveAll(ctx, t.clients.Snapshots, surplus...)
	if err != nil {
		text += fmt.Sprintf("; the next backup tries again to delete what is kept of earlier ones: %v", err)
	}
	for _, target := range slices.Concat(vetoed, more) {
		text += fmt.Sprintf("; VolumeSnapshot %s stays, it has the annotation %s", target, api.AnnotationKeepSnapshot)
	}
	return text, nil
}

// targets returns the objects of the snapshot that an upload was made from. If the
// upload is gone, it finds them by the claim, including the mover's copy, which the
// mover creates before it deletes the original.
func (t *Tracker) targets(ctx context.Context, operation string, upload *velerov2alpha1.DataUpload, backup *velerov1.Backup) ([]snapshot.Target, error) {
	if upload != nil {
		return cleanup.Targets(upload), nil
	}
	pairs, err := snapshot.Marked(ctx, t.clients.Snapshots, snapshot.OwnedBy(backup), backup.Namespace)
	if err != nil {
		return nil, err
	}
	var targets []snapshot.Target
	for _, pair := range pairs {
		object := pair.Objects()[0]
		if origin, ours := snapshot.OriginOf(object); ours && origin.BackupUID == string(backup.UID) && follows(operation, backup, object) && object.GetLabels()[api.LabelKept] == "" {
			targets = append(targets, pair.Target())
		}
	}
	return targets, nil
}

// follows reports whether an operation is about the claim of a VolumeSnapshot or
// content.
func follows(operation string, backup *velerov1.Backup, object metav1.Object) bool {
	claim := snapshot.ClaimOf(object)
	return operation == foreignPrefix+claim || operation == velerofacts.UploadOperation(backup, types.UID(claim))
}

// surplus returns the kept snapshots of an operation's claim that exceed its limit.
func (t *Tracker) surplus(ctx context.Context, operation string, upload *velerov2alpha1.DataUpload, backup *velerov1.Backup) ([]snapshot.Target, error) {
	claim, namespace := strings.TrimPrefix(operation, foreignPrefix), ""
	if upload != nil {
		claim, namespace = upload.Labels[velerov1.PVCUIDLabel], upload.Spec.SourceNamespace
	}
	all, err := t.list(ctx, backup)
	if err != nil {
		return nil, err
	}
	own := slices.IndexFunc(all, func(vs snapshotv1.VolumeSnapshot) bool {
		return vs.Labels[api.LabelKept] == claim && (namespace == "" || vs.Namespace == namespace)
	})
	if own < 0 {
		return nil, nil
	}
	return cleanup.Surplus(ctx, t.clients, &all[own], progressOfUpload(upload).Err != "")
}

// FollowVeleros marks the objects of a snapshot that Velero's own action took. It
// returns the ID of an operation that follows the DataUpload, "" if there is none. A
// failed mark is a warning, since only the sweep depends on it.
func (t *Tracker) FollowVeleros(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (operation string) {
	name := claim.Annotations[velerov1.VolumeSnapshotLabel]
	if name == "" {
		return ""
	}
	upload := claim.Annotations[velerov1.DataUploadNameAnnotation]
	if err := t.mark(ctx, claim, name, upload, backup); err != nil && !apierrors.IsNotFound(err) { // the data mover may be quicker
		t.log.Warnf("Should VolumeSnapshot %s/%s be left behind, it would not be known as this backup's: %v", claim.Namespace, name, err)
	}
	if upload == "" {
		return ""
	}
	return foreignPrefix + string(claim.UID)
}

// mark marks the VolumeSnapshot of a claim, its content, and the DataUpload
// <namespace>/<name>.
func (t *Tracker) mark(ctx context.Context, claim *corev1.PersistentVolumeClaim, name, upload string, backup *velerov1.Backup) error {
	installation, err := t.clients.Installation(ctx)
	if err != nil {
		return err
	}
	settings, err := t.settings(ctx)
	if err != nil { // the marks matter more than excluded labels
		settings = config.Default(t.clients.VeleroNamespace)
	}
	origin := snapshot.Origin{Installation: installation, Backup: backup.Name, BackupUID: string(backup.UID)}
	vs, err := snapshot.Mark(ctx, t.clients.Snapshots, name, claim, origin, settings.ExcludesLabel)
	if err != nil {
		return err
	}
	uploadNamespace, uploadName, moves := strings.Cut(upload, "/")
	if !moves || vs.Status == nil || vs.Status.BoundVolumeSnapshotContentName == nil {
		return nil
	}
	object := &velerov2alpha1.DataUpload{ObjectMeta: metav1.ObjectMeta{Namespace: uploadNamespace, Name: uploadName}}
	before := object.DeepCopy()
	object.Annotations = map[string]string{api.AnnotationContent: *vs.Status.BoundVolumeSnapshotContentName}
	if err := t.clients.Objects.Patch(ctx, object, crclient.MergeFrom(before)); err != nil {
		return fmt.Errorf("annotate DataUpload %s: %w", upload, err)
	}
	return nil
}

// Cancel ends an operation. Velero calls it once, after a timeout or a cancellation of
// the backup, and ignores the error. The sweep completes what remains. Cancel can be
// repeated.
func (t *Tracker) Cancel(ctx context.Context, operation string, backup *velerov1.Backup) error {
	if strings.HasPrefix(operation, snapshotPrefix) {
		return nil // the backup owns the snapshot
	}
	if strings.HasPrefix(operation, locationPrefix) {
		return t.cancelLocated(ctx, operation, backup)
	}
	keep, err := t.reasonToKeep(ctx, backup.Spec.DataMover)
	if err != nil {
		return err
	}
	t.mu.Lock()
	if t.waitUntil.IsZero() {
		t.waitUntil = t.clock.Now().Add(cancelWaitLimit)
	}
	t.mu.Unlock()
	waiting, cancel := t.waiting(ctx)
	defer cancel()
	var phase velerov2alpha1.DataUploadPhase
	err = wait.PollUntilContextCancel(waiting, time.Second, true, func(ctx context.Context) (bool, error) {
		upload, err := t.find(ctx, operation, backup)
		if err != nil {
			return false, err
		}
		if progressOfUpload(upload).Completed {
			_, err := t.cleanUp(ctx, operation, upload, backup)
			return true, err
		}
		phase = upload.Status.Phase
		if !upload.Spec.Cancel {
			before := upload.DeepCopy()
			upload.Spec.Cancel = true
			if err := t.clients.Objects.Patch(ctx, upload, crclient.MergeFrom(before)); err != nil {
				return false, fmt.Errorf("cancel DataUpload %s: %w", upload.Name, err)
			}
		}
		return keep != "", nil
	})
	if wait.Interrupted(err) {
		return fmt.Errorf("cancel the DataUpload of operation %s: its phase is still %q", operation, phase)
	}
	return err
}

// find returns the DataUpload of an operation, nil if none.
func (t *Tracker) find(ctx context.Context, operation string, backup *velerov1.Backup) (*velerov2alpha1.DataUpload, error) {
	by := crclient.MatchingLabels{velerov1.AsyncOperationIDLabel: operation}
	if claim, foreign := strings.CutPrefix(operation, foreignPrefix); foreign {
		by = crclient.MatchingLabels{velerov1.BackupUIDLabel: string(backup.UID), velerov1.PVCUIDLabel: claim}
	}
	list := &velerov2alpha1.DataUploadList{}
	if err := t.clients.Objects.List(ctx, list, crclient.InNamespace(backup.Namespace), by); err != nil {
		return nil, fmt.Errorf("list the DataUploads of operation %s: %w", operation, err)
	}
	if len(list.Items) == 0 {
		return nil, nil //nolint:nilnil // none is a valid answer
	}
	return &list.Items[0], nil
}

// waiting returns a context that limits the wait for the storage.
func (t *Tracker) waiting(ctx context.Context) (context.Context, context.CancelFunc) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock.Now()
	if t.waitUntil.IsZero() {
		t.waitUntil = now.Add(waitLimit)
	}
	return context.WithTimeout(ctx, max(t.waitUntil.Sub(now), minWait))
}

// reasonToKeep returns why the snapshots of a data mover stay after their upload, "" if
// they are deleted. An unusable configuration does not keep an operation open: Velero's
// own mover needs none, and without one the snapshots of any other mover stay.
func (t *Tracker) reasonToKeep(ctx context.Context, mover string) (string, error) {
	settings := config.Default(t.clients.VeleroNamespace)
	if settings.DeletesSnapshotsOf(mover) {
		return "", nil
	}
	configured, err := t.settings(ctx)
	switch {
	case err == nil:
		settings = configured
	case !config.Unusable(err):
		return "", err
	}
	return cleanup.MoverKeeps(settings, err, mover), nil
}

// list returns the VolumeSnapshots of a backup that Stillpoint took.
func (t *Tracker) list(ctx context.Context, backup *velerov1.Backup) ([]snapshotv1.VolumeSnapshot, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if have, ok := t.lists[backup.UID]; ok && t.clock.Now().Before(have.until) {
		return have.items, nil
	}
	all, err := snapshot.List(ctx, t.clients.Snapshots, metav1.NamespaceAll, snapshot.OwnedBy(backup).String())
	if err != nil {
		return nil, err
	}
	t.lists[backup.UID] = list{t.clock.Now().Add(listTTL), all}
	return all, nil
}
