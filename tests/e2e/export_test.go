package e2e

import (
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/cleanup"
	"stillpoint.io/stillpoint/tests/cluster"
)

// retaining is a VolumeSnapshotClass that leaves snapshots in the storage whose
// objects are deleted, with parameters of the driver.
func retaining(t *testing.T, c *cluster.Cluster, parameters map[string]string) string {
	t.Helper()
	existing := &snapshotv1.VolumeSnapshotClass{}
	require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Name: cluster.SnapshotClass}, existing))
	class := &snapshotv1.VolumeSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{Name: passingName()},
		Driver:     existing.Driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentRetain, Parameters: parameters,
	}
	require.NoError(t, c.Objects().Create(t.Context(), class))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), class) })
	return class.Name
}

// annotated gives claims annotations, by their names.
func annotated(annotations map[string]map[string]string) func(*corev1.PersistentVolumeClaim) {
	return func(claim *corev1.PersistentVolumeClaim) {
		if claim.Annotations == nil {
			claim.Annotations = map[string]string{}
		}
		maps.Copy(claim.Annotations, annotations[claim.Name])
	}
}

// kept are the VolumeSnapshots of a claim that stay beside its exports, found by
// their label.
func (a *app) kept(claim string) []string {
	a.t.Helper()
	uid := a.kubectl("get", "pvc", claim, "-o", "jsonpath={.metadata.uid}")
	return strings.Fields(a.kubectl("get", "volumesnapshot", "-l", "stillpoint.io/kept="+uid, "-o", "jsonpath={.items[*].metadata.name}"))
}

// sweepAfterUploads ends the uploads of a finished backup that Velero's mover still
// has, as it would itself: it takes up to five minutes to cancel one that is being
// prepared. Until then their snapshots stay, and then the sweep takes them.
func (a *app) sweepAfterUploads(b *backup) {
	a.t.Helper()
	list := &velerov2alpha1.DataUploadList{}
	require.NoError(a.t, a.c.Objects().List(a.t.Context(), list, crclient.MatchingLabels{velerov1.BackupNameLabel: b.name}))
	for i := range list.Items {
		upload := &list.Items[i]
		if cleanup.Ended(upload) {
			continue
		}
		runSweep(a.t, "--delete", "--timeout", "10s")
		assert.NotEmpty(a.t, a.stored(upload.Spec.SourcePVC), "its upload is %s", upload.Status.Phase)
		before := upload.DeepCopy()
		upload.Status.Phase = velerov2alpha1.DataUploadPhaseFailed
		require.NoError(a.t, a.c.Objects().Patch(a.t.Context(), upload, crclient.MergeFrom(before)))
		runSweep(a.t, "--delete", "--timeout", "30s")
	}
}

const classOfClaim = "velero.io/csi-volumesnapshot-class"

// After the export the storage holds nothing, whatever the class says and
// however often the driver fails, but for what users want to stay.
func testExportLeavesNothing(t *testing.T, c *cluster.Cluster) {
	retain := retaining(t, c, nil)
	busy := retaining(t, c, map[string]string{"failDelete": "the array is busy", "failDeleteTimes": "2"})
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, volumes: 4, claim: annotated(map[string]map[string]string{
		"app-data0": {classOfClaim: retain},
		"app-data1": {classOfClaim: busy},
		"app-data2": {"stillpoint.io/local-snapshots": "keepLast=1"},
		"app-data3": {"stillpoint.io/keep-snapshot": "true"},
	})})
	back := func() *backup {
		b := startBackup(t, c, a.namespace, handOver(t, c, "", moveData))
		require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(4*time.Minute), b.log())
		require.Len(t, frozenFor(t, b.log()), 1)
		details := b.describe()
		assert.Equal(t, 4, strings.Count(details, "Completed; the local snapshot is deleted"), details)
		assert.Empty(t, a.stored("app-data0"), "the class says Retain")
		assert.Empty(t, a.stored("app-data1"), "the driver failed at first")
		return b
	}
	back()
	first := a.kept("app-data2")
	require.Len(t, first, 1)
	require.Len(t, a.stored("app-data2"), 1)
	require.Len(t, a.kept("app-data3"), 1)

	last := back()
	second := a.kept("app-data2")
	require.Len(t, second, 1, "the newer one has taken its place")
	assert.NotEqual(t, first, second)
	assert.Len(t, a.stored("app-data2"), 1)
	assert.Len(t, a.kept("app-data3"), 2, "vetoed")
	assert.Len(t, a.stored("app-data3"), 2)

	// What is kept is for quick restores.
	group := "snapshot.storage.k8s.io"
	require.NoError(t, c.Objects().Create(t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: "quick"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			DataSource:  &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: second[0]},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
		},
	}))
	a.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/quick", "--timeout=60s")

	// It stays when Velero has found its backup again under another UID, and goes
	// with that.
	last.foundAgain()
	runSweep(t, "--delete", "--namespace", a.namespace)
	assert.Equal(t, second, a.kept("app-data2"))
	last.delete()
	assert.Empty(t, a.kept("app-data2"))
	assert.Empty(t, a.stored("app-data2"))
	assert.Len(t, a.stored("app-data3"), 1)
}

// Uploads that end otherwise leave nothing either, and the operation says what
// became of them.
func TestExportFails(t *testing.T) {
	c := connect(t)
	retain := retaining(t, c, nil)
	a := newApp(t, c, shape{volumes: 2, claim: annotated(map[string]map[string]string{
		"app-data0": {classOfClaim: retain}, "app-data1": {classOfClaim: retain},
	})})
	uploads := func(b *backup) []velerov2alpha1.DataUpload {
		list := &velerov2alpha1.DataUploadList{}
		require.Eventually(t, func() bool {
			err := c.Objects().List(t.Context(), list, crclient.MatchingLabels{velerov1.BackupNameLabel: b.name})
			return err == nil && len(list.Items) == 2
		}, limit, 50*time.Millisecond)
		return list.Items
	}
	change := func(upload *velerov2alpha1.DataUpload, how func(*velerov2alpha1.DataUpload)) {
		before := upload.DeepCopy()
		how(upload)
		require.NoError(t, c.Objects().Patch(t.Context(), upload, crclient.MergeFrom(before)))
	}

	t.Run("cancelled and gone", func(t *testing.T) {
		b := startBackup(t, c, a.namespace, handOver(t, c, "", moveData))
		both := uploads(b)
		change(&both[0], func(upload *velerov2alpha1.DataUpload) { upload.Spec.Cancel = true })
		change(&both[1], func(upload *velerov2alpha1.DataUpload) { upload.Finalizers = nil })
		require.NoError(t, c.Objects().Delete(t.Context(), &both[1]))
		require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(4*time.Minute), b.log())
		details := b.describe()
		assert.Contains(t, details, "the DataUpload is canceled")
		assert.Contains(t, details, "the DataUpload is gone")
		for _, claim := range []string{"app-data0", "app-data1"} {
			assert.Empty(t, a.stored(claim), claim)
		}
		a.noSnapshots()
	})

	t.Run("Velero's time is up", func(t *testing.T) {
		b := startBackup(t, c, a.namespace, handOver(t, c, "", moveData, func(spec *velerov1.BackupSpec) { spec.ItemOperationTimeout.Duration = time.Second }))
		require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(4*time.Minute), b.log())
		for _, upload := range uploads(b) {
			assert.True(t, upload.Spec.Cancel || upload.Status.Phase == velerov2alpha1.DataUploadPhaseCompleted, upload.Name)
		}
		a.sweepAfterUploads(b)
		for _, claim := range []string{"app-data0", "app-data1"} {
			assert.Empty(t, a.stored(claim), claim)
		}
		a.noSnapshots()
	})

	t.Run("a mover that keeps its snapshots, and one that does not", func(t *testing.T) {
		configuration(t, c)("dataMovers:\n- {name: e2e-tidy, deleteSnapshots: true}\n")
		for mover, left := range map[string]int{"e2e-keeper": 1, "e2e-tidy": 0} {
			b := startBackup(t, c, a.namespace, handOver(t, c, "", moveData, func(spec *velerov1.BackupSpec) { spec.DataMover = mover }))
			both := uploads(b)
			for i := range both {
				change(&both[i], func(upload *velerov2alpha1.DataUpload) { upload.Status.Phase = velerov2alpha1.DataUploadPhaseCompleted })
			}
			require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(2*time.Minute), b.log())
			assert.Len(t, a.stored("app-data0"), left, mover)
			if left > 0 {
				assert.Contains(t, b.describe(), "the local snapshot stays: data mover "+mover)
				require.NoError(t, c.Objects().DeleteAllOf(t.Context(), &snapshotv1.VolumeSnapshot{}, crclient.InNamespace(a.namespace)))
				contents := &snapshotv1.VolumeSnapshotContentList{}
				require.NoError(t, c.Objects().List(t.Context(), contents))
				for i := range contents.Items {
					if content := &contents.Items[i]; content.Spec.VolumeSnapshotRef.Namespace == a.namespace {
						before := content.DeepCopy()
						content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentDelete
						require.NoError(t, c.Objects().Patch(t.Context(), content, crclient.MergeFrom(before)))
						require.NoError(t, crclient.IgnoreNotFound(c.Objects().Delete(t.Context(), content)))
					}
				}
				a.noSnapshots()
			}
		}
	})
}

// A driver that exports by itself: the backup ends when the copy is there, and
// is restored from the copy alone.
func TestExportByDriver(t *testing.T) {
	c := connect(t)
	remote := retaining(t, c, map[string]string{"export": "s3", "delete-local": "true"})
	configuration(t, c)(`drivers:
- name: loop.csi.stillpoint.io
  exports: {when: [{parameter: export, value: s3}]}
  accessModes: [ReadWriteOnce]
  quiesce: required
`)
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, claim: annotated(map[string]map[string]string{"app-data0": {classOfClaim: remote}})})
	a.deploy("loud", shape{})
	require.NoError(t, c.Objects().Create(t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: "shared"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}, StorageClassName: ptr.To("loop-directory"),
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
		},
	}))
	a.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/shared", "--timeout=60s")

	b := startBackup(t, c, a.namespace, handOver(t, c, ""))
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(2*time.Minute), b.log())
	errors := said(b.log(), "error")
	assert.Contains(t, errors, "its workload is not quiesced, as the profile of driver loop.csi.stillpoint.io in the configuration requires")
	assert.Contains(t, errors, "driver loop.csi.stillpoint.io can snapshot [ReadWriteOnce], by its profile in the configuration")
	details := b.describe()
	assert.Contains(t, details, "is exported by its driver", details)
	a.noSnapshots()
	handles := a.stored("app-data0")
	require.Len(t, handles, 1)
	all, err := c.Snapshots(t.Context())
	require.NoError(t, err)
	for _, s := range all {
		if s.ID == handles[0] {
			assert.True(t, s.Remote)
			assert.Zero(t, s.Size, "the driver has dropped the local copy")
		}
	}

	r := b.restore(t, func(spec *velerov1.RestoreSpec) {
		spec.LabelSelector = nil
		spec.ExcludedResources = []string{"deployments.apps", "pods", "replicasets.apps"}
	})
	r.finished(2 * time.Minute)
	r.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/app-data0", "--timeout=60s")
}

// Where Velero takes the snapshot, Stillpoint looks after it all the same.
func testExportOfVelerosSnapshot(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{claim: annotated(map[string]map[string]string{"app-data0": {classOfClaim: retaining(t, c, nil)}})})
	b := startBackup(t, c, a.namespace, moveData)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(4*time.Minute), b.log())
	assert.Contains(t, b.describe(), "the local snapshot is deleted")
	assert.Empty(t, a.stored("app-data0"))
	a.sweepAfterUploads(b)
	assert.Empty(t, a.stored("app-data0"))
	a.noSnapshots()
}

// Should the node-agent die in the middle, Velero takes minutes to cancel the upload,
// and half an hour to give it up: its snapshot stays as long, and then it goes, too.
func testNodeAgentIsKilledWhileItUploads(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{claim: annotated(map[string]map[string]string{"app-data0": {classOfClaim: retaining(t, c, nil)}})})
	b := startBackup(t, c, a.namespace, func(spec *velerov1.BackupSpec) {
		moveData(spec)
		spec.ItemOperationTimeout.Duration = 30 * time.Second
	})
	require.Eventually(t, func() bool {
		list := &velerov2alpha1.DataUploadList{}
		err := c.Objects().List(t.Context(), list, crclient.MatchingLabels{velerov1.BackupNameLabel: b.name})
		return err == nil && len(list.Items) == 1 && list.Items[0].Status.Phase != "" && list.Items[0].Status.Phase != velerov2alpha1.DataUploadPhaseNew
	}, limit, 20*time.Millisecond)
	_, err := c.Kubectl(t.Context(), nil, "-n", cluster.VeleroNamespace, "delete", "pod", "-l", "name=node-agent", "--force", "--grace-period=0")
	require.NoError(t, err)
	b.finished(4 * time.Minute)
	a.sweepAfterUploads(b)
	assert.Empty(t, a.stored("app-data0"))
	a.noSnapshots()
}
