package stage

import (
	"context"
	"errors"
	"fmt"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// deletionRetry is when the deletion of a backup is asked for once more: Velero
// drops a request that it could not carry out.
const deletionRetry = time.Minute

// final are the phases in which a backup or a restore stays.
var final = map[string]bool{
	string(velerov1.BackupPhaseCompleted): true, string(velerov1.BackupPhasePartiallyFailed): true,
	string(velerov1.BackupPhaseFailed): true, string(velerov1.BackupPhaseFailedValidation): true,
	string(velerov1.BackupPhaseDeleting): true,
}

// AwaitBackup waits until a backup has ended, however, and tells of each phase
// that it comes to. phase may be nil.
func (s *Stage) AwaitBackup(ctx context.Context, name string, phase func(string)) (*velerov1.Backup, error) {
	backup := &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: name}}
	return backup, s.await(ctx, backup, func() string { return string(backup.Status.Phase) }, phase)
}

// AwaitRestore is AwaitBackup for a restore.
func (s *Stage) AwaitRestore(ctx context.Context, name string, phase func(string)) (*velerov1.Restore, error) {
	restore := &velerov1.Restore{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: name}}
	return restore, s.await(ctx, restore, func() string { return string(restore.Status.Phase) }, phase)
}

func (s *Stage) await(ctx context.Context, object client.Object, now func() string, tell func(string)) error {
	last := ""
	return Until(ctx, object.GetName()+" has ended", func(ctx context.Context) (bool, error) {
		if err := s.Objects().Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
			return false, err
		}
		if phase := now(); phase != last {
			last = phase
			if tell != nil {
				tell(phase)
			}
		}
		return final[last], nil
	})
}

// WatchBackup has create make a backup and waits until it has ended, however.
// It tells when a watch, which is quicker than a look from time to time, showed
// that the backup was there, and that it had ended.
func (s *Stage) WatchBackup(ctx context.Context, name string, create func() error) (backup *velerov1.Backup, from, to time.Time, err error) {
	events, err := s.Objects().Watch(ctx, &velerov1.BackupList{}, client.InNamespace(cluster.VeleroNamespace), client.MatchingFields{"metadata.name": name})
	if err != nil {
		return nil, from, to, fmt.Errorf("watch backup %s: %w", name, err)
	}
	defer events.Stop()
	created := make(chan error, 1)
	go func() { created <- create() }()
	for {
		select {
		case <-ctx.Done():
			return nil, from, to, fmt.Errorf("wait for the end of backup %s: %w", name, ctx.Err())
		case err := <-created:
			if err != nil {
				return nil, from, to, err
			}
			created = nil
		case event, open := <-events.ResultChan():
			if !open {
				return nil, from, to, fmt.Errorf("the watch on backup %s has ended before it", name)
			}
			backup, ok := event.Object.(*velerov1.Backup)
			if !ok {
				return nil, from, to, fmt.Errorf("watch backup %s: %v", name, event.Object)
			}
			if from.IsZero() {
				from = time.Now()
			}
			if final[string(backup.Status.Phase)] {
				return backup, from, time.Now(), nil
			}
		}
	}
}

// Backups lists the backups with these labels.
func (s *Stage) Backups(ctx context.Context, labels client.MatchingLabels) ([]velerov1.Backup, error) {
	list := &velerov1.BackupList{}
	err := s.Objects().List(ctx, list, client.InNamespace(cluster.VeleroNamespace), labels)
	return list.Items, err
}

// DeleteBackups deletes the backups with these labels, with their data and
// their restores, and waits until they are gone. One that is still at work is
// waited for: Velero deletes none before it has ended.
func (s *Stage) DeleteBackups(ctx context.Context, labels client.MatchingLabels) error {
	backups, err := s.Backups(ctx, labels)
	if err != nil {
		return err
	}
	for i := range backups {
		if _, err := s.AwaitBackup(ctx, backups[i].Name, nil); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	for {
		if backups, err = s.Backups(ctx, labels); err != nil || len(backups) == 0 {
			return err
		}
		args := []string{"backup", "delete", "--confirm"}
		for i := range backups {
			args = append(args, backups[i].Name)
		}
		if _, err := s.Velero(ctx, args...); err != nil {
			return err
		}
		try, cancel := context.WithTimeout(ctx, deletionRetry)
		err := Until(try, "backups are deleted", func(ctx context.Context) (bool, error) {
			backups, err := s.Backups(ctx, labels)
			return len(backups) == 0, err
		})
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

// Promised is an error with what the backup's log complains of, unless it is
// Completed.
func (s *Stage) Promised(ctx context.Context, backup *velerov1.Backup) error {
	if backup.Status.Phase == velerov1.BackupPhaseCompleted {
		return nil
	}
	log, err := s.BackupLog(ctx, backup.Name)
	return errors.Join(fmt.Errorf("backup %s is %s, not Completed: %s", backup.Name, backup.Status.Phase, log.Complaints()), err)
}
