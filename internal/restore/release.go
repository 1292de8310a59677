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
	// waitLimit is how long the process of the restore waits, for all claims together.
	// Velero asks once after all items, and then every 10 s. Waiting here takes no
	// longer than the next request.
	waitLimit = 10 * time.Second
	// pollInterval is the time between two reads of a claim while the process waits.
	pollInterval = 200 * time.Millisecond
	// maxParallel is how many claims are processed at the same time.
	maxParallel = 8
	// openLimit is how long a claim that is not bound, or an object that is not deleted,
	// keeps the restore open. Velero's finalizer has the same limit.
	openLimit = 10 * time.Minute
	// podGrace is how long a controller may take to create the first pod of a claim that
	// waits for one.
	podGrace = 5 * time.Second
	// nodeGrace is how long the scheduler may take to choose a node for that pod. A pod
	// that fits on no node may wait forever.
	nodeGrace = time.Minute
)

// operationPrefix begins the IDs of operations that delete a restored VolumeSnapshot and
// its content.
const operationPrefix = "restored-snapshot"

// restoredSnapshot is a VolumeSnapshot that a restore created for a claim. Its content
// has the same name. The ID of its operation holds all fields, because Velero asks each
// time from a new process.
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

// mark labels an object before Velero creates it, if the restore creates it only for
// claims: a VolumeSnapshot that the backup took, or its content. Users' own snapshots
// are not marked, nor is a restore without claims. A later mark would conflict with the
// controllers that bind the objects.
func (r *Restorer) mark(ctx context.Context, item Item) error {
	_, marked := snapshot.OriginOf(item.BackedUp)
	// A VolumeSnapshot that was restored before has this label of another backup, and a
	// content as its source. Velero labels the contents of users' own snapshots, too.
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

// bringsClaims reports whether claims are among the resources of a restore.
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

// Progress returns the progress of deleting a restored VolumeSnapshot, and deletes it
// when the claim no longer needs it. A transient error is reported in the description,
// because Velero never asks again after an error.
func (r *Restorer) Progress(ctx context.Context, operation string, restore *velerov1.Restore) (velero.OperationProgress, error) {
	l, err := restoredSnapshotOf(operation)
	if err != nil {
		return velero.OperationProgress{}, err
	}
	r.waitForClaims(ctx, restore)
	done, text := r.cleanUp(ctx, l, restore)
	progress := velero.OperationProgress{Completed: done, Description: text, Updated: r.clock.Now()}
	if done {
		progress.Err = r.boundElsewhere(ctx, l)
	}
	return progress, nil
}

// Cancel deletes what can be deleted now. It can be repeated. The sweep deletes the
// rest.
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

// waitForClaims gives the claims of a restore time to bind, in the process that has
// restored them. In any other process it returns at once.
func (r *Restorer) waitForClaims(ctx context.Context, restore *velerov1.Restore) {
	r.mu.Lock()
	known := r.restores[restore.UID]
	var restored []restoredSnapshot
	if known != nil {
		restored, known.restored = known.restored, nil
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, r.wait)
	defer cancel()
	places := make(chan struct{}, maxParallel)
	interval := pollInterval * time.Duration(1+len(restored)/maxParallel)
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
				case <-time.After(interval):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wait.Wait()
}

// cleanUp deletes a VolumeSnapshot and its content when the claim no longer needs them.
// It keeps the storage's snapshot, which belongs to the backup. done reports that there
// is nothing more to wait for.
func (r *Restorer) cleanUp(ctx context.Context, l restoredSnapshot, restore *velerov1.Restore) (done bool, text string) {
	facts, err := r.facts(ctx, l, restore)
	if err != nil {
		return false, err.Error()
	}
	verdict := judge(facts)
	if verdict.step != stepDelete {
		return verdict.step == stepFinish, verdict.text
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

// facts is the state that the decision on a restored VolumeSnapshot depends on.
type facts struct {
	restoredSnapshot

	restoreUID string
	// snapshot, content and claim are nil if they do not exist.
	snapshot *snapshotv1.VolumeSnapshot
	content  *snapshotv1.VolumeSnapshotContent
	claim    *corev1.PersistentVolumeClaim
	// awaitsPod reports that the claim is bound when a pod uses it, and that no pod
	// does.
	awaitsPod bool
	// awaitsNode reports that a pod uses the claim and has no node yet.
	awaitsNode bool
	// warning is the last warning event of the claim.
	warning string
	// others are the other Pending claims that name the VolumeSnapshot.
	others []string

	now       time.Time
	openLimit time.Duration
}

func (f facts) name() string {
	return "VolumeSnapshot " + f.namespace + "/" + f.restoredSnapshot.snapshot
}

type step int

// Steps for a restored VolumeSnapshot.
const (
	stepRetry  step = iota // still needed; read it again
	stepFinish             // there is nothing more to wait for
	stepDelete
)

type verdict struct {
	step step
	text string
}

// later describes the objects that do not keep the restore open.
const later = "the sweep removes it later"

// judge decides whether a restored VolumeSnapshot can be deleted.
func judge(f facts) verdict {
	if f.snapshot == nil && f.content == nil {
		return verdict{stepFinish, f.name() + " and its content are removed; the storage's snapshot stays the backup's"}
	}
	// Another restore or a user created these.
	if (f.snapshot != nil && f.snapshot.Labels[api.LabelRestore] != f.restoreUID) ||
		(f.content != nil && f.content.Labels[api.LabelRestore] != f.restoreUID) {
		return verdict{stepFinish, fmt.Sprintf("%s stays: it or its content lacks the label %s of this restore", f.name(), api.LabelRestore)}
	}
	// Velero gives both the same name. Another content has its own deletion policy.
	if f.snapshot != nil && ptr.Deref(f.snapshot.Spec.Source.VolumeSnapshotContentName, "") != f.restoredSnapshot.snapshot {
		return verdict{stepFinish, fmt.Sprintf("%s stays: it is not bound to the content that Velero has restored for it", f.name())}
	}
	if f.claim != nil && snapshot.Awaits(f.claim, f.namespace, f.restoredSnapshot.snapshot) {
		age := f.now.Sub(f.claim.CreationTimestamp.Time)
		text := fmt.Sprintf("claim %s/%s is Pending", f.namespace, f.restoredSnapshot.claim)
		switch {
		case f.awaitsPod && age > podGrace:
			return verdict{stepFinish, fmt.Sprintf("%s and needs %s until a pod uses it; %s", text, f.name(), later)}
		case f.awaitsNode && age > nodeGrace:
			return verdict{stepFinish, fmt.Sprintf("%s and needs %s until its pod has a node, which it has not after %s (%s); %s", text, f.name(), nodeGrace, cmp.Or(f.warning, "no event says why"), later)}
		case age > f.openLimit:
			return verdict{stepFinish, fmt.Sprintf("%s after %s (%s) and needs %s; %s", text, f.openLimit, cmp.Or(f.warning, "no event says why"), f.name(), later)}
		case f.warning != "":
			return verdict{stepRetry, text + ": " + f.warning}
		}
		return verdict{stepRetry, text}
	}
	if len(f.others) > 0 {
		return verdict{stepFinish, fmt.Sprintf("%s stays for the claims %s, which are Pending; %s", f.name(), strings.Join(f.others, ", "), later)}
	}
	if deleted := f.deleted(); !deleted.IsZero() && f.now.Sub(deleted) > f.openLimit {
		return verdict{stepFinish, fmt.Sprintf("%s or its content is still there %s after its deletion; %s", f.name(), f.openLimit, later)}
	}
	return verdict{step: stepDelete}
}

// deleted returns when the deletion began.
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
	f := facts{restoredSnapshot: l, restoreUID: string(restore.UID), now: r.clock.Now(), openLimit: openLimit}
	if limit := restore.Spec.ItemOperationTimeout.Duration / 2; limit > 0 {
		f.openLimit = min(openLimit, limit)
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
		if f.awaitsPod, f.awaitsNode, err = r.waitsFor(ctx, f.claim); err != nil {
			return f, err
		}
		f.warning, err = r.lastWarning(ctx, f.claim)
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

// waitsFor reports whether a claim is bound only for its first pod, and has no pod or a
// pod without a node.
func (r *Restorer) waitsFor(ctx context.Context, claim *corev1.PersistentVolumeClaim) (pod, node bool, err error) {
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

// lastWarning returns the last warning event of a claim.
func (r *Restorer) lastWarning(ctx context.Context, claim *corev1.PersistentVolumeClaim) (string, error) {
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
