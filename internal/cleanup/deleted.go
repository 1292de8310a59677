package cleanup

import (
	"context"
	"errors"
	"fmt"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	"stillpoint.io/stillpoint/internal/snapshot"
)

// DeletedBackup deletes the leftovers of a backup that is being deleted, and waits until
// they are gone or ctx ends. Velero calls it for each item of the backup. The first call
// in a process does the work.
//
// The cluster deletes the ConfigMaps that record freezes, because the Backup owns them.
func (c *Cleaner) DeletedBackup(ctx context.Context, backup *velerov1.Backup, log logrus.FieldLogger) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleted.Has(backup.UID) {
		return nil
	}
	facts, err := c.gatherDeleted(ctx, backup)
	if err != nil {
		return err
	}
	c.deleted.Insert(backup.UID)
	findings := facts.judge(noneNamed)
	for i := range findings {
		if !findings[i].toBeDeleted() {
			log.Warnf("Not deleted with backup %s: %s %s: %s", backup.Name, findings[i].Kind, findings[i].Object(), findings[i].Reason)
		}
	}
	removals := c.removals(facts, findings, noneNamed)
	for _, r := range removals {
		r.requested = true // judged just now, by facts that the cluster does not have
	}
	var problems []error
	c.act(ctx, removals, func(r Result) {
		switch {
		case errors.Is(r.Err, snapshot.ErrKept):
			log.Warnf("A user keeps a snapshot of deleted backup %s: %v", backup.Name, r.Err)
		case r.Err != nil:
			problems = append(problems, fmt.Errorf("%s: %w", r.Finding.Object(), r.Err))
		default:
			log.Infof("Deleted with backup %s: %s %s", backup.Name, r.Finding.Kind, r.Finding.Object())
		}
	})
	if len(problems) > 0 {
		return fmt.Errorf("delete what backup %s has left; the next sweep tries again: %w", backup.Name, errors.Join(problems...))
	}
	return nil
}

// gatherDeleted reads the snapshots that this installation took for a backup, and the
// facts to judge them as those of a deleted backup. It reads no other backup, since none
// keeps these snapshots.
func (c *Cleaner) gatherDeleted(ctx context.Context, backup *velerov1.Backup) (*facts, error) {
	f, err := c.newFacts(ctx)
	if err != nil {
		return nil, err
	}
	f.backups = []velerov1.Backup{*backup.DeepCopy()}
	f.backups[0].Status.Phase = velerov1.BackupPhaseDeleting
	pairs, err := snapshot.Marked(ctx, c.clients.Snapshots, snapshot.Of(f.installation), f.velero)
	if err != nil {
		return nil, err
	}
	namespaces := sets.New[string]()
	for _, pair := range pairs {
		origin, marked, err := pair.Origin(f.velero)
		if err != nil || !marked || origin.Installation != f.installation || !origin.Of(backup, pair.Created()) {
			continue
		}
		namespaces.Insert(pair.Target().Namespace)
		if pair.Snapshot != nil {
			f.snapshots = append(f.snapshots, *pair.Snapshot)
		}
		if pair.Content != nil {
			f.contents = append(f.contents, *pair.Content)
		}
	}
	for _, namespace := range sets.List(namespaces) {
		var claims []corev1.PersistentVolumeClaim
		if claims, err = c.pending(ctx, namespace); err != nil {
			return nil, err
		}
		f.claims = append(f.claims, claims...)
	}
	return f, nil
}
