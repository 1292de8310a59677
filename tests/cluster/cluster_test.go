package cluster_test

import (
	"context"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/cluster/loopcsi"
)

// app starts the pod of testdata/app.yaml and returns its namespace.
func app(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	manifest, err := os.Open("testdata/app.yaml")
	require.NoError(t, err)
	defer manifest.Close()
	ns := c.Namespace(t, "bed")
	_, err = c.Kubectl(t.Context(), manifest, "apply", "-n", ns, "-f", "-")
	require.NoError(t, err)
	_, err = c.Kubectl(t.Context(), nil, "wait", "-n", ns, "--for=condition=Ready", "--timeout=60s", "pod/app")
	require.NoError(t, err)
	return ns
}

func exec(t *testing.T, c *cluster.Cluster, ns string, command ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := c.Kubectl(ctx, nil, append([]string{"exec", "-n", ns, "app", "--"}, command...)...)
	require.NoError(t, err)
	return out
}

func longestStall(t *testing.T, c *cluster.Cluster, ns string) time.Duration {
	t.Helper()
	var report []struct {
		Dir                string
		Lines              int
		LongestStallMillis float64
	}
	require.NoError(t, json.Unmarshal([]byte(exec(t, c, ns, "cat", "/run/report.json")), &report))
	require.Len(t, report, 1)
	require.Equal(t, "/data", report[0].Dir)
	require.Positive(t, report[0].Lines)
	return time.Duration(report[0].LongestStallMillis * float64(time.Millisecond))
}

func TestFreezeIsSeenAndThawedFromOutside(t *testing.T) {
	t.Parallel()
	c := cluster.Connect(t)
	ns := app(t, c)
	frozen := func() bool {
		is, err := c.Frozen(t.Context(), ns, "data")
		require.NoError(t, err)
		return is
	}
	require.False(t, frozen())
	exec(t, c, ns, "fsfreeze", "--freeze", "/data")
	require.True(t, frozen())
	time.Sleep(500 * time.Millisecond)
	was, err := c.Thaw(t.Context(), ns, "data")
	require.NoError(t, err)
	require.True(t, was)
	require.False(t, frozen())
	time.Sleep(300 * time.Millisecond) // for the report
	require.Greater(t, longestStall(t, c, ns), 400*time.Millisecond)

	exec(t, c, ns, "sh", "-c", "kill -USR1 $(pidof writer)")
	time.Sleep(300 * time.Millisecond)
	require.Less(t, longestStall(t, c, ns), 400*time.Millisecond, "the longest stall was reset")
	exec(t, c, ns, "fsfreeze", "--freeze", "/data") // the clean-up must cope
}

func TestVolumesOfEveryKind(t *testing.T) {
	t.Parallel()
	c := cluster.Connect(t)
	ns := app(t, c)
	exec(t, c, ns, "sh", "-c", "test -b /dev/data && echo x > /dev/data && echo x > /shared/f && echo x > /directory/f")
	for _, shell := range []string{"sh", "dash", "bash"} {
		require.Equal(t, "works\n", exec(t, c, ns, shell, "-c", "echo works"))
	}
	mounts := exec(t, c, ns, "cat", "/proc/self/mountinfo")
	root := func(at string) string { // the fourth field: which part of its file system is mounted
		for line := range strings.Lines(mounts) {
			if f := strings.Fields(line); f[4] == at {
				return f[3]
			}
		}
		return "not mounted"
	}
	require.Equal(t, "/", root("/data"))
	require.Contains(t, root("/directory"), "/volumes/", "it is a directory of the store")
}

// snapshot takes a snapshot of the claim data with a class of its own and
// returns it when done says so.
func snapshot(t *testing.T, c *cluster.Cluster, ns string, parameters map[string]string, done func(*snapshotv1.VolumeSnapshot) bool) *snapshotv1.VolumeSnapshot {
	t.Helper()
	class := &snapshotv1.VolumeSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{Name: ns}, Driver: loopcsi.Name,
		DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete, Parameters: parameters,
	}
	require.NoError(t, c.Objects().Create(t.Context(), class))
	t.Cleanup(func() { require.NoError(t, c.Objects().Delete(context.Background(), class)) })
	claim := "data"
	s := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: ns},
		Spec: snapshotv1.VolumeSnapshotSpec{
			Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}, VolumeSnapshotClassName: &class.Name,
		},
	}
	require.NoError(t, c.Objects().Create(t.Context(), s))
	require.Eventually(t, func() bool {
		require.NoError(t, c.Objects().Get(t.Context(), client.ObjectKeyFromObject(s), s))
		return s.Status != nil && done(s)
	}, 30*time.Second, 20*time.Millisecond)
	return s
}

func TestSnapshotFaults(t *testing.T) {
	t.Parallel()
	c := cluster.Connect(t)

	t.Run("none", func(t *testing.T) {
		began := time.Now()
		s := snapshot(t, c, app(t, c), nil, ready)
		require.Less(t, s.Status.CreationTime.Sub(began), time.Minute)
	})
	t.Run("fail", func(t *testing.T) {
		s := snapshot(t, c, app(t, c), map[string]string{"fail": "out of space for snapshots"}, func(s *snapshotv1.VolumeSnapshot) bool {
			// Before, the controller may not have heard of the new class yet.
			return s.Status.Error != nil && strings.Contains(*s.Status.Error.Message, "out of space for snapshots")
		})
		require.False(t, ready(s))
	})
	t.Run("delay", func(t *testing.T) {
		ns := app(t, c)
		began := time.Now()
		snapshot(t, c, ns, map[string]string{"delay": "3s"}, ready)
		require.Greater(t, time.Since(began), 3*time.Second)
	})
}

// It stops a component that all tests of all packages use, so it is no test to
// run beside others: run packages one at a time when they have such tests.
func TestAPIServerIsKilledAndStartedAgain(t *testing.T) {
	c := cluster.Connect(t)
	before := c.PID(cluster.APIServer)
	require.NotZero(t, before)
	t.Cleanup(func() { require.NoError(t, c.Start(context.Background(), cluster.APIServer)) })
	require.NoError(t, c.Kill(t.Context(), cluster.APIServer))
	require.Zero(t, c.PID(cluster.APIServer))
	_, err := c.Client().CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	require.Error(t, err)
	require.NoError(t, c.Start(t.Context(), cluster.APIServer))
	require.NotEqual(t, before, c.PID(cluster.APIServer))
	_, err = c.Client().CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
}

func TestVeleroRuns(t *testing.T) {
	c := cluster.Connect(t)
	require.Len(t, c.VeleroPIDs(), 1)
	// The server may still be looking for an API server that was killed.
	require.Eventually(t, func() bool {
		out, err := c.Velero(t.Context(), "version")
		require.NoError(t, err)
		return regexp.MustCompile(`(?s)Client:.*v1\.18.*Server:.*v1\.18`).MatchString(out)
	}, time.Minute, time.Second)
}
