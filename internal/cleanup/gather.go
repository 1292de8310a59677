package cleanup

import (
	"context"
	"fmt"
	"slices"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// gatherAll reads the facts about all objects. A content is created after its
// VolumeSnapshot, and that after its Backup or Restore. They are listed in reverse
// order, so that the owner of each listed object is in a later list.
func (c *Cleaner) gatherAll(ctx context.Context, begins bool) (*facts, error) {
	f, err := c.newFacts(ctx)
	if err != nil {
		return nil, err
	}
	f.begins = begins
	if f.contents, err = snapshot.Contents(ctx, c.clients.Snapshots, ""); err != nil {
		return nil, err
	}
	if f.snapshots, err = snapshot.List(ctx, c.clients.Snapshots, metav1.NamespaceAll, ""); err != nil {
		return nil, err
	}
	return f, c.gatherOwners(ctx, f)
}

// gatherMarked reads the marked objects, and the unmarked ones in Velero's namespace.
// Usually there are few.
func (c *Cleaner) gatherMarked(ctx context.Context) (*facts, error) {
	f, err := c.newFacts(ctx)
	if err != nil {
		return nil, err
	}
	f.begins = true
	ours := api.LabelInstallation + "=" + f.installation
	if f.contents, err = snapshot.Contents(ctx, c.clients.Snapshots, ours); err != nil {
		return nil, err
	}
	for _, of := range []struct{ namespace, selector string }{
		{metav1.NamespaceAll, ours},
		{metav1.NamespaceAll, velerov1.BackupNameLabel + ",!" + api.LabelInstallation},
		{f.velero, "!" + velerov1.BackupNameLabel + ",!" + api.LabelInstallation},
	} {
		more, err := snapshot.List(ctx, c.clients.Snapshots, of.namespace, of.selector)
		if err != nil {
			return nil, err
		}
		f.snapshots = append(f.snapshots, more...)
	}
	return f, c.gatherOwners(ctx, f)
}

func (c *Cleaner) newFacts(ctx context.Context) (*facts, error) {
	installation, err := c.clients.Installation(ctx)
	if err != nil {
		return nil, err
	}
	return &facts{now: c.clock.Now(), installation: installation, velero: c.clients.VeleroNamespace, config: config.Default(c.clients.VeleroNamespace)}, nil
}

// gatherOwners reads only what the objects found so far are judged by.
func (c *Cleaner) gatherOwners(ctx context.Context, f *facts) error {
	maps := c.clients.Kube.CoreV1().ConfigMaps(f.velero)
	var err error
	if f.records, err = cluster.All[corev1.ConfigMap](ctx, "ConfigMaps", api.LabelBackupUID, cluster.Typed(maps.List)); err != nil {
		return err
	}
	var marked, restored, others bool
	for _, subject := range f.subjects() {
		origin, ours, _ := subject.origin(f.velero)
		marked = marked || ours || subject.velero() != "" || subject.copied(f.velero) || subject.orphaned()
		restored = restored || subject.restored()
		others = others || (ours && origin.Installation != f.installation)
	}
	if marked {
		if f.uploads, err = cluster.All[velerov2alpha1.DataUpload](ctx, "DataUploads", "", c.clients.Velero(&velerov2alpha1.DataUploadList{})); err != nil {
			return err
		}
	}
	if restored {
		if f.restores, err = cluster.All[velerov1.Restore](ctx, "Restores", "", c.clients.Velero(&velerov1.RestoreList{})); err != nil {
			return err
		}
	}
	if others {
		if err := c.namespaces(ctx, f); err != nil {
			return err
		}
	}
	if !marked && !restored && len(f.records) == 0 {
		return nil
	}
	if err := c.backups(ctx, f); err != nil {
		return err
	}
	if f.thirdPartyMovers() {
		settings, err := c.settings(ctx)
		switch {
		case config.Unusable(err):
			f.unusable = err
		case err != nil:
			return err
		default:
			f.config = settings
		}
	}
	findings := f.judge(noneNamed)
	if slices.ContainsFunc(findings, func(finding Finding) bool { return finding.missed }) {
		if f.synced, err = c.synced(ctx); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(findings, func(finding Finding) bool { return finding.Kind != Record && finding.Action != Keep }) {
		f.claims, err = c.pending(ctx, metav1.NamespaceAll)
	}
	return err
}

// synced returns when Velero last searched all its locations for backups. It is zero if
// a location is unavailable or may not be read.
func (c *Cleaner) synced(ctx context.Context) (until time.Time, err error) {
	locations, err := cluster.All[velerov1.BackupStorageLocation](ctx, "BackupStorageLocations", "", c.clients.Velero(&velerov1.BackupStorageLocationList{}))
	if apierrors.IsForbidden(err) {
		return time.Time{}, nil
	}
	for i := range locations {
		status := &locations[i].Status
		if status.Phase != velerov1.BackupStorageLocationPhaseAvailable || status.LastSyncedTime == nil {
			return time.Time{}, err
		}
		if until.IsZero() || status.LastSyncedTime.Time.Before(until) {
			until = status.LastSyncedTime.Time
		}
	}
	return until, err
}

// recordMissed records on the content of a finding that its backup is gone, for the next
// sweeps.
func (c *Cleaner) recordMissed(ctx context.Context, finding *Finding) error {
	content := finding.target.Content
	if !finding.missed || content.Annotations[api.AnnotationBackupMissed] != "" {
		return nil
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, api.AnnotationBackupMissed, c.clock.Now().UTC().Format(time.RFC3339))
	_, err := c.clients.Snapshots.SnapshotV1().VolumeSnapshotContents().Patch(ctx, content.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("note on VolumeSnapshotContent %s that its backup is gone: %w", content.Name, err)
	}
	return nil
}

// noneNamed is the filter of a clean-up without a user.
func noneNamed(string) bool { return false }

// backups reads the Backups, including new ones that no list has yet.
func (c *Cleaner) backups(ctx context.Context, f *facts) error {
	var err error
	if f.backups, err = cluster.All[velerov1.Backup](ctx, "Backups", "", c.clients.Velero(&velerov1.BackupList{})); err != nil {
		return err
	}
	for _, name := range f.unlistedBackups() {
		backup := &velerov1.Backup{}
		if err := c.get(ctx, name, backup); err != nil {
			return err
		} else if backup.Name != "" {
			f.backups = append(f.backups, *backup)
		}
	}
	return nil
}

// thirdPartyMovers reports whether a data mover other than Velero's is in use.
func (f *facts) thirdPartyMovers() bool {
	third := func(mover string) bool { return !config.Default(f.velero).DeletesSnapshotsOf(mover) }
	return slices.ContainsFunc(f.backups, func(b velerov1.Backup) bool { return third(b.Spec.DataMover) }) ||
		slices.ContainsFunc(f.uploads, func(u velerov2alpha1.DataUpload) bool { return third(u.Spec.DataMover) })
}

func (c *Cleaner) namespaces(ctx context.Context, f *facts) error {
	namespaces, err := cluster.All[corev1.Namespace](ctx, "Namespaces", "", cluster.Typed(c.clients.Kube.CoreV1().Namespaces().List))
	f.namespaces = map[string]bool{}
	for i := range namespaces {
		f.namespaces[string(namespaces[i].UID)] = true
	}
	return err
}

// pending returns the claims that wait for a volume.
func (c *Cleaner) pending(ctx context.Context, namespace string) ([]corev1.PersistentVolumeClaim, error) {
	claims, err := cluster.All[corev1.PersistentVolumeClaim](ctx, "PersistentVolumeClaims", "", cluster.Typed(c.clients.Kube.CoreV1().PersistentVolumeClaims(namespace).List))
	return slices.DeleteFunc(claims, func(claim corev1.PersistentVolumeClaim) bool {
		return claim.Status.Phase != corev1.ClaimPending && claim.Status.Phase != ""
	}), err
}

// reread reads the facts of one finding again, just before its deletion. The subject is
// nil if it is gone.
func (c *Cleaner) reread(ctx context.Context, before *facts, finding *Finding) (*facts, *subject, error) {
	f, pair := *before, facts{}
	vs, err := c.clients.Snapshots.SnapshotV1().VolumeSnapshots(finding.Namespace).Get(ctx, finding.Name, metav1.GetOptions{})
	switch {
	case err == nil:
		pair.snapshots = append(pair.snapshots, *vs)
	case !apierrors.IsNotFound(err):
		return nil, nil, fmt.Errorf("get VolumeSnapshot %s/%s: %w", finding.Namespace, finding.Name, err)
	}
	if finding.Content != "" {
		content, err := c.clients.Snapshots.SnapshotV1().VolumeSnapshotContents().Get(ctx, finding.Content, metav1.GetOptions{})
		switch {
		case err == nil:
			pair.contents = append(pair.contents, *content)
		case !apierrors.IsNotFound(err):
			return nil, nil, fmt.Errorf("get VolumeSnapshotContent %s: %w", finding.Content, err)
		}
	}
	all := pair.subjects()
	i := slices.IndexFunc(all, func(s subject) bool {
		other := newFinding(s, f.velero)
		return other.Object() == finding.Object() && s.Objects()[0].GetUID() == finding.target.Objects()[0].GetUID()
	})
	if i < 0 {
		return nil, nil, nil
	}
	if err := c.owners(ctx, &f, finding); err != nil {
		return nil, nil, err
	}
	f.claims, err = c.pending(ctx, finding.Namespace)
	// A claim of another namespace may refer to the VolumeSnapshot, too.
	for i := range before.claims {
		if before.claims[i].Namespace != finding.Namespace {
			f.claims = append(f.claims, before.claims[i])
		}
	}
	return &f, &all[i], err
}

// owners reads the backup and the restore of a finding again. Labels shorten long names.
func (c *Cleaner) owners(ctx context.Context, f *facts, finding *Finding) (err error) {
	f.backups, err = refresh(ctx, c, f.backups, finding.Backup, func(b *velerov1.Backup) bool {
		return (finding.backupUID != "" && string(b.UID) == finding.backupUID) || label.GetValidName(b.Name) == label.GetValidName(finding.Backup)
	})
	if err != nil || !finding.restored {
		return err
	}
	name := finding.target.label(velerov1.RestoreNameLabel)
	f.restores, err = refresh(ctx, c, f.restores, name, func(r *velerov1.Restore) bool { return label.GetValidName(r.Name) == name })
	return err
}

// refresh reads one object of a list again: the matching one, or else the one of that
// name. It returns a changed copy of the list.
func refresh[T any, P interface {
	*T
	crclient.Object
}](ctx context.Context, c *Cleaner, list []T, name string, matches func(*T) bool) ([]T, error) {
	if i := slices.IndexFunc(list, func(o T) bool { return matches(&o) }); i >= 0 {
		name = P(&list[i]).GetName()
	}
	list = slices.DeleteFunc(slices.Clone(list), func(o T) bool { return P(&o).GetName() == name })
	if name == "" {
		return list, nil
	}
	object := new(T)
	if err := c.get(ctx, name, P(object)); err != nil || P(object).GetName() == "" {
		return list, err
	}
	return append(list, *object), nil
}

// get reads an object of Velero's namespace. If the object does not exist, into stays
// empty.
func (c *Cleaner) get(ctx context.Context, name string, into crclient.Object) error {
	err := c.clients.Objects.Get(ctx, crclient.ObjectKey{Namespace: c.clients.VeleroNamespace, Name: name}, into)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("get %T %s/%s: %w", into, c.clients.VeleroNamespace, name, err)
	}
	return nil
}
