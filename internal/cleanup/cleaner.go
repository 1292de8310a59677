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
	// settings reads the configuration. It is called only where there is a data mover
	// other than Velero's.
	settings func(context.Context) (*config.Config, error)
	clock    clock.PassiveClock

	mu      sync.Mutex
	deleted sets.Set[types.UID] // the backups that DeletedBackup is done with
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

// Options say what a user asks about.
type Options struct {
	// Namespaces are those of the VolumeSnapshots; none are all.
	Namespaces []string
	// Objects are the only ones to look at, as Finding.Object has them; none are
	// all. What is only listed else is deleted when it is named here.
	Objects []string
	// All has what is no orphan reported, too.
	All bool
}

// Report is what was found. Its JSON is for programs, as that of a Finding.
type Report struct {
	Findings []Finding `json:"findings"`
	// External is what is left of the snapshot API before CSI's. Delete leaves it to
	// those who know that API.
	External []External `json:"externalStorage,omitempty"`

	facts *facts
	named func(string) bool
	now   time.Time
}

// External is a snapshot of group volumesnapshot.external-storage.k8s.io whose
// backup is over without it, or may be.
type External struct {
	// Kind, Namespace and Name are those of one of its objects; a VolumeSnapshotData
	// has no namespace.
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// Backup is its name, "" where that is not known.
	Backup string `json:"backup,omitempty"`
	// Over tells that it is certain, so that it may be deleted, as the next backup does
	// that has such volumes. Otherwise it stays until somebody does it by hand.
	Over   bool   `json:"over"`
	Reason string `json:"reason"`
}

// Find looks at the whole cluster, and changes nothing. An object that is named
// and not there is an error.
func (c *Cleaner) Find(ctx context.Context, options Options) (*Report, error) {
	facts, err := c.everything(ctx, false)
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

// Result is what became of a finding. The error says why it is still there.
type Result struct {
	Finding *Finding
	Took    time.Duration
	Err     error
}

// Delete deletes what a report says, and tells of each finding when it is gone,
// which the storage has confirmed, or when ctx has ended. A finding that was
// named and must stay is told of with an error.
func (c *Cleaner) Delete(ctx context.Context, report *Report, tell func(Result)) {
	for i := range report.Findings {
		finding := &report.Findings[i]
		if err := c.note(ctx, finding); err != nil {
			tell(Result{Finding: finding, Err: err})
		}
		if finding.Action == Keep && report.named(finding.Object()) {
			tell(Result{Finding: finding, Err: errors.New(finding.Reason)})
		}
	}
	c.act(ctx, c.removals(report.facts, report.Findings, report.named), tell)
}

const (
	// askLimit bounds what a backup waits for, confirmLimit what goes on beside it.
	askLimit     = 10 * time.Second
	confirmLimit = 30 * time.Second
	// atBackup is how many objects one backup deletes at the most.
	atBackup = 100
)

// AtBackup deletes what is certainly ours and over, at the start of a backup.
// It returns when that has been asked for, 10 s later at the most, and looks on
// for 30 s in the background until the storage has confirmed it; the channel is
// closed then.
//
// It must have returned before Velero lists the items of the backup, that is in
// AppliesTo of an action: a VolumeSnapshot that is being deleted is left out by
// Velero, while one that is gone by its turn is an error of the backup.
//
// When there is nothing to delete it sends 6 requests, one of which is for
// Velero's namespace, and 8 to 11 where there are snapshots that are kept on
// purpose. Trouble is one warning: it concerns another backup than the one it is
// logged in.
func (c *Cleaner) AtBackup(ctx context.Context, log logrus.FieldLogger) <-chan struct{} {
	done := make(chan struct{})
	ctx, cancel := context.WithTimeout(ctx, confirmLimit)
	asking, asked := context.WithTimeout(ctx, askLimit)
	defer asked()
	facts, findings, err := c.orphans(asking)
	if err != nil {
		log.Warnf("Snapshots that earlier backups may have left are not looked for: %v", err)
	}
	removals := c.removals(facts, findings, nobody)
	if len(removals) > atBackup {
		log.Infof("Earlier backups have left %d objects; %d of them are deleted now, the others by the next backup or by `stillpoint sweep --delete`", len(removals), atBackup)
		removals = removals[:atBackup]
	}
	sideBySide(asking, removals, func(r *removal) {
		_, _ = r.ask(asking) // act reports problems
	})
	for i := range findings {
		if err := c.note(asking, &findings[i]); err != nil {
			log.Warnf("A snapshot whose backup is gone stays longer than it must: %v", err)
		}
	}
	tellListed(log, findings)
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

// orphans looks at what has a mark, and at everything only where that has
// something to delete: what is shared with others shows only there.
func (c *Cleaner) orphans(ctx context.Context) (*facts, []Finding, error) {
	facts, err := c.suspects(ctx)
	if err != nil {
		return nil, nil, err
	}
	findings := facts.judge(nobody)
	if !slices.ContainsFunc(findings, func(f Finding) bool { return f.goes() && f.Kind != Record }) {
		return facts, findings, nil
	}
	if facts, err = c.everything(ctx, true); err != nil {
		return nil, nil, err
	}
	return facts, facts.judge(nobody), nil
}

func tellListed(log logrus.FieldLogger, findings []Finding) {
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

// describe is size and age of a finding.
func describe(f *Finding, now time.Time) string {
	age := duration.HumanDuration(f.Age(now)) + " old"
	if f.Size == 0 {
		return age
	}
	return size(f.Size) + ", " + age
}
