package cleanup

import (
	"fmt"

	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// Targets returns the snapshots that a DataUpload can leave behind: its source, and the
// copy that Velero's data mover creates in Velero's namespace and names after the
// DataUpload (CSISnapshotExposer in pkg/exposer of Velero 1.18).
func Targets(upload *velerov2alpha1.DataUpload) []snapshot.Target {
	targets := []snapshot.Target{{Namespace: upload.Namespace, Name: upload.Name, Content: upload.Name}}
	if upload.Spec.CSISnapshot != nil {
		targets = append(targets, snapshot.Target{
			Namespace: upload.Spec.SourceNamespace, Name: upload.Spec.CSISnapshot.VolumeSnapshot,
			Content: upload.Annotations[api.AnnotationContent],
		})
	}
	return targets
}

// Ended reports whether the data mover has ended a DataUpload.
func Ended(upload *velerov2alpha1.DataUpload) bool {
	switch upload.Status.Phase {
	case velerov2alpha1.DataUploadPhaseCompleted, velerov2alpha1.DataUploadPhaseFailed, velerov2alpha1.DataUploadPhaseCanceled:
		return true
	default:
		return false
	}
}

// MoverKeeps returns why a data mover may keep its snapshots after their upload, "" if
// Stillpoint deletes them. unusable is why settings are the default.
func MoverKeeps(settings *config.Config, unusable error, mover string) string {
	switch {
	case settings.DeletesSnapshotsOf(mover):
		return ""
	case unusable != nil:
		return fmt.Sprintf("data mover %s may keep its snapshots, and the configuration, which says so, cannot be used: %v", mover, unusable)
	default:
		return fmt.Sprintf("data mover %s may keep its snapshots: dataMovers of the configuration does not say deleteSnapshots", mover)
	}
}
