package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// A VolumeSnapshot that is deleted while its backup runs does not take the data
// along: the backup says so, and can be restored. A later backup leaves what the
// restore left alone, and does not take users' snapshots for its own.
func testVolumeSnapshotDeletedDuringTheBackup(t *testing.T, c *cluster.Cluster) {
	late := slowClass(t, c, map[string]string{"readyAfter": "8s"})
	a := newApp(t, c, shape{claim: func(claim *corev1.PersistentVolumeClaim) {
		late(claim)
		claim.Labels = map[string]string{"argocd.argoproj.io/instance": "shop"}
	}})
	a.kubectl("exec", "deployment/app", "-c", "sidecar", "--", "sh", "-c", "echo kept > /mnt/data0/marker; sync")
	b := startBackup(t, c, a.namespace, handOver(t, c, ""))
	name := a.taken("app-data0")[0]
	require.Eventually(t, func() bool { // Velero has it, and waits until it is ready
		backup := &velerov1.Backup{}
		require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Namespace: cluster.VeleroNamespace, Name: b.name}, backup))
		return backup.Status.Phase == velerov1.BackupPhaseWaitingForPluginOperations
	}, time.Minute, 50*time.Millisecond)
	assert.NotContains(t, a.kubectl("get", "volumesnapshot", name, "-o", "jsonpath={.metadata.labels}"), "argocd")
	a.kubectl("delete", "volumesnapshot", name, "--timeout=30s")
	assert.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(time.Minute), "Velero finds that it is gone")
	require.Len(t, a.stored("app-data0"), 1)

	r := b.restore(t, volumes)
	require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(limit), said(r.log(), "error"))
	r.kubectl("run", "reader", "--image="+cluster.Image, "--restart=Never", "--overrides="+`{"spec": {"terminationGracePeriodSeconds": 1,
		"containers": [{"name": "reader", "image": "`+cluster.Image+`", "command": ["cat", "/mnt/marker"], "volumeMounts": [{"name": "v", "mountPath": "/mnt"}]}],
		"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "app-data0"}}]}}`)
	r.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/reader", "--timeout=60s")
	assert.Equal(t, "kept\n", r.kubectl("logs", "reader"))

	runSweep(t, "--delete", "--namespace", a.namespace)
	assert.Empty(t, a.snapshots(), "the content that has lost its VolumeSnapshot")
	assert.Len(t, a.stored("app-data0"), 1, "the backup has it")
	b.delete()
	assert.Eventually(t, func() bool { return len(a.stored("app-data0")) == 0 }, 30*time.Second, 200*time.Millisecond)
}

// foundAgain deletes a Backup object by hand and waits until Velero has found the
// backup in the object store again.
func (b *backup) foundAgain() {
	b.t.Helper()
	backup := &velerov1.Backup{}
	key := crclient.ObjectKey{Namespace: cluster.VeleroNamespace, Name: b.name}
	require.NoError(b.t, b.c.Objects().Get(b.t.Context(), key, backup))
	before := backup.UID
	require.NoError(b.t, b.c.Objects().Delete(b.t.Context(), backup))
	require.Eventually(b.t, func() bool {
		err := b.c.Objects().Get(b.t.Context(), key, backup)
		require.True(b.t, err == nil || apierrors.IsNotFound(err), err)
		return err == nil && backup.UID != before
	}, 3*time.Minute, time.Second)
}
