package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"

	"stillpoint.io/stillpoint/internal/location/csi/spec"
	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

const (
	// located is the way through a VolumeSnapshotLocation, on a server without
	// EnableCSI: the driver exports the snapshot, and the backup knows its handle.
	// The other ways need that feature, so this one comes last.
	located  = "located"
	location = "by-handle"
)

// locate backs an application up through a location, in the first cluster.
func locate(ctx context.Context, s *stage.Stage, n *notes) error {
	if err := throughLocation(ctx, s, "volumeSnapshotClass/"+string(lostStorage)+"="+exportClass(lostStorage)); err != nil {
		return err
	}
	a := app{s, located}
	if err := a.install(ctx, string(lostStorage)); err != nil {
		return err
	}
	if err := a.write(ctx, 0); err != nil {
		return err
	}
	one := saved{Way: located, Backup: located}
	var err error
	if one.Sums, err = a.sums(ctx); err != nil {
		return err
	}
	if one.Lines, err = a.lines(ctx); err != nil {
		return err
	}
	if err := s.Run(ctx, "velero", "backup", "create", located, "--include-namespaces", located, "--volume-snapshot-locations", location); err != nil {
		return err
	}
	backup, err := s.AwaitBackup(ctx, located, nil)
	if err != nil {
		return err
	}
	if backup.Status.Phase != velerov1.BackupPhaseCompleted || backup.Status.VolumeSnapshotsCompleted != 1 {
		return fmt.Errorf("backup %s is %s with %d snapshots", located, backup.Status.Phase, backup.Status.VolumeSnapshotsCompleted)
	}
	left, err := s.SnapshotsLeft(ctx, located, claim, located)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("the snapshot of %s has left the cluster, and still there are: %v", located, left)
	}
	if err != nil {
		return err
	}
	stored, err := s.Snapshots(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, way := range n.Ways {
		known[way.Handle] = true
	}
	for _, snapshot := range stored {
		if snapshot.Remote && snapshot.Created.After(backup.CreationTimestamp.Add(-time.Second)) && !known[snapshot.ID] {
			one.Driver, one.Handle = lostStorage.Driver(), snapshot.ID
		}
	}
	if one.Handle == "" {
		return fmt.Errorf("backup %s has left no export; there are %+v", located, stored)
	}
	s.Say("Without EnableCSI, through a VolumeSnapshotLocation: backup %s has the export %s.", located, one.Handle)
	n.Located = &one
	return nil
}

// throughLocation restarts the server without EnableCSI, and makes the location.
func throughLocation(ctx context.Context, s *stage.Stage, config string) error {
	// The last of a flag counts.
	_, err := s.Kubectl(ctx, nil, "-n", cluster.VeleroNamespace, "patch", "deployment/velero", "--type=json", "--patch",
		`[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--features="}]`)
	if err != nil {
		return err
	}
	if err := s.AwaitRollout(ctx, cluster.VeleroNamespace, "velero"); err != nil {
		return err
	}
	return s.Run(ctx, "velero", "snapshot-location", "create", location, "--provider", spec.Provider, "--config", config)
}

// relocate restores it in the second cluster, by the handle and the maps, and
// deletes the backup, which must take the export along.
func relocate(ctx context.Context, s *stage.Stage, n *notes) error {
	one := *n.Located
	if err := throughLocation(ctx, s, "timeout=2m"); err != nil {
		return err
	}
	began := time.Now()
	if err := s.Run(ctx, "velero", "restore", "create", located, "--from-backup", located); err != nil {
		return err
	}
	if err := restore(ctx, s, one, began); err != nil {
		return fmt.Errorf("restore what was %s: %w", located, err)
	}
	if err := s.Run(ctx, "velero", "backup", "delete", located, "--confirm"); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, forgetLimit)
	defer cancel()
	var left []cluster.StoredSnapshot
	err := stage.Until(wait, "the export of the deleted backup is gone", func(ctx context.Context) (bool, error) {
		var err error
		left, err = s.Snapshots(ctx)
		return len(left) == 0, err
	})
	if err != nil {
		asked, _ := s.Kubectl(ctx, nil, "-n", cluster.VeleroNamespace, "get", "deletebackuprequests,backups", "-o", "yaml")
		return errors.Join(err, fmt.Errorf("there are %+v; %s", left, asked))
	}
	s.Say("The backup is deleted, and its export is gone from the bucket.")
	return nil
}
