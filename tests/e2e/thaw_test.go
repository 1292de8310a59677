package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/tests/cluster"
)

// runThaw runs `stillpoint thaw` as a user with a kubeconfig does, and returns all
// that it prints.
func runThaw(t *testing.T, args ...string) (output string, code int) {
	t.Helper()
	binary := os.Getenv("STILLPOINT_PLUGIN")
	if binary == "" {
		t.Skip("STILLPOINT_PLUGIN does not name the plugin's binary")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, append([]string{"thaw"}, args...)...).CombinedOutput()
	t.Logf("stillpoint thaw %s\n%s", strings.Join(args, " "), out)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), exit.ExitCode()
	}
	require.NoError(t, err)
	return string(out), 0
}

// owed are the names of what is quiesced in the app's namespace.
func (a *app) owed() []string {
	a.t.Helper()
	text, code := runThaw(a.t, "-o", "json")
	require.Equal(a.t, 0, code)
	var list struct {
		Quiesced []struct{ Name, Namespace string }
	}
	require.NoError(a.t, json.Unmarshal([]byte(text), &list))
	var names []string
	for _, q := range list.Quiesced {
		if q.Namespace == a.namespace {
			names = append(names, q.Name)
		}
	}
	return names
}

// once has the only container that may thaw end at once when it is started again.
func once(s *shape) {
	s.pod = func(pod *corev1.PodSpec) {
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: "state", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
		sidecar := &pod.Containers[1]
		sidecar.VolumeMounts = append(sidecar.VolumeMounts, corev1.VolumeMount{Name: "state", MountPath: "/state"})
		sidecar.Command = []string{"sh", "-c", "[ ! -e /state/ran ] || exit 1; touch /state/ran; exec sleep infinity"}
	}
}

// nodeThaw is the section of the configuration that allows a thaw on the node.
func (a *app) nodeThaw() string {
	a.t.Helper()
	velero, err := a.c.Client().AppsV1().Deployments(cluster.VeleroNamespace).Get(a.t.Context(), "velero", metav1.GetOptions{})
	require.NoError(a.t, err)
	for _, container := range velero.Spec.Template.Spec.InitContainers {
		if strings.HasPrefix(container.Image, "stillpoint.local/stillpoint:") {
			directory, _, ok := strings.Cut(a.mounts["app-data0"], "/plugins/kubernetes.io/")
			require.True(a.t, ok)
			return "nodeThaw: {image: \"" + container.Image + "\", kubeletDirectory: " + directory + "}\n"
		}
	}
	a.t.Fatal("Velero has no Stillpoint")
	return ""
}

// noNodePods is that nothing privileged is left in Velero's namespace.
func noNodePods(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	assert.Eventually(t, func() bool {
		pods, err := c.Client().CoreV1().Pods(cluster.VeleroNamespace).List(t.Context(), metav1.ListOptions{LabelSelector: api.LabelNodeThaw})
		return err == nil && len(pods.Items) == 0
	}, 10*time.Second, 100*time.Millisecond)
}

// The only container that can thaw is killed and does not come back. Nobody may
// act on the node: a person is told, loudly, and exactly what to run.
func testNoContainerIsLeft(t *testing.T, c *cluster.Cluster) {
	set := configuration(t, c)
	a, b := held(t, c, once)
	killContainer(t, a, "sidecar")
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(3*time.Minute))
	errs := said(b.log(), "error")
	for _, want := range []string{"MAY STILL BE FROZEN", "node node1", "fsfreeze --unfreeze", "app-data0"} {
		assert.Contains(t, errs, want)
	}
	assert.Eventually(t, func() bool { return a.events("app")["StillFrozen"] != "" }, 5*time.Second, 50*time.Millisecond)
	assert.False(t, a.writing("app-data0"))
	noNodePods(t, c)

	table, code := runThaw(t)
	assert.Equal(t, 0, code)
	assert.Regexp(t, `Deployment `+a.namespace+`/app .* `+b.name+` .* fsfreeze/thaw \(in app-.*/sidecar\)`, table)
	assert.Contains(t, table, "was not released at")
	assert.Contains(t, table, "fsfreeze --unfreeze /")
	names := a.owed()
	require.Len(t, names, 1)

	// Now somebody may.
	set(a.nodeThaw())
	output, code := runThaw(t, append([]string{"--timeout", "40s"}, names...)...)
	assert.Equal(t, 0, code)
	assert.Contains(t, output, "thawed on node node1")
	assert.Contains(t, output, "Released Deployment "+a.namespace+"/app, which backup "+b.name+" had quiesced since")
	a.writesWithin(thawTime, "app-data0")
	assert.Empty(t, a.owed())
	noNodePods(t, c)
}

func TestNodeThaws(t *testing.T) {
	c := connect(t)
	set := configuration(t, c)
	a := newApp(t, c, func() shape {
		s := shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, claim: slowClass(t, c, map[string]string{"delay": "15s"})}
		once(&s)
		return s
	}())
	set(a.nodeThaw())
	b := startBackup(t, c, a.namespace, nil)
	a.awaitFrozen(b, "app-data0")
	killContainer(t, a, "sidecar")
	a.writesWithin(25*time.Second, "app-data0")
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	assert.Contains(t, said(b.log(), "warning"), "thawed on node node1")
	assert.Contains(t, said(b.log(), "error"), "was lost while frozen")
	assert.Empty(t, a.owed())
	noNodePods(t, c)
}

// replicas are those that a Deployment is to have.
func (a *app) replicas() string {
	a.t.Helper()
	return a.kubectl("get", "deployment/app", "-o", "jsonpath={.spec.replicas}")
}

// No guard stands in a container that is gone on purpose: whoever comes next brings
// the workload back, and that is the plugin that Velero asks for its actions when
// it starts again.
func TestVeleroKilledWhileScaledDown(t *testing.T) {
	c := connect(t)
	a := newApp(t, c, shape{
		annotations: map[string]string{"stillpoint.io/quiesce": "scale-down"}, replicas: 2,
		claim: slowClass(t, c, map[string]string{"delay": "15s"}),
	})
	b := startBackup(t, c, a.namespace, nil)
	a.taken("app-data0")
	require.Equal(t, "0", a.replicas())
	require.Len(t, a.owed(), 1)
	kill(t, syscall.SIGKILL, append(c.VeleroPIDs(), c.PluginPIDs()...))
	assert.Eventually(t, func() bool { return a.replicas() == "2" }, time.Minute, 200*time.Millisecond)
	assert.Eventually(t, func() bool { return a.events("app")["Thawed"] == "Released what backup "+b.name+" had quiesced" }, 5*time.Second, 50*time.Millisecond)
	assert.Empty(t, a.owed())
	assert.Equal(t, velerov1.BackupPhaseFailed, b.finished(3*time.Minute), "a restarted Velero gives its backups up")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, err := c.Kubectl(ctx, nil, "-n", "velero", "rollout", "status", "deployment/velero", "--timeout=100s")
	require.NoError(t, err)
}

// A backup completes what an earlier one has left, before it looks at anything:
// else it would take a workload that is scaled down for one that its owner wants so.
func TestBackupFindsWhatIsStillScaledDown(t *testing.T) {
	c := connect(t)
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "scale-down"}})
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: "stillpoint-intent-" + a.namespace, Labels: map[string]string{api.LabelJournal: ""}},
		Type:       "stillpoint.io/intent",
		StringData: map[string]string{"intent": `{"name": "Deployment ` + a.namespace + `/app", "namespace": "` + a.namespace + `", "backup": "earlier", "backupUID": "1",
			"since": "2026-03-01T12:00:00Z", "until": "2026-03-01T12:10:00Z", "holder": {"pod": "velero-gone", "podUID": "1", "host": "velero-gone", "pid": 7},
			"undo": [{"blueprint": "scale-down", "phase": "up", "task": {"func": "ScaleWorkload", "namespace": "` + a.namespace + `", "kind": "Deployment", "name": "app",
				"args": {"replicas": 1, "waitForReady": false}}}]}`},
	}
	a.kubectl("scale", "deployment/app", "--replicas=0")
	require.NoError(t, c.Objects().Create(t.Context(), secret))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), secret) })
	table, _ := runThaw(t)
	assert.Regexp(t, `Deployment `+a.namespace+`/app .* earlier +none: process 7 of pod velero-gone was to be done with it at 2026-03-01T12:10:00Z +scale-down/up \(ScaleWorkload\)`, table)

	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	assert.Equal(t, "1", a.replicas())
	assert.Empty(t, a.owed())
}

// A person may release what a backup holds. The backup does not take its snapshot
// for a consistent one then.
func TestThawReleasesWhatABackupHolds(t *testing.T) {
	c := connect(t)
	a, b := held(t, c, func(s *shape) { s.claim = slowClass(t, c, map[string]string{"delay": "14s"}) }) // four commands
	table, code := runThaw(t)
	assert.Equal(t, 0, code)
	assert.Regexp(t, `Deployment `+a.namespace+`/app +\d+m?s +`+b.name+` +process \d+ of pod velero-\S+ +fsfreeze/thaw \(in app-.*/sidecar\)`, table)
	assert.False(t, a.writing("app-data0"), "a look changes nothing")

	output, code := runThaw(t, "--abandoned")
	assert.Equal(t, 0, code)
	assert.Equal(t, "Nothing to release.\n", output)

	output, code = runThaw(t, "--namespace", a.namespace)
	assert.Equal(t, 0, code)
	assert.Regexp(t, `process \d+ of pod velero-\S+ was holding it`, output)
	assert.Contains(t, output, "the snapshots that backup "+b.name+" takes of it are not consistent")
	a.writesWithin(thawTime, "app-data0")
	assert.Empty(t, a.owed())
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	assert.Contains(t, said(b.log(), "error"), "somebody else has released it meanwhile")
	assert.Eventually(t, func() bool {
		left, err := c.Kubectl(t.Context(), nil, "-n", a.namespace, "get", "volumesnapshot", "-o", "name")
		return err == nil && strings.TrimSpace(left) == ""
	}, 30*time.Second, 200*time.Millisecond, "the snapshot is gone")
}
