package cleanup

import (
	"context"
	"fmt"
	"sync"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"

	"stillpoint.io/stillpoint/internal/snapshot"
)

// atOnce is how many objects are deleted at the same time.
const atOnce = 8

// act deletes side by side, and calls tell, one call at a time, when a finding is
// gone, as the storage has confirmed, or with what prevents that when ctx ends.
func (c *Cleaner) act(ctx context.Context, removals []*removal, tell func(Result)) {
	var mu sync.Mutex
	sideBySide(ctx, removals, func(r *removal) {
		begun := c.clock.Now()
		err := snapshot.UntilGone(ctx, r.ask)
		mu.Lock()
		defer mu.Unlock()
		tell(Result{Finding: r.finding, Took: c.clock.Since(begun), Err: err})
	})
}

// removals are the findings that are to be deleted. Each is judged again before it is
// deleted.
func (c *Cleaner) removals(facts *facts, findings []Finding, named func(string) bool) (all []*removal) {
	for i := range findings {
		if findings[i].goes() {
			all = append(all, &removal{Cleaner: c, facts: facts, finding: &findings[i], named: named})
		}
	}
	return all
}

// removal is one finding on its way out.
type removal struct {
	*Cleaner
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

// remove deletes what exists of the finding, and returns what is left.
func (r *removal) remove(ctx context.Context) (left string, err error) {
	target := r.finding.target.Target()
	if r.finding.Action == DeleteObjectsOnly {
		target.Policy = snapshotv1.VolumeSnapshotContentRetain
	}
	return snapshot.Remove(ctx, r.clients.Snapshots, target)
}

func (r *removal) record(ctx context.Context) error {
	err := r.clients.Kube.CoreV1().ConfigMaps(r.finding.Namespace).Delete(ctx, r.finding.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete ConfigMap %s/%s: %w", r.finding.Namespace, r.finding.Name, err)
	}
	return nil
}

// sideBySide calls do for each of the removals, even after ctx has ended.
func sideBySide(ctx context.Context, removals []*removal, do func(*removal)) {
	workqueue.ParallelizeUntil(context.WithoutCancel(ctx), atOnce, len(removals), func(i int) { do(removals[i]) })
}
