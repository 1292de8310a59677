package around

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/decision"
	"stillpoint.io/stillpoint/internal/quiesce"
	"stillpoint.io/stillpoint/internal/snapshot"
	"stillpoint.io/stillpoint/internal/unit"
)

const (
	// creationLimit is how long Velero may take from our answer until it has
	// created the VolumeSnapshot; past it, it is taken for one that never comes.
	creationLimit = 5 * time.Second
	// retryGrace is how long a freeze outlasts an error of the driver, in case
	// the CSI sidecar's next try succeeds.
	retryGrace = 2 * time.Second
	// cutLimit is how long our watch may be behind Velero's poll.
	cutLimit = 5 * time.Second
)

// stage is how far Velero and the storage are with a claim.
type stage int

const (
	waiting stage = iota // Velero has not come to it
	entered              // our answer is given: a VolumeSnapshot must come
	created              // the VolumeSnapshot is there
	cut                  // its point in time is past
)

// freeze is one group of volumes, from the first call for one of its claims to
// the thaw.
type freeze struct {
	freezes *Freezes
	unit    *decision.Unit
	group   *unit.Unit // of the unit
	backup  *velerov1.Backup
	log     logrus.FieldLogger

	start   sync.Once
	failed  error // why nothing is frozen
	session *quiesce.Session
	// unfrozen are the claims that Stillpoint does not freeze.
	unfrozen map[string]quiesce.Level
	over     chan struct{} // closed when thawed, or never frozen

	mu     sync.Mutex
	stages map[string]stage
	// left are the claims whose calls have ended while the freeze went on, and ending
	// says that no more are to come.
	left   []*corev1.PersistentVolumeClaim
	ending bool
	// seen are the VolumeSnapshots of each claim with the backup's name, and whether
	// each is cut: another Velero may have a backup of that name. named are the
	// claims of which Velero has told which one is its own.
	seen  map[string]map[string]bool
	named map[string]bool
	// twin reports that another Velero has a Backup of this name.
	twin bool
	// changed is closed, and replaced, when stages change.
	changed chan struct{}
}

func newFreeze(b *Freezes, unit *decision.Unit, backup *velerov1.Backup) *freeze {
	return &freeze{
		freezes: b, unit: unit, group: unit.Quiesce, backup: backup, failed: unit.Refusal,
		log:     b.log.WithField("workload", unit.Quiesce.Name()),
		over:    make(chan struct{}),
		stages:  map[string]stage{},
		seen:    map[string]map[string]bool{},
		named:   map[string]bool{},
		changed: make(chan struct{}),
	}
}

// enter freezes on the first call and lets the others join.
func (f *freeze) enter(ctx context.Context, claim string) error {
	f.once(ctx, func() error { return f.begin(ctx) })
	if f.failed != nil {
		if f.group.OnError == unit.Continue {
			return nil
		}
		return fmt.Errorf("quiesce failed, so claim %s/%s is not snapshotted: %w", f.group.Claims[0].Namespace, claim, f.failed)
	}
	f.move(claim, entered)
	return nil
}

func (f *freeze) once(ctx context.Context, begin func() error) {
	f.start.Do(func() {
		f.mu.Lock()
		for _, claim := range f.group.Claims {
			f.stages[claim.Name] = waiting
		}
		f.mu.Unlock()
		decision.Log(f.log, logrus.InfoLevel, f.unit.Findings())
		if f.failed == nil {
			f.failed = begin()
		}
		if f.failed != nil {
			close(f.over)
			f.freezes.reporter.Failed(ctx, f.log, f.group, f.failed, f.backup.Name)
		}
	})
}

// missed is called for a claim that should have been frozen for, and has its
// snapshot already.
func (f *freeze) missed(ctx context.Context, claim *corev1.PersistentVolumeClaim, why string) error {
	f.once(ctx, func() error { return fmt.Errorf("volume %s was snapshotted without a freeze: %s", claim.Name, why) })
	if f.failed == nil || f.group.OnError == unit.Continue {
		return nil
	}
	f.discard(ctx, claim)
	return fmt.Errorf("the snapshot of claim %s/%s is not consistent and is deleted: %w", claim.Namespace, claim.Name, f.failed)
}

// begin does everything that can be done before the freeze, and freezes.
func (f *freeze) begin(ctx context.Context) error {
	started := time.Now()
	if f.backup.Status.StartTimestamp != nil {
		started = f.backup.Status.StartTimestamp.Time
	}
	planner, plan, err := f.plan(ctx)
	if err != nil || plan.Empty() {
		return err
	}
	if err := f.unit.Outlasts(plan.QuiesceTimeout); err != nil {
		return err
	}
	if err := f.findTwin(ctx); err != nil {
		return err
	}
	if err := f.interrupted(ctx, started); err != nil {
		return err
	}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	events, err := snapshot.Watch(watching, f.freezes.clients.Snapshots, f.group.Claims[0].Namespace, f.backup)
	if err != nil {
		stop()
		return err
	}
	if err := f.freeze(ctx, planner, plan); err != nil {
		stop()
		return err
	}
	go func() {
		defer stop()
		f.hold(watching, events)
	}()
	return nil
}

// plan makes the plan of the freeze, and what it is carried out with.
func (f *freeze) plan(ctx context.Context) (*quiesce.Planner, *quiesce.Plan, error) {
	settings, err := f.freezes.decisions.Settings(ctx)
	if err != nil {
		return nil, nil, err
	}
	planner := quiesce.NewPlanner(settings, f.freezes.clients, f.freezes.executor, f.log.Warnf)
	plan, err := planner.Plan(ctx, f.group, f.backup)
	return planner, plan, err
}

// freeze carries the plan out.
func (f *freeze) freeze(ctx context.Context, planner *quiesce.Planner, plan *quiesce.Plan) (err error) {
	f.unfrozen = plan.Unfrozen
	f.session, err = f.freezes.reporter.Freeze(ctx, quiesce.NewTools(f.freezes.clients, planner), plan, f.group, f.log, f.backup.Name)
	return err
}

// interrupted recognizes that an earlier process of this backup has begun with
// this group and died: what is left could not be of the same moment.
func (f *freeze) interrupted(ctx context.Context, started time.Time) error {
	list, err := snapshot.List(ctx, f.freezes.clients.Snapshots, f.group.Claims[0].Namespace, snapshot.OfBackup(f.backup.Name).String())
	if err != nil {
		return err
	}
	for i := range list {
		vs := &list[i]
		source, uid := vs.Spec.Source.PersistentVolumeClaimName, vs.Labels[velerov1.BackupUIDLabel]
		if source == nil || vs.CreationTimestamp.Time.Before(started.Truncate(time.Second)) || snapshot.Foreign(vs, f.backup) || (f.twin && uid == "") {
			continue
		}
		if f.covers(*source) {
			return fmt.Errorf("the plugin process ended while the workload was quiesced: volume %s was snapshotted (VolumeSnapshot %s/%s), the others would be of another moment",
				*source, vs.Namespace, vs.Name)
		}
	}
	return nil
}

// findTwin looks for a Backup of this name of another Velero. Without the right to
// look, it is only found out afterwards that a thaw was for another's snapshot.
func (f *freeze) findTwin(ctx context.Context) error {
	backups := &velerov1.BackupList{}
	err := f.freezes.clients.Objects.List(ctx, backups, crclient.MatchingFields{"metadata.name": f.backup.Name})
	if err != nil && !apierrors.IsForbidden(err) {
		return fmt.Errorf("list the Backups of the name %s: %w", f.backup.Name, err)
	}
	f.twin = slices.ContainsFunc(backups.Items, func(b velerov1.Backup) bool { return b.Name == f.backup.Name && b.Namespace != f.backup.Namespace })
	return nil
}

// see takes note of a VolumeSnapshot of a claim. The claim is cut when all of its
// VolumeSnapshots are that may be Velero's own, which are none before its turn.
func (f *freeze) see(claim, name string, isCut bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, known := f.seen[claim][name]
	at, ours := f.stages[claim]
	if !ours || (!known && (at == waiting || isCut || f.named[claim])) {
		return
	}
	if f.seen[claim] == nil {
		f.seen[claim] = map[string]bool{}
	}
	f.seen[claim][name] = isCut || f.seen[claim][name]
	f.reach(claim)
}

// name takes note of which VolumeSnapshot Velero has taken of a claim, and reports
// whether it was seen cut.
func (f *freeze) name(claim, name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	isCut := f.seen[claim][name]
	f.seen[claim], f.named[claim] = map[string]bool{name: isCut}, true
	f.reach(claim)
	return isCut
}

// reach sets how far the snapshots of a claim are. The caller holds mu.
func (f *freeze) reach(claim string) {
	f.stages[claim] = cut
	for _, isCut := range f.seen[claim] {
		if !isCut || (f.twin && !f.named[claim]) {
			f.stages[claim] = created
		}
	}
	f.wake()
}

// wake has those look again who wait for a change of stages. The caller holds mu.
func (f *freeze) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *freeze) covers(claim string) bool {
	return slices.ContainsFunc(f.group.Claims, func(c corev1.PersistentVolumeClaim) bool { return c.Name == claim })
}

func (f *freeze) move(claim string, to stage) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at, ok := f.stages[claim]; ok && at < to {
		f.stages[claim] = to
	}
	f.wake()
}

// patience is how long the freeze may last with nothing happening: while the
// storage works, as long as the session; zero when all is cut. changed is closed when
// that may be different.
func (f *freeze) patience() (limit time.Duration, awaited string, changed <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	changed = f.changed
	var next, all string
	for claim, at := range f.stages {
		switch at {
		case created:
			return time.Hour, claim, changed
		case entered:
			next = claim
		case waiting:
			all = claim
		case cut:
		}
	}
	switch {
	case next != "":
		return creationLimit, next, changed
	case all != "":
		// Velero has to notice the cut of the one before.
		return creationLimit + f.unit.Poll(), all, changed
	}
	return 0, "", changed
}

// hold keeps the freeze until the last volume is cut.
func (f *freeze) hold(ctx context.Context, events <-chan snapshot.Event) {
	defer close(f.over)
	var grace <-chan time.Time
	var trouble error
	for {
		limit, awaited, changed := f.patience()
		if limit == 0 {
			f.session.Thaw(ctx)
			break
		}
		idle := time.NewTimer(limit)
		select {
		case event := <-events:
			if !f.covers(event.Claim) {
				break
			}
			switch event.Kind {
			case snapshot.Created:
				f.see(event.Claim, event.Snapshot, false)
			case snapshot.Cut:
				f.see(event.Claim, event.Snapshot, true)
				grace, trouble = nil, nil
			case snapshot.Begun, snapshot.Bound: // the thaw does not wait for it
			case snapshot.Failed, snapshot.Refused:
				trouble = fmt.Errorf("the snapshot of volume %s failed: %s", event.Claim, event.Message)
				grace = time.After(retryGrace)
			}
		case <-changed:
		case <-grace:
			f.session.Abandon(ctx, trouble)
		case <-idle.C:
			f.session.Abandon(ctx, fmt.Errorf("no VolumeSnapshot of volume %s was created within %s", awaited, limit))
		case <-f.session.Thawed():
		}
		idle.Stop()
		select {
		case <-f.session.Thawed():
		default:
			continue
		}
		break
	}
	f.freezes.reporter.Thawed(ctx, f.log, f.group, f.session.Report(), f.backup.Name)
	f.settle(ctx)
}

// settle discards the snapshots of claims whose calls have ended before it was known
// that the freeze was not whole.
func (f *freeze) settle(ctx context.Context) {
	f.mu.Lock()
	f.ending = true
	f.mu.Unlock()
	broken := f.session.Report().Broken
	if broken == nil || f.group.OnError == unit.Continue {
		return
	}
	for _, claim := range f.left {
		f.discard(ctx, claim)
		f.log.Errorf("The snapshot of claim %s/%s is not consistent and is deleted: %s: %v", claim.Namespace, claim.Name, f.group.Name(), broken)
	}
}

// goesOn reports whether the freeze goes on after the call for a claim, and remembers
// the claim then.
func (f *freeze) goesOn(claim *corev1.PersistentVolumeClaim) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ending {
		f.left = append(f.left, claim)
	}
	return !f.ending
}

// leave is called when Velero has seen the claim's snapshot cut.
func (f *freeze) leave(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if f.session == nil { // complained already, or nothing is to be quiesced
		return nil
	}
	name := claim.Annotations[velerov1.VolumeSnapshotLabel]
	thawed := f.thawed() // for what was cut by then
	isCut := name == "" || f.name(claim.Name, name)
	f.await(claim.Name)
	if f.goesOn(claim) {
		return nil // held for the volumes that are left
	}
	<-f.over
	report := f.session.Report()
	if thawed && !isCut && report.Broken == nil {
		report.Broken = fmt.Errorf("the workload was thawed when another VolumeSnapshot of the claim with this backup's name was cut, and not %s: another Velero may have a backup of the same name", name)
		f.log.Warnf("Thawed by another Velero's snapshot: claim %s/%s: %v", claim.Namespace, claim.Name, report.Broken)
	}
	broken := errors.Join(report.Broken, report.Stuck)
	if report.Broken == nil || f.group.OnError == unit.Continue {
		return nil // a thaw that is stuck has been reported as an error
	}
	f.discard(ctx, claim)
	return fmt.Errorf("the snapshot of claim %s/%s is not consistent and is deleted: %s: %w", claim.Namespace, claim.Name, f.group.Name(), broken)
}

func (f *freeze) thawed() bool {
	select {
	case <-f.over:
		return true
	default:
		return false
	}
}

// await lets our watch catch up with Velero's poll, and thaws when the last
// claim is here and the watch is still silent.
func (f *freeze) await(claim string) {
	timeout := time.After(cutLimit)
	for {
		f.mu.Lock()
		done := f.stages[claim] == cut
		last := true
		for _, at := range f.stages {
			last = last && at == cut
		}
		changed := f.changed
		f.mu.Unlock()
		if done && !last {
			return
		}
		select {
		case <-f.over:
			return
		case <-changed:
		case <-timeout:
			f.move(claim, cut) // Velero has seen its handle
			timeout = nil
		}
	}
}

// discard deletes a snapshot that must not be restored from: the
// VolumeSnapshot with what it stands for, or the upload that reads from it.
func (f *freeze) discard(ctx context.Context, claim *corev1.PersistentVolumeClaim) {
	uploads := &velerov2alpha1.DataUploadList{}
	err := f.freezes.clients.Objects.List(ctx, uploads, crclient.InNamespace(f.backup.Namespace), crclient.MatchingLabels{
		velerov1.BackupUIDLabel: string(f.backup.UID), velerov1.PVCUIDLabel: string(claim.UID),
	})
	if err != nil {
		f.log.Errorf("List the DataUploads of claim %s/%s: %v", claim.Namespace, claim.Name, err)
	}
	for i := range uploads.Items {
		upload := &uploads.Items[i]
		before := upload.DeepCopy()
		upload.Spec.Cancel = true
		if err := f.freezes.clients.Objects.Patch(ctx, upload, crclient.MergeFrom(before)); err != nil {
			f.log.Errorf("Cancel DataUpload %s: %v", upload.Name, err)
		}
	}
	if len(uploads.Items) > 0 {
		return // its controller cleans up the snapshot that it was given
	}
	ctx, cancel := context.WithTimeout(ctx, removalLimit)
	defer cancel()
	if err := snapshot.DeleteAll(ctx, f.freezes.clients.Snapshots, f.targets(claim)...); err != nil {
		f.log.Error(err)
	}
}

// removalLimit is how long a claim's call waits for a snapshot to go that must not be
// restored from. The next sweep deletes what remains.
const removalLimit = 15 * time.Second

// targets are the snapshots of a claim: the one that Velero's action has named, or
// those that the watch has seen where the action failed before that.
func (f *freeze) targets(claim *corev1.PersistentVolumeClaim) (targets []snapshot.Target) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := slices.Collect(maps.Keys(f.seen[claim.Name]))
	if name := claim.Annotations[velerov1.VolumeSnapshotLabel]; name != "" {
		names = []string{name}
	} else if f.twin {
		return nil // they may be another Velero's
	}
	for _, name := range names {
		targets = append(targets, snapshot.Target{Namespace: claim.Namespace, Name: name})
	}
	return targets
}
