package csi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework/common"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/mapping"
	"stillpoint.io/stillpoint/internal/snapshot"
	"stillpoint.io/stillpoint/internal/velero"
)

// interval is the poll interval for a snapshot that becomes ready.
const interval = 200 * time.Millisecond

// Restore provisions a volume from a snapshot, by the driver and the StorageClass of
// the original claim, and returns the ID of the volume. zone is the zone of the
// original volume, "" if it is not known.
func (s *Snapshotter) Restore(ctx context.Context, id, zone string) (string, error) {
	i, err := decodeID(id)
	if err != nil {
		return "", err
	}
	timeout := s.settings().Limit()
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it took longer than the location's timeout, %s", timeout))
	defer cancel()
	volume, err := s.restore(ctx, i, zone)
	if err != nil {
		return "", fmt.Errorf("restore claim %s/%s from snapshot %s of driver %s: %w", i.Namespace, i.Claim, i.Handle, i.Driver, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.promoted[idOf(volume)] = volume
	return idOf(volume), nil
}

func (s *Snapshotter) restore(ctx context.Context, i identity, zone string) (*corev1.PersistentVolume, error) {
	installation, err := s.clients.Installation(ctx)
	if err != nil {
		return nil, err
	}
	settings, err := s.decisions.Settings(ctx)
	if err != nil {
		return nil, err
	}
	if settings.Driver(i.Driver).RestoreFrom == config.RestoreFromExport && !i.Exported {
		return nil, fmt.Errorf("the snapshot is a local one, and driver %s restores from exports only, by its profile in the configuration (drivers, restoreFrom)", i.Driver)
	}
	target, err := mapping.ReadTarget(ctx, s.clients)
	if err != nil {
		return nil, err
	}
	if err := s.mapped(&i, settings, target); err != nil {
		return nil, err
	}
	class, err := s.storageClass(ctx, i)
	if err != nil {
		return nil, err
	}
	nodes, err := s.promoter.Nodes(ctx, class, zone)
	if err != nil {
		return nil, err
	}
	vs, err := s.createTemporary(ctx, &i, installation)
	if err != nil {
		return nil, err
	}
	defer s.deleteTemporary(ctx, vs)
	if err := s.ready(ctx, vs, &i); err != nil {
		return nil, err
	}
	return s.promoter.Promote(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: vs.Namespace, GenerateName: "stillpoint-restore-"},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class.Name, VolumeMode: &i.Mode, AccessModes: i.AccessModes,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: *resource.NewQuantity(i.Size, resource.BinarySI),
			}},
			DataSource: &corev1.TypedLocalObjectReference{APIGroup: ptr.To(snapshotv1.GroupName), Kind: "VolumeSnapshot", Name: vs.Name},
		},
	}, nodes...)
}

// mapped applies the restore maps of the configuration, and checks that their targets
// exist in the cluster.
func (s *Snapshotter) mapped(i *identity, settings *config.Config, target mapping.Target) error {
	mapped, err := mapping.Map(mapping.Source{Driver: i.Driver, Class: i.Class}, settings, target)
	switch {
	case err != nil:
		return err
	case mapped != nil:
		s.log.Infof("Mapped snapshot %s of claim %s/%s to driver %s and VolumeSnapshotClass %s: %s", i.Handle, i.Namespace, i.Claim, mapped.Driver, cmp.Or(mapped.Class, "none"), mapped.Reason)
		i.Driver, i.Class = mapped.Driver, mapped.Class
		return nil
	}
	if err := missing(i.Driver, target); err != nil {
		return fmt.Errorf("%w; restore.drivers of the configuration maps a driver of another name", err)
	}
	if class := target.Class(i.Class); class == nil || class.Driver != i.Driver {
		i.Class = "" // an existing snapshot needs no class
	}
	return nil
}

// storageClass returns the StorageClass to provision with: the claim's, or its
// replacement in Velero's map. Velero applies that map to the items of the restore, so
// the volume must have the same class.
func (s *Snapshotter) storageClass(ctx context.Context, i identity) (*storagev1.StorageClass, error) {
	name, reason := i.StorageClass, "as backed up"
	changes, err := common.GetPluginConfig(common.PluginKindRestoreItemAction, velero.ChangeStorageClass, s.clients.Kube.CoreV1().ConfigMaps(s.clients.VeleroNamespace))
	if err != nil {
		return nil, fmt.Errorf("read Velero's map of StorageClasses: %w", err)
	}
	if changes != nil && changes.Data[name] != "" {
		reason = fmt.Sprintf("by ConfigMap %s/%s, which maps StorageClass %s", changes.Namespace, changes.Name, name)
		name = changes.Data[i.StorageClass]
	}
	list, err := s.clients.Kube.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the StorageClasses: %w", err)
	}
	return classFor(name, reason, i.Driver, list.Items)
}

func classFor(name, reason, driver string, all []storagev1.StorageClass) (*storagev1.StorageClass, error) {
	var valid []string
	for _, class := range all {
		if class.Provisioner == driver {
			valid = append(valid, class.Name)
		}
	}
	slices.Sort(valid)
	if name == "" && len(valid) > 0 { // of a volume that was created by hand
		name, reason = valid[0], "the first one of driver "+driver
		for _, class := range all {
			if class.Provisioner == driver && class.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" {
				name = class.Name
			}
		}
	}
	fix := fmt.Sprintf("map it by a ConfigMap for Velero's plugin %s; StorageClasses of driver %s: %s", velero.ChangeStorageClass, driver, orNone(valid))
	if name == "" {
		return nil, fmt.Errorf("the claim had no StorageClass to provision a volume by, and there is none of driver %s", driver)
	}
	at := slices.IndexFunc(all, func(class storagev1.StorageClass) bool { return class.Name == name })
	switch {
	case at < 0:
		return nil, fmt.Errorf("StorageClass %s (%s) does not exist in this cluster; %s", name, reason, fix)
	case all[at].Provisioner != driver:
		return nil, fmt.Errorf("StorageClass %s (%s) is of provisioner %s, and the snapshot of driver %s; %s", name, reason, all[at].Provisioner, driver, fix)
	}
	return &all[at], nil
}

// createTemporary creates a temporary VolumeSnapshot of the handle, for a claim to be
// provisioned from.
func (s *Snapshotter) createTemporary(ctx context.Context, i *identity, installation string) (*snapshotv1.VolumeSnapshot, error) {
	vs, content := s.static(*i, "restore", installation, snapshotv1.VolumeSnapshotContentRetain)
	suffix := "-" + utilrand.String(5) // two restores can use a snapshot at the same time
	vs.Name += suffix
	content.Name = vs.Name
	content.Spec.VolumeSnapshotRef.Name, vs.Spec.Source.VolumeSnapshotContentName = vs.Name, &content.Name
	client := s.clients.Snapshots.SnapshotV1()
	if _, err := client.VolumeSnapshotContents().Create(ctx, content, metav1.CreateOptions{}); err != nil {
		return nil, fmt.Errorf("create VolumeSnapshotContent %s: %w", content.Name, err)
	}
	made, err := client.VolumeSnapshots(vs.Namespace).Create(ctx, vs, metav1.CreateOptions{})
	if err != nil {
		s.deleteTemporary(ctx, vs)
		return nil, fmt.Errorf("create VolumeSnapshot %s/%s: %w", vs.Namespace, vs.Name, err)
	}
	return made, nil
}

// ready waits until the snapshot can be restored from, and stores the size that a
// restore needs.
func (s *Snapshotter) ready(ctx context.Context, vs *snapshotv1.VolumeSnapshot, i *identity) error {
	problem := "is the snapshot controller running, and the CSI sidecar csi-snapshotter of driver " + i.Driver + "?"
	err := wait.PollUntilContextCancel(ctx, interval, true, func(ctx context.Context) (bool, error) {
		now, err := s.clients.Snapshots.SnapshotV1().VolumeSnapshots(vs.Namespace).Get(ctx, vs.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return false, err
		case err != nil || now.Status == nil:
			return false, nil //nolint:nilerr // transient, and ctx has an end
		case now.Status.Error != nil:
			problem = "the driver says: " + ptr.Deref(now.Status.Error.Message, "nothing")
		}
		if size := now.Status.RestoreSize; size != nil {
			i.Size = max(i.Size, size.Value())
		}
		return ptr.Deref(now.Status.ReadyToUse, false), nil
	})
	if err != nil {
		return fmt.Errorf("VolumeSnapshot %s/%s, created from the handle, is not ready to use: %w; %s", vs.Namespace, vs.Name, context.Cause(ctx), problem)
	}
	return nil
}

// deleteTemporary deletes the objects that createTemporary created; the storage's
// snapshot stays.
func (s *Snapshotter) deleteTemporary(ctx context.Context, vs *snapshotv1.VolumeSnapshot) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removalLimit)
	defer cancel()
	_, err := snapshot.RemoveAll(ctx, s.clients.Snapshots, snapshot.Target{
		Namespace: vs.Namespace, Name: vs.Name, Content: *vs.Spec.Source.VolumeSnapshotContentName, Policy: snapshotv1.VolumeSnapshotContentRetain,
	})
	if err != nil {
		s.log.Warnf("Could not delete the temporary objects of a restore, which do not affect the storage's snapshot: %v", err)
	}
}

// Adopt returns a volume as backed up with the restored data.
func (s *Snapshotter) Adopt(ctx context.Context, item *corev1.PersistentVolume, id string) (*corev1.PersistentVolume, error) {
	driver, handle, err := handleOf(id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	promoted := s.promoted[id]
	delete(s.promoted, id)
	s.mu.Unlock()
	if promoted == nil { // provisioned by another process
		promoted, err = s.promoter.Promoted(ctx, func(volume *corev1.PersistentVolume) bool { return volume.Spec.CSI != nil && idOf(volume) == id })
		if err != nil {
			return nil, err
		}
	}
	if promoted == nil {
		return nil, fmt.Errorf("PersistentVolume %s: no volume with the handle %s of driver %s was provisioned by a restore", item.Name, handle, driver)
	}
	return s.promoter.Adopt(ctx, item, promoted)
}
