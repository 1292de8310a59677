package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

const (
	// syncLimit is how long Velero may take to find the backups in the bucket.
	// It looks once a minute.
	syncLimit = 3 * time.Minute
	// forgetLimit is how long the export of a deleted backup may stay.
	forgetLimit = 2 * time.Minute
	// goingOn is how many lines the restored application must add.
	goingOn = 10
	// rootCertificates is the one warning of a restore that is as it should be:
	// each cluster has certificates of its own.
	rootCertificates = "could not restore, ConfigMap:kube-root-ca.crt already exists. Warning: the in-cluster version is different"
)

// after is what happens in the second cluster.
func after(ctx context.Context, s *stage.Stage, n *notes) error {
	s.Say("The maps are applied, once. From now on it is `velero restore create` alone.")
	if err := apply(ctx, s, told()); err != nil {
		return err
	}
	if err := synced(ctx, s, n); err != nil {
		return err
	}
	classes, err := snapshotClasses(ctx, s)
	if err != nil {
		return err
	}
	began := time.Now()
	for _, one := range n.Ways {
		if err := s.Run(ctx, "velero", "restore", "create", one.Way, "--from-schedule", one.Way); err != nil {
			return err
		}
	}
	var broken []error
	for _, one := range n.Ways {
		if err := restore(ctx, s, one, began); err != nil {
			broken = append(broken, fmt.Errorf("restore what was %s: %w", one.Way, err))
		}
	}
	if len(broken) == 0 {
		broken = append(broken, forget(ctx, s, n))
	}
	broken = append(broken, relocate(ctx, s, n))
	now, err := snapshotClasses(ctx, s)
	if err == nil && !slices.Equal(classes, now) {
		err = fmt.Errorf("the cluster had the VolumeSnapshotClasses %v, and has after the restores %v", classes, now)
	}
	return errors.Join(append(broken, err)...)
}

// synced waits until Velero knows the backups of the cluster that is lost.
func synced(ctx context.Context, s *stage.Stage, n *notes) error {
	wait, cancel := context.WithTimeout(ctx, syncLimit)
	defer cancel()
	began := time.Now()
	for _, one := range n.Ways {
		for _, name := range []string{one.Earlier, one.Backup} {
			key := client.ObjectKey{Namespace: cluster.VeleroNamespace, Name: name}
			err := stage.Until(wait, "Velero has found backup "+name, func(ctx context.Context) (bool, error) {
				err := s.Objects().Get(ctx, key, &velerov1.Backup{})
				return err == nil, client.IgnoreNotFound(err)
			})
			if err != nil {
				return err
			}
		}
	}
	schedules := &velerov1.ScheduleList{}
	if err := s.Objects().List(ctx, schedules); err != nil {
		return err
	}
	s.Say("Velero has found the backups in the bucket, after %.0f s. It has %d schedules: --from-schedule goes by the backups' labels.",
		time.Since(began).Seconds(), len(schedules.Items))
	return nil
}

// restore waits for the restore of a way, and checks that it is of what the
// schedule has backed up last, and all that came back.
func restore(ctx context.Context, s *stage.Stage, one saved, began time.Time) error {
	restored, err := s.AwaitRestore(ctx, one.Way, func(phase string) {
		if phase != "" {
			s.Say("restore %s: %s", one.Way, phase)
		}
	})
	if err != nil {
		return err
	}
	log, err := s.Velero(ctx, "restore", "logs", one.Way)
	if err != nil {
		return err
	}
	if restored.Status.Phase != velerov1.RestorePhaseCompleted || restored.Status.Warnings > strings.Count(log, rootCertificates) {
		return fmt.Errorf("it is %s with %d warnings, not Completed with none: %s", restored.Status.Phase, restored.Status.Warnings, stage.Log(log).Complaints())
	}
	if restored.Spec.BackupName != one.Backup {
		return fmt.Errorf("it came from backup %s, the latest is %s", restored.Spec.BackupName, one.Backup)
	}
	a := app{s, one.Way}
	if err := s.AwaitRollout(ctx, one.Way, deployment); err != nil {
		return err
	}
	s.Say("The application in %s runs, %.0f s after its restore was asked for.", one.Way, time.Since(began).Seconds())
	return errors.Join(a.compare(ctx, one), volume(ctx, s, one, log))
}

// compare checks the files and the ledger that came back, and that the
// application goes on with it.
func (a app) compare(ctx context.Context, one saved) error {
	sums, err := a.sums(ctx)
	if err != nil {
		return err
	}
	if !maps.Equal(one.Sums, sums) {
		return fmt.Errorf("the files are not those of backup %s: it had %v, there came back %v", one.Backup, one.Sums, sums)
	}
	first, err := a.lines(ctx)
	if err != nil {
		return err
	}
	if first < one.Lines {
		return fmt.Errorf("the ledger has %d lines, before the backup it had %d", first, one.Lines)
	}
	last := first
	if err := stage.Until(ctx, "the restored application writes", func(ctx context.Context) (bool, error) {
		last, err = a.lines(ctx)
		return last >= first+goingOn, err
	}); err != nil {
		return err
	}
	a.Say("All %d files came back as backup %s had them. The ledger had %d lines before it, and goes on: %d.", len(sums), one.Backup, one.Lines, last)
	return nil
}

// volume checks that the restored volume is of this cluster's driver and
// StorageClass, and that an export came back by the maps.
func volume(ctx context.Context, s *stage.Stage, one saved, log string) error {
	pvc, err := s.Client().CoreV1().PersistentVolumeClaims(one.Way).Get(ctx, claim, metav1.GetOptions{})
	if err != nil {
		return err
	}
	pv, err := s.Client().CoreV1().PersistentVolumes().Get(ctx, pvc.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	class := ""
	if pvc.Spec.StorageClassName != nil {
		class = *pvc.Spec.StorageClassName
	}
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != newStorage.Driver() || class != string(newStorage) || pv.Spec.StorageClassName != class {
		return fmt.Errorf("its claim is of StorageClass %q, its volume %s of StorageClass %q and %+v", class, pv.Name, pv.Spec.StorageClassName, pv.Spec.CSI)
	}
	if one.Way == moved {
		s.Say("Its volume is one of driver %s and StorageClass %s.", pv.Spec.CSI.Driver, class)
		return nil
	}
	if one.Driver != lostStorage.Driver() {
		return fmt.Errorf("backup %s has a snapshot of driver %s, not of %s", one.Backup, one.Driver, lostStorage.Driver())
	}
	want := fmt.Sprintf("to driver %s and class %s", newStorage.Driver(), exportClass(newStorage))
	if one.Way == located {
		want = fmt.Sprintf("to driver %s and VolumeSnapshotClass %s", newStorage.Driver(), exportClass(newStorage))
	}
	if !strings.Contains(log, want) {
		return fmt.Errorf("the restore's log does not report a snapshot that was mapped %s", want)
	}
	s.Say("Its volume is one of driver %s and StorageClass %s, and came from the export by its handle, with class %s.",
		pv.Spec.CSI.Driver, class, exportClass(newStorage))
	// The backup still names it, so that it can be restored again.
	stored, err := s.Snapshots(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(stored, func(snapshot cluster.StoredSnapshot) bool {
		return snapshot.ID == one.Handle && snapshot.Remote && snapshot.Ready
	}) {
		return fmt.Errorf("the export %s is gone after its restore; there are %+v", one.Handle, stored)
	}
	return nil
}

// forget deletes the backups of the export, as expiry would, which must take the
// copies along although another driver made them.
func forget(ctx context.Context, s *stage.Stage, n *notes) error {
	for _, one := range n.Ways {
		if one.Way == moved {
			continue
		}
		for _, name := range []string{one.Earlier, one.Backup} {
			if err := s.Run(ctx, "velero", "backup", "delete", name, "--confirm"); err != nil {
				return err
			}
		}
	}
	wait, cancel := context.WithTimeout(ctx, forgetLimit)
	defer cancel()
	began, left := time.Now(), 0
	err := stage.Until(wait, "the exports of deleted backups are gone", func(ctx context.Context) (bool, error) {
		stored, err := s.Snapshots(ctx)
		stored = slices.DeleteFunc(stored, func(snapshot cluster.StoredSnapshot) bool { return snapshot.ID == n.Located.Handle })
		left = len(stored)
		return left == 0, err
	})
	if err != nil {
		return fmt.Errorf("%d are left: %w", left, err)
	}
	contents := &snapshotv1.VolumeSnapshotContentList{}
	if err := stage.Until(wait, "no VolumeSnapshotContent of the lost driver is left", func(ctx context.Context) (bool, error) {
		err := s.Objects().List(ctx, contents)
		return !slices.ContainsFunc(contents.Items, func(c snapshotv1.VolumeSnapshotContent) bool { return c.Spec.Driver == lostStorage.Driver() }), err
	}); err != nil {
		return err
	}
	if err := stage.Until(wait, "Velero has nothing more to delete", func(ctx context.Context) (bool, error) {
		requests := &velerov1.DeleteBackupRequestList{}
		err := s.Objects().List(ctx, requests)
		return len(requests.Items) == 0, err
	}); err != nil {
		return err
	}
	s.Say("The backups of the exports are deleted, and %.0f s later the exports are gone from the bucket.", time.Since(began).Seconds())
	return nil
}

// snapshotClasses are the VolumeSnapshotClasses, with their drivers.
func snapshotClasses(ctx context.Context, s *stage.Stage) ([]string, error) {
	list := &snapshotv1.VolumeSnapshotClassList{}
	if err := s.Objects().List(ctx, list); err != nil {
		return nil, err
	}
	var all []string
	for _, class := range list.Items {
		all = append(all, class.Name+" of "+class.Driver)
	}
	slices.Sort(all)
	return all, nil
}
