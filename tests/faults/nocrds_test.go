package faults

import (
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/tests/fake"
)

// 25: in a cluster without the snapshot CRDs a backup has no warning, and its
// deletion, a restore and the commands have no error.
func TestWithoutSnapshotCRDs(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	bed.API.RemoveGroup("snapshot.storage.k8s.io")
	app := bed.Deploy(fake.App{Annotations: fsfreeze, Claim: func(_ *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
		volume.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	}})
	backup := bed.Backup(func(backup *velerov1.Backup) { backup.Spec.DefaultVolumesToFsBackup = ptr.To(true) })
	v := bed.Velero()
	r := v.Backup(backup, app)
	require.Empty(t, r.Dropped)
	assert.Empty(t, v.Lines(logrus.WarnLevel))
	progress := v.Progress(backup, &fake.Result{Operations: map[string]string{"a": "snapshot-" + "uid"}})
	assert.True(t, progress["a"].Completed, "%+v", progress)

	older := bed.VeleroWithout(false) // its storage may be older than CSI
	r = older.Backup(bed.Backup(fake.Named("older")), app)
	require.Empty(t, r.Dropped)
	assert.Empty(t, older.Lines(logrus.WarnLevel))
	for _, progress := range older.Progress(backup, &fake.Result{Operations: map[string]string{"a": "stillpoint-location.shop.uid"}}) {
		assert.True(t, progress.Completed, "%+v", progress)
	}

	action, log := bed.Deleting()
	require.NoError(t, action.Execute(&velero.DeleteItemActionExecuteInput{Item: claimItem(t, bed, "db-data0"), Backup: backup}))
	for _, entry := range log.AllEntries() {
		assert.Greater(t, entry.Level, logrus.WarnLevel, entry.Message)
	}

	restoring := bed.Restoring()
	claim := claimItem(t, bed, "db-data0")
	restore := bed.Restore(backup)
	output, err := restoring.Claims.Execute(bed.Input(claim, claim, restore))
	require.NoError(t, err)
	if output.OperationID != "" {
		progress, err := restoring.Claims.Progress(output.OperationID, restore)
		require.NoError(t, err)
		assert.Empty(t, progress.Err)
	}
	for _, entry := range restoring.Log.AllEntries() {
		assert.Greater(t, entry.Level, logrus.WarnLevel, entry.Message)
	}

	for _, command := range [][]string{{"sweep"}, {"check", "--namespace", "shop"}, {"thaw"}} {
		code, stdout, stderr := bed.Command(command[0], command[1:]...)
		assert.NotEqual(t, 2, code, "%s: %s%s", command[0], stdout, stderr)
		assert.Empty(t, stderr)
	}
}
