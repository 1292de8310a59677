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
	// beingDeleted is what the snapshot controller writes on the content of a
	// VolumeSnapshot that is deleted, and without which the CSI sidecar lets no
	// content go.
	beingDeleted = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
	// unusual is how long storage may take to delete a snapshot before the text
	// says where to look, and how long the snapshot controller may take to process a
	// deletion before Remove completes it without the controller.
	unusual = 5 * time.Second
	// removalPause lies between two looks at a snapshot that is to go, at the
	// most; removalFirst is the first such pause, and each is twice the last.
	removalPause = time.Second
	removalFirst = 50 * time.Millisecond
)

// Finalizers of the snapshot controller and of the CSI sidecar.
const (
	// sourceProtection is the first thing that the snapshot controller writes on a
	// new VolumeSnapshot, and takes away when it is deleted.
	sourceProtection = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection"
	// boundProtection keeps a VolumeSnapshot until its content is gone. A new
	// VolumeSnapshot has both: each one that the controller need not write spares
	// requests of the controller while the application is frozen.
	boundProtection = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"
	// contentProtection keeps a content until the sidecar has had the driver delete
	// the snapshot. The controller sets it on bound contents only.
	contentProtection = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
)

// ErrKept is the error of an object that is not to be deleted; another attempt does
// not change that.
var ErrKept = errors.New("kept")

// ErrVetoed is the ErrKept of a snapshot that a user has marked with
// api.AnnotationKeepSnapshot.
var ErrVetoed = fmt.Errorf("%w: it has the annotation %s: \"true\"", ErrKept, api.AnnotationKeepSnapshot)

// Target is a snapshot that is to go: a VolumeSnapshot, its content, and what
// the content stands for in the storage.
type Target struct {
	// Namespace and Name are those of the VolumeSnapshot.
	Namespace, Name string
	// UID is that of the VolumeSnapshot; another one of the same name is left
	// alone. "" is any.
	UID types.UID
	// Content is the name of the VolumeSnapshotContent, where it is known; it is
	// found by the VolumeSnapshot otherwise.
	Content string
	// Policy says what becomes of the storage's snapshot, whatever the class
	// says. "" is Delete.
	Policy snapshotv1.DeletionPolicy
}

// TargetOf is the target that a VolumeSnapshot makes, with what it stands for
// in the storage.
func TargetOf(vs *snapshotv1.VolumeSnapshot) Target {
	return Target{Namespace: vs.Namespace, Name: vs.Name, UID: vs.UID, Content: contentName(vs)}
}

func (t Target) String() string { return t.Namespace + "/" + t.Name }

// Delete removes the VolumeSnapshots of claims that selector matches, with what
// they stand for in the storage, as RemoveAll does.
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

// DeleteAll is RemoveAll for callers that do not report vetoes.
func DeleteAll(ctx context.Context, client versioned.Interface, targets ...Target) error {
	_, err := RemoveAll(ctx, client, targets...)
	return err
}

// RemoveAll removes snapshots side by side and waits until they are gone, for as
// long as ctx allows; what is left then is an error. It returns those that a user
// wants to keep.
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

// UntilGone calls remove until nothing is left, until the error is ErrKept, or until
// ctx ends, with longer and longer pauses. The error reports what prevents the
// removal.
func UntilGone(ctx context.Context, remove func(context.Context) (left string, err error)) error {
	var problem error
	var reason string // what was left, by the last call that found it out
	pauses := wait.Backoff{Duration: removalFirst, Factor: 2, Steps: math.MaxInt32, Cap: removalPause}
	err := pauses.DelayFunc().Until(ctx, true, true, func(ctx context.Context) (bool, error) {
		left, err := remove(ctx)
		switch {
		case errors.Is(err, ErrKept):
			return false, err
		case err != nil && reason != "":
			problem = fmt.Errorf("%s; %w", reason, err) // the end of ctx may be all that err says
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

// Remove does what is to be done now for a snapshot to go, and tells what is
// left of it; "" says that all is gone, which the storage has confirmed where
// the policy is Delete. It is to be called again until then. An error of the
// driver is in what is left, since the sidecar tries again. The error is
// ErrVetoed where a user wants it to stay.
//
// A VolumeSnapshot may name any content, and be a tenant's; what counts is which
// VolumeSnapshot the content names.
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
	ignored := vs != nil && vs.DeletionTimestamp != nil && time.Since(vs.DeletionTimestamp.Time) > unusual
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
	// The controller deletes a content with its VolumeSnapshot only where it knows
	// the content with the policy Delete.
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

// release takes the snapshot controller's finalizers off a VolumeSnapshot that is
// being deleted and has no content: where no controller runs, they keep its
// namespace from ending. The patch fails if a controller has changed it meanwhile.
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

// content gets the content of a target, if it is the target's.
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

// prepare sets the policy of a content, and reminds the sidecar of one that is
// being deleted. For an orphan, whose VolumeSnapshot is gone or ignored by the
// controller, it sets the annotation without which the sidecar waits. A content
// without the finalizer would be gone before the sidecar has called the driver.
func prepare(ctx context.Context, client versioned.Interface, content *snapshotv1.VolumeSnapshotContent, policy snapshotv1.DeletionPolicy, orphan bool) error {
	change, meta, annotations := map[string]any{}, map[string]any{}, map[string]string{}
	if content.Spec.DeletionPolicy != policy {
		change["spec"] = map[string]any{"deletionPolicy": policy}
	}
	if content.DeletionTimestamp != nil {
		annotations[api.AnnotationDeletionAwaited] = time.Now().UTC().Format(time.RFC3339Nano)
	}
	if _, told := content.Annotations[beingDeleted]; orphan && !told {
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
	case content.DeletionTimestamp != nil && time.Since(content.DeletionTimestamp.Time) > unusual:
		text += fmt.Sprintf(" since %s; the CSI sidecar csi-snapshotter has the driver's error in its log and nowhere else", content.DeletionTimestamp.UTC().Format(time.RFC3339))
	}
	return text
}
