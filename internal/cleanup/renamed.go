package cleanup

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/label"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// DeletedContent deletes the storage's snapshot of a content in a backup that is being
// deleted, if the maps of the configuration give the driver another name in this
// cluster. Velero's own action creates a content with the old name and deletes it. No
// driver serves that content, so it would stay forever, with the snapshot
// (volumesnapshotcontent_action.go in internal/delete/actions/csi of Velero 1.18).
// DeletedContent waits until the storage has confirmed the deletion.
func (c *Cleaner) DeletedContent(ctx context.Context, content *snapshotv1.VolumeSnapshotContent, backup *velerov1.Backup, log logrus.FieldLogger) error {
	// Velero deletes only the snapshots that it took for the backup.
	if content.Labels[velerov1.BackupNameLabel] != label.GetValidName(backup.Name) || content.Status == nil || content.Status.SnapshotHandle == nil {
		return nil
	}
	settings, unread := c.settings(ctx)
	if unread != nil {
		settings = config.Default(c.clients.VeleroNamespace) // unread is returned below if the driver is missing
	}
	driver, renamed := settings.Restore.Driver(content.Spec.Driver)
	if !renamed && unread == nil {
		return nil
	}
	drivers, err := c.clients.Kube.StorageV1().CSIDrivers().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the CSIDrivers: %w", err)
	}
	if slices.ContainsFunc(drivers.Items, func(d storagev1.CSIDriver) bool { return d.Name == content.Spec.Driver }) {
		return nil // the driver exists here
	}
	if unread != nil {
		return fmt.Errorf("delete the snapshot of VolumeSnapshotContent %s: %w", content.Name, unread)
	}
	if err := snapshot.DeleteByHandle(ctx, c.clients.Snapshots, substitute(content, driver)); err != nil {
		return fmt.Errorf("backup %s: %w", backup.Name, err)
	}
	log.Infof("Deleted a renamed driver's snapshot with backup %s: %s of driver %s, which driver %s serves here", backup.Name, *content.Status.SnapshotHandle, content.Spec.Driver, driver)
	return c.releaseUnserved(ctx, content)
}

// substitute returns a content by which another driver finds the snapshot. It names a
// VolumeSnapshot that does not exist.
func substitute(of *snapshotv1.VolumeSnapshotContent, driver string) *snapshotv1.VolumeSnapshotContent {
	content := snapshot.OfHandle("delete", of.Spec.VolumeSnapshotRef.Namespace, driver, *of.Status.SnapshotHandle, snapshotv1.VolumeSnapshotContentDelete)
	content.Spec.SourceVolumeMode = of.Spec.SourceVolumeMode
	content.Spec.VolumeSnapshotRef.Namespace = cmp.Or(of.Spec.VolumeSnapshotRef.Namespace, content.Name)
	return content
}

// releaseUnserved removes the finalizers of the contents that Velero's action created
// for the old driver. The driver's CSI sidecar would remove them, but does not run here.
func (c *Cleaner) releaseUnserved(ctx context.Context, of *snapshotv1.VolumeSnapshotContent) error {
	contents := c.clients.Snapshots.SnapshotV1().VolumeSnapshotContents()
	list, err := contents.List(ctx, metav1.ListOptions{LabelSelector: velerov1.BackupNameLabel + "=" + of.Labels[velerov1.BackupNameLabel]})
	if err != nil {
		return fmt.Errorf("list the VolumeSnapshotContents of backup %s: %w", of.Labels[velerov1.BackupNameLabel], err)
	}
	for i := range list.Items {
		left := &list.Items[i]
		if left.DeletionTimestamp == nil || left.Spec.Driver != of.Spec.Driver || ptr.Deref(left.Spec.Source.SnapshotHandle, "") != *of.Status.SnapshotHandle {
			continue
		}
		patch := fmt.Sprintf(`{"metadata":{"uid":%q,"finalizers":null}}`, left.UID)
		_, err := contents.Patch(ctx, left.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("release VolumeSnapshotContent %s, whose driver is not in this cluster: %w", left.Name, err)
		}
	}
	return nil
}
