package e2e

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"

	"stillpoint.io/stillpoint/tests/cluster"
)

// stalled is an app whose volume has a store of its own, which is stalled in the middle
// of a large direct write: a freeze waits for that, and cannot be killed. The user's own
// blueprint freezes it: the built-in one would find that the store does not write.
func stalled(t *testing.T, c *cluster.Cluster) (a *app, resume func()) {
	t.Helper()
	var store *cluster.Store
	a = newApp(t, c, shape{
		annotations: map[string]string{"stillpoint.io/quiesce": "own-freeze", "stillpoint.io/prepare-timeout": "2s"},
		bound: func(namespace, claim string) {
			var err error
			store, err = c.OwnStore(t.Context(), namespace, claim)
			require.NoError(t, err)
		},
	})
	blueprint(t, c, execBlueprint("own-freeze", "sidecar", "fsfreeze --freeze /mnt/data0", "fsfreeze --unfreeze /mnt/data0"))
	written := make(chan error, 1)
	t.Cleanup(func() {
		assert.NoError(t, store.Remove())
		select {
		case err := <-written:
			assert.NoError(t, err)
		case <-time.After(30 * time.Second):
			t.Error("the direct write has not ended")
		}
		_, _ = c.Thaw(context.Background(), a.namespace, "app-data0")
	})
	require.NoError(t, store.Stall())
	go func() { written <- c.DirectWrite(context.Background(), a.namespace, "app-data0", 16<<20) }()
	time.Sleep(500 * time.Millisecond)
	return a, func() { require.NoError(t, store.Resume()) }
}

// The kernel completes the freeze long after the prepare-timeout.
func testFreezeThatCompletesAfterItsThaw(t *testing.T, c *cluster.Cluster) {
	a, resume := stalled(t, c)
	b := startBackup(t, c, a.namespace, nil)
	require.Eventually(t, func() bool { return len(a.owed()) == 1 }, 20*time.Second, time.Second)
	require.Eventually(t, func() bool { return !a.writing("app-data0") }, 20*time.Second, 10*time.Millisecond, "new writers wait, too")
	time.Sleep(8 * time.Second) // the freeze was given up, and thaws have failed
	assert.Len(t, a.owed(), 1, "the record stays while the freeze can complete")
	resume()
	a.writesWithin(thawTime, "app-data0")
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	assert.Contains(t, said(b.log(), "error"), "prepare-timeout 2s")
	time.Sleep(time.Second)
	a.writesWithin(thawTime, "app-data0")
	assert.False(t, a.frozen("app-data0"))
	assert.Empty(t, a.owed())
}

// The plugin does not live to see it: the guard thaws, and the record is not closed
// before.
func TestPluginKilledBeforeAFreezeCompletes(t *testing.T) {
	c := connect(t)
	a, resume := stalled(t, c)
	b := startBackup(t, c, a.namespace, nil)
	require.Eventually(t, func() bool { return len(a.owed()) == 1 }, 20*time.Second, time.Second)
	time.Sleep(4 * time.Second)
	kill(t, syscall.SIGKILL, c.PluginPIDs())
	time.Sleep(4 * time.Second)
	output, code := runThaw(t, "--timeout", "2s", "--namespace", a.namespace)
	assert.Equal(t, 1, code)
	assert.Contains(t, output, "may still be at work")
	assert.Len(t, a.owed(), 1)
	assert.NotEmpty(t, a.events("app")["StillFrozen"])
	resume()
	a.writesWithin(2*thawTime, "app-data0")
	_, code = runThaw(t, "--timeout", "20s", "--namespace", a.namespace)
	assert.Equal(t, 0, code)
	assert.Empty(t, a.owed())
	a.writesWithin(thawTime, "app-data0")
	assert.NotEqual(t, velerov1.BackupPhaseCompleted, b.finished(limit))
	assert.False(t, a.frozen("app-data0"))
}

// Another program thaws what we have frozen, and then holds a freeze of its own.
func testThirdParties(t *testing.T, c *cluster.Cluster) {
	a, b := held(t, c, nil)
	thawed, err := c.Thaw(t.Context(), a.namespace, "app-data0")
	require.NoError(t, err)
	require.True(t, thawed)
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	assert.Contains(t, said(b.log(), "error"), "another program has thawed it meanwhile")

	require.NoError(t, c.Freeze(t.Context(), a.namespace, "app-data0"))
	t.Cleanup(func() { _, _ = c.Thaw(context.Background(), a.namespace, "app-data0") })
	b = startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	assert.Contains(t, said(b.log(), "error"), "another program has frozen the file system already")
	assert.Empty(t, a.owed())
	thawed, err = c.Thaw(t.Context(), a.namespace, "app-data0")
	require.NoError(t, err)
	assert.True(t, thawed, "its freeze was left alone")
}
