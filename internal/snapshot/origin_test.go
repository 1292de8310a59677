package snapshot

import (
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/api"
)

func TestOrigin(t *testing.T) {
	origin := Origin{Installation: "here", Backup: "nightly", BackupUID: "b1"}
	marked := func(change func(*snapshotv1.VolumeSnapshot)) *snapshotv1.VolumeSnapshot {
		vs := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "db"}}}
		origin.Mark(vs)
		change(vs)
		return vs
	}
	for name, c := range map[string]struct {
		object *snapshotv1.VolumeSnapshot
		ours   bool
	}{
		"marked":                          {marked(func(*snapshotv1.VolumeSnapshot) {}), true},
		"a mover's copy, without labels":  {marked(func(vs *snapshotv1.VolumeSnapshot) { vs.Labels = nil }), true},
		"a label of another installation": {marked(func(vs *snapshotv1.VolumeSnapshot) { vs.Labels[api.LabelInstallation] = "there" }), false},
		"a label of another backup":       {marked(func(vs *snapshotv1.VolumeSnapshot) { vs.Labels["velero.io/backup-uid"] = "b2" }), false},
		"Velero's own": {marked(func(vs *snapshotv1.VolumeSnapshot) {
			vs.Annotations = nil
			vs.Labels = map[string]string{"velero.io/backup-name": "nightly"}
		}), false},
	} {
		got, ours := OriginOf(c.object)
		assert.Equal(t, c.ours, ours, name)
		if ours {
			assert.Equal(t, origin, got, name)
		}
	}
	got, ours := OriginOf(marked(func(vs *snapshotv1.VolumeSnapshot) { vs.Annotations = nil }))
	assert.True(t, ours)
	assert.Equal(t, Origin{Installation: "here", BackupUID: "b1"}, got)
}
