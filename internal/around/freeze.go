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
	// creationLimit is how long Velero may take to create the VolumeSnapshot after the
	// plugin's answer. After it, the freeze no longer waits for that VolumeSnapshot.
	creationLimit = 5 * time.Second
	// retryGrace is how long a freeze outlasts an error of the driver, in case the CSI
	// sidecar's next try succeeds.
	retryGrace = 2 * time.Second
	// cutLimit is how long the watch may be behind Velero's poll.
	cutLimit = 5 * time.Second
)

// stage is the progress of Velero and the storage with a claim.
type stage int

const (
	waiting stage = iota // Velero has not called for it
	entered              // the plugin has answered; a VolumeSnapshot must follow
	created              // the VolumeSnapshot exists
	cut                  // the VolumeSnapshot no longer changes
)

// freeze is one freeze of a unit, from the first call for one of its claims to the thaw.
type freeze struct {
	freezes *Freezes
	unit    *decision.Unit
	group   *unit.Unit // of the unit
	backup  *velerov1.Backup
	log     logrus.FieldLogger

	start   sync.Once
	failed  error // why the unit is not frozen
	session *quiesce.Session
	// unfrozen are the claims that Stillpoint does not freeze.
	unfrozen map[string]quiesce.Level
	over     chan struct{} // closed after the thaw, or if the freeze failed

	mu     sync.Mutex
	stages map[string]stage
	// returned are the claims whose calls returned during the freeze. ending reports
	// that no more follow.
	returned []*corev1.PersistentVolumeClaim
	ending   bool
	// seen are the VolumeSnapshots of each claim with the backup's name, and whether
	// each is cut. Another Velero may have a backup of that name. named are the claims
	// whose own VolumeSnapshot Velero has named.
	seen  map[string]map[string]bool
	named map[string]bool
	// foreign reports that another Velero has a Backup of this name.
	foreign bool
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

// enter freezes on the first call. Later calls join the freeze.
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

// missed handles a claim that was snapshotted without the freeze that it needs.
func (f *freeze) missed(ctx context.Context, claim *corev1.PersistentVolumeClaim, why string) error {
	f.once(ctx, func() error { return fmt.Errorf("volume %s was snapshotted without a freeze: %s", claim.Name, why) })
	if f.failed == nil || f.group.OnError == unit.Continue {
		return nil
	}
	f.discard(ctx, claim)
	return fmt.Errorf("the snapshot of claim %s/%s is not consistent and is deleted: %w", claim.Namespace, claim.Name, f.failed)
}

// begin does all work that is possible before the freeze, then freezes.
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
	if err := f.findForeign(ctx); err != nil {
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
		f.keepFrozen(watching, events)
	}()
	return nil
}

// plan returns the plan of the freeze and its planner.
func (f *freeze) plan(ctx context.Context) (*quiesce.Planner, *quiesce.Plan, error) {
	settings, err := f.freezes.decisions.Settings(ctx)
	if err != nil {
		return nil, nil, err
	}
	planner := quiesce.NewPlanner(settings, f.freezes.clients, f.freezes.executor, f.log.Warnf)
	plan, err := planner.Plan(ctx, f.group, f.backup)
	return planner, plan, err
}

// freeze executes the plan.
func (f *freeze) freeze(ctx context.Context, planner *quiesce.Planner, plan *quiesce.Plan) (err error) {
	f.unfrozen = plan.Unfrozen
	f.session, err = f.freezes.reporter.Freeze(ctx, quiesce.NewTools(f.freezes.clients, planner), plan, f.group, f.log, f.backup.Name)
	return err
}

// interrupted returns an error if an earlier process of this backup snapshotted a volume
// of the unit and died. The remaining snapshots would be of another moment.
func (f *freeze) interrupted(ctx context.Context, started time.Time) error {
	list, err := snapshot.List(ctx, f.freezes.clients.Snapshots, f.group.Claims[0].Namespace, snapshot.OfBackup(f.backup.Name).String())
	if err != nil {
		return err
	}
	for i := range list {
		vs := &list[i]
		source, uid := vs.Spec.Source.PersistentVolumeClaimName, vs.Labels[velerov1.BackupUIDLabel]
		if source == nil || vs.CreationTimestamp.Time.Before(started.Truncate(time.Second)) || snapshot.Foreign(vs, f.backup) || (f.foreign && uid == "") {
			continue
		}
		if f.covers(*source) {
			return fmt.Errorf("the plugin process ended while the workload was quiesced: volume %s was snapshotted (VolumeSnapshot %s/%s), the others would be of another moment",
				*source, vs.Namespace, vs.Name)
		}
	}
	return nil
}

// findForeign looks for a Backup of this name of another Velero. Without the permission
// to list Backups of other namespaces, finishClaim detects only afterwards that another
// Velero's snapshot caused the thaw.
func (f *freeze) findForeign(ctx context.Context) error {
	backups := &velerov1.BackupList{}
	err := f.freezes.clients.Objects.List(ctx, backups, crclient.MatchingFields{"metadata.name": f.backup.Name})
	if err != nil && !apierrors.IsForbidden(err) {
		return fmt.Errorf("list the Backups of the name %s: %w", f.backup.Name, err)
	}
	f.foreign = slices.ContainsFunc(backups.Items, func(b velerov1.Backup) bool { return b.Name == f.backup.Name && b.Namespace != f.backup.Namespace })
	return nil
}

// observe records a VolumeSnapshot of a claim. The claim is cut when all VolumeSnapshots
// that may be Velero's own are cut. Before the claim's turn no VolumeSnapshot is
// Velero's own.
func (f *freeze) observe(claim, name string, isCut bool) {
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
	f.updateStage(claim)
}

// setOwn records which VolumeSnapshot of a claim is Velero's own, and reports whether the
// watch has seen its cut.
func (f *freeze) setOwn(claim, name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	isCut := f.seen[claim][name]
	f.seen[claim], f.named[claim] = map[string]bool{name: isCut}, true
	f.updateStage(claim)
	return isCut
}

// updateStage updates the stage of a claim from its VolumeSnapshots. The caller holds mu.
func (f *freeze) updateStage(claim string) {
	f.stages[claim] = cut
	for _, isCut := range f.seen[claim] {
		if !isCut || (f.foreign && !f.named[claim]) {
			f.stages[claim] = created
		}
	}
	f.notify()
}

// notify notifies the goroutines that wait for a change of stages. The caller holds mu.
func (f *freeze) notify() {
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
	f.notify()
}

// idleLimit returns how long the freeze may last without an event, and the claim that it
// waits for: the session's time while the storage works, zero when all claims are cut.
// changed is closed when the answer may differ.
func (f *freeze) idleLimit() (limit time.Duration, awaited string, changed <-chan struct{}) {
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
		// Velero has to notice the previous cut.
		return creationLimit + f.unit.Poll(), all, changed
	}
	return 0, "", changed
}

// keepFrozen keeps the freeze until the last volume is cut.
func (f *freeze) keepFrozen(ctx context.Context, events <-chan snapshot.Event) {
	defer close(f.over)
	var grace <-chan time.Time
	var failure error
	for {
		limit, awaited, changed := f.idleLimit()
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
				f.observe(event.Claim, event.Snapshot, false)
			case snapshot.Cut:
				f.observe(event.Claim, event.Snapshot, true)
				grace, failure = nil, nil
			case snapshot.Begun, snapshot.Bound: // the thaw does not wait for these
			case snapshot.Failed, snapshot.Refused:
				failure = fmt.Errorf("the snapshot of volume %s failed: %s", event.Claim, event.Message)
				grace = time.After(retryGrace)
			}
		case <-changed:
		case <-grace:
			f.session.Abandon(ctx, failure)
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
	f.discardLeft(ctx)
}

// discardLeft discards the snapshots of the claims whose calls returned before the freeze
// broke.
func (f *freeze) discardLeft(ctx context.Context) {
	f.mu.Lock()
	f.ending = true
	f.mu.Unlock()
	broken := f.session.Report().Broken
	if broken == nil || f.group.OnError == unit.Continue {
		return
	}
	for _, claim := range f.returned {
		f.discard(ctx, claim)
		f.log.Errorf("The snapshot of claim %s/%s is not consistent and is deleted: %s: %v", claim.Namespace, claim.Name, f.group.Name(), broken)
	}
}

// continues reports whether the freeze continues after the call for a claim. It records
// the claim if so.
func (f *freeze) continues(claim *corev1.PersistentVolumeClaim) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ending {
		f.returned = append(f.returned, claim)
	}
	return !f.ending
}

// finishClaim handles a claim after Velero has seen the cut of its snapshot.
func (f *freeze) finishClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if f.session == nil { // the failure is reported already, or there is nothing to quiesce
		return nil
	}
	name := claim.Annotations[velerov1.VolumeSnapshotLabel]
	thawed := f.thawed() // read before setOwn and await
	isCut := name == "" || f.setOwn(claim.Name, name)
	f.await(claim.Name)
	if f.continues(claim) {
		return nil // the freeze continues for the remaining volumes
	}
	<-f.over
	report := f.session.Report()
	if thawed && !isCut && report.Broken == nil {
		report.Broken = fmt.Errorf("the workload was thawed when another VolumeSnapshot of the claim with this backup's name was cut, and not %s: another Velero may have a backup of the same name", name)
		f.log.Warnf("Thawed by another Velero's snapshot: claim %s/%s: %v", claim.Namespace, claim.Name, report.Broken)
	}
	broken := errors.Join(report.Broken, report.Stuck)
	if report.Broken == nil || f.group.OnError == unit.Continue {
		return nil // a stuck thaw is already reported as an error
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

// await waits until the watch has caught up with Velero's poll. If the watch reports
// nothing in time, the claim counts as cut, because Velero has seen its handle.
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
			f.move(claim, cut)
			timeout = nil
		}
	}
}

// discard deletes a snapshot that must not be restored from: the VolumeSnapshot with the
// storage's snapshot. If uploads read from it, discard cancels them instead.
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
		return // the upload's controller deletes the snapshot
	}
	ctx, cancel := context.WithTimeout(ctx, removalLimit)
	defer cancel()
	if err := snapshot.DeleteAll(ctx, f.freezes.clients.Snapshots, f.targets(claim)...); err != nil {
		f.log.Error(err)
	}
}

// removalLimit is how long a claim's call waits for the deletion of an inconsistent
// snapshot. The next sweep deletes the rest.
const removalLimit = 15 * time.Second

// targets returns the snapshots of a claim: the one that Velero's action has named, or
// all that the watch has seen if the action failed earlier.
func (f *freeze) targets(claim *corev1.PersistentVolumeClaim) (targets []snapshot.Target) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := slices.Collect(maps.Keys(f.seen[claim.Name]))
	if name := claim.Annotations[velerov1.VolumeSnapshotLabel]; name != "" {
		names = []string{name}
	} else if f.foreign {
		return nil // they may be another Velero's
	}
	for _, name := range names {
		targets = append(targets, snapshot.Target{Namespace: claim.Namespace, Name: name})
	}
	return targets
}
