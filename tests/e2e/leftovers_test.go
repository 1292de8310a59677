package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/snapshot"
	"stillpoint.io/stillpoint/tests/cluster"
)

// What restores and deleted backups leave behind, which is nothing, and what
// they refuse: one application, one backup that stays in the storage, and one
// that is exported.
func TestLeftovers(t *testing.T) {
	c := connect(t)
	waits := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: "e2e-" + rand.String(5)}, Provisioner: "loop.csi.stillpoint.io",
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}
	require.NoError(t, c.Objects().Create(t.Context(), waits))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), waits) })
	// Volumes whose snapshots outlive their objects, and that the driver exports.
	retains, exports := retainClass(t, c), slowClass(t, c, map[string]string{"export": "s3"})
	profile := "drivers:\n- name: loop.csi.stillpoint.io\n  exports: {when: [{parameter: export, value: s3}]}\n"
	configure := configuration(t, c)
	configure(profile)
	a := newApp(t, c, shape{volumes: 3, claim: func(claim *corev1.PersistentVolumeClaim) {
		claim.Labels = map[string]string{"claim": claim.Name}
		switch claim.Name {
		case "app-data1":
			claim.Annotations = map[string]string{"velero.io/csi-volumesnapshot-class": retains}
		case "app-data2":
			claim.Spec.StorageClassName = &waits.Name
			exports(claim)
		}
	}})
	a.kubectl("exec", "deployment/app", "-c", "sidecar", "--", "sh", "-c", "for v in 0 1 2; do echo kept > /mnt/data$v/marker; done; sync")
	claims := []string{"app-data0", "app-data1", "app-data2"}

	local := startBackup(t, c, a.namespace, handOver(t, c, ""))
	skip := "- conditions: {pvcLabels: {claim: app-data2}}\n  action: {type: skip}\n"
	skipped := policyFile(t, c, "volumePolicies:\n- conditions: {pvcLabels: {claim: app-data1}}\n  action: {type: skip}\n"+skip+byStillpoint)
	require.Equal(t, velerov1.BackupPhaseCompleted, local.finished(limit), local.log())
	stored := map[string]string{}
	for _, claim := range claims {
		found := a.stored(claim)
		require.Len(t, found, 1, "%s: %s", claim, local.log())
		stored[claim] = found[0]
	}
	exported := startBackup(t, c, a.namespace, func(spec *velerov1.BackupSpec) {
		spec.SnapshotMoveData = ptr.To(true)
		spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: skipped}
	})

	t.Run("restore of claims whose pods are not restored", func(t *testing.T) {
		r := local.restore(t, volumes)
		require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(limit), said(r.log(), "error"))
		t.Logf("the restore took %s", r.took())
		assert.Equal(t, claims, r.claims())
		left := &snapshotv1.VolumeSnapshotList{}
		require.NoError(t, c.Objects().List(t.Context(), left, crclient.InNamespace(r.namespace)))
		require.Len(t, left.Items, 1, "that of the claim which waits for a pod")
		vs := left.Items[0]
		assert.NotEmpty(t, vs.Labels[api.LabelRestore])
		_, marked := snapshot.OriginOf(&vs)
		assert.False(t, marked, "it is not the backup's")
		assert.Contains(t, r.details(), "until a pod uses it; the sweep removes it later")

		// It can still be used.
		r.kubectl("run", "reader", "--image="+cluster.Image, "--restart=Never", "--overrides="+`{"spec": {"terminationGracePeriodSeconds": 1,
			"containers": [{"name": "reader", "image": "`+cluster.Image+`", "command": ["cat", "/mnt/marker"], "volumeMounts": [{"name": "v", "mountPath": "/mnt"}]}],
			"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "app-data2"}}]}}`)
		r.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/reader", "--timeout=60s")
		assert.Equal(t, "kept\n", r.kubectl("logs", "reader"))
		content := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: vs.Name}}
		// As the sweep does, which the other backup may have begun with.
		require.NoError(t, crclient.IgnoreNotFound(c.Objects().Delete(t.Context(), &vs)))
		require.NoError(t, crclient.IgnoreNotFound(c.Objects().Delete(t.Context(), content)))
		for _, claim := range claims {
			assert.Contains(t, a.stored(claim), stored[claim], "the storage's snapshot of %s stays the backup's", claim)
		}
	})

	require.Equal(t, velerov1.BackupPhaseCompleted, exported.finished(2*limit), exported.log())

	t.Run("a driver that restores from exports only", func(t *testing.T) {
		configure(profile + "  restoreFrom: export\n")
		r := local.restore(t, volumes)
		require.Equal(t, velerov1.RestorePhasePartiallyFailed, r.finished(limit))
		errors := said(r.log(), "error")
		for _, object := range []string{"VolumeSnapshotContent ", "VolumeSnapshot ", "claim "} {
			assert.Equal(t, 2, strings.Count(errors, "stillpoint: "+object), "%s: %s", object, errors)
		}
		assert.Contains(t, errors, "backup "+exported.name+" of ")
		assert.Contains(t, errors, " has an export of claim "+a.namespace+"/app-data0")
		assert.Contains(t, errors, "no backup has an export of claim "+a.namespace+"/app-data1")
		assert.Equal(t, []string{"app-data2"}, r.claims(), "the one that the driver has exported")
		content := &snapshotv1.VolumeSnapshotContent{}
		left := &snapshotv1.VolumeSnapshotList{}
		require.NoError(t, c.Objects().List(t.Context(), left, crclient.InNamespace(r.namespace)))
		require.Len(t, left.Items, 1)
		assert.NotContains(t, left.Items[0].Annotations, "stillpoint.io/exported")
		require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Name: left.Items[0].Name}, content))
		require.NoError(t, c.Objects().Delete(t.Context(), &left.Items[0]))
		require.NoError(t, c.Objects().Delete(t.Context(), content))
		configure(profile)
	})

	t.Run("a claim that the exported backup left out", func(t *testing.T) {
		only := func(spec *velerov1.RestoreSpec) {
			spec.LabelSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"claim": "app-data1"}}
		}
		r := exported.restore(t, only)
		require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(limit), said(r.log(), "error"))
		assert.Equal(t, []string{"app-data1"}, r.claims())
		assert.Contains(t, r.log(), "app-data1, which comes back empty: a volume policy skips it")

		// If it was not left out on purpose, it is missing.
		policy := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: skipped}}
		require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKeyFromObject(policy), policy))
		policy.Data["policy.yaml"] = "version: v1\nvolumePolicies:\n" + skip + byStillpoint
		require.NoError(t, c.Objects().Update(t.Context(), policy))
		r = exported.restore(t, only)
		require.Equal(t, velerov1.RestorePhasePartiallyFailed, r.finished(limit))
		assert.Contains(t, said(r.log(), "error"), "app-data1 is not restored: backup "+exported.name+" has no export of its volume (it moves data, but has no DataUpload of the claim)")
		assert.Empty(t, r.claims())
	})

	t.Run("deletion of the backup", func(t *testing.T) {
		backup := &velerov1.Backup{}
		require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Namespace: cluster.VeleroNamespace, Name: local.name}, backup))
		velero := &corev1.Namespace{}
		require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Name: cluster.VeleroNamespace}, velero))
		// As snapshots that were kept beside an export, that a dead process has left,
		// and that another Velero has taken.
		origin := snapshot.Origin{Installation: string(velero.UID), Backup: local.name, BackupUID: string(backup.UID)}
		another := origin
		another.Installation = "another"
		kept, died, foreign := a.snapshot("kept", retains, origin), a.snapshot("died", cluster.SnapshotClass, origin), a.snapshot("foreign", retains, another)
		assert.Len(t, a.stored("app-data0"), 4)

		local.delete()
		for _, vs := range []*snapshotv1.VolumeSnapshot{kept, died} {
			assert.True(t, apierrors.IsNotFound(c.Objects().Get(t.Context(), crclient.ObjectKeyFromObject(vs), vs)), vs.Name)
		}
		require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKeyFromObject(foreign), foreign))
		content := &snapshotv1.VolumeSnapshotContent{}
		require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Name: *foreign.Status.BoundVolumeSnapshotContentName}, content))
		content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentDelete
		require.NoError(t, c.Objects().Update(t.Context(), content))
		require.NoError(t, c.Objects().Delete(t.Context(), foreign))
		for _, claim := range claims {
			assert.Eventually(t, func() bool {
				// A content that the sidecar saw with its policy of before is looked at
				// again only when it changes.
				if c.Objects().Get(t.Context(), crclient.ObjectKeyFromObject(content), content) == nil {
					metav1.SetMetaDataAnnotation(&content.ObjectMeta, "e2e.stillpoint.io/look-again", time.Now().String())
					_ = c.Objects().Update(t.Context(), content)
				}
				return len(a.stored(claim)) == 0
			}, 20*time.Second, time.Second, claim)
		}
	})
}

// retainClass makes a VolumeSnapshotClass whose snapshots outlive their objects.
func retainClass(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	class := &snapshotv1.VolumeSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{Name: passingName()},
		Driver:     "loop.csi.stillpoint.io", DeletionPolicy: snapshotv1.VolumeSnapshotContentRetain,
	}
	require.NoError(t, c.Objects().Create(t.Context(), class))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), class) })
	return class.Name
}

// snapshot takes a snapshot of the first claim as Stillpoint would, and waits
// until it is ready.
func (a *app) snapshot(name, class string, origin snapshot.Origin) *snapshotv1.VolumeSnapshot {
	a.t.Helper()
	vs := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: name, Labels: map[string]string{"velero.io/exclude-from-backup": "true"}},
		Spec: snapshotv1.VolumeSnapshotSpec{
			VolumeSnapshotClassName: &class, Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: ptr.To("app-data0")},
		},
	}
	origin.Mark(vs)
	require.NoError(a.t, a.c.Objects().Create(a.t.Context(), vs))
	a.kubectl("wait", "--for=jsonpath={.status.readyToUse}=true", "volumesnapshot/"+name, "--timeout=60s")
	require.NoError(a.t, a.c.Objects().Get(a.t.Context(), crclient.ObjectKeyFromObject(vs), vs))
	content := &snapshotv1.VolumeSnapshotContent{} // whose marks are believed
	require.NoError(a.t, a.c.Objects().Get(a.t.Context(), crclient.ObjectKey{Name: *vs.Status.BoundVolumeSnapshotContentName}, content))
	before := content.DeepCopy()
	origin.Mark(content)
	require.NoError(a.t, a.c.Objects().Patch(a.t.Context(), content, crclient.MergeFrom(before)))
	return vs
}

// delete deletes a backup, as `velero backup delete` does, and waits until
// Velero has done it.
func (b *backup) delete() {
	b.t.Helper()
	backup := &velerov1.Backup{}
	key := crclient.ObjectKey{Namespace: cluster.VeleroNamespace, Name: b.name}
	require.NoError(b.t, b.c.Objects().Get(b.t.Context(), key, backup))
	require.NoError(b.t, b.c.Objects().Create(b.t.Context(), &velerov1.DeleteBackupRequest{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: cluster.VeleroNamespace, GenerateName: b.name + "-",
			Labels: map[string]string{velerov1.BackupNameLabel: b.name, velerov1.BackupUIDLabel: string(backup.UID)},
		},
		Spec: velerov1.DeleteBackupRequestSpec{BackupName: b.name},
	}))
	require.Eventually(b.t, func() bool { return apierrors.IsNotFound(b.c.Objects().Get(b.t.Context(), key, backup)) }, limit, 200*time.Millisecond)
}

// took is how long a restore was under way.
func (r *restored) took() time.Duration {
	r.t.Helper()
	found := &velerov1.Restore{}
	require.NoError(r.t, r.c.Objects().Get(r.t.Context(), crclient.ObjectKey{Namespace: cluster.VeleroNamespace, Name: r.name}, found))
	return found.Status.CompletionTimestamp.Sub(found.Status.StartTimestamp.Time)
}

// details are what `velero restore describe --details` prints.
func (r *restored) details() string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	text, err := r.c.Velero(ctx, "restore", "describe", r.name, "--details")
	require.NoError(r.t, err)
	return text
}
