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

// maxParallel is how many objects are deleted at the same time.
const maxParallel = 8

// act deletes in parallel. It calls report, one call at a time, when the storage has
// confirmed a deletion, or with the obstacle when ctx ends.
func (c *Cleaner) act(ctx context.Context, removals []*removal, report func(Result)) {
	var mu sync.Mutex
	inParallel(ctx, removals, func(r *removal) {
		begun := c.clock.Now()
		err := snapshot.UntilGone(ctx, r.request)
		mu.Lock()
		defer mu.Unlock()
		report(Result{Finding: r.finding, Took: c.clock.Since(begun), Err: err})
	})
}

// removals returns the findings to delete. Each is judged again before its deletion.
func (c *Cleaner) removals(facts *facts, findings []Finding, named func(string) bool) (all []*removal) {
	for i := range findings {
		if findings[i].toBeDeleted() {
			all = append(all, &removal{Cleaner: c, facts: facts, finding: &findings[i], named: named})
		}
	}
	return all
}

// removal is the deletion of one finding.
type removal struct {
	*Cleaner
	facts     *facts
	finding   *Finding
	named     func(string) bool
	requested bool
}

// request judges the finding again, and requests its deletion if the decision is the
// same. It does not wait for the storage.
func (r *removal) request(ctx context.Context) (left string, err error) {
	if r.finding.Kind == Record {
		return "", r.record(ctx)
	}
	if !r.requested {
		if err := r.recheck(ctx); err != nil {
			return "", err
		}
	}
	left, err = r.remove(ctx)
	r.requested = r.requested || err == nil
	return left, err
}

// recheck returns an error if the finding must no longer be deleted.
func (r *removal) recheck(ctx context.Context) error {
	facts, subject, err := r.reread(ctx, r.facts, r.finding)
	if err != nil || subject == nil { // gone
		return err
	}
	finding := facts.findingOf(*subject, r.named)
	facts.keepShared(&finding)
	if finding.Action != r.finding.Action {
		return fmt.Errorf("%w: %s", snapshot.ErrKept, finding.Reason)
	}
	return nil
}

// remove deletes the existing objects of the finding, and returns what remains.
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

// inParallel calls do for each removal, also after ctx has ended.
func inParallel(ctx context.Context, removals []*removal, do func(*removal)) {
	workqueue.ParallelizeUntil(context.WithoutCancel(ctx), maxParallel, len(removals), func(i int) { do(removals[i]) })
}
