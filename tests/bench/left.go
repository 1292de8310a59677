package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

const (
	// leftVolumes is how many volumes each of the backups has, and leftEvery
	// which uploads are spoiled.
	leftVolumes, leftEvery = 5, 10
	leftPrefix             = "bench-left-"
	leftLimit              = 20 * time.Minute // for one backup, others run beside it
	// played is the data mover that the bench plays: it moves nothing, and ends
	// uploads as it is told. Velero's takes 4 to 5 seconds for each upload, one
	// after another on each node, before it begins to move.
	played = "bench-mover"
	// veleroMover is Velero's own, for the command line and the figures.
	veleroMover = "velero"
	// playedBackups are those that are moved so.
	playedBackups = 100
)

// spoiling is how an upload is kept from being Completed.
type spoiling int

const (
	spared spoiling = iota
	cancelled
	cancelledRunning
	failed // Velero's mover: its pod's time is up
	deleted
)

var spoilings = []spoiling{cancelled, cancelledRunning, failed, deleted}

// spoilingOf is what happens to an upload, by the numbers of its backup and of
// its volume from 0: every second backup loses one of its uploads, each time
// that of another volume in another way, so that every pair of them occurs.
func spoilingOf(backup, volume int) spoiling {
	turn := backup / (leftEvery / leftVolumes)
	if backup%(leftEvery/leftVolumes) != 0 || turn%leftVolumes != volume {
		return spared
	}
	return spoilings[turn%len(spoilings)]
}

// leftovers are what many backups leave in the storage.
type leftovers struct {
	by      mover
	played  bool
	backups int
	// ended is how many uploads ended in each phase; "gone" is a deleted one.
	ended map[string]int
	// left are the storage's snapshots that stayed, taken how many of each
	// class there were.
	left, taken map[snapshotClass]int
	took        time.Duration
}

// measureLeft makes many backups, some of whose uploads fail, and counts what
// stays in the storage.
func (b *bench) measureLeft(ctx context.Context, found *results) error {
	var namespaces [][]movedClaim
	retain, remove := snapshotClasses[0], snapshotClasses[1]
	for i := range backupsAtOnce {
		claims, err := b.makeMoved(ctx, fmt.Sprintf("%s%d", leftPrefix, i+1), retain, remove, retain, remove, retain)
		if err != nil {
			return fmt.Errorf("make claims: %w", err)
		}
		namespaces = append(namespaces, claims)
	}
	if err := b.tune(ctx); err != nil {
		return err
	}
	run := func(by mover, backups int, plays bool) error {
		if backups == 0 {
			return nil
		}
		l, err := b.leave(ctx, namespaces, by, backups, plays)
		if err != nil {
			return err
		}
		found.leftovers = append(found.leftovers, l)
		b.Say("%s", l)
		for _, claims := range namespaces {
			if err := b.dropAll(ctx, claims[0].namespace); err != nil {
				return fmt.Errorf("drop what is left: %w", err)
			}
		}
		return nil
	}
	if err := b.registerMover(ctx); err != nil {
		return err
	}
	if err := run(byStillpoint, b.playedBackups, true); err != nil {
		return err
	}
	if err := run(byStillpoint, b.backups, false); err != nil {
		return err
	}
	if b.veleroBackups == 0 {
		return nil
	}
	return b.withoutPlugin(ctx, func() error { return run(byVelero, b.veleroBackups, false) })
}

// String is for the timeline and the report.
func (l leftovers) String() string {
	var ends []string
	for _, phase := range slices.Sorted(maps.Keys(l.ended)) {
		ends = append(ends, fmt.Sprintf("%d %s", l.ended[phase], phase))
	}
	var left []string
	for _, class := range snapshotClasses {
		if l.taken[class] > 0 {
			left = append(left, fmt.Sprintf("%d of %d with class %s", l.left[class], l.taken[class], class))
		}
	}
	return fmt.Sprintf("%s, %d backups of %d volumes (%s; %.0f min): left %s",
		moving(l.by, l.played), l.backups, leftVolumes, strings.Join(ends, ", "), l.took.Minutes(), strings.Join(left, ", "))
}

// total is how many snapshots stayed, of any class.
func (l leftovers) total() int {
	n := 0
	for _, left := range l.left {
		n += left
	}
	return n
}

// registerMover tells Stillpoint of the mover that the bench plays. As in any
// other mover's profile the snapshots are to be deleted only when it says so.
func (b *bench) registerMover(ctx context.Context) error {
	object := moverConfig()
	object.Data = map[string]string{"config.yaml": "version: v1\ndataMovers:\n- {name: " + played + ", deleteSnapshots: true}\n"}
	err := b.Objects().Create(ctx, object)
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func moverConfig() *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Namespace: cluster.VeleroNamespace, Name: played,
		Labels: map[string]string{"velero.io/plugin-config": "", "stillpoint.io/stillpoint": "Configuration"},
	}}
}

// leave makes the backups, as many at once as there are namespaces.
func (b *bench) leave(ctx context.Context, namespaces [][]movedClaim, by mover, backups int, plays bool) (leftovers, error) {
	l := leftovers{by: by, played: plays, backups: backups, left: map[snapshotClass]int{}, taken: map[snapshotClass]int{}}
	prefix := leftPrefix + by.String() + "-"
	dataMover := ""
	if plays {
		prefix, dataMover = leftPrefix+"played-", played
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	uploads, err := b.Objects().Watch(ctx, &velerov2alpha1.DataUploadList{}, client.InNamespace(cluster.VeleroNamespace))
	if err != nil {
		return l, fmt.Errorf("watch the uploads: %w", err)
	}
	defer uploads.Stop()
	s := &spoiler{bench: b, prefix: prefix, plays: plays, ended: map[string]string{}}
	began := time.Now()
	done := make(chan error, 1)
	go func() {
		done <- atOnce(len(namespaces), func(n int) error {
			for i := n; i < backups; i += len(namespaces) {
				if err := b.leaveOne(ctx, fmt.Sprintf("%s%d", prefix, i), namespaces[n][0].namespace, by, dataMover); err != nil {
					cancel()
					return err
				}
				b.Say("backup %d of %d by %s has ended", i+1, backups, by)
			}
			return nil
		})
	}()
	for waiting := true; waiting; {
		select {
		case err := <-done:
			if err != nil {
				return l, err
			}
			waiting = false
		case event, open := <-uploads.ResultChan():
			if !open {
				return l, errors.Join(errors.New("the watch on the uploads has ended"), ctx.Err())
			}
			if err := s.see(ctx, event); err != nil {
				return l, err
			}
		}
	}
	l.took = time.Since(began)
	l.ended = map[string]int{}
	for _, how := range s.ended {
		l.ended[how]++
	}
	if len(s.ended) != backups*leftVolumes {
		return l, fmt.Errorf("%d of %d uploads were seen to end: %v", len(s.ended), backups*leftVolumes, l.ended)
	}
	for i := range backups {
		for _, claim := range namespaces[i%len(namespaces)] {
			l.taken[claim.class]++
		}
	}
	left, err := b.left(ctx, slices.Concat(namespaces...))
	for class, n := range left {
		l.left[class] += n
	}
	return l, err
}

// leaveOne makes one of the backups. It is Completed, or PartiallyFailed where
// uploads were spoiled.
func (b *bench) leaveOne(ctx context.Context, name, namespace string, by mover, dataMover string) error {
	ctx, cancel := context.WithTimeout(ctx, leftLimit)
	defer cancel()
	if err := b.createMoving(ctx, name, namespace, by, dataMover); err != nil {
		return err
	}
	backup, err := b.AwaitBackup(ctx, name, nil)
	if err != nil {
		return err
	}
	if backup.Status.Phase == velerov1.BackupPhasePartiallyFailed {
		return nil
	}
	return b.Promised(ctx, backup)
}

// spoiler spoils some uploads and notes how each ends.
type spoiler struct {
	*bench
	prefix string
	plays  bool
	ended  map[string]string // the phase, by name
	// within is the time in which the bench, as the mover, ends an upload, at any
	// moment of it, and sends the outcome to late. 0 is at once.
	within time.Duration
	late   chan error
	ending map[string]bool // by name, those that will end so
}

// see spoils an upload if its turn has come.
func (s *spoiler) see(ctx context.Context, event watch.Event) error {
	upload, ok := event.Object.(*velerov2alpha1.DataUpload)
	if !ok {
		return nil
	}
	number, err := strconv.Atoi(strings.TrimPrefix(upload.Labels[velerov1.BackupNameLabel], s.prefix))
	if err != nil {
		return nil //nolint:nilerr // another backup's
	}
	volume, err := strconv.Atoi(strings.TrimPrefix(upload.Spec.SourcePVC, "data"))
	if err != nil {
		return fmt.Errorf("upload %s is of claim %s", upload.Name, upload.Spec.SourcePVC)
	}
	return s.act(ctx, event, spoilingOf(number, volume-1))
}

// act notes how an upload has ended, or does what is next to spoil it or, as its
// mover, to end it. Velero's mover writes to it at the same time, so only the
// fields that change are sent.
func (s *spoiler) act(ctx context.Context, event watch.Event, how spoiling) error {
	upload, ok := event.Object.(*velerov2alpha1.DataUpload)
	if !ok || s.ended[upload.Name] != "" {
		return nil
	}
	phase := upload.Status.Phase
	switch {
	case event.Type == watch.Deleted:
		s.ended[upload.Name] = "gone"
		return nil
	case uploadEnded(upload):
		s.ended[upload.Name] = string(phase)
		return nil
	case upload.DeletionTimestamp != nil:
		return nil
	}
	before := upload.DeepCopy()
	running := phase == velerov2alpha1.DataUploadPhaseInProgress
	switch how {
	case spared, failed:
		if !s.plays && (how == spared || !running) {
			return nil
		}
	case deleted:
		upload.Finalizers = nil
		if err := client.IgnoreNotFound(s.Objects().Patch(ctx, upload, client.MergeFrom(before))); err != nil {
			return err
		}
		return client.IgnoreNotFound(s.Objects().Delete(ctx, upload))
	case cancelled:
		upload.Spec.Cancel = true
	case cancelledRunning:
		upload.Spec.Cancel = running || upload.Spec.Cancel
	}
	switch {
	case s.plays:
		upload.Status.Phase = playedPhase(how, running)
		if running && s.within > 0 {
			if s.ending[upload.Name] {
				return nil
			}
			s.ending[upload.Name] = true
			wait := rand.N(s.within) //nolint:gosec // nobody is to be kept from guessing it
			time.AfterFunc(wait, func() { s.late <- s.Objects().Patch(ctx, upload, client.MergeFrom(before)) })
			return nil
		}
	case how == failed:
		// Its pod fails. One that is deleted the node-agent does not always
		// notice, and waits for hours.
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: upload.Namespace, Name: upload.Name}}
		deadline := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"activeDeadlineSeconds":1}}`))
		return client.IgnoreNotFound(s.Objects().Patch(ctx, pod, deadline))
	}
	return client.IgnoreNotFound(s.Objects().Patch(ctx, upload, client.MergeFrom(before)))
}

// uploadEnded is whether an upload stays as it is.
func uploadEnded(upload *velerov2alpha1.DataUpload) bool {
	return slices.Contains([]velerov2alpha1.DataUploadPhase{
		velerov2alpha1.DataUploadPhaseCompleted, velerov2alpha1.DataUploadPhaseFailed, velerov2alpha1.DataUploadPhaseCanceled,
	}, upload.Status.Phase)
}

// playedPhase is to which phase the bench brings an upload as its mover.
func playedPhase(how spoiling, running bool) velerov2alpha1.DataUploadPhase {
	switch {
	case !running:
		return velerov2alpha1.DataUploadPhaseInProgress
	case how == failed:
		return velerov2alpha1.DataUploadPhaseFailed
	case how == cancelled || how == cancelledRunning:
		return velerov2alpha1.DataUploadPhaseCanceled
	default:
		return velerov2alpha1.DataUploadPhaseCompleted
	}
}
