package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"stillpoint.io/stillpoint/tests/cluster"
)

// handOver makes a volume policy that hands all CSI volumes to Stillpoint, and
// returns what has a backup use it. Entries that stand before it are as in a
// policy file.
func handOver(t *testing.T, c *cluster.Cluster, before string) func(*velerov1.BackupSpec) {
	t.Helper()
	policy := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: "e2e-" + rand.String(5)},
		Data: map[string]string{"policy.yaml": "version: v1\nvolumePolicies:\n" + before +
			"- conditions: {csi: {}}\n  action: {type: custom, parameters: {snapshotter: stillpoint.io}}\n"},
	}
	require.NoError(t, c.Objects().Create(t.Context(), policy))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), policy) })
	return func(spec *velerov1.BackupSpec) {
		spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: policy.Name}
	}
}

// All volumes of a workload are snapshotted in one short freeze, and what Velero
// makes of them is what it makes of its own snapshots.
func TestGroup(t *testing.T) {
	c := connect(t)
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, volumes: 4})
	policy := handOver(t, c, "")
	for range 5 {
		a.stall("app")
		b := startBackup(t, c, a.namespace, policy)
		phase := b.finished(2 * time.Minute)
		log := b.log()
		require.Equal(t, velerov1.BackupPhaseCompleted, phase, log)
		t.Log(log)
		t.Log("stall", a.stall("app"))
		assert.Len(t, frozenFor(t, log), 1)
	}
}
