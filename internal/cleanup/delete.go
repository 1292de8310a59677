package cleanup

import (
	"cmp"
	"context"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"

	"stillpoint.io/stillpoint/internal/snapshot"
)

// atOnce is how many objects are deleted at the same time.
const atOnce = 8

// removal is one finding on its way out.
type removal struct {
	*Sweeper
	facts   *facts
	finding *Finding
	named   func(string) bool
	asked   bool
}

// ask looks again at what the finding was judged by, and has it deleted where
// nothing has changed. It does not wait for the storage.
func (r *removal) ask(ctx context.Context) (left string, err error) {
	if r.finding.Kind == Record {
		return "", r.record(ctx)
	}
	if !r.asked {
		if err := r.still(ctx); err != nil {
			return "", err
		}
	}
	left, err = r.remove(ctx)
	r.asked = r.asked || err == nil
	return left, err
}

// still is an error where the finding must not go any more.
func (r *removal) still(ctx context.Context) error {
	facts, subject, err := r.now(ctx, r.facts, r.finding)
	if err != nil || subject == nil { // gone
		return err
	}
	finding := facts.find(*subject, r.named)
	facts.spareShared(&finding)
	if finding.Action != r.finding.Action {
		return fmt.Errorf("%w: %s", snapshot.ErrKept, finding.Reason)
	}
	return nil
}

// remove deletes what there is of the finding, and tells what is left.
func (r *removal) remove(ctx context.Context) (left string, err error) {
	t := snapshot.Target{Namespace: r.finding.Namespace, Name: r.finding.Name, Content: r.finding.Content, Policy: snapshotv1.VolumeSnapshotContentDelete}
	if r.finding.Action == DeleteObjectsOnly {
		t.Policy = snapshotv1.VolumeSnapshotContentRetain
	}
	if vs := r.finding.target.Snapshot; vs != nil {
		t.UID = vs.UID
	} else {
		// A VolumeSnapshot of that name is another one. A content that was never
		// bound knows no UID; its own is that of no VolumeSnapshot.
		content := r.finding.target.Content
		t.UID = cmp.Or(content.Spec.VolumeSnapshotRef.UID, content.UID)
	}
	return snapshot.Remove(ctx, r.clients.Snapshots, t)
}

func (r *removal) record(ctx context.Context) error {
	err := r.clients.Kube.CoreV1().ConfigMaps(r.finding.Namespace).Delete(ctx, r.finding.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete ConfigMap %s/%s: %w", r.finding.Namespace, r.finding.Name, err)
	}
	return nil
}

// insist asks until the finding is gone, as the storage has confirmed.
func (r *removal) insist(ctx context.Context) error { return snapshot.UntilGone(ctx, r.ask) }

// sideBySide calls do for each of the removals.
func sideBySide(removals []*removal, do func(*removal)) {
	workqueue.ParallelizeUntil(context.Background(), atOnce, len(removals), func(i int) { do(removals[i]) })
}
