package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"

	"stillpoint.io/stillpoint/internal/check"
)

// runCheck runs `stillpoint check` as a user with a kubeconfig does.
func runCheck(t *testing.T, args ...string) (output string, code int) {
	t.Helper()
	binary := os.Getenv("STILLPOINT_PLUGIN")
	if binary == "" {
		t.Skip("STILLPOINT_PLUGIN does not name the plugin's binary")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, append([]string{"check"}, args...)...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		require.NotEqual(t, 2, exit.ExitCode(), string(exit.Stderr))
		return string(out), exit.ExitCode()
	}
	require.NoError(t, err)
	return string(out), 0
}

// What check says beforehand is what a backup does, for a workload that is fine
// and for one that is not; and check itself does nothing.
func TestCheckForetellsTheBackup(t *testing.T) {
	c := connect(t)
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, volumes: 2})
	policy := handOver(t, c, "")
	spec := velerov1.BackupSpec{}
	policy(&spec)
	a.stall("app")

	args := []string{"--namespace", a.namespace, "--policy", spec.ResourcePolicy.Name}
	table, code := runCheck(t, args...)
	t.Log(table)
	assert.Equal(t, 0, code)
	assert.Contains(t, table, "/sidecar: fsfreeze --freeze /mnt/data1")
	assert.Contains(t, table, "fsfreeze (built in), asked for by Deployment "+a.namespace+"/app")
	inPod, err := c.Kubectl(t.Context(), nil, append([]string{"-n", "velero", "exec", "deploy/velero", "-c", "velero", "--", "/plugins/stillpoint", "check"}, args...)...)
	require.NoError(t, err)
	assert.Equal(t, table, inPod)
	assert.Less(t, a.stall("app"), 500*time.Millisecond, "check froze it")

	a.deploy("bad", shape{annotations: map[string]string{"stillpoint.io/quiesce": "nosuch"}})
	document, code := runCheck(t, append(args, "--output", "json")...)
	assert.Equal(t, 1, code)
	var report check.Report
	require.NoError(t, json.Unmarshal([]byte(document), &report))
	assert.True(t, report.Fails)
	require.Len(t, report.Units, 2)
	fine, bad := report.Units[0], report.Units[1]
	assert.Empty(t, fine.Failures)
	// The arguments of the snapshot controller and the CSI sidecar are read.
	assert.Equal(t, &check.Freeze{Snapshots: 2, Shortest: "0s", Longest: "0s"}, fine.Quiesce.PredictedFreeze)
	assert.NotContains(t, document, "are not known")
	require.Len(t, bad.Failures, 1)
	assert.Contains(t, bad.Failures[0], `blueprint "nosuch" is not found`)

	b := startBackup(t, c, a.namespace, policy)
	assert.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(2*time.Minute))
	log := b.log()
	require.Len(t, fine.Volumes, 2)
	for _, volume := range fine.Volumes {
		assert.Equal(t, check.PathGroup, volume.Path)
		assert.Contains(t, log, "claim "+a.namespace+"/"+volume.Claim+": VolumeSnapshotClass "+volume.SnapshotClass+": "+volume.SnapshotClassReason)
	}
	assert.Contains(t, said(log, "error"), "claim "+a.namespace+"/"+bad.Volumes[0].Claim+" is backed up without a snapshot of its volume")
	assert.Contains(t, said(log, "error"), "which Deployment "+a.namespace+"/bad names: blueprint")
	assert.Len(t, frozenFor(t, log), 1)

	// Around Velero's own snapshots, too.
	document, code = runCheck(t, "-n", a.namespace, "--workload", "deploy/app", "-o", "json")
	assert.Equal(t, 0, code, document)
	report = check.Report{}
	require.NoError(t, json.Unmarshal([]byte(document), &report))
	require.Len(t, report.Units, 1)
	for _, volume := range report.Units[0].Volumes {
		assert.Equal(t, check.PathAround, volume.Path)
	}
}
