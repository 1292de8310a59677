package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

const (
	exportNamespace = "bench-export"
	// Each backup has so many exports of each class, and there are exportRuns:
	// 20 in all.
	exportsEach, exportRuns = 4, 5
	exportLimit             = 8 * time.Minute
	// storagePoll is how often the driver is asked what it has.
	storagePoll = 50 * time.Millisecond
	// playedWithin is two polls of Velero: uploads end at any moment between them.
	playedWithin = 20 * time.Second
)

// exports are those of one class. Played are those whose data mover is the
// bench: it deletes nothing, so what is measured is Stillpoint's own work. Velero's
// mover deletes the snapshot, and waits for the objects, before it says Completed.
type exports struct {
	by     mover
	played bool
	class  snapshotClass
	// gone is how long after its upload was Completed each snapshot was gone
	// from the storage; 0 when it was gone before.
	gone []time.Duration
	left int
}

// measureExports takes the time from when an upload is Completed until the
// storage's snapshot is gone, with Stillpoint and by Velero alone. Where the bench
// is the mover there is no Velero alone: it deletes no snapshot of such an upload.
func (b *bench) measureExports(ctx context.Context, found *results) error {
	var classes []snapshotClass
	for range exportsEach {
		classes = append(classes, snapshotClasses...)
	}
	claims, err := b.makeMoved(ctx, exportNamespace, classes...)
	if err != nil {
		return fmt.Errorf("make %d claims: %w", len(classes), err)
	}
	if err := b.tune(ctx); err != nil {
		return err
	}
	if err := b.registerMover(ctx); err != nil {
		return err
	}
	run := func(by mover, plays bool) error {
		prefix := "bench-export-" + by.String()
		if plays {
			prefix = "bench-export-played"
		}
		for i := range exportRuns {
			if err := b.exportAll(ctx, fmt.Sprintf("%s-%d", prefix, i+1), by, plays, claims, found); err != nil {
				return err
			}
			if err := b.dropAll(ctx, exportNamespace); err != nil {
				return fmt.Errorf("drop what is left: %w", err)
			}
			for _, e := range found.exports {
				if e.by == by && e.played == plays {
					b.Say("exports by %s, class %s, run %d of %d: %s s, %d left", e.who(), e.class, i+1, exportRuns, spreadOf(values(e.gone, time.Duration.Seconds), "%.1f"), e.left)
				}
			}
		}
		return nil
	}
	if slices.Contains(b.dataMovers, played) {
		if err := run(byStillpoint, true); err != nil {
			return err
		}
	}
	if !slices.Contains(b.dataMovers, veleroMover) {
		return nil
	}
	if err := run(byStillpoint, false); err != nil {
		return err
	}
	return b.withoutPlugin(ctx, func() error { return run(byVelero, false) })
}

// exportAll makes one backup of the claims that moves their data.
func (b *bench) exportAll(ctx context.Context, name string, by mover, plays bool, claims []movedClaim, found *results) error {
	ctx, cancel := context.WithTimeout(ctx, exportLimit)
	defer cancel()
	uploads, err := b.Objects().Watch(ctx, &velerov2alpha1.DataUploadList{},
		client.InNamespace(cluster.VeleroNamespace), client.MatchingLabels{velerov1.BackupNameLabel: name})
	if err != nil {
		return fmt.Errorf("watch the uploads: %w", err)
	}
	defer uploads.Stop()
	dataMover := ""
	if plays {
		dataMover = played
	}
	play := &spoiler{
		bench: b, plays: plays, ended: map[string]string{},
		within: playedWithin, late: make(chan error, len(claims)), ending: map[string]bool{},
	}
	ended := make(chan error, 1)
	go func() {
		err := b.createMoving(ctx, name, exportNamespace, by, dataMover)
		if err == nil {
			var backup *velerov1.Backup
			if backup, err = b.AwaitBackup(ctx, name, nil); err == nil {
				err = b.Promised(ctx, backup)
			}
		}
		ended <- err
	}()
	seen := newSightings(claims)
	ticks := time.NewTicker(storagePoll)
	defer ticks.Stop()
	var grace <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the exports of backup %s: %w", name, ctx.Err())
		case err := <-ended:
			if err != nil {
				return err
			}
			grace = time.After(leftGrace)
		case err := <-play.late:
			if err != nil {
				return fmt.Errorf("end an upload of backup %s as its mover: %w", name, err)
			}
		case event, open := <-uploads.ResultChan():
			if !open {
				return errors.New("the watch on the uploads has ended")
			}
			seen.upload(event, time.Now())
			if err := play.act(ctx, event, spared); err != nil {
				return err
			}
		case <-ticks.C:
			stored, err := b.storedOf(ctx, claims)
			if err != nil {
				return err
			}
			seen.storage(stored, time.Now())
			if grace != nil && seen.allGone() {
				return seen.into(found, by, plays)
			}
		case <-grace:
			return seen.into(found, by, plays)
		}
	}
}

// sightings are what was seen of the exports of one backup, by claim.
type sightings struct {
	claims               []movedClaim
	cut, gone, completed []time.Time
}

func newSightings(claims []movedClaim) *sightings {
	n := len(claims)
	return &sightings{claims, make([]time.Time, n), make([]time.Time, n), make([]time.Time, n)}
}

// upload notes when an upload is first seen Completed.
func (s *sightings) upload(event watch.Event, now time.Time) {
	upload, ok := event.Object.(*velerov2alpha1.DataUpload)
	if !ok || upload.Status.Phase != velerov2alpha1.DataUploadPhaseCompleted {
		return
	}
	i := slices.IndexFunc(s.claims, func(c movedClaim) bool { return c.name == upload.Spec.SourcePVC })
	if i >= 0 && s.completed[i].IsZero() {
		s.completed[i] = now
	}
}

// storage notes when the storage has a snapshot of a volume, and when no more.
func (s *sightings) storage(stored map[string][]string, now time.Time) {
	for i, c := range s.claims {
		switch n := len(stored[c.volume]); {
		case n > 0 && s.cut[i].IsZero():
			s.cut[i] = now
		case n > 0:
			s.gone[i] = time.Time{} // a second one
		case !s.cut[i].IsZero() && s.gone[i].IsZero():
			s.gone[i] = now
		}
	}
}

func (s *sightings) allGone() bool {
	return !slices.ContainsFunc(s.gone, time.Time.IsZero)
}

// into adds what was seen to the results. That a claim was not exported, or no
// snapshot of it was seen, is an error.
func (s *sightings) into(found *results, by mover, plays bool) error {
	for i, c := range s.claims {
		if s.cut[i].IsZero() || s.completed[i].IsZero() {
			return fmt.Errorf("claim %s/%s: a snapshot was seen: %t, its upload Completed: %t", c.namespace, c.name, !s.cut[i].IsZero(), !s.completed[i].IsZero())
		}
		e := found.exportsOf(by, plays, c.class)
		if s.gone[i].IsZero() {
			e.left++
			continue
		}
		e.gone = append(e.gone, max(0, s.gone[i].Sub(s.completed[i])))
	}
	return nil
}

// who is for people.
func (e *exports) who() string { return moving(e.by, e.played) }

// exportsOf are the exports of one class, added where there are none.
func (r *results) exportsOf(by mover, plays bool, class snapshotClass) *exports {
	for _, e := range r.exports {
		if e.by == by && e.played == plays && e.class == class {
			return e
		}
	}
	e := &exports{by: by, played: plays, class: class}
	r.exports = append(r.exports, e)
	return e
}
