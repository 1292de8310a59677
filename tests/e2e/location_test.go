package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// withoutCSI runs Velero's server as many clusters do: without the feature by
// which it takes CSI snapshots itself.
func withoutCSI(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	serverFlags(t, c, "--features=")
}

// location makes a VolumeSnapshotLocation, and the change by which a backup uses it.
func location(t *testing.T, c *cluster.Cluster, provider string, config map[string]string) func(*velerov1.BackupSpec) {
	t.Helper()
	of := &velerov1.VolumeSnapshotLocation{
		ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: "e2e-" + rand.String(6)},
		Spec:       velerov1.VolumeSnapshotLocationSpec{Provider: provider, Config: config},
	}
	require.NoError(t, c.Objects().Create(t.Context(), of))
	t.Cleanup(func() {
		// Velero needs it to delete the snapshots of the backups.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		used := func(backup velerov1.Backup) bool {
			return slices.Contains(backup.Spec.VolumeSnapshotLocations, of.Name)
		}
		backups := &velerov1.BackupList{}
		for err := error(nil); err == nil && ctx.Err() == nil; time.Sleep(200 * time.Millisecond) {
			if err = c.Objects().List(ctx, backups); err == nil && !slices.ContainsFunc(backups.Items, used) {
				break
			}
		}
		_ = c.Objects().Delete(context.Background(), of)
	})
	return func(spec *velerov1.BackupSpec) {
		spec.VolumeSnapshotLocations = append(spec.VolumeSnapshotLocations, of.Name)
	}
}

// inPlace restores into the namespace that was backed up.
func inPlace(spec *velerov1.RestoreSpec) { spec.NamespaceMapping = nil }

// volume is the PersistentVolume of a claim.
func volumeOf(t *testing.T, c *cluster.Cluster, namespace, claim string) *corev1.PersistentVolume {
	t.Helper()
	of, err := c.Client().CoreV1().PersistentVolumeClaims(namespace).Get(t.Context(), claim, metav1.GetOptions{})
	require.NoError(t, err)
	volume, err := c.Client().CoreV1().PersistentVolumes().Get(t.Context(), of.Spec.VolumeName, metav1.GetOptions{})
	require.NoError(t, err)
	return volume
}

// noTraces waits until nothing is left of what restores and deletions make on
// their way: objects in Velero's namespace, and volumes without a claim.
func noTraces(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	left := func() (names []string) {
		claims := &corev1.PersistentVolumeClaimList{}
		snapshots := &snapshotv1.VolumeSnapshotList{}
		contents := &snapshotv1.VolumeSnapshotContentList{}
		volumes := &corev1.PersistentVolumeList{}
		for _, list := range []crclient.ObjectList{claims, snapshots, contents, volumes} {
			require.NoError(t, c.Objects().List(t.Context(), list, crclient.HasLabels{"stillpoint.io/promoted"}))
		}
		for _, o := range claims.Items {
			names = append(names, "claim "+o.Name)
		}
		for _, o := range snapshots.Items {
			names = append(names, "VolumeSnapshot "+o.Name)
		}
		for _, o := range contents.Items {
			names = append(names, "VolumeSnapshotContent "+o.Name)
		}
		for _, o := range volumes.Items {
			names = append(names, "PersistentVolume "+o.Name)
		}
		return names
	}
	assert.Eventually(t, func() bool { return len(left()) == 0 }, time.Minute, 200*time.Millisecond, "%v", left())
}

// A cluster without EnableCSI: what a VolumeSnapshotLocation of provider
// stillpoint.io/csi is for.
func TestSnapshotLocation(t *testing.T) {
	c := connect(t)
	withoutCSI(t, c)
	waits := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: "e2e-" + rand.String(6)}, Provisioner: "loop.csi.stillpoint.io",
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer), ReclaimPolicy: ptr.To(corev1.PersistentVolumeReclaimDelete),
	}
	require.NoError(t, c.Objects().Create(t.Context(), waits))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), waits) })
	through := location(t, c, "stillpoint.io/csi", nil)

	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, volumes: 2, claim: func(claim *corev1.PersistentVolumeClaim) {
		if claim.Name == "app-data1" {
			claim.Spec.StorageClassName = &waits.Name
		}
	}})
	write := func(what string) {
		a.kubectl("exec", "deployment/app", "-c", "sidecar", "--", "sh", "-c", "echo "+what+" | tee /mnt/data0/state /mnt/data1/state; sync")
	}
	report, code := runCheck(t, "--namespace", a.namespace)
	t.Log(report)
	assert.Equal(t, 0, code)
	assert.Equal(t, 2, strings.Count(report, "snapshotter"), report)
	write("before")
	before := volumeOf(t, c, a.namespace, "app-data1")
	a.stall("app")
	b := startBackup(t, c, a.namespace, through)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(2*time.Minute), b.log())
	stall := a.stall("app")

	// Both volumes are of one freeze, and nothing but the storage's snapshots is left.
	frozen := frozenFor(t, b.log())
	require.Len(t, frozen, 1, b.log())
	t.Logf("frozen for %s, the writer stalled for %s", frozen[0], stall)
	assert.Empty(t, said(b.log(), "warning", "error"))
	details := b.describe()
	assert.Contains(t, details, "Velero-Native Snapshots")
	assert.Equal(t, 2, strings.Count(details, "Snapshot ID:"), details)
	assert.Regexp(t, `Type: +`+waits.Name+`\n`, details)
	a.noSnapshots()
	for _, claim := range []string{"app-data0", "app-data1"} {
		assert.Len(t, a.stored(claim), 1, claim)
	}

	t.Run("a claim is cloned from a template", func(t *testing.T) {
		r := b.restore(t, nil)
		require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(3*time.Minute), r.log())
		r.kubectl("rollout", "status", "deployment/app", "--timeout=60s")
		for _, path := range []string{"/mnt/data0/state", "/mnt/data1/state"} {
			assert.Equal(t, "before\n", r.kubectl("exec", "deployment/app", "-c", "sidecar", "--", "cat", path))
		}
		clone, original := volumeOf(t, c, r.namespace, "app-data1"), volumeOf(t, c, a.namespace, "app-data1")
		assert.NotEqual(t, original.Name, clone.Name)
		assert.NotEqual(t, original.Spec.CSI.VolumeHandle, clone.Spec.CSI.VolumeHandle)
		assert.Equal(t, corev1.PersistentVolumeReclaimDelete, clone.Spec.PersistentVolumeReclaimPolicy)
		assert.NotContains(t, said(r.log(), "warning", "error"), "stillpoint")
		a.writesWithin(5*time.Second, "app-data0", "app-data1")
		noTraces(t, c)
	})

	t.Run("a migration is reverted", func(t *testing.T) {
		write("migrated")
		a.kubectl("delete", "deployment/app", "pvc/app-data0", "pvc/app-data1", "--timeout=90s")
		r := b.restore(t, inPlace)
		require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(3*time.Minute), r.log())
		a.kubectl("rollout", "status", "deployment/app", "--timeout=60s")
		for _, path := range []string{"/mnt/data0/state", "/mnt/data1/state"} {
			assert.Equal(t, "before\n", a.kubectl("exec", "deployment/app", "-c", "sidecar", "--", "cat", path))
		}
		after := volumeOf(t, c, a.namespace, "app-data1")
		assert.Equal(t, before.Name, after.Name, "the name is free again")
		assert.Equal(t, before.Spec.StorageClassName, after.Spec.StorageClassName)
		assert.Equal(t, before.Spec.PersistentVolumeReclaimPolicy, after.Spec.PersistentVolumeReclaimPolicy)
		assert.Equal(t, before.Spec.Capacity, after.Spec.Capacity)
		assert.Equal(t, before.Spec.NodeAffinity, after.Spec.NodeAffinity)
		assert.NotEqual(t, before.Spec.CSI.VolumeHandle, after.Spec.CSI.VolumeHandle)
		noTraces(t, c)
	})

	t.Run("the backup is deleted", func(t *testing.T) {
		all, err := c.Snapshots(t.Context())
		require.NoError(t, err)
		require.NotEmpty(t, all)
		b.delete()
		left, err := c.Snapshots(t.Context())
		require.NoError(t, err)
		assert.Len(t, left, len(all)-2)
		noTraces(t, c)
	})
}

// With EnableCSI, and where a volume policy has a say, a location is passed over: no
// volume is snapshotted twice.
func TestSnapshotLocationBesideOthers(t *testing.T) {
	c := connect(t)
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}})
	through := location(t, c, "stillpoint.io/csi", nil)
	for name, change := range map[string]func(*velerov1.BackupSpec){
		"Velero's own": through,
		"a group":      handOver(t, c, "", through),
	} {
		t.Run(name, func(t *testing.T) {
			b := startBackup(t, c, a.namespace, change)
			require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
			require.Len(t, frozenFor(t, b.log()), 1)
			assert.Len(t, a.stored("app-data0"), 1)
			details := b.describe()
			assert.Contains(t, details, "Velero-Native Snapshots: <none included>", details)
			assert.Equal(t, 1, strings.Count(details, "Snapshot Content Name:"), details)
			b.delete()
			assert.Empty(t, a.stored("app-data0"))
		})
	}
}

// What is wrong is said, and nothing is left of it. Velero takes the locations of
// a backup one by one, so the others are not affected.
func TestSnapshotLocationErrors(t *testing.T) {
	c := connect(t)
	withoutCSI(t, c)
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, volumes: 2})
	host := hostVolume(t, c, a.namespace, nil)

	t.Run("keys that there are none of", func(t *testing.T) {
		b := startBackup(t, c, a.namespace, location(t, c, "stillpoint.io/csi", map[string]string{"driver": "x", "timeout": "soon", "volumeSnapshotClass/loop": "Not a name"}))
		require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
		errors := said(b.log(), "error")
		assert.Contains(t, errors, "key driver: unknown key; valid keys: drivers, volumeSnapshotClass/<StorageClass>, timeout")
		assert.Contains(t, errors, "must be a positive duration")
		assert.Contains(t, errors, "not the name of an object")
		a.noSnapshots()
	})

	t.Run("a class of the location, and one that does not exist", func(t *testing.T) {
		class := className(slowClass(t, c, nil))
		b := startBackup(t, c, a.namespace, location(t, c, "stillpoint.io/csi", map[string]string{"volumeSnapshotClass/loop": class}))
		require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
		assert.Contains(t, b.log(), "VolumeSnapshotClass "+class+": key volumeSnapshotClass/loop of the VolumeSnapshotLocation")
		assert.Len(t, frozenFor(t, b.log()), 1)
		// The volume that is not CSI's is Velero's to warn of, and of nothing else.
		warnings := said(b.log(), "warning")
		assert.Equal(t, 1, strings.Count(warnings, "\n"), warnings)
		assert.Contains(t, warnings, "No volume ID returned by volume snapshotter")
		assert.Contains(t, b.log(), "Not a volume of provider stillpoint.io/csi: PersistentVolume "+host+": it is not a CSI volume")
		b.delete()

		b = startBackup(t, c, a.namespace, location(t, c, "stillpoint.io/csi", map[string]string{"volumeSnapshotClass/loop": "fast"}))
		require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
		assert.Contains(t, said(b.log(), "error"), "key volumeSnapshotClass/loop of the VolumeSnapshotLocation names VolumeSnapshotClass fast, which does not exist")
		assert.Empty(t, frozenFor(t, b.log()))
		a.noSnapshots()
	})

	t.Run("a driver that fails for the second volume", func(t *testing.T) {
		class := className(slowClass(t, c, map[string]string{"fail": "the array is full"}))
		a.kubectl("annotate", "pvc/app-data1", classOfClaim+"="+class)
		t.Cleanup(func() { a.kubectl("annotate", "pvc/app-data1", classOfClaim+"-") })
		b := startBackup(t, c, a.namespace, location(t, c, "stillpoint.io/csi", nil))
		require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(2*time.Minute))
		assert.Contains(t, said(b.log(), "error"), "the array is full")
		a.noSnapshots()
		assert.Empty(t, a.stored("app-data1"))
		a.writesWithin(5*time.Second, "app-data0", "app-data1")
		b.delete()
		assert.Empty(t, a.stored("app-data0"))
	})

	t.Run("a handle that the storage has lost", func(t *testing.T) {
		b := startBackup(t, c, a.namespace, location(t, c, "stillpoint.io/csi", map[string]string{"timeout": "5s"}))
		require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
		handles := append(a.stored("app-data0"), a.stored("app-data1")...)
		require.Len(t, handles, 2)
		require.NoError(t, c.DropSnapshots(t.Context(), handles...))
		r := b.restore(t, nil)
		require.Equal(t, velerov1.RestorePhasePartiallyFailed, r.finished(2*time.Minute))
		for _, handle := range handles {
			assert.Contains(t, said(r.log(), "error"), "from snapshot "+handle+" of driver loop.csi.stillpoint.io")
		}
		noTraces(t, c)
		b.delete() // which a snapshot that is gone is not in the way of
	})
}
