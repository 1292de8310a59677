package restore

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/podvolume/configs"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"stillpoint.io/stillpoint/internal/selection"
	"stillpoint.io/stillpoint/internal/velero"
)

// missing returns why a claim of a backup that moves data would come back empty; ""
// if it would not, or is meant to. Velero restores a claim without a DataUpload as it
// is, and a claim whose DataUpload failed then waits forever.
func (r *Restorer) missing(ctx context.Context, item Item, target types.NamespacedName) (string, error) {
	claim := &corev1.PersistentVolumeClaim{}
	if err := convert(item.BackedUp, claim); err != nil {
		return "", err
	}
	backup, err := r.backup(ctx, item.Restore)
	if err != nil {
		return "", err
	}
	if upload := claim.Annotations[velerov1.DataUploadNameAnnotation]; upload != "" {
		return r.notMoved(ctx, item, claim, upload)
	}
	// || The claim had no volume that Velero can snapshot.
	if claim.Status.Phase == corev1.ClaimPending || claim.Annotations[velerov1.SkippedNoCSIPVAnnotation] != "" {
		return "", nil
	}
	if copied, text, err := r.podVolumeBackup(ctx, backup, claim); copied || text != "" || err != nil {
		return text, err
	}
	if there, err := r.hasVolume(ctx, item.Restore, claim, target); there || err != nil {
		return "", err
	}
	leftOut, err := selection.New(standIn(r.clients.Objects, claim), true, backup).LeftOut(claim)
	switch {
	case err != nil:
		return fmt.Sprintf("it moves data, but has no DataUpload of the claim, and it is not known whether it was to exclude the claim: %v", err), nil
	case leftOut == "":
		return "it moves data, but has no DataUpload of the claim", nil
	}
	r.log.Infof("The backup has no data of claim %s/%s, which comes back empty: %s", claim.Namespace, claim.Name, leftOut)
	return "", nil
}

// backup returns the Backup that is restored from.
func (r *Restorer) backup(ctx context.Context, restore *velerov1.Restore) (*velerov1.Backup, error) {
	known := r.of(ctx, restore)
	r.mu.Lock()
	defer r.mu.Unlock()
	if known.backup == nil {
		backup := &velerov1.Backup{}
		if err := r.clients.Objects.Get(ctx, crclient.ObjectKey{Namespace: r.clients.VeleroNamespace, Name: restore.Spec.BackupName}, backup); err != nil {
			return nil, fmt.Errorf("get backup %s: %w", restore.Spec.BackupName, err)
		}
		known.backup = backup
	}
	return known.backup, nil
}

// standIn returns a client that knows the volume of a claim as far as the claim
// describes it, since the volume need not exist in this cluster. Pods are ignored:
// only a PodVolumeBackup proves that a volume was backed up through a pod.
func standIn(client crclient.WithWatch, claim *corev1.PersistentVolumeClaim) crclient.Client {
	return interceptor.NewClient(client, interceptor.Funcs{
		Get: func(ctx context.Context, client crclient.WithWatch, key crclient.ObjectKey, into crclient.Object, options ...crclient.GetOption) error {
			volume, ok := into.(*corev1.PersistentVolume)
			if !ok || key.Name != claim.Spec.VolumeName {
				return client.Get(ctx, key, into, options...)
			}
			if err := client.Get(ctx, key, volume, options...); err == nil && volume.Spec.ClaimRef != nil && volume.Spec.ClaimRef.UID == claim.UID {
				volume.Spec.ClaimRef = nil
				return nil
			}
			*volume = corev1.PersistentVolume{
				ObjectMeta: metav1.ObjectMeta{Name: claim.Spec.VolumeName},
				Spec: corev1.PersistentVolumeSpec{
					Capacity: claim.Status.Capacity, AccessModes: claim.Spec.AccessModes, VolumeMode: claim.Spec.VolumeMode,
					StorageClassName: ptr.Deref(claim.Spec.StorageClassName, ""),
				},
			}
			if driver := claim.Annotations[velero.StorageProvisioner]; driver != "" {
				volume.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: driver}
			}
			return nil
		},
	})
}

// podVolumeBackup reports whether a claim's data was copied through a pod; text
// describes a copy that failed.
func (r *Restorer) podVolumeBackup(ctx context.Context, backup *velerov1.Backup, claim *corev1.PersistentVolumeClaim) (copied bool, text string, err error) {
	list := &velerov1.PodVolumeBackupList{}
	// Cached, since each claim without a snapshot is looked up in the same list.
	err = r.clients.Remembered.List(ctx, list, crclient.InNamespace(backup.Namespace), crclient.MatchingLabels{velerov1.BackupNameLabel: label.GetValidName(backup.Name)})
	if err != nil {
		return false, "", fmt.Errorf("list the PodVolumeBackups of backup %s: %w", backup.Name, err)
	}
	for _, found := range list.Items {
		if found.Spec.Pod.Namespace != claim.Namespace || found.Annotations[configs.PVCNameAnnotation] != claim.Name {
			continue
		}
		if found.Status.Phase == velerov1.PodVolumeBackupPhaseCompleted {
			return true, "", nil
		}
		text = fmt.Sprintf("its PodVolumeBackup %s is %s: %s", found.Name, found.Status.Phase, found.Status.Message)
	}
	return false, strings.TrimSuffix(text, ": "), nil
}

// hasVolume reports whether a claim gets a restored PersistentVolume, which is not
// empty. Velero restores volumes first: those of VolumeSnapshotters, and those with
// reclaim policy Retain.
func (r *Restorer) hasVolume(ctx context.Context, restore *velerov1.Restore, claim *corev1.PersistentVolumeClaim, target types.NamespacedName) (bool, error) {
	if claim.Spec.VolumeName == "" {
		return false, nil
	}
	restored, err := r.kube.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{LabelSelector: velerov1.RestoreNameLabel + "=" + label.GetValidName(restore.Name)})
	if err != nil {
		return false, fmt.Errorf("list the PersistentVolumes of restore %s: %w", restore.Name, err)
	}
	for _, volume := range restored.Items {
		of := volume.Spec.ClaimRef
		if (volume.Name == claim.Spec.VolumeName || volume.Annotations[velero.OriginalVolume] == claim.Spec.VolumeName) &&
			volume.DeletionTimestamp == nil && (of == nil || (of.Namespace == target.Namespace && of.Name == target.Name)) {
			return true, nil
		}
	}
	return false, nil
}

// notMoved returns why a DataUpload has no data, "" if it has. It then cancels the
// DataDownload that Velero created, which would wait for its claim forever.
func (r *Restorer) notMoved(ctx context.Context, item Item, claim *corev1.PersistentVolumeClaim, upload string) (string, error) {
	results, err := r.kube.CoreV1().ConfigMaps(r.clients.VeleroNamespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: map[string]string{
		velerov1.RestoreUIDLabel:       label.GetValidName(string(item.Restore.UID)),
		velerov1.PVCNamespaceNameLabel: label.GetValidName(claim.Namespace + "." + claim.Name),
		velerov1.ResourceUsageLabel:    label.GetValidName(string(velerov1.VeleroResourceUsageDataUploadResult)),
	}})})
	if err != nil {
		return "", fmt.Errorf("list the DataUpload results of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	if len(results.Items) != 1 { // refused by Velero's own action
		return "", nil
	}
	result := velerov2alpha1.DataUploadResult{}
	if err := json.Unmarshal([]byte(results.Items[0].Data[string(item.Restore.UID)]), &result); err != nil {
		return "", fmt.Errorf("read the DataUpload result of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	if result.SnapshotID != "" || result.DataMoverResult != nil {
		return "", nil
	}
	if err := r.cancelDownload(ctx, item.Restore, claim); err != nil {
		return "", err
	}
	text := fmt.Sprintf("its DataUpload %s was not completed", upload)
	namespace, name, _ := strings.Cut(upload, "/")
	found := &velerov2alpha1.DataUpload{}
	// The DataUpload may not exist here; it only says why.
	if err := r.clients.Objects.Get(ctx, crclient.ObjectKey{Namespace: namespace, Name: name}, found); err == nil {
		text = strings.TrimSuffix(fmt.Sprintf("its DataUpload %s is %s: %s", upload, found.Status.Phase, found.Status.Message), ": ")
	}
	return text, nil
}

// cancelDownload cancels the DataDownload that Velero's action created for a claim.
func (r *Restorer) cancelDownload(ctx context.Context, restore *velerov1.Restore, claim *corev1.PersistentVolumeClaim) error {
	operation := velero.DownloadOperation(restore, claim.UID)
	list := &velerov2alpha1.DataDownloadList{}
	if err := r.clients.Objects.List(ctx, list, crclient.InNamespace(r.clients.VeleroNamespace), crclient.MatchingLabels{velerov1.AsyncOperationIDLabel: operation}); err != nil {
		return fmt.Errorf("list the DataDownloads of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	for i := range list.Items {
		before := list.Items[i].DeepCopy()
		list.Items[i].Spec.Cancel = true
		if err := r.clients.Objects.Patch(ctx, &list.Items[i], crclient.MergeFrom(before)); err != nil {
			return fmt.Errorf("cancel DataDownload %s: %w", before.Name, err)
		}
	}
	return nil
}
