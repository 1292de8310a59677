package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// One backup of a workload that a person scales up while its volume is cut, of one
// that terminates, one that crashes, and one whose controller is a
// ReplicationController. The first three cannot be quiesced and are errors, the last
// is quiesced.
func testWorkloadsThatAreHardToQuiesce(t *testing.T, c *cluster.Cluster) {
	freeze := map[string]string{"stillpoint.io/quiesce": "fsfreeze"}
	stays := func(pod *corev1.PodSpec) {
		pod.TerminationGracePeriodSeconds = ptr.To(int64(300))
		pod.Containers[0].Command = []string{"sleep", "infinity"} // which a container's first process has TERM ignore
	}
	crashes := func(pod *corev1.PodSpec) {
		for i := range pod.Containers {
			pod.Containers[i].Command = []string{"sh", "-c", "exit 1"}
		}
	}
	a := newApp(t, c, shape{
		annotations: map[string]string{"stillpoint.io/quiesce": "scale-down"}, replicas: 2,
		claim: slowClass(t, c, map[string]string{"delay": "8s"}),
	})
	a.create("leaving", shape{annotations: freeze, pod: stays})
	a.create("crashing", shape{annotations: freeze, pod: crashes})
	a.create("counted", shape{annotations: freeze})
	a.ready("leaving")
	a.ready("counted")
	asReplicationController(t, a, "counted")
	require.Eventually(t, func() bool {
		counts := a.kubectl("get", "pods", "-l", "app=crashing", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}")
		return strings.ContainsAny(counts, "123456789")
	}, time.Minute, 500*time.Millisecond)
	a.kubectl("scale", "deployment/leaving", "--replicas=0")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, _ = c.Kubectl(ctx, nil, "-n", a.namespace, "delete", "pod", "-l", "app=leaving", "--force", "--grace-period=0")
	})

	require.Eventually(t, func() bool {
		return a.kubectl("get", "pods", "-l", "app=leaving", "-o", "jsonpath={.items[*].metadata.deletionTimestamp}") != ""
	}, 30*time.Second, 200*time.Millisecond)

	b := startBackup(t, c, a.namespace, nil)
	a.taken("app-data0")
	a.kubectl("scale", "deployment/app", "--replicas=1")
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	log := b.log()
	failed := said(log, "error")
	assert.Contains(t, failed, "Deployment "+a.namespace+"/app was changed while it was scaled to 0 replicas")
	assert.Contains(t, failed, "is terminating and can write to claim leaving-data0")
	assert.Regexp(t, `claim `+a.namespace+`/crashing-data0 cannot be frozen: no container that mounts it runs: pod crashing-`, failed)
	assert.Contains(t, log, "Quiesced ReplicationController "+a.namespace+"/counted")
	assert.Equal(t, "2", a.replicas())
	assert.Eventually(t, func() bool {
		left := a.kubectl("get", "volumesnapshots", "-o", "jsonpath={.items[*].spec.source.persistentVolumeClaimName}")
		return !strings.Contains(left, "app-data0") && !strings.Contains(left, "leaving") && !strings.Contains(left, "crashing")
	}, 30*time.Second, 200*time.Millisecond, "a snapshot that was not quiesced")
}

// asReplicationController puts a ReplicationController in the place of a Deployment.
func asReplicationController(t *testing.T, a *app, name string) {
	t.Helper()
	deployment := &appsv1.Deployment{}
	require.NoError(t, a.c.Objects().Get(t.Context(), crclient.ObjectKey{Namespace: a.namespace, Name: name}, deployment))
	a.kubectl("delete", "deployment", name, "--wait=true", "--cascade=foreground")
	require.NoError(t, a.c.Objects().Create(t.Context(), &corev1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: name, Annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}},
		Spec: corev1.ReplicationControllerSpec{
			Replicas: ptr.To(int32(1)), Selector: deployment.Spec.Template.Labels, Template: &deployment.Spec.Template,
		},
	}))
	require.Eventually(t, func() bool {
		return a.kubectl("get", "replicationcontroller", name, "-o", "jsonpath={.status.readyReplicas}") == "1"
	}, time.Minute, 200*time.Millisecond)
}
