package cleanup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// Cleaner cleans up one cluster. It is safe for concurrent use.
type Cleaner struct {
	clients *cluster.Clients
	// settings reads the configuration. It is called only if a data mover other than
	// Velero's is in use.
	settings func(context.Context) (*config.Config, error)
	clock    clock.PassiveClock

	mu      sync.Mutex
	deleted sets.Set[types.UID] // the backups that DeletedBackup has completed
}

// New returns a Cleaner for the Velero that the clients reach.
func New(clients *cluster.Clients, clock clock.PassiveClock) *Cleaner {
	return &Cleaner{
		clients: clients, clock: clock, deleted: sets.New[types.UID](),
		settings: func(ctx context.Context) (*config.Config, error) {
			return config.Load(ctx, clients.Kube, clients.VeleroNamespace)
		},
	}
}

// Options are the choices of a user.
type Options struct {
	// Namespaces limits the report to these namespaces of VolumeSnapshots; empty means
	// all.
	Namespaces []string
	// Objects limits the report to these objects, in the form of Finding.Object; empty
	// means all. A listed object is deleted if it is named here.
	Objects []string
	// All includes objects that are not orphans.
	All bool
}

// Report is the result of Find. Its JSON keys must not change.
type Report struct {
	Findings []Finding `json:"findings"`
	// External are the leftovers of the snapshot API before CSI's. Package
	// location/externalstorage deletes them, not Delete.
	External []External `json:"externalStorage,omitempty"`

	facts *facts
	named func(string) bool
	now   time.Time
}

// External is a snapshot of group volumesnapshot.external-storage.k8s.io whose backup is
// over and does not need it, or may be.
type External struct {
	// Kind, Namespace and Name identify one of its objects. A VolumeSnapshotData has no
	// namespace.
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// Backup is the name of the backup, "" if not known.
	Backup string `json:"backup,omitempty"`
	// Over reports that the backup is certainly over. The next backup with such volumes
	// then deletes the snapshot. Otherwise it stays until a user deletes it.
	Over   bool   `json:"over"`
	Reason string `json:"reason"`
}

// Find reads the whole cluster and changes nothing. It returns an error if a named
// object does not exist.
func (c *Cleaner) Find(ctx context.Context, options Options) (*Report, error) {
	facts, err := c.gatherAll(ctx, false)
	if err != nil {
		return nil, err
	}
	named := func(object string) bool { return slices.Contains(options.Objects, object) }
	report := &Report{Findings: []Finding{}, facts: facts, named: named, now: c.clock.Now()}
	there := map[string]bool{}
	for _, finding := range facts.judge(named) {
		object := finding.Object()
		there[object] = true
		switch {
		case len(options.Objects) > 0 && !named(object):
		case len(options.Namespaces) > 0 && !slices.Contains(options.Namespaces, finding.Namespace):
		case !finding.Orphan && !options.All && !named(object):
		default:
			report.Findings = append(report.Findings, finding)
		}
	}
	for _, object := range options.Objects {
		if !there[object] {
			return nil, fmt.Errorf("there is no %s; it must be namespace/name of a VolumeSnapshot, or content/name of a VolumeSnapshotContent whose VolumeSnapshot is gone", object)
		}
	}
	return report, nil
}

// Result is the outcome for a finding. Err is why the object still exists.
type Result struct {
	Finding *Finding
	Took    time.Duration
	Err     error
}

// Delete carries out a report. It calls done for each finding when the storage has
// confirmed the deletion, or when ctx ends. It reports an error for a named object that
// must stay.
func (c *Cleaner) Delete(ctx context.Context, report *Report, done func(Result)) {
	for i := range report.Findings {
		finding := &report.Findings[i]
		if err := c.recordMissed(ctx, finding); err != nil {
			done(Result{Finding: finding, Err: err})
		}
		if finding.Action == Keep && report.named(finding.Object()) {
			done(Result{Finding: finding, Err: errors.New(finding.Reason)})
		}
	}
	c.act(ctx, c.removals(report.facts, report.Findings, report.named), done)
}

const (
	// askLimit limits how long a backup waits, confirmLimit how long the clean-up
	// continues in the background.
	askLimit     = 10 * time.Second
	confirmLimit = 30 * time.Second
	// maxPerBackup is how many objects one backup deletes at most.
	maxPerBackup = 100
)

// AtBackup deletes the certain leftovers of this installation, at the start of a backup.
// It returns when it has requested the deletions, after 10 s at most. In the background
// it waits up to 30 s for the storage's confirmation, and then closes the channel.
//
// It must return before Velero lists the items of the backup, that is in AppliesTo of an
// action. Velero omits a VolumeSnapshot that is being deleted, but a listed one that is
// gone by its turn is an error of the backup.
//
// With nothing to delete it sends 6 requests, one of them for Velero's namespace, and 8
// to 11 if there are kept snapshots. Problems are one warning, because they concern
// another backup than the one with the log.
func (c *Cleaner) AtBackup(ctx context.Context, log logrus.FieldLogger) <-chan struct{} {
	done := make(chan struct{})
	ctx, cancel := context.WithTimeout(ctx, confirmLimit)
	asking, asked := context.WithTimeout(ctx, askLimit)
	defer asked()
	facts, findings, err := c.judgeMarked(asking)
	if err != nil {
		log.Warnf("Snapshots that earlier backups may have left are not looked for: %v", err)
	}
	removals := c.removals(facts, findings, noneNamed)
	if len(removals) > maxPerBackup {
		log.Infof("Earlier backups have left %d objects; %d of them are deleted now, the others by the next backup or by `stillpoint sweep --delete`", len(removals), maxPerBackup)
		removals = removals[:maxPerBackup]
	}
	inParallel(asking, removals, func(r *removal) {
		_, _ = r.request(asking) // act reports problems
	})
	for i := range findings {
		if err := c.recordMissed(asking, &findings[i]); err != nil {
			log.Warnf("A snapshot whose backup is gone stays longer than it must: %v", err)
		}
	}
	logListed(log, findings)
	go func() {
		defer close(done)
		defer cancel()
		var stay []string
		c.act(ctx, removals, func(r Result) {
			switch {
			case errors.Is(r.Err, snapshot.ErrKept):
				log.Infof("Could not delete a leftover yet: %s %s: %v", r.Finding.Kind, r.Finding.Object(), r.Err)
			case r.Err != nil:
				stay = append(stay, fmt.Sprintf("%s: %v", r.Finding.Object(), r.Err))
			default:
				log.Infof("Deleted a leftover: %s %s, %s: %s", r.Finding.Kind, r.Finding.Object(), describe(r.Finding, c.clock.Now()), r.Finding.Reason)
			}
		})
		if len(stay) > 0 {
			log.Warnf("Leftovers of earlier backups are not deleted yet, and the next backup tries again: %d: %s", len(stay), strings.Join(stay, "; "))
		}
	}()
	return done
}

// judgeMarked judges the marked objects. If one of them is to be deleted, it reads and
// judges all objects, since unmarked ones may share a storage snapshot.
func (c *Cleaner) judgeMarked(ctx context.Context) (*facts, []Finding, error) {
	facts, err := c.gatherMarked(ctx)
	if err != nil {
		return nil, nil, err
	}
	findings := facts.judge(noneNamed)
	if !slices.ContainsFunc(findings, func(f Finding) bool { return f.toBeDeleted() && f.Kind != Record }) {
		return facts, findings, nil
	}
	if facts, err = c.gatherAll(ctx, true); err != nil {
		return nil, nil, err
	}
	return facts, facts.judge(noneNamed), nil
}

func logListed(log logrus.FieldLogger, findings []Finding) {
	listed := 0
	for i := range findings {
		if findings[i].Action == List {
			listed++
		}
	}
	if listed > 0 {
		log.Infof("Kept snapshots of uncertain origin, which `stillpoint sweep` lists: %d", listed)
	}
}

// describe returns size and age of a finding.
func describe(f *Finding, now time.Time) string {
	age := duration.HumanDuration(f.Age(now)) + " old"
	if f.Size == 0 {
		return age
	}
	return size(f.Size) + ", " + age
}
