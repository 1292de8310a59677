package e2e

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// Velero's own hooks. Of a StatefulSet with nothing of ours, each volume that a
// volume policy hands to us is cut between the hooks of its pod, ephemeral ones
// included. Where our freeze is asked for beside a hook that freezes, check and the
// backup name that beforehand, our freeze fails, and the hook's is left to the hook.
func testVelerosHooks(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}})
	a.kubectl("patch", "deployment", "app", "--type=merge", "--patch", `{"spec": {"template": {"metadata": {"annotations": {
		"pre.hook.backup.velero.io/container": "sidecar", "pre.hook.backup.velero.io/command": "[\"fsfreeze\", \"--freeze\", \"/mnt/data0\"]",
		"post.hook.backup.velero.io/container": "sidecar", "post.hook.backup.velero.io/command": "[\"fsfreeze\", \"--unfreeze\", \"/mnt/data0\"]"}}}}}`)
	t.Cleanup(func() { _, _ = c.Thaw(context.Background(), a.namespace, "app-data0") })
	set := `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: set}
spec:
  selector: {matchLabels: {app: set}}
  replicas: 2
  serviceName: set
  podManagementPolicy: Parallel
  template:
    metadata: {labels: {app: set}, annotations: {
      pre.hook.backup.velero.io/command: '["sh", "-c", "sleep 1; date +%s >/run/pre"]',
      post.hook.backup.velero.io/command: '["sh", "-c", "date +%s >/run/post; sleep 1"]'}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: app
          image: ` + cluster.Image + `
          command: [sleep, infinity]
          volumeMounts: [{name: data, mountPath: /data}, {name: scratch, mountPath: /scratch}]
      volumes:
        - name: scratch
          ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}}}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
`
	_, err := c.Kubectl(t.Context(), strings.NewReader(set), "-n", a.namespace, "apply", "-f", "-")
	require.NoError(t, err)
	a.kubectl("rollout", "status", "statefulset/set", "--timeout=90s")
	a.kubectl("rollout", "status", "deployment/app", "--timeout=90s")

	policy := handOver(t, c, "")
	spec := velerov1.BackupSpec{}
	policy(&spec)
	const twice = "Quiesced twice: Velero runs hooks in app-"
	table, _ := runCheck(t, "--namespace", a.namespace, "--policy", spec.ResourcePolicy.Name)
	assert.Contains(t, table, "WARNING: "+twice)

	b := startBackup(t, c, a.namespace, policy)
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	assert.Contains(t, said(b.log(), "warning"), twice)
	assert.Contains(t, said(b.log(), "error"), "another program has frozen the file system already")
	assert.Equal(t, 1, strings.Count(said(b.log(), "error"), "\n"), said(b.log(), "error"))
	done := &velerov1.Backup{}
	require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Namespace: cluster.VeleroNamespace, Name: b.name}, done))
	require.NotNil(t, done.Status.HookStatus)
	assert.Equal(t, velerov1.HookStatus{HooksAttempted: 6}, *done.Status.HookStatus, "the hook's own thaw found it frozen")
	frozen, err := c.Frozen(t.Context(), a.namespace, "app-data0")
	require.NoError(t, err)
	assert.False(t, frozen)

	all, err := c.Snapshots(t.Context())
	require.NoError(t, err)
	for _, pod := range []string{"set-0", "set-1"} {
		at := func(hook string) time.Time {
			text, err := c.Kubectl(t.Context(), nil, "-n", a.namespace, "exec", pod, "--", "cat", "/run/"+hook)
			require.NoError(t, err)
			seconds, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			require.NoError(t, err)
			return time.Unix(seconds, 0)
		}
		for _, claim := range []string{"data-" + pod, pod + "-scratch"} {
			found, handles := 0, a.stored(claim)
			for _, snapshot := range all {
				if slices.Contains(handles, snapshot.ID) {
					found++
					assert.True(t, snapshot.Created.After(at("pre")) && snapshot.Created.Before(at("post").Add(time.Second)),
						"%s was cut at %s, not between %s and %s", claim, snapshot.Created, at("pre"), at("post"))
				}
			}
			assert.Equal(t, 1, found, claim)
		}
	}
}
