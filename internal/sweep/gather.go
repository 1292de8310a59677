package sweep

import (
	"context"
	"fmt"
	"slices"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// everything reads what all objects are judged by. A content is there after its
// VolumeSnapshot, and that after its Backup or Restore; they are listed the other
// way round, so that what belongs to a listed one is in a later list.
func (s *Sweeper) everything(ctx context.Context, heed bool) (*facts, error) {
	f, err := s.start(ctx)
	if err != nil {
		return nil, err
	}
	f.heed = heed
	contents, snapshots := s.clients.Snapshots.SnapshotV1().VolumeSnapshotContents(), s.clients.Snapshots.SnapshotV1().VolumeSnapshots(metav1.NamespaceAll)
	if f.contents, err = pages[snapshotv1.VolumeSnapshotContent](ctx, "VolumeSnapshotContents", "", list(contents.List)); err != nil {
		return nil, err
	}
	if f.snapshots, err = pages[snapshotv1.VolumeSnapshot](ctx, "VolumeSnapshots", "", list(snapshots.List)); err != nil {
		return nil, err
	}
	return f, s.rest(ctx, f)
}

// suspects reads what has a mark, and what else there is in Velero's namespace:
// nearly nothing when all is well.
func (s *Sweeper) suspects(ctx context.Context) (*facts, error) {
	f, err := s.start(ctx)
	if err != nil {
		return nil, err
	}
	client := s.clients.Snapshots.SnapshotV1()
	ours := snapshot.InstallationLabel + "=" + f.installation
	if f.contents, err = pages[snapshotv1.VolumeSnapshotContent](ctx, "VolumeSnapshotContents", ours, list(client.VolumeSnapshotContents().List)); err != nil {
		return nil, err
	}
	for _, of := range []struct{ namespace, selector string }{
		{metav1.NamespaceAll, ours},
		{metav1.NamespaceAll, velerov1.BackupNameLabel + ",!" + snapshot.InstallationLabel},
		{f.velero, "!" + velerov1.BackupNameLabel + ",!" + snapshot.InstallationLabel},
	} {
		more, err := pages[snapshotv1.VolumeSnapshot](ctx, "VolumeSnapshots", of.selector, list(client.VolumeSnapshots(of.namespace).List))
		if err != nil {
			return nil, err
		}
		f.snapshots = append(f.snapshots, more...)
	}
	return f, s.rest(ctx, f)
}

func (s *Sweeper) start(ctx context.Context) (*facts, error) {
	installation, err := s.clients.Installation(ctx)
	if err != nil {
		return nil, err
	}
	return &facts{now: s.clock.Now(), installation: installation, velero: s.clients.VeleroNamespace, config: config.Default(s.clients.VeleroNamespace)}, nil
}

// rest reads what the objects that were found are judged by, and no more.
func (s *Sweeper) rest(ctx context.Context, f *facts) error {
	maps := s.clients.Kube.CoreV1().ConfigMaps(f.velero)
	var err error
	if f.records, err = pages[corev1.ConfigMap](ctx, "ConfigMaps", snapshot.BackupUIDKey, list(maps.List)); err != nil {
		return err
	}
	var marked, restored, others bool
	for _, subject := range f.subjects() {
		origin, ours, _ := subject.origin()
		marked = marked || ours || subject.velero() != "" || subject.copied(f.velero) || subject.bereft()
		restored = restored || subject.restored()
		others = others || (ours && origin.Installation != f.installation)
	}
	if marked {
		if f.uploads, err = pages[velerov2alpha1.DataUpload](ctx, "DataUploads", "", s.velero(&velerov2alpha1.DataUploadList{})); err != nil {
			return err
		}
	}
	if restored {
		if f.restores, err = pages[velerov1.Restore](ctx, "Restores", "", s.velero(&velerov1.RestoreList{})); err != nil {
			return err
		}
	}
	if others {
		if err := s.namespaces(ctx, f); err != nil {
			return err
		}
	}
	if !marked && !restored && len(f.records) == 0 {
		return nil
	}
	if err := s.backups(ctx, f); err != nil {
		return err
	}
	if f.movers() {
		if f.config, err = s.settings(ctx); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(f.judge(nobody), func(finding Finding) bool { return finding.Kind != Record && finding.Action != Keep }) {
		f.claims, err = s.pending(ctx, metav1.NamespaceAll)
	}
	return err
}

// nobody has named anything.
func nobody(string) bool { return false }

// backups reads the Backups. One that was created just now may be in no list yet.
func (s *Sweeper) backups(ctx context.Context, f *facts) error {
	var err error
	if f.backups, err = pages[velerov1.Backup](ctx, "Backups", "", s.velero(&velerov1.BackupList{})); err != nil {
		return err
	}
	for _, name := range f.doubtful() {
		backup := &velerov1.Backup{}
		if err := s.get(ctx, name, backup); err != nil {
			return err
		} else if backup.Name != "" {
			f.backups = append(f.backups, *backup)
		}
	}
	return nil
}

// movers tells that there are data movers other than Velero's.
func (f *facts) movers() bool {
	third := func(mover string) bool { return !config.Default(f.velero).DeletesSnapshotsOf(mover) }
	return slices.ContainsFunc(f.backups, func(b velerov1.Backup) bool { return third(b.Spec.DataMover) }) ||
		slices.ContainsFunc(f.uploads, func(u velerov2alpha1.DataUpload) bool { return third(u.Spec.DataMover) })
}

func (s *Sweeper) namespaces(ctx context.Context, f *facts) error {
	namespaces, err := pages[corev1.Namespace](ctx, "Namespaces", "", list(s.clients.Kube.CoreV1().Namespaces().List))
	f.namespaces = map[string]bool{}
	for i := range namespaces {
		f.namespaces[string(namespaces[i].UID)] = true
	}
	return err
}

// pending are the claims that wait for a volume.
func (s *Sweeper) pending(ctx context.Context, namespace string) ([]corev1.PersistentVolumeClaim, error) {
	claims, err := pages[corev1.PersistentVolumeClaim](ctx, "PersistentVolumeClaims", "", list(s.clients.Kube.CoreV1().PersistentVolumeClaims(namespace).List))
	return slices.DeleteFunc(claims, func(claim corev1.PersistentVolumeClaim) bool {
		return claim.Status.Phase != corev1.ClaimPending && claim.Status.Phase != ""
	}), err
}

// now reads again what one finding was judged by, just before it is deleted.
func (s *Sweeper) now(ctx context.Context, before *facts, finding *Finding) (*facts, error) {
	f := *before
	f.snapshots, f.contents = slices.Clone(f.snapshots), slices.Clone(f.contents)
	f.snapshots = slices.DeleteFunc(f.snapshots, func(vs snapshotv1.VolumeSnapshot) bool {
		return vs.Namespace == finding.Namespace && vs.Name == finding.Name
	})
	vs, err := s.clients.Snapshots.SnapshotV1().VolumeSnapshots(finding.Namespace).Get(ctx, finding.Name, metav1.GetOptions{})
	switch {
	case err == nil:
		f.snapshots = append(f.snapshots, *vs)
	case !apierrors.IsNotFound(err):
		return nil, fmt.Errorf("get VolumeSnapshot %s/%s: %w", finding.Namespace, finding.Name, err)
	}
	if finding.Content != "" {
		f.contents = slices.DeleteFunc(f.contents, func(content snapshotv1.VolumeSnapshotContent) bool { return content.Name == finding.Content })
		content, err := s.clients.Snapshots.SnapshotV1().VolumeSnapshotContents().Get(ctx, finding.Content, metav1.GetOptions{})
		switch {
		case err == nil:
			f.contents = append(f.contents, *content)
		case !apierrors.IsNotFound(err):
			return nil, fmt.Errorf("get VolumeSnapshotContent %s: %w", finding.Content, err)
		}
	}
	if err := s.owners(ctx, &f, finding); err != nil {
		return nil, err
	}
	f.claims, err = s.pending(ctx, finding.Namespace)
	// A claim of another namespace may have a reference across, too.
	for i := range before.claims {
		if before.claims[i].Namespace != finding.Namespace {
			f.claims = append(f.claims, before.claims[i])
		}
	}
	return &f, err
}

// owners reads the backup and the restore of a finding again. A label may have a
// long name in short.
func (s *Sweeper) owners(ctx context.Context, f *facts, finding *Finding) error {
	name := finding.Backup
	i := slices.IndexFunc(f.backups, func(b velerov1.Backup) bool {
		if finding.backupUID != "" && string(b.UID) == finding.backupUID {
			return true
		}
		return b.Name == name || label.GetValidName(b.Name) == name
	})
	if f.backups = slices.Clone(f.backups); i >= 0 {
		name = f.backups[i].Name
		f.backups = slices.Delete(f.backups, i, i+1)
	}
	if name != "" {
		backup := &velerov1.Backup{}
		if err := s.get(ctx, name, backup); err != nil {
			return err
		} else if backup.Name != "" {
			f.backups = append(f.backups, *backup)
		}
	}
	if !finding.restored {
		return nil
	}
	name = subject(finding.target).label(velerov1.RestoreNameLabel)
	i = slices.IndexFunc(f.restores, func(r velerov1.Restore) bool { return label.GetValidName(r.Name) == name })
	if f.restores = slices.Clone(f.restores); i >= 0 {
		name = f.restores[i].Name
		f.restores = slices.Delete(f.restores, i, i+1)
	}
	if name != "" {
		restore := &velerov1.Restore{}
		if err := s.get(ctx, name, restore); err != nil {
			return err
		} else if restore.Name != "" {
			f.restores = append(f.restores, *restore)
		}
	}
	return nil
}

// get reads an object of Velero's namespace, and leaves it empty where it is not
// there.
func (s *Sweeper) get(ctx context.Context, name string, into crclient.Object) error {
	err := s.clients.Objects.Get(ctx, crclient.ObjectKey{Namespace: s.clients.VeleroNamespace, Name: name}, into)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("get %T %s/%s: %w", into, s.clients.VeleroNamespace, name, err)
	}
	return nil
}

// pageSize is how many objects one answer holds.
const pageSize = 500

// listLimit bounds one request for a page.
const listLimit = 30 * time.Second

// pages lists all objects, page by page.
func pages[T any](ctx context.Context, kind, selector string, page pager.ListPageFunc) ([]T, error) {
	var all []T
	p := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		ctx, cancel := context.WithTimeout(ctx, listLimit)
		defer cancel()
		return page(ctx, options)
	})
	p.PageSize = pageSize
	err := p.EachListItem(ctx, metav1.ListOptions{LabelSelector: selector}, func(object runtime.Object) error {
		item, ok := object.(any).(*T)
		if !ok {
			return fmt.Errorf("the answer has a %T", object)
		}
		all = append(all, *item)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the %s: %w", kind, err)
	}
	return all, nil
}

// list makes a page of a typed client's answer.
func list[L runtime.Object](of func(context.Context, metav1.ListOptions) (L, error)) pager.ListPageFunc {
	return func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) { return of(ctx, options) }
}

// velero makes a page of what Velero's namespace has of a kind.
func (s *Sweeper) velero(kind crclient.ObjectList) pager.ListPageFunc {
	return func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		into, ok := kind.DeepCopyObject().(crclient.ObjectList)
		if !ok {
			return nil, fmt.Errorf("%T is no list", kind)
		}
		err := s.clients.Objects.List(ctx, into, crclient.InNamespace(s.clients.VeleroNamespace),
			crclient.Limit(options.Limit), crclient.Continue(options.Continue))
		return into, err
	}
}
