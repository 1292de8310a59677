package upload

import (
	"cmp"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"

	"stillpoint.io/stillpoint/internal/api"
)

// progressOfUpload returns what Velero's own action returns for a DataUpload. A
// DataUpload that is gone has failed.
func progressOfUpload(upload *velerov2alpha1.DataUpload) velero.OperationProgress {
	if upload == nil {
		return velero.OperationProgress{Completed: true, Err: "the DataUpload is gone", Description: "The DataUpload is gone"}
	}
	p := velero.OperationProgress{
		Description:    string(upload.Status.Phase),
		OperationUnits: "Bytes",
		NCompleted:     upload.Status.Progress.BytesDone,
		NTotal:         upload.Status.Progress.TotalBytes,
	}
	if upload.Status.StartTimestamp != nil {
		p.Started = upload.Status.StartTimestamp.Time
	}
	if upload.Status.CompletionTimestamp != nil {
		p.Updated = upload.Status.CompletionTimestamp.Time
	}
	switch upload.Status.Phase {
	case velerov2alpha1.DataUploadPhaseCompleted:
		p.Completed = true
	case velerov2alpha1.DataUploadPhaseFailed:
		p.Completed, p.Err = true, cmp.Or(upload.Status.Message, "the DataUpload failed without a message")
	case velerov2alpha1.DataUploadPhaseCanceled:
		p.Completed, p.Err = true, "the DataUpload is canceled"
	default:
	}
	return p
}

// ProgressOfSnapshot returns the progress of a snapshot without a data mover, and of the
// copy that its driver makes. Both are complete when the snapshot is ready to use.
func ProgressOfSnapshot(vs *snapshotv1.VolumeSnapshot) velero.OperationProgress {
	name := fmt.Sprintf("VolumeSnapshot %s/%s", vs.Namespace, vs.Name)
	exported := vs.Annotations[api.AnnotationExported] == "true"
	p := velero.OperationProgress{OperationUnits: "Bytes", Started: vs.CreationTimestamp.Time}
	status := vs.Status
	if status == nil {
		p.Description = name + " is not cut yet"
		return p
	}
	if status.RestoreSize != nil {
		p.NTotal = status.RestoreSize.Value()
	}
	switch {
	case status.ReadyToUse != nil && *status.ReadyToUse && exported:
		p.Completed, p.NCompleted, p.Description = true, p.NTotal, name+" is exported by its driver"
	case status.ReadyToUse != nil && *status.ReadyToUse:
		p.Completed, p.NCompleted, p.Description = true, p.NTotal, name+" is ready to use; the storage holds it for this backup"
	case exported:
		p.Description = name + " is being exported by its driver"
	default:
		p.Description = name + " is not ready to use yet"
	}
	if !p.Completed && status.Error != nil && status.Error.Message != nil {
		p.Description += ": " + *status.Error.Message
	}
	return p
}
