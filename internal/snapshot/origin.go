package snapshot

import (
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

	backupAnnotation    = "stillpoint.io/backup"
	backupUIDAnnotation = "stillpoint.io/backup-uid"
)

// KeepAnnotation, when it is "true" on a VolumeSnapshot or its content, is a
// user's word that Stillpoint is not to delete it. On a claim it has a snapshot
// kept of each backup.
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
// has the annotations only. It is false for objects that Stillpoint did not mark.
func OriginOf(object metav1.Object) (Origin, bool) {
	annotations, labels := object.GetAnnotations(), object.GetLabels()
	origin := Origin{annotations[InstallationLabel], annotations[backupAnnotation], annotations[backupUIDAnnotation]}
	// A label can be set by whoever may write the object, as an annotation can;
	// where they disagree, nobody knows.
	for label, value := range map[string]string{InstallationLabel: origin.Installation, velerov1.BackupUIDLabel: origin.BackupUID} {
		if have, ok := labels[label]; ok && have != value {
			return Origin{}, false
		}
	}
	return origin, origin.Installation != "" && origin.BackupUID != ""
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
	annotations[InstallationLabel], annotations[backupUIDAnnotation], annotations[backupAnnotation] = o.Installation, o.BackupUID, o.Backup
	object.SetLabels(labels)
	object.SetAnnotations(annotations)
}

// Vetoed answers whether a user wants the object to stay.
func Vetoed(object metav1.Object) bool { return object.GetAnnotations()[KeepAnnotation] == "true" }
