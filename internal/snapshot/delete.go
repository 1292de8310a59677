package snapshot

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"stillpoint.io/stillpoint/internal/api"
)

const (
	// beingDeleted is the annotation that the snapshot controller sets on the content of
	// a deleted VolumeSnapshot. Without it the CSI sidecar releases no content.
	beingDeleted = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
	// slowDeletion is how long a deletion may take before the text says where to look,
	// and before Remove completes it without the snapshot controller.
	slowDeletion = 5 * time.Second
	// removalPause is the maximum time between two reads of a snapshot that is being
	// deleted. The first pause is removalFirst, and each is twice the last.
	removalPause = time.Second
	removalFirst = 50 * time.Millisecond
)

// Finalizers of the snapshot controller and of the CSI sidecar.
const (
	// sourceProtection is the first finalizer that the snapshot controller sets on a new
	// VolumeSnapshot. It removes the finalizer when the VolumeSnapshot is deleted.
	sourceProtection = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection"
	// boundProtection keeps a VolumeSnapshot until its content is gone. Stillpoint
	// creates VolumeSnapshots with both finalizers, which saves requests of the
	// controller while the application is frozen.
	boundProtection = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"
	// contentProtection keeps a content until the driver has deleted the snapshot for
	// the sidecar. The controller sets it only on bound contents.
	contentProtection = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
)

// ErrKept is the error for an object that must stay. Another attempt has the same
// result.
var ErrKept = errors.New("kept")

// ErrVetoed is the ErrKept for a snapshot that a user has marked with
// api.AnnotationKeepSnapshot.
var ErrVetoed = fmt.Errorf("%w: it has the annotation %s: \"true\"", ErrKept, api.AnnotationKeepSnapshot)

// Target is a snapshot to delete: a VolumeSnapshot, its content, and the storage's
// snapshot.
type Target struct {
	// Namespace and Name are those of the VolumeSnapshot.
	Namespace, Name string
	// UID is the UID of the VolumeSnapshot, "" for any. Another VolumeSnapshot of the
	// name stays.
	UID types.UID
	// Content is the name of the VolumeSnapshotContent. If it is "", the VolumeSnapshot
	// determines it.
	Content string
	// Policy decides what becomes of the storage's snapshot, whatever the class says. ""
	// is Delete.
	Policy snapshotv1.DeletionPolicy
}

// TargetOf returns the target to delete a VolumeSnapshot and the storage's snapshot.
func TargetOf(vs *snapshotv1.VolumeSnapshot) Target {
	return Target{Namespace: vs.Namespace, Name: vs.Name, UID: vs.UID, Content: contentName(vs)}
}

func (t Target) String() string { return t.Namespace + "/" + t.Name }

// Delete deletes the VolumeSnapshots of claims that selector matches, and the storage's
// snapshots, as RemoveAll does.
func Delete(ctx context.Context, client versioned.Interface, namespace string, selector labels.Selector, claims ...string) error {
	list, err := List(ctx, client, namespace, selector.String())
	if err != nil {
		return err
	}
	var targets []Target
	for i := range list {
		vs := &list[i]
		if source := vs.Spec.Source.PersistentVolumeClaimName; source != nil && slices.Contains(claims, *source) {
			targets = append(targets, TargetOf(vs))
		}
	}
	return DeleteAll(ctx, client, targets...)
}

// DeleteAll is RemoveAll for callers that ignore vetoes.
func DeleteAll(ctx context.Context, client versioned.Interface, targets ...Target) error {
	_, err := RemoveAll(ctx, client, targets...)
	return err
}

// RemoveAll deletes snapshots in parallel and waits until they are gone or ctx ends. The
// error names the rest. It returns the snapshots that a user wants to keep.
func RemoveAll(ctx context.Context, client versioned.Interface, targets ...Target) (vetoed []Target, err error) {
	errs := make([]error, len(targets))
	var all sync.WaitGroup
	for i, target := range targets {
		all.Go(func() {
			if err := UntilGone(ctx, func(ctx context.Context) (string, error) { return Remove(ctx, client, target) }); err != nil {
				errs[i] = fmt.Errorf("delete VolumeSnapshot %s: %w", target, err)
			}
		})
	}
	all.Wait()
	for i, target := range targets {
		if errors.Is(errs[i], ErrVetoed) {
			vetoed, errs[i] = append(vetoed, target), nil
		}
	}
	return vetoed, errors.Join(errs...)
}

// UntilGone calls remove with growing pauses until nothing remains, the error is
// ErrKept, or ctx ends. The error says what prevents the removal.
func UntilGone(ctx context.Context, remove func(context.Context) (left string, err error)) error {
	var problem error
	var reason string // what remained at the last successful call
	pauses := wait.Backoff{Duration: removalFirst, Factor: 2, Steps: math.MaxInt32, Cap: removalPause}
	err := pauses.DelayFunc().Until(ctx, true, true, func(ctx context.Context) (bool, error) {
		left, err := remove(ctx)
		switch {
		case errors.Is(err, ErrKept):
			return false, err
		case err != nil && reason != "":
			problem = fmt.Errorf("%s; %w", reason, err) // err may be only the end of ctx
		case err != nil:
			problem = err
		case left != "":
			reason, problem = left, errors.New(left)
		default:
			return ctx.Err() == nil, nil // an answer after the end is not reliable
		}
		return false, nil
	})
	if err != nil && ctx.Err() != nil && !errors.Is(err, ErrKept) {
		return cmp.Or(problem, errors.New("not known whether it is gone"))
	}
	return err
}

// Remove requests the next step of a deletion, and returns what remains. "" means that
// all is gone, which the storage has confirmed if the policy is Delete. The caller
// repeats it until then. A driver's error is in left, since the sidecar tries again. The
// error is ErrVetoed if a user wants to keep the snapshot.
//
// The VolumeSnapshot that the content names counts. The reverse reference is not
// reliable, because a tenant can create a VolumeSnapshot that names any content.
func Remove(ctx context.Context, client versioned.Interface, t Target) (left string, err error) {
	vs, err := client.SnapshotV1().VolumeSnapshots(t.Namespace).Get(ctx, t.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		vs = nil
	case err != nil:
		return "", fmt.Errorf("get VolumeSnapshot %s: %w", t, err)
	case t.UID != "" && vs.UID != t.UID:
		vs = nil
	}
	name := t.Content
	if name == "" && vs != nil {
		name = contentName(vs)
	}
	content, err := t.content(ctx, client, name)
	if err != nil {
		return "", err
	}
	if (vs != nil && Vetoed(vs)) || (content != nil && Vetoed(content)) {
		return "", fmt.Errorf("VolumeSnapshot %s: %w", t, ErrVetoed)
	}
	if vs == nil && content == nil {
		return "", nil
	}

	policy := cmp.Or(t.Policy, snapshotv1.VolumeSnapshotContentDelete)
	ignored := vs != nil && vs.DeletionTimestamp != nil && time.Since(vs.DeletionTimestamp.Time) > slowDeletion
	if content != nil {
		if err := prepare(ctx, client, content, policy, vs == nil || ignored); err != nil {
			return "", err
		}
		if policy == snapshotv1.VolumeSnapshotContentDelete && content.DeletionTimestamp == nil && !answered(content) {
			return unanswered(content), nil
		}
	}
	if vs != nil && vs.DeletionTimestamp == nil {
		err := client.SnapshotV1().VolumeSnapshots(vs.Namespace).Delete(ctx, vs.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(vs.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			return "", fmt.Errorf("delete VolumeSnapshot %s: %w", t, err)
		}
	}
	// The controller deletes a content with its VolumeSnapshot only if it has read the
	// content with the policy Delete.
	byController := vs != nil && !ignored && policy == snapshotv1.VolumeSnapshotContentDelete && content != nil && content.Spec.DeletionPolicy == policy
	if content != nil && content.DeletionTimestamp == nil && !byController {
		err := client.SnapshotV1().VolumeSnapshotContents().Delete(ctx, content.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(content.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			return "", fmt.Errorf("delete VolumeSnapshotContent %s: %w", content.Name, err)
		}
	}
	if ignored && content == nil {
		if err := release(ctx, client, vs); err != nil {
			return "", err
		}
	}
	return remains(t, vs, content), nil
}

// release removes the snapshot controller's finalizers from a VolumeSnapshot that is
// being deleted and has no content. Without a running controller they prevent the
// deletion of the namespace. The patch fails if a controller has changed the object
// meanwhile.
func release(ctx context.Context, client versioned.Interface, vs *snapshotv1.VolumeSnapshot) error {
	others := slices.DeleteFunc(slices.Clone(vs.Finalizers), func(f string) bool { return f == sourceProtection || f == boundProtection })
	if len(others) == len(vs.Finalizers) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": vs.ResourceVersion, "finalizers": others}})
	if err == nil {
		_, err = client.SnapshotV1().VolumeSnapshots(vs.Namespace).Patch(ctx, vs.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("release VolumeSnapshot %s/%s from its finalizers: %w", vs.Namespace, vs.Name, err)
	}
	return nil
}

// content returns the content of a target, nil if it does not exist or belongs to
// another VolumeSnapshot.
func (t Target) content(ctx context.Context, client versioned.Interface, name string) (*snapshotv1.VolumeSnapshotContent, error) {
	if name == "" {
		return nil, nil //nolint:nilnil // none is a valid answer
	}
	content, err := client.SnapshotV1().VolumeSnapshotContents().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // none is a valid answer
	}
	if err != nil {
		return nil, fmt.Errorf("get VolumeSnapshotContent %s: %w", name, err)
	}
	if of := content.Spec.VolumeSnapshotRef; of.Namespace != t.Namespace || of.Name != t.Name || (t.UID != "" && of.UID != "" && of.UID != t.UID) {
		return nil, nil //nolint:nilnil // another's
	}
	return content, nil
}

// prepare sets the policy of a content, and triggers the sidecar for a content that is
// being deleted. For an orphan, whose VolumeSnapshot is gone or ignored by the
// controller, it sets the annotation that the sidecar waits for. It adds the finalizer,
// without which the content would be gone before the sidecar has called the driver.
func prepare(ctx context.Context, client versioned.Interface, content *snapshotv1.VolumeSnapshotContent, policy snapshotv1.DeletionPolicy, orphan bool) error {
	change, meta, annotations := map[string]any{}, map[string]any{}, map[string]string{}
	if content.Spec.DeletionPolicy != policy {
		change["spec"] = map[string]any{"deletionPolicy": policy}
	}
	if content.DeletionTimestamp != nil {
		annotations[api.AnnotationDeletionAwaited] = time.Now().UTC().Format(time.RFC3339Nano)
	}
	if _, set := content.Annotations[beingDeleted]; orphan && !set {
		annotations[beingDeleted] = "yes"
	}
	if policy == snapshotv1.VolumeSnapshotContentDelete && content.DeletionTimestamp == nil && !slices.Contains(content.Finalizers, contentProtection) {
		meta["finalizers"] = append(slices.Clone(content.Finalizers), contentProtection)
	}
	if len(annotations) > 0 {
		meta["annotations"] = annotations
	}
	if len(meta) > 0 {
		change["metadata"] = meta
	}
	if len(change) == 0 {
		return nil
	}
	patch, err := json.Marshal(change)
	if err == nil {
		_, err = client.SnapshotV1().VolumeSnapshotContents().Patch(ctx, content.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("have the storage's snapshot of VolumeSnapshotContent %s go: %w", content.Name, err)
	}
	return nil
}

func remains(t Target, vs *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) string {
	var left []string
	if vs != nil {
		left = append(left, "VolumeSnapshot "+t.String())
	}
	if content != nil {
		left = append(left, "VolumeSnapshotContent "+content.Name)
	}
	text := strings.Join(left, " and ") + " being deleted"
	switch {
	case content == nil:
	case content.Status != nil && content.Status.Error != nil:
		text += ": " + message(content.Status.Error)
	case content.DeletionTimestamp != nil && time.Since(content.DeletionTimestamp.Time) > slowDeletion:
		text += fmt.Sprintf(" since %s; the CSI sidecar csi-snapshotter has the driver's error in its log and nowhere else", content.DeletionTimestamp.UTC().Format(time.RFC3339))
	}
	return text
}
