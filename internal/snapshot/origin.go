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

// ClaimOf is the UID of the claim that a VolumeSnapshot or content was taken of, or
// that a data mover's copy of one is of; "" where Stillpoint did not mark it.
func ClaimOf(object metav1.Object) string {
	return cmp.Or(object.GetLabels()[velerov1.PVCUIDLabel], object.GetAnnotations()[api.AnnotationClaimUID])
}

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

// Origin reads where a pair comes from; velero is Velero's namespace. Whoever may
// write VolumeSnapshots in a namespace can write any mark there, so those of a
// VolumeSnapshot count only where its content has them, too. Where the content has
// none yet, the name must be the one that Stillpoint makes of the marks, or the
// namespace Velero's own. It is an error when both are marked and differ.
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

// Kept is the UID of the claim that a pair was taken of to be kept beside its export,
// "" for any other, by the same rule as Origin.
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

// named reports whether a VolumeSnapshot has the name that Stillpoint gives to one
// with these marks. It fits no snapshot that somebody else has taken.
func named(vs *snapshotv1.VolumeSnapshot, origin Origin) bool {
	claim, prefix := ClaimOf(vs), firstPrefix
	if kept := vs.Labels[api.LabelKept]; kept != "" {
		claim, prefix = kept, keptPrefix
	}
	of := vs.Spec.Source.PersistentVolumeClaimName
	return of != nil && claim != "" && vs.Name == name(prefix, origin.BackupUID, *of, claim)
}

// Of reports whether an object with this origin, created at that time, belongs to
// a backup. A Backup that was deleted alone comes back from the object store with
// its name and its times, and with another UID.
func (o Origin) Of(backup *velerov1.Backup, created time.Time) bool {
	if o.BackupUID == string(backup.UID) {
		return true
	}
	start, end := backup.Status.StartTimestamp, backup.Status.CompletionTimestamp
	return o.Backup == backup.Name && start != nil && !created.Before(start.Truncate(time.Second)) && end != nil && !created.After(end.Time)
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
	labels[api.LabelInstallation], labels[velerov1.BackupUIDLabel] = o.Installation, o.BackupUID
	annotations[api.AnnotationInstallation], annotations[api.AnnotationBackupUID], annotations[api.AnnotationBackup] = o.Installation, o.BackupUID, o.Backup
	object.SetLabels(labels)
	object.SetAnnotations(annotations)
}

// Vetoed answers whether a user wants the object to stay.
func Vetoed(object metav1.Object) bool {
	return object.GetAnnotations()[api.AnnotationKeepSnapshot] == "true"
}

// Mark writes an origin on a VolumeSnapshot that Velero took of a claim, and on its
// content, and has the storage's snapshot outlive them, as MarkContent does. It
// takes off the labels of the claim that Velero has copied and excluded matches.
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
	// The content first: its marks alone are enough, the others are not.
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

// MarkContent writes the marks of a VolumeSnapshot on its content, which the
// snapshot controller makes without, and gives it the policy Retain: a
// VolumeSnapshot that is deleted while its backup runs does not take the storage's
// snapshot along. Remove sets the policy to Delete again. A snapshot that is kept
// beside an export is the user's to delete, and has the policy of its class.
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
		if vs.Labels[api.LabelKept] == "" && content.DeletionTimestamp == nil { // a deletion that has begun is carried out
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
