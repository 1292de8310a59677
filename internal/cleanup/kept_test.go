package cleanup

import (
	"slices"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestSurplus(t *testing.T) {
	at := func(name string, day int, last string) snapshotv1.VolumeSnapshot {
		vs := snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}}}
		if last != "" {
			vs.Annotations["stillpoint.io/keep-last"] = last
		}
		if day > 0 {
			cut := metav1.Date(2026, 11, day, 0, 0, 0, 0, time.UTC)
			vs.Status = &snapshotv1.VolumeSnapshotStatus{CreationTime: &cut}
		}
		return vs
	}
	none := func(*snapshotv1.VolumeSnapshot) bool { return false }
	named := func(names ...string) func(*snapshotv1.VolumeSnapshot) bool {
		return func(vs *snapshotv1.VolumeSnapshot) bool { return slices.Contains(names, vs.Name) }
	}
	for name, c := range map[string]struct {
		kept   []snapshotv1.VolumeSnapshot
		failed func(*snapshotv1.VolumeSnapshot) bool
		want   []string
	}{
		"the upload failed":   {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "1"), at("b", 2, "1")}, failed: named("b")},
		"an older one failed": {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "1"), at("b", 2, "1"), at("c", 3, "1")}, failed: named("b"), want: []string{"b", "a"}},
		"all uploads fail":    {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "2"), at("b", 2, "2"), at("c", 3, "2"), at("d", 4, "2")}, failed: named("b", "c", "d"), want: []string{"b"}},
		"none":                {},
		"fewer":               {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "2"), at("b", 2, "2")}},
		"more":                {kept: []snapshotv1.VolumeSnapshot{at("b", 2, "2"), at("a", 1, "2"), at("d", 4, "2"), at("c", 3, "2")}, want: []string{"b", "a"}},
		"the newest says":     {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "5"), at("b", 2, "5"), at("c", 3, "1")}, want: []string{"b", "a"}},
		"retained stay":       {kept: []snapshotv1.VolumeSnapshot{at("a", 1, ""), at("b", 2, "1"), at("c", 3, "1")}, want: []string{"b"}},
		"not cut":             {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "1"), at("b", 0, "1")}},
		"not a number":        {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "1"), at("b", 2, "x")}},
		"the number is none":  {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "1"), at("b", 2, "0")}},
	} {
		if c.failed == nil {
			c.failed = none
		}
		var got []string
		for _, vs := range surplus(c.kept, c.failed) {
			got = append(got, vs.Name)
		}
		assert.Equal(t, c.want, got, name)
	}
}
