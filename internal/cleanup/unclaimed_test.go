package cleanup

import (
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	"stillpoint.io/stillpoint/internal/api"
)

func TestUnclaimed(t *testing.T) {
	vs := func(claim string, taken bool, kept bool) snapshotv1.VolumeSnapshot {
		vs := snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: claim, Labels: map[string]string{velerov1.PVCUIDLabel: claim}}}
		vs.Annotations = map[string]string{api.AnnotationClassReason: "because"}
		if taken {
			vs.Annotations[velerov1.VolumeSnapshotHandleAnnotation] = "h"
		}
		if kept {
			vs.Name = "kept-" + claim
			vs.Labels[api.LabelKept] = claim
		}
		return vs
	}
	veleros := vs("veleros", false, false)
	delete(veleros.Annotations, api.AnnotationClassReason)
	var got []string
	for _, target := range unclaimed([]snapshotv1.VolumeSnapshot{
		veleros, vs("taken", true, false), vs("left-out", false, false), vs("uploaded", false, false), vs("uploaded", false, true), vs("dropped", false, true),
	}, sets.New("uploaded")) {
		got = append(got, target.String())
	}
	assert.Equal(t, []string{"shop/left-out", "shop/kept-dropped"}, got)
}
