package restore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/snapshot"
	"stillpoint.io/stillpoint/internal/workload"
)

const (
	// pollsWorth is how long the process of the restore itself waits, for all
	// claims together. Velero asks it once, when all items are done, and only
	// every 10 s after that: to wait here costs no more than to be asked again.
	pollsWorth = 10 * time.Second
	// pause lies between two looks at a claim while the process waits.
	pause = 200 * time.Millisecond
	// sideBySide is how many claims are looked at at the same time.
	sideBySide = 8
	// patience is how long a restore stays open for one claim that is not bound,
	// and for objects that do not go. Velero's finalizer is as patient.
	patience = 10 * time.Minute
	// podGrace is how long a controller may take to make the first pod of a claim
	// that waits for one.
	podGrace = 5 * time.Second
	// nodeGrace is how long the scheduler may take to choose a node for that pod.
	// One that fits nowhere may wait for good.
	nodeGrace = time.Minute
)

// operationPrefix begins the ids of operations that remove a restored
// VolumeSnapshot and its content.
const operationPrefix = "restored-snapshot"

// restoredSnapshot is a VolumeSnapshot that a restore has made for a claim. Its content has
// the same name. All that is known of it is in the id of its operation, and in
// the cluster: Velero asks each time from a new process.
type restoredSnapshot struct{ namespace, claim, snapshot string }

func (l restoredSnapshot) operation() string {
	return strings.Join([]string{operationPrefix, l.namespace, l.claim, l.snapshot}, "/")
}

func restoredSnapshotOf(operation string) (restoredSnapshot, error) {
	parts := strings.Split(operation, "/")
	if len(parts) != 4 || parts[0] != operationPrefix || slices.Contains(parts, "") {
		return restoredSnapshot{}, fmt.Errorf("operation ID %q is invalid: it is to be %s/<namespace>/<claim>/<VolumeSnapshot>", operation, operationPrefix)
	}
	return restoredSnapshot{parts[1], parts[2], parts[3]}, nil
}

// mark labels, before it is made, what a restore makes for claims alone: a
// VolumeSnapshot that the backup itself took, or its content. Users' own stay,
// and so does what is restored without claims. Marked later, it would be in the
// way of the controllers that are about to bind it.
func (r *Restorer) mark(ctx context.Context, item Item) error {
	_, marked := snapshot.OriginOf(item.BackedUp)
	// One that was restored before has this label of another backup, and is made of
	// a content. Velero gives the label to contents of users' own snapshots, too.
	_, static, _ := unstructured.NestedString(item.BackedUp.Object, "spec", "source", "volumeSnapshotContentName")
	taken := item.BackedUp.GetKind() == "VolumeSnapshot" && !static &&
		item.BackedUp.GetLabels()[velerov1.BackupNameLabel] == label.GetValidName(item.Restore.Spec.BackupName)
	unmark(item.Object)
	if (!marked && !taken) || !bringsClaims(item.Restore) {
		return nil
	}
	marks, err := r.marks(ctx, item.Restore)
	if err != nil {
		return err
	}
	all := item.Object.GetLabels()
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, marks)
	item.Object.SetLabels(all)
	return nil
}

func (r *Restorer) marks(ctx context.Context, restore *velerov1.Restore) (map[string]string, error) {
	installation, err := r.clients.Installation(ctx)
	if err != nil {
		return nil, err
	}
	return snapshot.Restored(installation, string(restore.UID)), nil
}

// bringsClaims answers whether claims are among the resources of a restore.
func bringsClaims(restore *velerov1.Restore) bool {
	listed := func(names []string) bool {
		return slices.ContainsFunc(names, func(name string) bool {
			return slices.Contains([]string{"*", "persistentvolumeclaims", "persistentvolumeclaim", "pvc"}, name)
		})
	}
	return !listed(restore.Spec.ExcludedResources) && (len(restore.Spec.IncludedResources) == 0 || listed(restore.Spec.IncludedResources))
}

// ensureMarked labels the source snapshot of a claim for clean-up after the restore. It
// returns false if the VolumeSnapshot does not exist.
func (r *Restorer) ensureMarked(ctx context.Context, l restoredSnapshot, restore *velerov1.Restore) (bool, error) {
	marks, err := r.marks(ctx, restore)
	if err != nil {
		return false, err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": marks}})
	if err != nil {
		return false, fmt.Errorf("mark VolumeSnapshot %s/%s: %w", l.namespace, l.snapshot, err)
	}
	snapshots := r.snapshots.SnapshotV1().VolumeSnapshots(l.namespace)
	vs, err := snapshots.Get(ctx, l.snapshot, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err == nil && vs.Labels[api.LabelRestore] == "" {
		_, err = snapshots.Patch(ctx, l.snapshot, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		return false, fmt.Errorf("mark VolumeSnapshot %s/%s: %w", l.namespace, l.snapshot, err)
	}
	contents := r.snapshots.SnapshotV1().VolumeSnapshotContents()
	content, err := contents.Get(ctx, l.snapshot, metav1.GetOptions{})
	if err == nil && content.Labels[api.LabelRestore] == "" {
		_, err = contents.Patch(ctx, l.snapshot, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("mark VolumeSnapshotContent %s: %w", l.snapshot, err)
	}
	known := r.of(ctx, restore)
	r.mu.Lock()
	defer r.mu.Unlock()
	known.restored = append(known.restored, l)
	return true, nil
}

// Progress tells how the removal of a restored VolumeSnapshot stands, and does
// what there is to do. Trouble that may pass is told in the description: Velero
// never asks again after an error.
func (r *Restorer) Progress(ctx context.Context, operation string, restore *velerov1.Restore) (velero.OperationProgress, error) {
	l, err := restoredSnapshotOf(operation)
	if err != nil {
		return velero.OperationProgress{}, err
	}
	r.await(ctx, restore)
	done, text := r.cleanUp(ctx, l, restore)
	progress := velero.OperationProgress{Completed: done, Description: text, Updated: r.clock.Now()}
	if done {
		progress.Err = r.boundElsewhere(ctx, l)
	}
	return progress, nil
}

// Cancel removes what may go now. It can be repeated; what stays is the
// sweep's.
func (r *Restorer) Cancel(ctx context.Context, operation string, restore *velerov1.Restore) error {
	l, err := restoredSnapshotOf(operation)
	if err != nil {
		return err
	}
	if done, text := r.cleanUp(ctx, l, restore); !done {
		return errors.New(text)
	}
	return nil
}

// await gives the claims of a restore a little time, in the process that has
// restored them. Any other has nothing to wait for here.
func (r *Restorer) await(ctx context.Context, restore *velerov1.Restore) {
	r.mu.Lock()
	known := r.restores[restore.UID]
	var restored []restoredSnapshot
	if known != nil {
		restored, known.restored = known.restored, nil
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, r.wait)
	defer cancel()
	places := make(chan struct{}, sideBySide)
	pause := pause * time.Duration(1+len(restored)/sideBySide)
	var wait sync.WaitGroup
	for _, l := range restored {
		wait.Go(func() {
			for {
				places <- struct{}{}
				done, text := r.cleanUp(ctx, l, restore)
				<-places
				if done {
					r.log.Infof("Claim and its restored snapshot: %s/%s: %s", l.namespace, l.claim, text)
					return
				}
				select {
				case <-time.After(pause):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wait.Wait()
}

// cleanUp removes a VolumeSnapshot and its content when the claim does not
// need them any more, and keeps what they stand for in the storage: that is the
// backup's. done says that nothing more is to be waited for.
func (r *Restorer) cleanUp(ctx context.Context, l restoredSnapshot, restore *velerov1.Restore) (done bool, text string) {
	facts, err := r.facts(ctx, l, restore)
	if err != nil {
		return false, err.Error()
	}
	verdict := judge(facts)
	if verdict.step != remove {
		return verdict.step == leave, verdict.text
	}
	left, err := snapshot.Remove(ctx, r.snapshots, snapshot.Target{
		Namespace: l.namespace, Name: l.snapshot, Content: l.snapshot, Policy: snapshotv1.VolumeSnapshotContentRetain,
	})
	switch {
	case errors.Is(err, snapshot.ErrVetoed):
		return true, err.Error()
	case err != nil:
		return false, err.Error()
	case left == "":
		return true, fmt.Sprintf("%s and its content are removed; the storage's snapshot stays the backup's", facts.name())
	}
	return false, left
}

// facts are what decides on a restored VolumeSnapshot.
type facts struct {
	restoredSnapshot

	restoreUID string
	// snapshot and content are nil when they are gone.
	snapshot *snapshotv1.VolumeSnapshot
	content  *snapshotv1.VolumeSnapshotContent
	claim    *corev1.PersistentVolumeClaim // nil when it is not there
	// awaitsPod says that the claim is bound when a pod uses it, and none does.
	awaitsPod bool
	// awaitsNode says that a pod uses it, for which no node is chosen yet.
	awaitsNode bool
	// trouble is the last warning about the claim.
	trouble string
	// others are the Pending claims that name the VolumeSnapshot beside this one.
	others []string

	now      time.Time
	patience time.Duration
}

func (f facts) name() string {
	return "VolumeSnapshot " + f.namespace + "/" + f.restoredSnapshot.snapshot
}

type step int

// What to do with a restored VolumeSnapshot.
const (
	remain step = iota // it is still needed; look again
	leave              // nothing more is to be waited for
	remove
)

type verdict struct {
	step step
	text string
}

// later is what becomes of objects that the restore does not stay open for.
const later = "the sweep removes it later"

// judge decides whether a restored VolumeSnapshot may go.
func judge(f facts) verdict {
	if f.snapshot == nil && f.content == nil {
		return verdict{leave, f.name() + " and its content are removed; the storage's snapshot stays the backup's"}
	}
	// Whoever made these, it was not this restore.
	if (f.snapshot != nil && f.snapshot.Labels[api.LabelRestore] != f.restoreUID) ||
		(f.content != nil && f.content.Labels[api.LabelRestore] != f.restoreUID) {
		return verdict{leave, fmt.Sprintf("%s stays: it or its content lacks the label %s of this restore", f.name(), api.LabelRestore)}
	}
	// Velero gives both the same name; another content would go by its own policy.
	if f.snapshot != nil && ptr.Deref(f.snapshot.Spec.Source.VolumeSnapshotContentName, "") != f.restoredSnapshot.snapshot {
		return verdict{leave, fmt.Sprintf("%s stays: it is not bound to the content that Velero has restored for it", f.name())}
	}
	if f.claim != nil && snapshot.Awaits(f.claim, f.namespace, f.restoredSnapshot.snapshot) {
		age := f.now.Sub(f.claim.CreationTimestamp.Time)
		text := fmt.Sprintf("claim %s/%s is Pending", f.namespace, f.restoredSnapshot.claim)
		switch {
		case f.awaitsPod && age > podGrace:
			return verdict{leave, fmt.Sprintf("%s and needs %s until a pod uses it; %s", text, f.name(), later)}
		case f.awaitsNode && age > nodeGrace:
			return verdict{leave, fmt.Sprintf("%s and needs %s until its pod has a node, which it has not after %s (%s); %s", text, f.name(), nodeGrace, cmp.Or(f.trouble, "no event says why"), later)}
		case age > f.patience:
			return verdict{leave, fmt.Sprintf("%s after %s (%s) and needs %s; %s", text, f.patience, cmp.Or(f.trouble, "no event says why"), f.name(), later)}
		case f.trouble != "":
			return verdict{remain, text + ": " + f.trouble}
		}
		return verdict{remain, text}
	}
	if len(f.others) > 0 {
		return verdict{leave, fmt.Sprintf("%s stays for the claims %s, which are Pending; %s", f.name(), strings.Join(f.others, ", "), later)}
	}
	if deleted := f.deleted(); !deleted.IsZero() && f.now.Sub(deleted) > f.patience {
		return verdict{leave, fmt.Sprintf("%s or its content is still there %s after its deletion; %s", f.name(), f.patience, later)}
	}
	return verdict{step: remove}
}

// deleted is when the removal began.
func (f facts) deleted() time.Time {
	switch {
	case f.snapshot != nil && f.snapshot.DeletionTimestamp != nil:
		return f.snapshot.DeletionTimestamp.Time
	case f.content != nil && f.content.DeletionTimestamp != nil:
		return f.content.DeletionTimestamp.Time
	}
	return time.Time{}
}

func (r *Restorer) facts(ctx context.Context, l restoredSnapshot, restore *velerov1.Restore) (facts, error) {
	f := facts{restoredSnapshot: l, restoreUID: string(restore.UID), now: r.clock.Now(), patience: patience}
	if limit := restore.Spec.ItemOperationTimeout.Duration / 2; limit > 0 {
		f.patience = min(patience, limit)
	}
	var err error
	if f.snapshot, err = r.snapshots.SnapshotV1().VolumeSnapshots(l.namespace).Get(ctx, l.snapshot, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		f.snapshot = nil
	} else if err != nil {
		return f, fmt.Errorf("get VolumeSnapshot %s/%s: %w", l.namespace, l.snapshot, err)
	}
	if f.content, err = r.snapshots.SnapshotV1().VolumeSnapshotContents().Get(ctx, l.snapshot, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		f.content = nil
	} else if err != nil {
		return f, fmt.Errorf("get VolumeSnapshotContent %s: %w", l.snapshot, err)
	}
	if f.snapshot == nil && f.content == nil {
		return f, nil
	}
	if f.claim, err = r.kube.CoreV1().PersistentVolumeClaims(l.namespace).Get(ctx, l.claim, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		f.claim = nil
	} else if err != nil {
		return f, fmt.Errorf("get claim %s/%s: %w", l.namespace, l.claim, err)
	}
	if f.claim != nil && snapshot.Awaits(f.claim, l.namespace, l.snapshot) {
		if f.awaitsPod, f.awaitsNode, err = r.awaits(ctx, f.claim); err != nil {
			return f, err
		}
		f.trouble, err = r.trouble(ctx, f.claim)
		return f, err
	}
	claims, err := r.kube.CoreV1().PersistentVolumeClaims(l.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return f, fmt.Errorf("list the claims of namespace %s: %w", l.namespace, err)
	}
	for i := range claims.Items {
		if snapshot.Awaits(&claims.Items[i], l.namespace, l.snapshot) {
			f.others = append(f.others, claims.Items[i].Name)
		}
	}
	return f, nil
}

// awaits answers whether a claim is bound for its first pod only, and has none,
// or one without a node.
func (r *Restorer) awaits(ctx context.Context, claim *corev1.PersistentVolumeClaim) (pod, node bool, err error) {
	if claim.Annotations["volume.kubernetes.io/selected-node"] != "" || ptr.Deref(claim.Spec.StorageClassName, "") == "" {
		return false, false, nil
	}
	class, err := r.kube.StorageV1().StorageClasses().Get(ctx, *claim.Spec.StorageClassName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("get StorageClass %s: %w", *claim.Spec.StorageClassName, err)
	}
	if class.VolumeBindingMode == nil || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer {
		return false, false, nil
	}
	pods, err := r.kube.CoreV1().Pods(claim.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return false, false, fmt.Errorf("list the pods of namespace %s: %w", claim.Namespace, err)
	}
	used := slices.ContainsFunc(pods.Items, func(pod corev1.Pod) bool {
		return slices.Contains(workload.Claims(&pod), claim.Name)
	})
	return !used, used, nil
}

// trouble is what the last warning about a claim says.
func (r *Restorer) trouble(ctx context.Context, claim *corev1.PersistentVolumeClaim) (string, error) {
	events, err := r.kube.CoreV1().Events(claim.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.SelectorFromSet(fields.Set{"involvedObject.uid": string(claim.UID), "type": corev1.EventTypeWarning}).String(),
	})
	if err != nil {
		return "", fmt.Errorf("list the events of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	if len(events.Items) == 0 {
		return "", nil
	}
	last := slices.MaxFunc(events.Items, func(a, b corev1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
	return strings.TrimSpace(last.Message), nil
}
