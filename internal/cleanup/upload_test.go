package cleanup

import (
	"testing"

	"github.com/stretchr/testify/assert"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/snapshot"
)

func TestTargets(t *testing.T) {
	upload := &velerov2alpha1.DataUpload{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "nightly-x", Annotations: map[string]string{api.AnnotationContent: "snapcontent-1"}},
		Spec:       velerov2alpha1.DataUploadSpec{SourceNamespace: "shop", CSISnapshot: &velerov2alpha1.CSISnapshotSpec{VolumeSnapshot: "velero-data-1"}},
	}
	assert.Equal(t, []snapshot.Target{
		{Namespace: "velero", Name: "nightly-x", Content: "nightly-x"},
		{Namespace: "shop", Name: "velero-data-1", Content: "snapcontent-1"},
	}, Targets(upload))
}
