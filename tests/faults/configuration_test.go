package faults

import (
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/tests/fake"
)

const invalidConfiguration = "version: v1\nsnapshotClass: []\n"

// moved backs an app up with data movement, by Stillpoint's snapshots, and ends
// its upload. Then the configuration becomes invalid.
func moved(t *testing.T, mover string) (*fake.Bed, *velerov1.Backup, *fake.Result) {
	t.Helper()
	bed := fake.New(t)
	bed.API.Put(t, &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "node-agent"}, Status: appsv1.DaemonSetStatus{NumberReady: 1},
	})
	app := bed.Deploy(fake.App{})
	backup := bed.Backup(fake.WithPolicy, func(backup *velerov1.Backup) {
		backup.Spec.SnapshotMoveData, backup.Spec.DataMover = ptr.To(true), mover
	})
	v := bed.Velero()
	r := v.Backup(backup, app)
	require.Empty(t, v.Errors())
	uploads := bed.API.All("datauploads")
	require.Len(t, uploads, 1)
	bed.API.Update("datauploads", fake.VeleroNamespace, uploads[0].GetName(), func(o *unstructured.Unstructured) {
		o.Object["status"] = map[string]any{"phase": string(velerov2alpha1.DataUploadPhaseCompleted)}
	})
	bed.Configure(invalidConfiguration)
	return bed, backup, r
}

// 21: an operation ends although the configuration is invalid. The snapshot goes
// where Velero's own mover has exported it, and stays where another one may keep it.
func TestOperationsEndWithAnInvalidConfiguration(t *testing.T) {
	t.Parallel()
	for mover, left := range map[string]int{"": 0, "velero": 0, "acme": 1} {
		bed, backup, r := moved(t, mover)
		progress := bed.Velero().Progress(backup, r)["db-data0"] // Velero asks from a new process
		assert.True(t, progress.Completed, "mover %q: %+v", mover, progress)
		assert.Empty(t, progress.Err)
		assert.Len(t, bed.API.All("volumesnapshots"), left, "mover %q", mover)
		if left > 0 {
			assert.Contains(t, progress.Description, "snapshotClass: Forbidden: unknown key")
		}
		require.NoError(t, bed.Velero().Claim.Cancel(r.Operations["db-data0"], backup))
		code, stdout, stderr := bed.Command("sweep", "--all")
		assert.NotEqual(t, 2, code, stdout+stderr)
	}
}

// 21: a backup says once, before its first item, that the configuration is
// invalid, and what Velero does by itself goes on.
func TestABackupWithAnInvalidConfiguration(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	bed.Configure(invalidConfiguration)
	app := bed.Deploy(fake.App{Volumes: 2, Claim: func(_ *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
		volume.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	}})
	v := bed.Velero()
	v.Begin()
	assert.Equal(t, 1, strings.Count(strings.Join(v.Lines(logrus.WarnLevel), "\n"), "snapshotClass: Forbidden: unknown key"))
	r := v.Backup(bed.Backup(), app)
	assert.Empty(t, r.Dropped)
	assert.Empty(t, v.Errors())
	assert.Equal(t, 1, strings.Count(strings.Join(v.Lines(logrus.WarnLevel), "\n"), "snapshotClass: Forbidden: unknown key"), v.Lines(logrus.WarnLevel))
	assert.Len(t, bed.Storage.Snapshots(), 2)
}

// What the configuration decides about fails at once, and nothing is frozen.
func TestWhatNeedsAnInvalidConfigurationFails(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	bed.Configure(invalidConfiguration)
	app := bed.Deploy(fake.App{Annotations: fsfreeze})
	v := bed.Velero()
	r := v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.Contains(t, r.Claims["db-data0"].Annotations["stillpoint.io/no-snapshot"], "snapshotClass: Forbidden: unknown key")
	assert.Empty(t, bed.Node.FileSystem("shop", "db-data0").Journal())
	assert.Empty(t, bed.API.All("volumesnapshots"))
	code, stdout, _ := bed.Command("check", "--namespace", "shop", "--policy", fake.Policy)
	assert.Equal(t, 1, code)
	assert.Contains(t, stdout, "snapshotClass: Forbidden: unknown key")
}

// 21: a deletion needs the configuration only for a driver that is not there.
func TestADeletionWithAnInvalidConfiguration(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	bed.Configure(invalidConfiguration)
	backup := bed.Backup()
	content := func(driver string) *unstructured.Unstructured {
		o := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
			"spec":   map[string]any{"driver": driver, "deletionPolicy": "Delete"},
			"status": map[string]any{"snapshotHandle": "h"},
		}}
		o.SetName("c")
		o.SetLabels(map[string]string{velerov1.BackupNameLabel: backup.Name})
		return o
	}
	action, _ := bed.Deleting()
	require.NoError(t, action.Execute(&velero.DeleteItemActionExecuteInput{Item: content(fake.Driver), Backup: backup}))
	require.ErrorContains(t, action.Execute(&velero.DeleteItemActionExecuteInput{Item: content("gone.example.com"), Backup: backup}), "snapshotClass: Forbidden: unknown key")
}

// 21: so does a deletion through a location.
func TestADeletionThroughALocationWithAnInvalidConfiguration(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	bed.Deploy(fake.App{})
	backup, volume, l := bed.Backup(), volumeOf(t, bed, "db-data0"), bed.Locating(nil)
	id, err := l.Snapshotter.GetVolumeID(volume)
	require.NoError(t, err)
	taken, err := l.Snapshotter.CreateSnapshot(id, "", map[string]string{"velero.io/backup": backup.Name, "velero.io/pv": volume.GetName()})
	require.NoError(t, err)
	require.Len(t, bed.Storage.Snapshots(), 1)
	bed.Configure(invalidConfiguration)
	require.NoError(t, bed.Locating(nil).Snapshotter.DeleteSnapshot(taken))
	assert.Empty(t, bed.Storage.Snapshots())
}
