package snapshot

import (
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/api"
)

// Unmark removes the marks of the backup that an object was restored from. The restored
// object is not a leftover of that backup, and may belong to another installation.
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

// Restored returns the labels of an object that a restore creates only for a claim: the
// UIDs of the Restore and of Velero's namespace. No backup includes the object.
func Restored(installation, restoreUID string) map[string]string {
	return map[string]string{api.LabelInstallation: installation, api.LabelRestore: restoreUID, excludeLabel: "true"}
}
