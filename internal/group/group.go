package group

import (
	"context"
	"sync"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/decision"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/quiesce"
	"stillpoint.io/stillpoint/internal/snapshot"
	"stillpoint.io/stillpoint/internal/unit"
)

// Groups holds the groups of this process. Velero starts a new process for each backup.
// It is safe for concurrent use.
type Groups struct {
	clients    *cluster.Clients
	namespaces *unit.Namespaces
	decisions  *decision.Decisions
	executor   *podexec.Client
	reporter   *quiesce.Reporter
	log        logrus.FieldLogger

	mu   sync.Mutex
	runs map[types.UID]*run
}

// New returns Groups for the decisions.
func New(clients *cluster.Clients, namespaces *unit.Namespaces, decisions *decision.Decisions, reporter *quiesce.Reporter, log logrus.FieldLogger) *Groups {
	return &Groups{
		clients:    clients,
		namespaces: namespaces,
		decisions:  decisions,
		executor:   podexec.New(clients),
		reporter:   reporter,
		log:        log,
		runs:       map[types.UID]*run{},
	}
}

// run is one backup.
type run struct {
	*Groups
	backup    *velerov1.Backup
	decisions *decision.Backup
	snapshots *snapshot.Follower

	mu     sync.Mutex
	groups map[*decision.Unit]*group
	// begun are the namespaces whose snapshots are taken ahead. taking counts the
	// namespaces in progress.
	begun  map[string]bool
	taking sync.WaitGroup

	records       recordsOnce
	warned        sync.Once
	unclaimedOnce sync.Once
	unclaimedErr  error
}

func (g *Groups) run(backup *velerov1.Backup) *run {
	g.mu.Lock()
	defer g.mu.Unlock()
	r, ok := g.runs[backup.UID]
	if !ok {
		r = &run{
			Groups:    g,
			backup:    backup,
			decisions: g.decisions.For(backup),
			snapshots: snapshot.NewFollower(g.clients.Snapshots, backup),
			groups:    map[*decision.Unit]*group{},
			begun:     map[string]bool{},
		}
		g.runs[backup.UID] = r
	}
	return r
}

// Claim takes the snapshot of a claim on the path Group, with all others of its unit,
// and returns Velero's answer. If the volume cannot be snapshotted, Claim logs an error
// and keeps the claim in the backup with api.AnnotationNoSnapshot.
func (g *Groups) Claim(ctx context.Context, d *decision.Decision, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) *Answer {
	r := g.run(backup)
	r.warned.Do(func() { r.warnOfWorkers(ctx) })
	if d.Obstacle != nil {
		return r.without(claim, d.Obstacle)
	}
	unit, err := r.decisions.Unit(ctx, d)
	if err != nil {
		return r.without(claim, err)
	}
	if !unit.Quiesced() {
		r.ahead(ctx, claim.Namespace)
	}
	return r.groupOf(unit).answer(ctx, claim)
}

// ahead takes the snapshots of all unquiesced claims of a namespace, on the first call
// for any of them. Velero calls for one claim after another, and a failing snapshot
// takes up to csiSnapshotTimeout. In parallel, all failures together take as long as
// one. Velero's own hooks run just before it calls for the claims of a pod, so ahead
// omits those claims.
func (r *run) ahead(ctx context.Context, namespace string) {
	r.mu.Lock()
	begun := r.begun[namespace]
	r.begun[namespace] = true
	r.mu.Unlock()
	if begun || len(r.backup.Spec.Hooks.Resources) > 0 {
		return
	}
	ctx = context.WithoutCancel(ctx)
	r.taking.Go(func() {
		facts, err := r.namespaces.Recent(ctx, namespace)
		if err != nil {
			return // the claim's own call reports the error
		}
		for i := range facts.Claims() {
			claim := &facts.Claims()[i]
			d, err := r.decisions.Expected(ctx, claim)
			if err != nil || d.Path != decision.Group || d.Obstacle != nil {
				continue
			}
			if whole, err := facts.Unit(claim); err != nil || whole.Quiesced() || unit.RunsHooks(whole.Component, r.backup) {
				continue
			}
			if unit, err := r.decisions.Unit(ctx, d); err == nil && !unit.Quiesced() {
				r.groupOf(unit).once(ctx)
			}
		}
	})
}

// groupOf returns the group of a unit.
func (r *run) groupOf(unit *decision.Unit) *group {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.groups[unit] == nil {
		r.groups[unit] = newGroup(r, unit)
	}
	return r.groups[unit]
}
