package restore

import (
	"context"
	"errors"
	"fmt"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/config"
)

// goneLimit is how long the deletion of a PersistentVolume object may take.
const goneLimit = 20 * time.Second

// Volume processes a PersistentVolume that Velero restores: one that a VolumeSnapshotter
// filled, or one with reclaim policy Retain that comes back unchanged because the backup
// has no data of it. skip excludes the latter from the restore.
func (r *Restorer) Volume(ctx context.Context, item Item) (skip bool, err error) {
	StripFinalizers(item.Object)
	var volume, backedUp corev1.PersistentVolume
	if err := errors.Join(convert(item.Object, &volume), convert(item.BackedUp, &backedUp)); err != nil {
		return false, err
	}
	known := r.of(ctx, item.Restore)
	switch {
	case !equality.Semantic.DeepEqual(volume.Spec.PersistentVolumeSource, backedUp.Spec.PersistentVolumeSource):
		r.mu.Lock()
		defer r.mu.Unlock()
		known.filled[backedUp.Name] = true
		return false, nil
	case volume.Spec.ClaimRef == nil:
		return false, nil
	case known.err != nil:
		return false, fmt.Errorf("PersistentVolume %s is not restored: %w", backedUp.Name, known.err)
	}
	mode, becomes := known.settings.Restore.WithoutData(), "is skipped"
	if mode == config.WithoutDataVelero {
		becomes = fmt.Sprintf("comes back as it was, by reclaim policy %s, with the data that its storage has now, or none", backedUp.Spec.PersistentVolumeReclaimPolicy)
	}
	r.log.Warnf("No data of the backup: PersistentVolume %s of claim %s/%s %s (restore.volumesWithoutData: %s)",
		backedUp.Name, backedUp.Spec.ClaimRef.Namespace, backedUp.Spec.ClaimRef.Name, becomes, mode)
	return mode != config.WithoutDataVelero, nil
}

// hasFilled reports whether a VolumeSnapshotter filled a volume in this process.
func (r *Restorer) hasFilled(restore *velerov1.Restore, volume string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.restores[restore.UID] != nil && r.restores[restore.UID].filled[volume]
}

// withoutData applies restore.volumesWithoutData to a claim of whose volume the backup
// has no data. reason is why the claim is refused, "" if it is not.
func (r *Restorer) withoutData(ctx context.Context, item Item, claim *corev1.PersistentVolumeClaim, volumes bool) (reason string, err error) {
	known := r.of(ctx, item.Restore)
	switch {
	case claim.Spec.VolumeName == "":
		return "", nil
	case known.err != nil:
		return "", known.err
	}
	mode := known.settings.Restore.WithoutData()
	switch reason = fmt.Sprintf("restore.volumesWithoutData: %s", mode); {
	case mode == config.WithoutDataVelero:
		return "", nil
	case volumes && mode == config.WithoutDataRefuse:
		return reason, nil
	case volumes && ptr.Deref(claim.Spec.StorageClassName, "") == "":
		return reason + ", and the claim has no StorageClass to provision a volume by", nil
	}
	r.log.Warnf("No data of the backup: claim %s/%s comes back with a new, empty volume (%s)", claim.Namespace, claim.Name, reason)
	unstructured.RemoveNestedField(item.Object.Object, "spec", "volumeName")
	unstructured.RemoveNestedField(item.Object.Object, "spec", "selector")
	return "", nil
}

// fill checks that a claim gets the data that the backup has of its volume.
func (r *Restorer) fill(ctx context.Context, item Item, backedUp *corev1.PersistentVolumeClaim, target types.NamespacedName, volumes bool) error {
	if (backedUp.Annotations[velerov1.VolumeSnapshotLabel] == "" && backedUp.Annotations[velerov1.DataUploadNameAnnotation] == "") || r.hasFilled(item.Restore, backedUp.Spec.VolumeName) {
		return nil
	}
	restored := &corev1.PersistentVolumeClaim{}
	if err := convert(item.Object, restored); err != nil {
		return err
	}
	selector := restored.Spec.Selector
	downloaded := selector != nil && selector.MatchLabels[velerov1.DynamicPVRestoreLabel] != ""
	if volumes && restored.Spec.DataSource == nil && !downloaded {
		return errors.New("the backup has a snapshot of its volume, and Velero has not made it the data source of the claim: does this server run with --features=EnableCSI?")
	}
	err := r.unreserve(ctx, item.Restore, target, volumes)
	if err != nil && downloaded {
		err = errors.Join(err, r.cancelDownload(ctx, item.Restore, backedUp))
	}
	return err
}

// unreserve deletes a PersistentVolume that is reserved for a claim of which the
// backup has data. Velero restores such a volume with reclaim policy Retain if its
// volume information lacks the snapshot, as it does for each CSI snapshot of a backup
// whose name has more than 63 characters.
func (r *Restorer) unreserve(ctx context.Context, restore *velerov1.Restore, target types.NamespacedName, volumes bool) error {
	client := r.kube.CoreV1().PersistentVolumes()
	list, err := client.List(ctx, metav1.ListOptions{LabelSelector: velerov1.RestoreNameLabel})
	if err != nil {
		return fmt.Errorf("list the PersistentVolumes that restores have made: %w", err)
	}
	for _, volume := range list.Items {
		ref, policy := volume.Spec.ClaimRef, volume.Spec.PersistentVolumeReclaimPolicy
		switch {
		case ref == nil || ref.Namespace != target.Namespace || ref.Name != target.Name || ref.UID != "":
			continue
		case policy != corev1.PersistentVolumeReclaimRetain || !restoredBy(&volume, restore):
			if !volumes {
				continue
			}
			return fmt.Errorf("PersistentVolume %s with reclaim policy %s is reserved for it by its claimRef, and would be bound instead of a volume with the data of the backup; "+
				"delete the PersistentVolume, or remove its claimRef, and restore the claim again", volume.Name, policy)
		}
		r.log.Warnf("Deleting PersistentVolume %s, which Velero restored as it was: claim %s gets the data of the backup instead. The storage keeps the volume", volume.Name, target)
		err := client.Delete(ctx, volume.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &volume.UID, ResourceVersion: &volume.ResourceVersion}})
		if err == nil { // Velero creates the claim next
			err = wait.PollUntilContextTimeout(ctx, pollInterval, goneLimit, true, func(ctx context.Context) (bool, error) {
				_, err := client.Get(ctx, volume.Name, metav1.GetOptions{})
				return apierrors.IsNotFound(err), nil
			})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete PersistentVolume %s, which would be bound instead of a volume with the data of the backup: %w", volume.Name, err)
		}
	}
	return nil
}

// boundElsewhere returns why a claim lacks the data of its VolumeSnapshot: it is bound
// to a PersistentVolume that is older than the claim. It returns "" otherwise.
func (r *Restorer) boundElsewhere(ctx context.Context, l restoredSnapshot) string {
	claim, err := r.kube.CoreV1().PersistentVolumeClaims(l.namespace).Get(ctx, l.claim, metav1.GetOptions{})
	if err != nil || claim.Spec.VolumeName == "" || claim.Spec.DataSource == nil || claim.Spec.DataSource.Name != l.snapshot {
		return ""
	}
	volume, err := r.kube.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	if err != nil || !volume.CreationTimestamp.Before(&claim.CreationTimestamp) {
		return ""
	}
	return fmt.Sprintf("claim %s/%s lacks the data of the backup: it is bound to PersistentVolume %s, which existed before the claim", l.namespace, l.claim, volume.Name)
}
