package decision

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/unit"
)

func TestOutlasts(t *testing.T) {
	for name, test := range map[string]struct {
		path          Path
		claims        int
		poll, timeout time.Duration
		text          string
	}{
		"one":                        {Around, 1, 5 * time.Second, time.Nanosecond, ""},
		"the last is not waited for": {Around, 6, 5 * time.Second, 26 * time.Second, ""},
		"as long as the freeze": {
			Around, 7, 5 * time.Second, 30 * time.Second,
			"7 volumes cannot be frozen together for Velero's own snapshots: Velero takes them one after another and polls every 5s, which is 30s at least, " +
				"and quiesce-timeout is 30s; raise stillpoint.io/quiesce-timeout above that, set CSI_SNAPSHOT_EARLY_FREQUENT_POLLING=true on the Velero server, " +
				"or hand the volumes to Stillpoint's group snapshots by a volume policy with action custom",
		},
		"with frequent polls": {Around, 7, time.Second, 30 * time.Second, ""},
		"too many even so": {
			Around, 61, time.Second, time.Minute,
			"61 volumes cannot be frozen together for Velero's own snapshots: Velero takes them one after another and polls every 1s, which is 1m0s at least, " +
				"and quiesce-timeout is 1m0s; raise stillpoint.io/quiesce-timeout above that, set CSI_SNAPSHOT_EARLY_FREQUENT_POLLING=true on the Velero server, " +
				"or hand the volumes to Stillpoint's group snapshots by a volume policy with action custom",
		},
		"all at once": {Group, 61, time.Second, time.Minute, ""},
	} {
		t.Run(name, func(t *testing.T) {
			u := &Unit{Path: test.path, server: Server{Poll: test.poll}, Quiesce: &unit.Unit{Claims: make([]corev1.PersistentVolumeClaim, test.claims)}}
			if err := u.Outlasts(test.timeout); test.text == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, test.text)
			}
		})
	}
}

func TestVolumeGroup(t *testing.T) {
	claims := []corev1.PersistentVolumeClaim{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", Labels: map[string]string{"": "x", "app": "db"}}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "wal", Labels: map[string]string{"velero.io/volume-group": "db"}}},
	}
	for key, text := range map[string]string{
		"":      "",
		"group": "",
		"velero.io/volume-group": "claim shop/wal has the label velero.io/volume-group=db: Velero takes a VolumeGroupSnapshot of it, around which Stillpoint cannot quiesce; " +
			"remove the label or the annotation stillpoint.io/quiesce",
	} {
		t.Run(key, func(t *testing.T) {
			b := &Backup{backup: &velerov1.Backup{Spec: velerov1.BackupSpec{VolumeGroupSnapshotLabelKey: key}}}
			if err := b.volumeGroup(claims); text == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, text)
			}
		})
	}
}
