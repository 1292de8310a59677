package snapshot

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Labels and annotations by which an object of a snapshot tells where it comes
// from.
const (
	// InstallationLabel has the UID of the namespace of the Velero whose Stillpoint
	// took the snapshot: several Veleros may share a cluster, or a bucket.
	InstallationLabel = "stillpoint.io/installation"
	// RestoreLabel has the UID of the Restore that the object was made for.
	RestoreLabel = "stillpoint.io/restore-uid"
	// KeptLabel has the UID of the claim that a snapshot was taken of to be kept
	// beside its export.
	KeptLabel = "stillpoint.io/kept"

	// BackupUIDKey has the UID of the Backup: an annotation here, and a label on the
	// records of freezes.
	BackupUIDKey = "stillpoint.io/backup-uid"

	backupAnnotation = "stillpoint.io/backup"
	// claimAnnotation has the UID of the claim, as its label has; a data mover's
	// copy has the annotation only.
	claimAnnotation = "stillpoint.io/claim-uid"
)

// ClaimOf is the UID of the claim that a VolumeSnapshot was taken of, or that a
// data mover's copy of one is of; "" where Stillpoint did not mark it.
func ClaimOf(vs *snapshotv1.VolumeSnapshot) string {
	return cmp.Or(vs.Labels[velerov1.PVCUIDLabel], vs.Annotations[claimAnnotation])
}

// ExportedAnnotation tells whether the driver exports a snapshot by itself, so that
// its handle names the copy: "true" or "false".
const ExportedAnnotation = "stillpoint.io/exported"

// KeepAnnotation is a user's word, when it is "true" on a VolumeSnapshot or its
// content, that Stillpoint is not to delete it. On a claim it has a snapshot kept
// of each backup.
const KeepAnnotation = "stillpoint.io/keep-snapshot"

// Origin is which backup a snapshot was taken for, and by whom.
type Origin struct {
	// Installation is the UID of the namespace of the Velero that took it.
	Installation string
	// Backup and BackupUID are those of the Velero Backup.
	Backup, BackupUID string
}

// OriginOf reads where an object comes from: a VolumeSnapshot or a
// VolumeSnapshotContent, or the copy that a data mover has made of one, which
// has the annotations only. The snapshot controller can undo annotations of a
// content, and leaves the labels. It is false for objects that Stillpoint did
// not mark, and for those whose marks disagree; the backup's name may be missing.
func OriginOf(object metav1.Object) (Origin, bool) {
	annotations, labels := object.GetAnnotations(), object.GetLabels()
	origin := Origin{Backup: annotations[backupAnnotation]}
	for _, mark := range []struct {
		into              *string
		label, annotation string
	}{
		{&origin.Installation, labels[InstallationLabel], annotations[InstallationLabel]},
		{&origin.BackupUID, labels[velerov1.BackupUIDLabel], annotations[BackupUIDKey]},
	} {
		*mark.into = cmp.Or(mark.label, mark.annotation)
		if *mark.into == "" || *mark.into != cmp.Or(mark.annotation, mark.label) {
			return Origin{}, false
		}
	}
	return origin, true
}

// Mark writes onto an object where it comes from.
func (o Origin) Mark(object metav1.Object) {
	labels, annotations := object.GetLabels(), object.GetAnnotations()
	if labels == nil {
		labels = map[string]string{}
	}
	if annotations == nil {
		annotations = map[string]string{}
	}
	labels[InstallationLabel], labels[velerov1.BackupUIDLabel] = o.Installation, o.BackupUID
	annotations[InstallationLabel], annotations[BackupUIDKey], annotations[backupAnnotation] = o.Installation, o.BackupUID, o.Backup
	object.SetLabels(labels)
	object.SetAnnotations(annotations)
}

// Vetoed answers whether a user wants the object to stay.
func Vetoed(object metav1.Object) bool { return object.GetAnnotations()[KeepAnnotation] == "true" }

// Mark writes an origin on a VolumeSnapshot that another took of a claim, and
// returns it as it is then.
func Mark(ctx context.Context, client versioned.Interface, name string, claim *corev1.PersistentVolumeClaim, origin Origin) (*snapshotv1.VolumeSnapshot, error) {
	namespace := claim.Namespace
	patch, err := origin.patch(metav1.ObjectMeta{
		Labels:      map[string]string{velerov1.PVCUIDLabel: string(claim.UID)},
		Annotations: map[string]string{claimAnnotation: string(claim.UID)},
	})
	if err != nil {
		return nil, err
	}
	vs, err := client.SnapshotV1().VolumeSnapshots(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return nil, fmt.Errorf("mark VolumeSnapshot %s/%s: %w", namespace, name, err)
	}
	return vs, nil
}

// MarkContent writes the origin of a VolumeSnapshot on its content, which the
// snapshot controller makes without, and whether it is exported.
func MarkContent(ctx context.Context, client versioned.Interface, vs *snapshotv1.VolumeSnapshot) error {
	origin, ours := OriginOf(vs)
	if !ours {
		return fmt.Errorf("VolumeSnapshot %s/%s does not say where it comes from", vs.Namespace, vs.Name)
	}
	blank := metav1.ObjectMeta{}
	if exported, known := vs.Annotations[ExportedAnnotation]; known {
		blank.Annotations = map[string]string{ExportedAnnotation: exported}
	}
	patch, err := origin.patch(blank)
	if err == nil {
		_, err = client.SnapshotV1().VolumeSnapshotContents().Patch(ctx, contentName(vs), types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		return fmt.Errorf("mark VolumeSnapshotContent %s: %w", contentName(vs), err)
	}
	return nil
}

// patch is what Mark changes, with what is there besides.
func (o Origin) patch(blank metav1.ObjectMeta) ([]byte, error) {
	o.Mark(&blank)
	return json.Marshal(map[string]any{"metadata": map[string]any{"labels": blank.Labels, "annotations": blank.Annotations}})
}
