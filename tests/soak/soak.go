// Package soak backs databases up at random moments while they work, restores
// every backup into a namespace of its own, and judges what comes back: the
// database starts, nothing that it had acknowledged is lost, and what its
// transactions keep true is true.
package soak

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

const (
	// prefix begins the names of all that a soak makes.
	prefix = "soak-"
	// longestPause lies between two backups of a database at most.
	longestPause = 3 * time.Second
	// copiesAtOnce is how many restored databases run at a time.
	copiesAtOnce = 3

	backupLimit  = 5 * time.Minute
	restoreLimit = 5 * time.Minute
	startLimit   = 6 * time.Minute // of a database, made anew or restored
	clearLimit   = 5 * time.Minute
)

// ours is on the backups of a soak.
var ours = client.MatchingLabels{"stillpoint.io/soak": "true"}

// Options are what a soak is asked for.
type Options struct {
	Backups   int      // of each database: by Stillpoint in each way, and by Velero in both
	Databases []string // of Databases()
	Ways      []string // of Ways()
	Seed      uint64   // of the moments
}

// Result is how the backups of a database in one way went. Broken are those
// that failed, or whose database did not start or was not whole.
type Result struct {
	Database string `json:"database"`
	Way      string `json:"way"`
	Backups  int    `json:"backups"`
	Intact   int    `json:"intact"`
	Broken   int    `json:"broken"`

	// Reasons say what was wrong with the broken ones.
	Reasons []string `json:"-"`
	// Frozen is for how long each backup kept the database from writing, as far
	// as Stillpoint did.
	Frozen []time.Duration `json:"-"`
	// Promised is whether Stillpoint stands for the way.
	Promised bool `json:"-"`
}

// Soak is a run on the test bed.
type Soak struct {
	*stage.Stage

	asked Options
	seats chan struct{} // one for each restored database that may run
}

// Run does what the options ask for and returns the results in their order.
// Broken backups are results; an error is what kept it from finding out more. It
// leaves nothing behind.
func Run(ctx context.Context, on *stage.Stage, o Options) ([]Result, error) {
	s := &Soak{Stage: on, asked: o, seats: make(chan struct{}, copiesAtOnce)}
	chosen, err := o.databases()
	if err != nil {
		return nil, err
	}
	ways, err := o.ways()
	if err != nil {
		return nil, err
	}
	if o.Backups < 1 {
		return nil, fmt.Errorf("%d backups: there must be at least one", o.Backups)
	}
	if err := s.clear(ctx); err != nil {
		return nil, fmt.Errorf("clear away what an earlier run left: %w", err)
	}
	if err := s.Objects().Create(ctx, policy()); err != nil {
		return nil, fmt.Errorf("make the volume policy: %w", err)
	}
	found := make([][]Result, len(chosen))
	errs := make([]error, len(chosen))
	var together sync.WaitGroup
	for i, d := range chosen {
		together.Go(func() {
			var err error
			if found[i], err = s.soak(ctx, d, ways); err != nil {
				errs[i] = fmt.Errorf("%s: %w", d.name, err)
				s.Say("%v", errs[i])
			}
		})
	}
	together.Wait()
	return slices.Concat(found...), errors.Join(append(errs, s.clear(context.WithoutCancel(ctx)))...)
}

// policy hands all volumes to Stillpoint.
func policy() *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: prefix + "policy"},
		Data: map[string]string{"policy.yaml": "version: v1\nvolumePolicies:\n" +
			"- conditions: {csi: {}}\n  action: {type: custom, parameters: {snapshotter: stillpoint.io}}\n"},
	}
}

// soak backs one database up in all ways, one after another.
func (s *Soak) soak(ctx context.Context, d *database, ways []way) ([]Result, error) {
	var results []Result
	for _, w := range ways {
		h := fnv.New64()
		_, _ = h.Write([]byte(d.name + w.name))
		moments := rand.New(rand.NewPCG(s.asked.Seed, h.Sum64())) //nolint:gosec // to be repeatable
		result, err := s.inWay(ctx, d, w, moments)
		if result.Backups > 0 {
			results = append(results, result)
		}
		if err != nil {
			return results, fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return results, nil
}

// inWay makes the backups of one database in one way. With an error it returns
// what there is of a result.
func (s *Soak) inWay(ctx context.Context, d *database, w way, moments *rand.Rand) (Result, error) {
	at := place{Soak: s, database: d, namespace: prefix + d.name}
	c := &count{Result: Result{Database: d.name, Way: w.name, Promised: w.promised}}
	err := at.setUp(ctx, w)
	if err != nil {
		err = fmt.Errorf("set up the database: %w", err)
	} else {
		err = at.backUpAgainAndAgain(ctx, w, moments, c)
	}
	c.copies.Wait()
	return c.Result, errors.Join(err, s.DeleteNamespace(context.WithoutCancel(ctx), at.namespace))
}

// count is a result that copies add to.
type count struct {
	Result
	mu     sync.Mutex
	copies sync.WaitGroup
}

func (p place) backUpAgainAndAgain(ctx context.Context, w way, moments *rand.Rand, c *count) error {
	last := ""
	for n := range w.backups(p.asked.Backups) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(moments.Int64N(int64(longestPause)))):
		}
		before, err := p.database.tally(ctx, p)
		if err != nil {
			return fmt.Errorf("look at the database: %w", err)
		}
		if before == last {
			return fmt.Errorf("nothing has been written since the last backup: %s", before)
		}
		last = before
		name := fmt.Sprintf("%s%s-%s-%d", prefix, p.database.name, w.name, n+1)
		frozen, fault := p.backUp(ctx, name, p.namespace, w)
		c.copies.Go(func() {
			if fault == nil {
				p.seats <- struct{}{}
				fault = p.judgeCopy(ctx, name, before)
				<-p.seats
			}
			if ctx.Err() != nil {
				return // nobody can tell
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.add(name, frozen, fault)
			if fault == nil {
				p.Say("%s: intact", name)
			} else {
				p.Say("%s: BROKEN: %v", name, fault)
			}
		})
	}
	return nil
}

// add counts a backup.
func (r *Result) add(name string, frozen time.Duration, fault error) {
	r.Backups++
	if frozen > 0 {
		r.Frozen = append(r.Frozen, frozen)
	}
	if fault == nil {
		r.Intact++
		return
	}
	r.Broken++
	r.Reasons = append(r.Reasons, fmt.Sprintf("%s: %v", name, fault))
}

// clear takes away what this run or an earlier one has made.
func (s *Soak) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clearLimit)
	defer cancel()
	namespaces := &corev1.NamespaceList{}
	if err := s.Objects().List(ctx, namespaces); err != nil {
		return err
	}
	together, each := errgroup.WithContext(ctx)
	for _, ns := range namespaces.Items {
		if strings.HasPrefix(ns.Name, prefix) {
			together.Go(func() error { return s.DeleteNamespace(each, ns.Name) })
		}
	}
	if err := together.Wait(); err != nil {
		return err
	}
	if err := s.ForgetBackups(ctx, ours); err != nil {
		return err
	}
	gone := []client.Object{policy()}
	restores := &velerov1.RestoreList{}
	if err := s.Objects().List(ctx, restores, client.InNamespace(cluster.VeleroNamespace), ours); err != nil {
		return err
	}
	for i := range restores.Items {
		gone = append(gone, &restores.Items[i])
	}
	return s.DeleteAll(ctx, gone)
}
