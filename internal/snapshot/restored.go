package snapshot

import (
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/api"
)

// Unmark takes away the marks of the backup that an object was copied from: a
// restored copy is nothing that the backup has left behind, and not of the
// installation that took the snapshot.
func Unmark(object metav1.Object) {
	labels, annotations := object.GetLabels(), object.GetAnnotations()
	for _, key := range []string{api.LabelInstallation, velerov1.BackupUIDLabel, velerov1.PVCUIDLabel, api.LabelKept, excludeLabel} {
		delete(labels, key)
	}
	for _, key := range []string{api.AnnotationInstallation, api.AnnotationBackup, api.AnnotationBackupUID, api.AnnotationClaimUID, api.AnnotationKeepLast, api.AnnotationDeletionAwaited} {
		delete(annotations, key)
	}
	object.SetLabels(labels)
	object.SetAnnotations(annotations)
}

// Restored are the labels of what a restore has made for a claim, and only for
// that: by the UID of the Restore and that of its Velero's namespace. No backup
// takes it.
func Restored(installation, restoreUID string) map[string]string {
	return map[string]string{api.LabelInstallation: installation, api.LabelRestore: restoreUID, excludeLabel: "true"}
}
