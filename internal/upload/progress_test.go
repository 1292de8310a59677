package upload

import (
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	"github.com/vmware-tanzu/velero/pkg/apis/velero/shared"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
)

func TestProgressOfAnUpload(t *testing.T) {
	begun, ended := metav1.Unix(1, 0), metav1.Unix(2, 0)
	for name, test := range map[string]struct {
		status velerov2alpha1.DataUploadStatus
		want   velero.OperationProgress
	}{
		"new": {velerov2alpha1.DataUploadStatus{}, velero.OperationProgress{OperationUnits: "Bytes"}},
		"at work": {
			velerov2alpha1.DataUploadStatus{
				Phase: velerov2alpha1.DataUploadPhaseInProgress, StartTimestamp: &begun, Progress: shared.DataMoveOperationProgress{BytesDone: 3, TotalBytes: 9},
			},
			velero.OperationProgress{Description: "InProgress", OperationUnits: "Bytes", NCompleted: 3, NTotal: 9, Started: begun.Time},
		},
		"done": {
			velerov2alpha1.DataUploadStatus{Phase: velerov2alpha1.DataUploadPhaseCompleted, CompletionTimestamp: &ended},
			velero.OperationProgress{Description: "Completed", OperationUnits: "Bytes", Completed: true, Updated: ended.Time},
		},
		"failed": {
			velerov2alpha1.DataUploadStatus{Phase: velerov2alpha1.DataUploadPhaseFailed, Message: "no space"},
			velero.OperationProgress{Description: "Failed", OperationUnits: "Bytes", Completed: true, Err: "no space"},
		},
		"failed without a word": {
			velerov2alpha1.DataUploadStatus{Phase: velerov2alpha1.DataUploadPhaseFailed},
			velero.OperationProgress{Description: "Failed", OperationUnits: "Bytes", Completed: true, Err: "the DataUpload failed without a message"},
		},
		"cancelled": {
			velerov2alpha1.DataUploadStatus{Phase: velerov2alpha1.DataUploadPhaseCanceled},
			velero.OperationProgress{Description: "Canceled", OperationUnits: "Bytes", Completed: true, Err: "the DataUpload is canceled"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, test.want, progressOfUpload(&velerov2alpha1.DataUpload{Status: test.status}))
		})
	}
}

func TestUploadThatIsGone(t *testing.T) {
	assert.Equal(t, velero.OperationProgress{Completed: true, Err: "the DataUpload is gone", Description: "The DataUpload is gone"}, progressOfUpload(nil))
}

func TestProgressOfASnapshot(t *testing.T) {
	size, text := resource.MustParse("1Mi"), "disk on fire"
	for name, test := range map[string]struct {
		status   *snapshotv1.VolumeSnapshotStatus
		exported string
		want     velero.OperationProgress
	}{
		"not cut":     {nil, "", velero.OperationProgress{Description: "VolumeSnapshot shop/s is not cut yet"}},
		"not ready":   {&snapshotv1.VolumeSnapshotStatus{RestoreSize: &size}, "false", velero.OperationProgress{NTotal: 1 << 20, Description: "VolumeSnapshot shop/s is not ready to use yet"}},
		"trouble":     {&snapshotv1.VolumeSnapshotStatus{Error: &snapshotv1.VolumeSnapshotError{Message: &text}}, "", velero.OperationProgress{Description: "VolumeSnapshot shop/s is not ready to use yet: disk on fire"}},
		"ready":       {&snapshotv1.VolumeSnapshotStatus{RestoreSize: &size, ReadyToUse: ptr.To(true)}, "", velero.OperationProgress{NTotal: 1 << 20, NCompleted: 1 << 20, Completed: true, Description: "VolumeSnapshot shop/s is ready to use; the storage holds it for this backup"}},
		"on its way":  {&snapshotv1.VolumeSnapshotStatus{RestoreSize: &size, ReadyToUse: ptr.To(false)}, "true", velero.OperationProgress{NTotal: 1 << 20, Description: "VolumeSnapshot shop/s is being exported by its driver"}},
		"is exported": {&snapshotv1.VolumeSnapshotStatus{RestoreSize: &size, ReadyToUse: ptr.To(true)}, "true", velero.OperationProgress{NTotal: 1 << 20, NCompleted: 1 << 20, Completed: true, Description: "VolumeSnapshot shop/s is exported by its driver"}},
	} {
		t.Run(name, func(t *testing.T) {
			test.want.OperationUnits = "Bytes"
			assert.Equal(t, test.want, ProgressOfSnapshot(&snapshotv1.VolumeSnapshot{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s", Annotations: map[string]string{api.AnnotationExported: test.exported}}, Status: test.status,
			}))
		})
	}
}
