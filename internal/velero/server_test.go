package velero

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestServer(t *testing.T) {
	for arguments, want := range map[string]Server{
		"server": {VolumeGroupLabel: "velero.io/volume-group", Workers: 1, Poll: 5 * time.Second},
		"/velero server --features EnableAPIGroupVersions,EnableCSI --unknown x --item-block-worker-count 3 CSI_SNAPSHOT_EARLY_FREQUENT_POLLING=true": {
			CSI: true, VolumeGroupLabel: "velero.io/volume-group", Workers: 3, Poll: time.Second,
		},
		"server --features=EnableCSI --features=": {VolumeGroupLabel: "velero.io/volume-group", Workers: 1, Poll: 5 * time.Second},
		"--default-snapshot-move-data --default-volumes-to-fs-backup=true --volume-group-snapshot-label-key=x --global-backup-volume-policies-configmap g": {
			SnapshotMoveData: true, VolumesToFSBackup: true, VolumeGroupLabel: "x", GlobalPolicies: "g", Workers: 1, Poll: 5 * time.Second,
		},
	} {
		t.Run(arguments, func(t *testing.T) {
			server, err := ServerOf(strings.Fields(arguments))
			require.NoError(t, err)
			want.Source = "--server-args"
			assert.Equal(t, want, server)
		})
	}
	for _, invalid := range []string{"--default-snapshot-move-data=perhaps", "--item-block-worker-count=many", "--item-block-worker-count"} {
		_, err := ServerOf([]string{invalid})
		require.ErrorContains(t, err, "read the flags of the server in --server-args: ")
	}
}

// The server's defaults apply to what the backup does not set.
func TestComplete(t *testing.T) {
	server := Server{SnapshotMoveData: true, VolumesToFSBackup: true, VolumeGroupLabel: "group", GlobalPolicies: "global"}
	backup := server.Complete(&velerov1.Backup{}, []string{"left"})
	assert.True(t, *backup.Spec.SnapshotMoveData)
	assert.True(t, *backup.Spec.DefaultVolumesToFsBackup)
	assert.Equal(t, "group", backup.Spec.VolumeGroupSnapshotLabelKey)
	assert.Equal(t, []string{"left"}, backup.Spec.ExcludedNamespaces)
	assert.Equal(t, 10*time.Minute, backup.Spec.CSISnapshotTimeout.Duration)
	assert.Equal(t, "global", backup.Annotations[velerov1.GlobalBackupVolumePolicyConfigMapAnnotation])

	own := &velerov1.Backup{Spec: velerov1.BackupSpec{SnapshotMoveData: ptr.To(false), DefaultVolumesToFsBackup: ptr.To(false), VolumeGroupSnapshotLabelKey: "own"}}
	own.Spec.CSISnapshotTimeout.Duration = time.Minute
	backup = server.Complete(own, nil)
	assert.False(t, *backup.Spec.SnapshotMoveData)
	assert.False(t, *backup.Spec.DefaultVolumesToFsBackup)
	assert.Equal(t, "own", backup.Spec.VolumeGroupSnapshotLabelKey)
	assert.Equal(t, time.Minute, backup.Spec.CSISnapshotTimeout.Duration)
}

func TestBackupOf(t *testing.T) {
	schedule := &velerov1.Schedule{ObjectMeta: metav1.ObjectMeta{
		Namespace: "velero", Name: "nightly", Labels: map[string]string{"team": "shop"}, Annotations: map[string]string{"a": "b"},
	}}
	assert.Equal(t, map[string]string{"team": "shop", "velero.io/schedule-name": "nightly"}, BackupOf(schedule).Labels)
	assert.Equal(t, map[string]string{"team": "shop"}, schedule.Labels, "the Schedule stays as it is")
	schedule.Spec.Template.Labels = map[string]string{"own": "x"}
	assert.Equal(t, map[string]string{"own": "x", "velero.io/schedule-name": "nightly"}, BackupOf(schedule).Labels)
}

func TestPollInterval(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": 5 * time.Second, "true": time.Second, "1": time.Second, "T": time.Second, "false": 5 * time.Second, "yes": 5 * time.Second,
	} {
		t.Run(value, func(t *testing.T) {
			t.Setenv("CSI_SNAPSHOT_EARLY_FREQUENT_POLLING", value)
			assert.Equal(t, want, PollInterval())
		})
	}
}
