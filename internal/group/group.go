// Package group takes the snapshots of the volumes that a volume policy hands
// to Stillpoint: all volumes of a workload at one moment, which is frozen from
// before the first until the storage has cut the last. Velero finds what its
// own action would have left.
package group

import (
	"context"
	"sync"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/quiesce"
	"stillpoint.io/stillpoint/internal/selection"
	"stillpoint.io/stillpoint/internal/snapshot"
	"stillpoint.io/stillpoint/internal/snapshotclass"
	"stillpoint.io/stillpoint/internal/unit"
)

// Groups holds the groups of this process, which Velero starts anew for each
// backup. It is safe for concurrent use.
type Groups struct {
	clients    *cluster.Clients
	namespaces *unit.Namespaces
	classes    *snapshotclass.Catalogue
	executor   *podexec.Client
	reporter   *quiesce.Reporter
	csi        bool
	log        logrus.FieldLogger

	mu   sync.Mutex
	runs map[types.UID]*run
}

// New returns Groups. csi tells whether the server runs with EnableCSI.
func New(clients *cluster.Clients, namespaces *unit.Namespaces, classes *snapshotclass.Catalogue, reporter *quiesce.Reporter, csi bool, log logrus.FieldLogger) *Groups {
	return &Groups{
		clients:    clients,
		namespaces: namespaces,
		classes:    classes,
		executor:   podexec.New(clients),
		reporter:   reporter,
		csi:        csi,
		log:        log,
		runs:       map[types.UID]*run{},
	}
}

// run is one backup.
type run struct {
	*Groups
	backup    *velerov1.Backup
	selection *selection.Selection
	snapshots *snapshot.Follower

	// deciding is held, by namespace, while a claim's group is made, so that claims which are
	// asked for at the same time end up in the same one.
	deciding cluster.Keyed
	mu       sync.Mutex
	groups   map[types.NamespacedName]*group
	// begun are the namespaces whose snapshots are taken ahead, taking those that
	// are not done yet.
	begun  map[string]bool
	taking sync.WaitGroup

	records  recordsOnce
	warned   sync.Once
	settling sync.Once
	settled  error
}

func (g *Groups) run(backup *velerov1.Backup) *run {
	g.mu.Lock()
	defer g.mu.Unlock()
	r, ok := g.runs[backup.UID]
	if !ok {
		r = &run{
			Groups:    g,
			backup:    backup,
			selection: selection.New(g.clients.Remembered, g.csi, backup),
			snapshots: snapshot.NewFollower(g.clients.Snapshots, backup),
			groups:    map[types.NamespacedName]*group{},
			begun:     map[string]bool{},
		}
		g.runs[backup.UID] = r
	}
	return r
}

// Claim is Velero's call for a PersistentVolumeClaim. The answer says what is
// backed up; it is nil when the claim is not handed to Stillpoint. A claim whose
// volume cannot be snapshotted is an error in the log, and stays in the backup
// with api.AnnotationNoSnapshot; an error of this function drops it.
func (g *Groups) Claim(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (*Answer, error) {
	r := g.run(backup)
	verdict, err := r.selection.OfIncluded(ctx, claim)
	if err != nil {
		return nil, err
	}
	if verdict.Warning != "" {
		r.log.Warnf("Claim %s/%s: %s", claim.Namespace, claim.Name, verdict.Warning)
	}
	if verdict.Path != selection.Group {
		return nil, nil //nolint:nilnil // not ours is a valid answer
	}
	r.warned.Do(func() { r.warnOfWorkers(ctx) })
	if verdict.Obstacle != nil {
		return r.without(claim, verdict.Obstacle), nil //nolint:nilerr // an error would drop the claim
	}
	group, err := r.groupOf(ctx, claim)
	if err != nil {
		return r.without(claim, err), nil
	}
	if !group.quiesce.Quiesced() {
		r.ahead(ctx, claim.Namespace)
	}
	return group.answer(ctx, claim), nil
}

// ahead takes the snapshots of all claims of a namespace that nothing is quiesced
// for, on the first call for any of them. Velero calls for one claim after another,
// and a snapshot that fails takes up to csiSnapshotTimeout: waited for side by side,
// any number of them take as long as one. Velero's own hooks run just before it calls
// for the claims of a pod, so these are left for that moment.
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
			return // the claim's own call has the error
		}
		for i := range facts.Claims() {
			claim := &facts.Claims()[i]
			verdict, err := r.selection.Of(ctx, claim)
			if err != nil || verdict.Path != selection.Group || verdict.Obstacle != nil {
				continue
			}
			if whole, err := facts.Unit(claim); err != nil || whole.Quiesced() || unit.RunsHooks(whole.Component, r.backup) {
				continue
			}
			if group, err := r.groupOf(ctx, claim); err == nil && !group.quiesce.Quiesced() {
				group.once(ctx)
			}
		}
	})
}

// groupOf returns the group of a claim. The first call for any claim of a group
// decides for all of them.
func (r *run) groupOf(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*group, error) {
	defer r.deciding.Lock(claim.Namespace)()
	r.mu.Lock()
	known, decided := r.groups[keyOf(claim)]
	r.mu.Unlock()
	if decided {
		return known, nil
	}
	quiesced, err := r.decide(ctx, claim)
	if quiesced == nil {
		return nil, err
	}
	group := newGroup(r, quiesced)
	group.failed = err
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range quiesced.Claims {
		key := keyOf(&quiesced.Claims[i])
		if _, decided := r.groups[key]; !decided {
			r.groups[key] = group
			group.add(&quiesced.Claims[i])
		}
	}
	return group, nil
}

// decide finds the claims that are snapshotted together with one. The group is
// returned with an error when that concerns all of them.
func (r *run) decide(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*unit.Unit, error) {
	facts, err := r.namespaces.Current(ctx, claim.Namespace)
	if err != nil {
		return nil, err
	}
	group, err := facts.Unit(claim)
	if err != nil || group.Quiesced() {
		// What is frozen is decided by how things are now.
		if facts, err = r.namespaces.Now(ctx, claim.Namespace); err != nil {
			return nil, err
		}
		group, err = facts.Unit(claim)
	}
	if err != nil {
		return group, err
	}
	facts.LimitToHookBlock(group, r.backup)
	return group, group.KeepClaims(func(other corev1.PersistentVolumeClaim) (bool, error) {
		verdict, err := r.selection.Of(ctx, &other)
		if err != nil {
			return false, err
		}
		if (verdict.Path == selection.Velero || verdict.Path == selection.Snapshotter) && group.Quiesced() {
			return false, group.MixedPaths(claim.Name, string(selection.Group), other.Name, string(verdict.Path))
		}
		if verdict.Reason != "" && group.Quiesced() {
			r.log.Infof("Claim %s/%s is not quiesced with its workload: %s", other.Namespace, other.Name, verdict.Reason)
		}
		return verdict.Path == selection.Group && verdict.Obstacle == nil, nil
	})
}

func keyOf(claim *corev1.PersistentVolumeClaim) types.NamespacedName {
	return types.NamespacedName{Namespace: claim.Namespace, Name: claim.Name}
}
