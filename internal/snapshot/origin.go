package snapshot

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"

	"stillpoint.io/stillpoint/internal/api"
)

// ClaimOf returns the UID of the claim of a VolumeSnapshot, a content, or a data mover's
// copy; "" if Stillpoint did not mark it.
func ClaimOf(object metav1.Object) string {
	return cmp.Or(object.GetLabels()[velerov1.PVCUIDLabel], object.GetAnnotations()[api.AnnotationClaimUID])
}

// Origin is the backup and the installation that a snapshot was taken for.
type Origin struct {
	// Installation is the UID of Velero's namespace.
	Installation string
	// Backup and BackupUID identify the Velero Backup.
	Backup, BackupUID string
}

// OriginOf reads the marks of a VolumeSnapshot, a VolumeSnapshotContent, or a data
// mover's copy, which has only the annotations. The snapshot controller can revert
// annotations of a content, but not the labels. It returns false if Stillpoint did not
// mark the object, or if the marks disagree. The backup's name may be missing.
func OriginOf(object metav1.Object) (Origin, bool) {
	annotations, labels := object.GetAnnotations(), object.GetLabels()
	origin := Origin{Backup: annotations[api.AnnotationBackup]}
	for _, mark := range []struct {
		into              *string
		label, annotation string
	}{
		{&origin.Installation, labels[api.LabelInstallation], annotations[api.AnnotationInstallation]},
		{&origin.BackupUID, labels[velerov1.BackupUIDLabel], annotations[api.AnnotationBackupUID]},
	} {
		*mark.into = cmp.Or(mark.label, mark.annotation)
		if *mark.into == "" || *mark.into != cmp.Or(mark.annotation, mark.label) {
			return Origin{}, false
		}
	}
	return origin, true
}

// Origin reads the marks of a pair; velero is Velero's namespace. A user who can write
// VolumeSnapshots in a namespace can set any mark there. The marks of a VolumeSnapshot
// therefore count only if its content has them, too. If the content is unmarked, the
// VolumeSnapshot's name must be derived from the marks, or its namespace must be
// Velero's. Different marks are an error.
func (p Pair) Origin(velero string) (origin Origin, marked bool, err error) {
	if p.Content != nil {
		origin, marked = OriginOf(p.Content)
	}
	if p.Snapshot == nil {
		return origin, marked, nil
	}
	said, says := OriginOf(p.Snapshot)
	switch {
	case says && marked && (said.Installation != origin.Installation || said.BackupUID != origin.BackupUID):
		return said, true, fmt.Errorf("the VolumeSnapshot says that it is of the backup with the UID %s, its content says %s", said.BackupUID, origin.BackupUID)
	case marked:
		origin.Backup = cmp.Or(said.Backup, origin.Backup)
		return origin, true, nil
	case says && (p.Snapshot.Namespace == velero || named(p.Snapshot, said)):
		return said, true, nil
	}
	return Origin{}, false, nil
}

// Kept returns the UID of the claim if the pair is a kept snapshot, "" otherwise, by the
// same rule as Origin.
func (p Pair) Kept() string {
	if p.Content != nil && p.Content.Labels[api.LabelKept] != "" {
		return p.Content.Labels[api.LabelKept]
	}
	if p.Snapshot == nil {
		return ""
	}
	if said, says := OriginOf(p.Snapshot); !says || !named(p.Snapshot, said) {
		return ""
	}
	return p.Snapshot.Labels[api.LabelKept]
}

// named reports whether a VolumeSnapshot has the name that Stillpoint derives from these
// marks. No other snapshot has such a name.
func named(vs *snapshotv1.VolumeSnapshot, origin Origin) bool {
	claim, prefix := ClaimOf(vs), firstPrefix
	if kept := vs.Labels[api.LabelKept]; kept != "" {
		claim, prefix = kept, keptPrefix
	}
	of := vs.Spec.Source.PersistentVolumeClaimName
	return of != nil && claim != "" && vs.Name == name(prefix, origin.BackupUID, *of, claim)
}

// Of reports whether an object with this origin, created at that time, belongs to a
// backup. Velero recreates a deleted Backup object from the object store with its name
// and times, but another UID.
func (o Origin) Of(backup *velerov1.Backup, created time.Time) bool {
	if o.BackupUID == string(backup.UID) {
		return true
	}
	start, end := backup.Status.StartTimestamp, backup.Status.CompletionTimestamp
	return o.Backup == backup.Name && start != nil && !created.Before(start.Truncate(time.Second)) && end != nil && !created.After(end.Time)
}

// Mark sets the origin on an object.
func (o Origin) Mark(object metav1.Object) {
	labels, annotations := object.GetLabels(), object.GetAnnotations()
	if labels == nil {
		labels = map[string]string{}
	}
	if annotations == nil {
		annotations = map[string]string{}
	}
	labels[api.LabelInstallation], labels[velerov1.BackupUIDLabel] = o.Installation, o.BackupUID
	annotations[api.AnnotationInstallation], annotations[api.AnnotationBackupUID], annotations[api.AnnotationBackup] = o.Installation, o.BackupUID, o.Backup
	object.SetLabels(labels)
	object.SetAnnotations(annotations)
}

// Vetoed reports whether a user wants to keep the object.
func Vetoed(object metav1.Object) bool {
	return object.GetAnnotations()[api.AnnotationKeepSnapshot] == "true"
}

// Mark sets an origin on a VolumeSnapshot that Velero took of a claim, and on its
// content. Like MarkContent, it sets the policy so that the storage's snapshot outlives
// them. It removes the labels that Velero copied from the claim and that excluded
// matches.
func Mark(ctx context.Context, client versioned.Interface, name string, claim *corev1.PersistentVolumeClaim, origin Origin, excluded func(label string) bool) (*snapshotv1.VolumeSnapshot, error) {
	snapshots := client.SnapshotV1().VolumeSnapshots(claim.Namespace)
	vs, err := snapshots.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get VolumeSnapshot %s/%s: %w", claim.Namespace, name, err)
	}
	before := maps.Clone(vs.Labels)
	maps.DeleteFunc(vs.Labels, func(key, _ string) bool { return key == api.LabelKept || excluded(key) })
	origin.Mark(vs)
	vs.Labels[velerov1.PVCUIDLabel], vs.Annotations[api.AnnotationClaimUID] = string(claim.UID), string(claim.UID)
	// The content is first, because its marks suffice and those of the VolumeSnapshot do
	// not.
	if err := MarkContent(ctx, client, vs); err != nil {
		return vs, err
	}
	labels := map[string]any{}
	for key := range before {
		labels[key] = nil
	}
	for key, value := range vs.Labels {
		labels[key] = value
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels, "annotations": vs.Annotations}})
	if err == nil {
		_, err = snapshots.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		return vs, fmt.Errorf("mark VolumeSnapshot %s/%s: %w", claim.Namespace, name, err)
	}
	return vs, nil
}

// MarkContent copies the marks of a VolumeSnapshot to its content, and sets the policy
// Retain. If the VolumeSnapshot is deleted while its backup runs, the storage's snapshot
// then stays. Remove sets the policy to Delete again. A kept snapshot is the user's to
// delete, and keeps the policy of its class.
func MarkContent(ctx context.Context, client versioned.Interface, vs *snapshotv1.VolumeSnapshot) error {
	origin, ours := OriginOf(vs)
	if !ours {
		return fmt.Errorf("VolumeSnapshot %s/%s does not say where it comes from", vs.Namespace, vs.Name)
	}
	contents := client.SnapshotV1().VolumeSnapshotContents()
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		content, err := contents.Get(ctx, contentName(vs), metav1.GetOptions{})
		if err != nil {
			return err
		}
		if content.Spec.VolumeSnapshotRef.UID != vs.UID {
			return fmt.Errorf("it is the content of another VolumeSnapshot, %s/%s", content.Spec.VolumeSnapshotRef.Namespace, content.Spec.VolumeSnapshotRef.Name)
		}
		marks := metav1.ObjectMeta{Labels: map[string]string{}, Annotations: map[string]string{}, ResourceVersion: content.ResourceVersion}
		origin.Mark(&marks)
		for _, key := range []string{velerov1.PVCUIDLabel, api.LabelKept} {
			if value, ok := vs.Labels[key]; ok {
				marks.Labels[key] = value
			}
		}
		for _, key := range []string{api.AnnotationClaimUID, api.AnnotationKeepLast, api.AnnotationExported} {
			if value, ok := vs.Annotations[key]; ok {
				marks.Annotations[key] = value
			}
		}
		change := map[string]any{"metadata": map[string]any{"labels": marks.Labels, "annotations": marks.Annotations, "resourceVersion": marks.ResourceVersion}}
		if vs.Labels[api.LabelKept] == "" && content.DeletionTimestamp == nil { // a deletion in progress continues
			change["spec"] = map[string]any{"deletionPolicy": snapshotv1.VolumeSnapshotContentRetain}
		}
		patch, err := json.Marshal(change)
		if err == nil {
			_, err = contents.Patch(ctx, content.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("mark VolumeSnapshotContent %s: %w", contentName(vs), err)
	}
	return nil
}
