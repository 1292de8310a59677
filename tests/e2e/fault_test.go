package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

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

// The application must run again this long after a death.
const thawTime = 3 * time.Second

// held starts a backup whose snapshot takes long, and returns once the
// application is frozen for it.
func held(t *testing.T, c *cluster.Cluster, change func(*shape)) (*app, *backup) {
	t.Helper()
	s := shape{
		annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"},
		// Velero looks after 10 s whether it is done.
		claim: slowClass(t, c, map[string]string{"delay": "9s"}),
	}
	if change != nil {
		change(&s)
	}
	a := newApp(t, c, s)
	b := startBackup(t, c, a.namespace, nil)
	a.awaitFrozen(b, "app-data0")
	return a, b
}

func kill(t *testing.T, signal syscall.Signal, pids []int) {
	t.Helper()
	require.NotEmpty(t, pids, "no process to kill")
	for _, pid := range pids {
		// The death of one may be that of the others.
		if err := syscall.Kill(pid, signal); !errors.Is(err, syscall.ESRCH) {
			require.NoError(t, err)
		}
	}
}

func TestPluginKilledWhileFrozen(t *testing.T) {
	c := connect(t)
	a, b := held(t, c, nil)
	kill(t, syscall.SIGKILL, c.PluginPIDs())
	a.writesWithin(thawTime, "app-data0")
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit), "a snapshot without a freeze is none")
	assert.Contains(t, said(b.log(), "error"), "the plugin process ended while the workload was quiesced")
	assert.False(t, a.frozen("app-data0"))
}

// A second volume's turn comes in a new process: it must not be frozen for,
// since its snapshot would be of another moment than the first's.
func TestPluginKilledBetweenTwoVolumes(t *testing.T) {
	c := connect(t)
	a, b := held(t, c, func(s *shape) { s.volumes = 2 })
	assert.False(t, a.writing("app-data1"))
	kill(t, syscall.SIGKILL, c.PluginPIDs())
	a.writesWithin(thawTime, "app-data0", "app-data1")
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	assert.Contains(t, said(b.log(), "error"), "the plugin process ended while the workload was quiesced")
}

func TestVeleroKilledWhileFrozen(t *testing.T) {
	c := connect(t)
	a, b := held(t, c, nil)
	// As when its container is killed: no process of the pod is left.
	kill(t, syscall.SIGKILL, append(c.VeleroPIDs(), c.PluginPIDs()...))
	a.writesWithin(thawTime, "app-data0")
	assert.Equal(t, velerov1.BackupPhaseFailed, b.finished(3*time.Minute), "a restarted Velero gives its backups up")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, err := c.Kubectl(ctx, nil, "-n", "velero", "rollout", "status", "deployment/velero", "--timeout=100s")
	require.NoError(t, err)
}

func TestAPIServerKilledWhileFrozen(t *testing.T) {
	c := connect(t)
	a, b := held(t, c, nil)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		assert.NoError(t, c.Start(ctx, cluster.APIServer))
	})
	require.NoError(t, c.Kill(t.Context(), cluster.APIServer))
	a.writesWithin(thawTime, "app-data0")
	require.NoError(t, c.Start(t.Context(), cluster.APIServer))
	assert.NotEqual(t, velerov1.BackupPhaseCompleted, b.finished(3*time.Minute), "a snapshot without a freeze is none")
}

// A stopped process keeps its connections: nothing but the guard's own
// deadline is left to thaw.
func TestDeadlineThawsWhenNoConnectionBreaks(t *testing.T) {
	c := connect(t)
	a, b := held(t, c, func(s *shape) { s.annotations["stillpoint.io/quiesce-timeout"] = "4s" })
	pids := c.PluginPIDs()
	kill(t, syscall.SIGSTOP, pids)
	t.Cleanup(func() { // also when the test fails; they may have ended
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	})
	assert.False(t, a.writing("app-data0"))
	a.writesWithin(7*time.Second, "app-data0")
	kill(t, syscall.SIGCONT, pids)
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	assert.Contains(t, said(b.log(), "error"), "not consistent")
}

func testDeadlineMakesTheSnapshotAnError(t *testing.T, c *cluster.Cluster) {
	a, b := held(t, c, func(s *shape) { s.annotations["stillpoint.io/quiesce-timeout"] = "2s" })
	a.writesWithin(thawTime, "app-data0")
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	log := b.log()
	assert.Contains(t, said(log, "error"), "the snapshot of claim "+a.namespace+"/app-data0 is not consistent and is deleted")
	assert.Contains(t, said(log, "error"), "quiesce-timeout of 2s")
	assert.Eventually(t, func() bool {
		left, err := c.Kubectl(t.Context(), nil, "-n", a.namespace, "get", "volumesnapshot", "-o", "name")
		return err == nil && strings.TrimSpace(left) == ""
	}, 30*time.Second, 200*time.Millisecond, "the snapshot is gone")
}

// The same container, started again, thaws.
func testContainerKilledWhileFrozen(t *testing.T, c *cluster.Cluster) {
	sidecarIsKilled(t, c, nil)
}

// A second one has the volume at another path.
func testContainerKilledWhileAnotherMountsTheVolume(t *testing.T, c *cluster.Cluster) {
	sidecarIsKilled(t, c, func(s *shape) {
		s.pod = func(pod *corev1.PodSpec) {
			second := *pod.Containers[1].DeepCopy()
			second.Name = "second"
			second.VolumeMounts[0].MountPath = "/elsewhere"
			pod.Containers = append(pod.Containers, second)
		}
	})
}

func sidecarIsKilled(t *testing.T, c *cluster.Cluster, change func(*shape)) {
	t.Helper()
	a, b := held(t, c, change)
	killContainer(t, a, "sidecar")
	a.writesWithin(10*time.Second, "app-data0")
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit), b.log())
	assert.Contains(t, said(b.log(), "warning"), "thawed from container")
	assert.Contains(t, said(b.log(), "error"), "was lost while frozen")
}

// killContainer kills all processes of a container from the host.
func killContainer(t *testing.T, a *app, container string) {
	t.Helper()
	pods, err := a.c.Client().CoreV1().Pods(a.namespace).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Len(t, pods.Items, 1)
	for _, status := range pods.Items[0].Status.ContainerStatuses {
		if status.Name == container {
			id := status.ContainerID[strings.LastIndex(status.ContainerID, "/")+1:]
			processes, err := filepath.Glob("/proc/[0-9]*/cgroup")
			require.NoError(t, err)
			var pids []int
			for _, process := range processes {
				if text, err := os.ReadFile(process); err == nil && strings.Contains(string(text), id) {
					pid, err := strconv.Atoi(filepath.Base(filepath.Dir(process)))
					require.NoError(t, err)
					pids = append(pids, pid)
				}
			}
			kill(t, syscall.SIGKILL, pids)
			return
		}
	}
	t.Fatalf("no container %s", container)
}

// Pod and volume go away while frozen, and no other container mounts it: a
// person is told exactly what to run, and where.
func testPodDeletedWhileFrozen(t *testing.T, c *cluster.Cluster) {
	a, b := held(t, c, nil)
	a.kubectl("delete", "pod", "-l", "app=app", "--grace-period=0", "--force", "--wait=false")
	a.kubectl("scale", "deployment/app", "--replicas=0")
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(3*time.Minute))
	errors := said(b.log(), "error")
	if strings.Contains(errors, "MAY STILL BE FROZEN") {
		for _, want := range []string{"node node1", "fsfreeze --unfreeze", "app-data0"} {
			assert.Contains(t, errors, want)
		}
		assert.NotEmpty(t, a.events("app")["StillFrozen"])
		require.NoError(t, c.DeleteNamespace(t.Context(), a.namespace))
		output, code := runThaw(t, "--namespace", a.namespace)
		assert.Equal(t, 0, code)
		if strings.Contains(output, "Nothing to release.") {
			return // the backup of another test, which began since, has found that it is gone
		}
		assert.Contains(t, output, "Deployment "+a.namespace+"/app, which backup "+b.name+" had quiesced since ")
		assert.Contains(t, output, ", is gone\n")
		return
	}
	// The guard was quicker than the kubelet. The volume may be unmounted by now,
	// which a freeze outlives.
	assert.Contains(t, errors, "not consistent")
	a.kubectl("scale", "deployment/app", "--replicas=1")
	a.kubectl("rollout", "status", "deployment/app", "--timeout=90s")
	a.writesWithin(thawTime, "app-data0")
}

func testSnapshotThatFailsThawsAtOnce(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{
		annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"},
		claim:       slowClass(t, c, map[string]string{"fail": "the pool is full"}),
	})
	a.stall("app")
	b := startBackup(t, c, a.namespace, func(spec *velerov1.BackupSpec) { spec.CSISnapshotTimeout.Duration = 20 * time.Second })
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	assert.Less(t, a.stall("app"), 6*time.Second)
	assert.Contains(t, said(b.log(), "error"), "the pool is full")
	assert.False(t, a.frozen("app-data0"))
}

// With a class that is gone Velero stumbles before it creates a VolumeSnapshot:
// there is nothing to freeze for.
func testNothingIsFrozenWhenVeleroCannotSnapshot(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{
		annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"},
		claim:       func(claim *corev1.PersistentVolumeClaim) { claim.Spec.StorageClassName = ptr.To(passingClass(t, c)) },
	})
	_, err := c.Kubectl(t.Context(), nil, "delete", "storageclass", *a.storageClass("app-data0"))
	require.NoError(t, err)
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit), "Velero's own error")
	assert.NotContains(t, b.log(), "Quiesced")
	assert.Contains(t, b.log(), "is not quiesced: StorageClass")
}

// passingClass makes a StorageClass like the bed's, for one test.
func passingClass(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	class := &storagev1.StorageClass{}
	require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Name: cluster.StorageClass}, class))
	class.ObjectMeta = metav1.ObjectMeta{Name: "e2e-" + rand.String(5)}
	require.NoError(t, c.Objects().Create(t.Context(), class))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), class) })
	return class.Name
}

func (a *app) storageClass(claim string) *string {
	a.t.Helper()
	found, err := a.c.Client().CoreV1().PersistentVolumeClaims(a.namespace).Get(a.t.Context(), claim, metav1.GetOptions{})
	require.NoError(a.t, err)
	return found.Spec.StorageClassName
}

func testPreThatHangs(t *testing.T, c *cluster.Cluster) {
	blueprint(t, c, execBlueprint("e2e-hang", "sidecar", "fsfreeze --freeze /mnt/data0; sleep 1000", "fsfreeze --unfreeze /mnt/data0"))
	a := newApp(t, c, shape{annotations: map[string]string{
		"stillpoint.io/quiesce": "e2e-hang", "stillpoint.io/prepare-timeout": "2s",
	}})
	a.stall("app")
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	assert.Contains(t, said(b.log(), "error"), "killed after prepare-timeout 2s")
	stall := a.stall("app")
	assert.Greater(t, stall, time.Second)
	assert.Less(t, stall, 6*time.Second)
	assert.False(t, a.frozen("app-data0"))
}

// KubeExecAll over several pods: one of them fails, all are thawed.
func testPreThatFailsHalfWay(t *testing.T, c *cluster.Cluster) {
	blueprint(t, c, `
metadata: {name: e2e-half}
actions:
  backupPrehook:
    phases:
      - func: KubeExecAll
        name: freezeAll
        args:
          namespace: "{{ .Deployment.Namespace }}"
          pods: '{{ join " " .Deployment.Pods }}'
          containers: sidecar
          command: [sh, -c, 'if [ $(hostname) = {{ index .Deployment.Pods 1 }} ]; then echo no luck >&2; exit 3; fi; fsfreeze --freeze /mnt/data0']
  backupPosthook:
    phases:
      - func: KubeExecAll
        name: thawAll
        args:
          namespace: "{{ .Deployment.Namespace }}"
          pods: '{{ join " " .Deployment.Pods }}'
          containers: sidecar
          command: [sh, -c, 'echo thawed >>/run/thawed; fsfreeze --unfreeze /mnt/data0 || true']
`)
	a := newApp(t, c, shape{replicas: 2, annotations: map[string]string{"kanister.kasten.io/blueprint": "e2e-half"}})
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	assert.Contains(t, said(b.log(), "error"), "exit code 3: no luck")
	assert.False(t, a.frozen("app-data0"))
	for pod := range strings.FieldsSeq(a.kubectl("get", "pods", "-l", "app=app", "-o", "jsonpath={.items[*].metadata.name}")) {
		assert.Equal(t, "thawed\n", a.kubectl("exec", pod, "-c", "sidecar", "--", "cat", "/run/thawed"))
	}
}
