package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

// The ways by which data leaves the cluster.
const (
	// moved is Velero's data movement.
	moved = "moved"
	// exported is the driver's own export of a snapshot.
	exported = "exported"
)

// In this order, so that the quick one is restored while the other's data is
// still being moved.
var ways = []string{moved, exported}

const (
	policy = "stillpoint-volume-policy" // of deploy/volume-policy.yaml
	// yearly is a schedule that nobody waits for: it fires on 29 February.
	yearly = "0 0 29 2 *"
	// vanishLimit is how long a snapshot may outlast its backup.
	vanishLimit = 10 * time.Second
)

// before is what happens in the first cluster: one application for each way,
// and two backups of each by its schedule; then one through a location.
func before(ctx context.Context, s *stage.Stage, n *notes) error {
	s.Say("Two applications and two schedules: %s by Velero's data movement, %s by the driver's own export.", moved, exported)
	storage := string(lostStorage)
	if err := s.Run(ctx, "kubectl", "apply", "--filename", filepath.Join("deploy", "volume-policy.yaml")); err != nil {
		return err
	}
	if err := apply(ctx, s, lost()); err != nil {
		return err
	}
	for _, way := range ways {
		if err := (app{s, way}).install(ctx, storage); err != nil {
			return err
		}
		create := []string{"schedule", "create", way, "--schedule", yearly, "--include-namespaces", way, "--resource-policies-configmap", policy}
		if way == moved {
			create = append(create, "--snapshot-move-data")
		}
		if err := s.Run(ctx, "velero", create...); err != nil {
			return err
		}
	}
	for generation := range 2 {
		latest, err := backUp(ctx, s, generation)
		if err != nil {
			return err
		}
		for i := range latest {
			if generation > 0 {
				latest[i].Earlier = n.Ways[i].Backup
			}
		}
		n.Ways = latest
	}
	for i := range n.Ways {
		if err := leftovers(ctx, s, &n.Ways[i]); err != nil {
			return err
		}
	}
	return locate(ctx, s, n)
}

// backUp writes a generation of files and has each schedule make a backup.
func backUp(ctx context.Context, s *stage.Stage, generation int) ([]saved, error) {
	var all []saved
	for _, way := range ways {
		a := app{s, way}
		if err := a.write(ctx, generation); err != nil {
			return nil, err
		}
		one := saved{Way: way}
		var err error
		if one.Sums, err = a.sums(ctx); err != nil {
			return nil, err
		}
		if one.Lines, err = a.lines(ctx); err != nil {
			return nil, err
		}
		if err := s.Run(ctx, "velero", "backup", "create", "--from-schedule", way); err != nil {
			return nil, err
		}
		if one.Backup, err = newest(ctx, s, way, generation+1); err != nil {
			return nil, err
		}
		if err := taken(ctx, s, one.Backup); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	for _, one := range all {
		backup, err := s.AwaitBackup(ctx, one.Backup, nil)
		if err != nil {
			return nil, err
		}
		if err := s.Promised(ctx, backup); err != nil {
			return nil, err
		}
		s.Say("backup %s: %s. There are %d files and at least %d lines in the ledger.", one.Backup, backup.Status.Phase, len(one.Sums), one.Lines)
	}
	return all, nil
}

// taken waits until Velero has all of a backup but what goes on in the
// background. A backup that is asked for before may wait a minute in its queue.
func taken(ctx context.Context, s *stage.Stage, name string) error {
	backup := &velerov1.Backup{}
	return stage.Until(ctx, "Velero has taken backup "+name, func(ctx context.Context) (bool, error) {
		err := s.Objects().Get(ctx, client.ObjectKey{Namespace: cluster.VeleroNamespace, Name: name}, backup)
		switch backup.Status.Phase {
		case "", velerov1.BackupPhaseNew, velerov1.BackupPhaseQueued, velerov1.BackupPhaseReadyToStart, velerov1.BackupPhaseInProgress:
			return false, err
		default:
			return true, err
		}
	})
}

// newest is the backup that a schedule made last, and that it has made so many.
func newest(ctx context.Context, s *stage.Stage, schedule string, many int) (string, error) {
	backups, err := s.Backups(ctx, client.MatchingLabels{velerov1.ScheduleNameLabel: schedule})
	if err != nil {
		return "", err
	}
	if len(backups) != many {
		return "", fmt.Errorf("schedule %s has %d backups, not %d", schedule, len(backups), many)
	}
	last := backups[0]
	for _, backup := range backups[1:] {
		if last.CreationTimestamp.Before(&backup.CreationTimestamp) {
			last = backup
		}
	}
	return last.Name, nil
}

// leftovers sees to it that no snapshot is left in the cluster or on its
// storage, and notes which one is elsewhere.
func leftovers(ctx context.Context, s *stage.Stage, one *saved) error {
	wait, cancel := context.WithTimeout(ctx, vanishLimit)
	defer cancel()
	var left []string
	err := stage.Until(wait, "no snapshot is left", func(ctx context.Context) (bool, error) {
		left = nil
		for _, backup := range []string{one.Earlier, one.Backup} {
			found, err := s.SnapshotsLeft(ctx, one.Way, claim, backup)
			if err != nil {
				return false, err
			}
			left = append(left, found...)
		}
		return len(left) == 0, nil
	})
	if len(left) > 0 {
		return fmt.Errorf("the data of %s has left the cluster, and still there are: %s", one.Way, strings.Join(left, ", "))
	}
	if err != nil {
		return err
	}
	kept, err := s.KeptSnapshots(one.Backup)
	if err != nil {
		return err
	}
	switch {
	case one.Way == exported && len(kept) == 1:
		one.Driver, one.Handle = kept[0].Driver, kept[0].SnapshotHandle
		s.Say("No snapshot of %s is left in the cluster or on its storage. The backup has the export %s.", one.Way, one.Handle)
	case one.Way == moved && len(kept) == 0:
		s.Say("No snapshot of %s is left in the cluster or on its storage.", one.Way)
	default:
		return fmt.Errorf("backup %s says that it keeps the snapshots %v", one.Backup, kept)
	}
	return nil
}

func apply(ctx context.Context, s *stage.Stage, manifest string) error {
	_, err := s.Kubectl(ctx, strings.NewReader(manifest), "apply", "--filename", "-")
	return err
}
