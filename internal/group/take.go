package group

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/decision"
	"stillpoint.io/stillpoint/internal/quiesce"
	"stillpoint.io/stillpoint/internal/snapshot"
	"stillpoint.io/stillpoint/internal/unit"
	"stillpoint.io/stillpoint/internal/velero"
)

const (
	// retryGrace is how long a freeze outlasts an error of the driver, in case the CSI
	// sidecar's next try succeeds.
	retryGrace = 2 * time.Second
	// maxParallel is how many requests create a group's snapshots at the same time.
	maxParallel = 32
)

// group is the volumes of a unit that are snapshotted together.
type group struct {
	*run
	unit    *decision.Unit
	quiesce *unit.Unit // of the unit
	log     logrus.FieldLogger

	start   sync.Once
	failed  error // why no volume has a snapshot
	members map[string]*member
}

// member is one volume of a group.
type member struct {
	claim    *corev1.PersistentVolumeClaim
	decision *decision.Decision
	snapshot *snapshotv1.VolumeSnapshot // to create, or as created
	// kept is the second snapshot, which stays beside the export; nil if none.
	kept   *snapshotv1.VolumeSnapshot
	failed error // why the volume has no snapshot
	// created is when the snapshots were requested, deadline when csiSnapshotTimeout
	// ends.
	created, deadline time.Time

	securing, warned sync.Once
	insecure         error // why the content is not marked
	// answered is the *VolumeSnapshot that Velero was told to back up.
	answered atomic.Value
}

func keyOfSnapshot(vs *snapshotv1.VolumeSnapshot) types.NamespacedName {
	return types.NamespacedName{Namespace: vs.Namespace, Name: vs.Name}
}

func (m *member) key() types.NamespacedName { return keyOfSnapshot(m.snapshot) }

func (m *member) keptKey() types.NamespacedName { return keyOfSnapshot(m.kept) }

func newGroup(r *run, unit *decision.Unit) *group {
	g := &group{
		run: r, unit: unit, quiesce: unit.Quiesce,
		log:     r.log.WithField("workload", unit.Quiesce.Name()),
		members: map[string]*member{},
	}
	for i := range g.quiesce.Claims {
		claim := &g.quiesce.Claims[i]
		g.members[claim.Name] = &member{claim: claim, decision: unit.Of(claim.Name)}
	}
	return g
}

// claims returns the sorted names of the members.
func (g *group) claims() []string {
	var names []string
	for name := range g.members {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// once takes the snapshots on the first call. Later calls wait for it.
func (g *group) once(ctx context.Context) {
	g.start.Do(func() {
		decision.Log(g.log, logrus.InfoLevel, g.unit.Findings())
		if g.failed = g.take(ctx); g.failed == nil {
			g.secureAll(ctx)
		}
	})
}

// take takes all snapshots of the group. After an error no snapshot remains. The error
// of a single volume is in its member.
func (g *group) take(ctx context.Context) error {
	if !g.unit.Quiesced() {
		return g.takeUnfrozen(ctx)
	}
	err := g.takeFrozen(ctx)
	if err == nil {
		return nil
	}
	if g.quiesce.OnError == unit.Continue {
		return g.takeUnfrozen(ctx)
	}
	return errors.Join(err, g.discard(ctx))
}

// takeUnfrozen creates the snapshots without waiting. A volume that fails does not
// affect the others, since they need not be of one moment.
func (g *group) takeUnfrozen(ctx context.Context) error {
	if err := g.prepare(ctx); err != nil {
		return err
	}
	g.refuseUnquiesced()
	g.create(ctx)
	return nil
}

// refuseUnquiesced refuses the volumes whose snapshots are unusable without a freeze.
func (g *group) refuseUnquiesced() {
	for name, m := range g.members {
		if m.failed == nil {
			m.failed = g.unit.Unquiesced(name)
		}
	}
}

// prepare does the work for the snapshots that is possible before a freeze.
func (g *group) prepare(ctx context.Context) error {
	if err := g.snapshots.Watch(ctx); err != nil {
		return err
	}
	installation, err := g.clients.Installation(ctx)
	if err != nil {
		return err
	}
	for _, name := range g.claims() {
		if m := g.members[name]; m.snapshot == nil && m.failed == nil {
			g.execute(m, installation)
		}
	}
	return nil
}

// execute prepares the VolumeSnapshots of a decision. create creates them later.
func (g *group) execute(m *member, installation string) {
	d, name := m.decision, m.claim.Namespace+"/"+m.claim.Name
	if m.failed = d.Refusal; m.failed != nil {
		return
	}
	g.log.Infof("Chose the VolumeSnapshotClass: claim %s: VolumeSnapshotClass %s: %s", name, d.Class, d.ClassReason)
	m.snapshot = snapshot.New(installation, g.backup, m.claim, d.Class, d.ClassReason, d.ExcludesLabel)
	m.snapshot.Annotations[api.AnnotationExported] = strconv.FormatBool(d.Exported)
	if d.Exported && boolptr.IsSetToTrue(g.backup.Spec.SnapshotMoveData) {
		g.log.Infof("A snapshot is exported twice: claim %s: its driver %s exports snapshots of VolumeSnapshotClass %s by itself, and the data mover exports this one again; a class that does not export is enough",
			name, d.Volume.Spec.CSI.Driver, d.Class)
	}
	if d.Keep.Second {
		m.kept = snapshot.Kept(m.snapshot, g.backup, m.claim, d.Keep.Last)
	}
}

// create creates all VolumeSnapshots in parallel.
func (g *group) create(ctx context.Context) {
	var wait sync.WaitGroup
	slots := make(chan struct{}, maxParallel)
	slot := func(do func()) {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			do()
		})
	}
	for _, m := range g.members {
		if m.snapshot == nil || m.failed != nil {
			continue
		}
		m.created, m.deadline = time.Now(), time.Now().Add(g.timeout())
		slot(func() { m.failed = snapshot.Create(ctx, g.clients.Snapshots, m.snapshot) })
		if m.kept != nil {
			slot(func() { g.unkept(m, snapshot.Create(ctx, g.clients.Snapshots, m.kept)) })
		}
	}
	wait.Wait()
}

// unkept logs that a kept snapshot could not be taken. The export continues without it.
func (g *group) unkept(m *member, err error) {
	if err != nil {
		g.log.Warnf("Could not keep a local snapshot beside the export: claim %s/%s: %v", m.claim.Namespace, m.claim.Name, err)
		m.kept = nil
	}
}

// adopt continues with the snapshots that an earlier process created. A missing one is
// not created, because it would be of another moment.
func (g *group) adopt(ctx context.Context) {
	for _, m := range g.members {
		m.created, m.deadline = time.Now(), time.Now().Add(g.timeout())
		_, err := g.clients.Snapshots.SnapshotV1().VolumeSnapshots(m.snapshot.Namespace).Get(ctx, m.snapshot.Name, metav1.GetOptions{})
		if err != nil {
			m.failed = fmt.Errorf("find the snapshot that an earlier plugin process took: %w", err)
		}
	}
}

// takeFrozen takes the snapshots of one moment.
func (g *group) takeFrozen(ctx context.Context) error {
	if g.unit.Refusal != nil {
		return g.refuse(ctx, g.unit.Refusal)
	}
	earlier, err := g.earlier(ctx)
	if err != nil {
		return g.refuse(ctx, err)
	}
	if earlier.failed() != nil {
		return g.refuse(ctx, earlier.failed())
	}
	if err := g.prepare(ctx); err != nil {
		return g.refuse(ctx, err)
	}
	if earlier != nil {
		g.log.Infof("Going on from the snapshots that an earlier plugin process took of %s", g.quiesce.Name())
		g.adopt(ctx)
		return nil
	}
	settings, err := g.decisions.Settings(ctx)
	if err != nil {
		return g.refuse(ctx, err)
	}
	planner := quiesce.NewPlanner(settings, g.clients, g.executor, g.log.Warnf)
	plan, err := planner.Plan(ctx, g.quiesce, g.backup)
	if err != nil {
		return g.refuse(ctx, err)
	}
	if plan.Empty() {
		g.refuseUnquiesced()
		g.create(ctx)
		return nil
	}
	record, err := g.begin(ctx)
	if err != nil {
		return g.refuse(ctx, err)
	}
	session, err := g.reporter.Freeze(ctx, quiesce.NewTools(g.clients, planner), plan, g.quiesce, g.log, g.backup.Name)
	if err != nil {
		return g.refuse(ctx, errors.Join(err, record.end(ctx, err)))
	}
	for claim, level := range plan.Unfrozen {
		if m := g.members[claim]; m != nil {
			m.snapshot.Annotations[api.AnnotationLevel] = level.Level
		}
	}
	g.create(ctx)
	g.keepFrozen(ctx, session, min(g.reaction(), plan.QuiesceTimeout/2))
	report := session.Report()
	g.reporter.Thawed(ctx, g.log, g.quiesce, report, g.backup.Name)
	if report.Broken == nil {
		if err := record.end(ctx, nil); err != nil {
			g.log.Warnf("Should the plugin's process die now, the snapshots of %s would be taken for inconsistent: %v", g.quiesce.Name(), err)
		}
		return nil
	}
	if g.quiesce.OnError == unit.Continue {
		g.refuseUnquiesced()
		return nil
	}
	return errors.Join(fmt.Errorf("%s: %w", g.quiesce.Name(), report.Broken), record.end(ctx, report.Broken))
}

// refuse reports that the freeze failed.
func (g *group) refuse(ctx context.Context, err error) error {
	g.reporter.Failed(ctx, g.log, g.quiesce, err, g.backup.Name)
	return fmt.Errorf("quiesce failed: %w", err)
}

// keepFrozen keeps the freeze until the storage has cut the last volume, or a snapshot
// has failed. reaction is how long the snapshot controller may be silent.
func (g *group) keepFrozen(ctx context.Context, session *quiesce.Session, reaction time.Duration) {
	timeout, look := time.NewTimer(g.timeout()), time.NewTicker(max(reaction/4, time.Millisecond))
	defer timeout.Stop()
	defer look.Stop()
	var grace <-chan time.Time
	for {
		pending, changed, failed := g.pending(reaction)
		switch {
		case failed == nil && len(pending) == 0:
			session.Thaw(ctx)
			return
		case failed == nil:
			grace = nil
		case grace == nil:
			grace = time.After(retryGrace)
		}
		for _, m := range g.members {
			if m.failed != nil { // it was not created
				session.Abandon(ctx, m.failed)
				return
			}
		}
		select {
		case <-changed:
		case <-look.C:
		case <-grace:
			session.Abandon(ctx, failed)
			return
		case <-timeout.C:
			session.Abandon(ctx, fmt.Errorf("the snapshots of %s were not cut within csiSnapshotTimeout %s", strings.Join(pending, ", "), g.timeout()))
			return
		case <-session.Thawed():
			return
		}
	}
}

// pending returns the claims whose snapshots are not cut, a channel that is closed at
// the next change, and the first failure.
func (g *group) pending(reaction time.Duration) (claims []string, changed <-chan struct{}, failed error) {
	// Read before the states, so that no change is missed.
	_, changed = g.snapshots.State(types.NamespacedName{})
	for _, name := range g.claims() {
		m := g.members[name]
		state, _ := g.snapshots.State(m.key())
		switch {
		case state.Failure != nil && failed == nil:
			failed = fmt.Errorf("the snapshot of claim %s/%s failed: %w", m.claim.Namespace, name, state.Failure)
		case state.Failure == nil && !state.Cut:
			claims = append(claims, name)
			if !state.Begun && failed == nil && !m.created.IsZero() {
				failed = g.snapshots.Silent(m.created, reaction)
			}
		case m.kept != nil: // its failure does not affect the first one
			if kept, _ := g.snapshots.State(m.keptKey()); kept.Failure == nil && !kept.Cut {
				claims = append(claims, name)
			}
		}
	}
	return claims, changed, failed
}

// timeout returns Velero's csiSnapshotTimeout.
func (g *group) timeout() time.Duration {
	if timeout := g.backup.Spec.CSISnapshotTimeout.Duration; timeout > 0 {
		return timeout
	}
	return velero.SnapshotTimeout
}

// reaction returns how long the snapshot controller may be silent.
func (g *group) reaction() time.Duration { return snapshot.Reaction(g.timeout()) }

// discard deletes all snapshots of an inconsistent group.
func (g *group) discard(ctx context.Context) error { return g.remove(ctx, g.claims()...) }

// remove deletes all snapshots of claims of the group, and the contents whose
// VolumeSnapshots were deleted.
func (g *group) remove(ctx context.Context, claims ...string) error {
	ctx, cancel := context.WithTimeout(ctx, removalLimit)
	defer cancel()
	var bound []snapshot.Target
	for _, claim := range claims {
		if m := g.members[claim]; m.snapshot != nil {
			if state, _ := g.snapshots.State(m.key()); state.Bound != nil {
				bound = append(bound, snapshot.TargetOf(state.Bound))
			}
		}
	}
	return errors.Join(
		snapshot.Delete(ctx, g.clients.Snapshots, g.quiesce.Claims[0].Namespace, snapshot.OwnedBy(g.backup), claims...),
		snapshot.DeleteAll(ctx, g.clients.Snapshots, bound...),
	)
}
