package faults

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"

	"stillpoint.io/stillpoint/tests/fake"
)

var fsfreeze = map[string]string{"stillpoint.io/quiesce": "fsfreeze"}

// Without any fault both paths freeze, cut, thaw, and report no error. A test of a
// fault is worth something only because this holds.
func TestNothingGoesWrong(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*velerov1.Backup){
		"snapshots of Stillpoint": fake.WithPolicy,
		"snapshots of Velero":     func(*velerov1.Backup) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Annotations: fsfreeze, Volumes: 2})
			v := bed.Velero()
			r := v.Backup(bed.Backup(change), app)
			require.Empty(t, r.Dropped)
			assert.Empty(t, v.Errors())
			require.Len(t, bed.Storage.Snapshots(), 2)
			for _, snapshot := range bed.Storage.Snapshots() {
				assert.True(t, snapshot.Frozen, "cut while frozen")
			}
			for _, claim := range app.Claims {
				assert.Equal(t, []string{"sync", "freeze", "frozen", "thawed"}, bed.Node.FileSystem("shop", claim).Journal())
				assert.NotEmpty(t, r.Claims[claim].Labels["velero.io/volume-snapshot-name"])
			}
		})
	}
}

// The commands find the same cluster, and have nothing to report.
func TestNothingToReport(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	bed.Deploy(fake.App{Annotations: fsfreeze, Volumes: 2})
	for _, command := range [][]string{{"check", "--namespace", "shop", "--policy", fake.Policy}, {"sweep"}, {"thaw"}} {
		code, stdout, stderr := bed.Command(command[0], command[1:]...)
		assert.Zero(t, code, "%s: %s%s", command[0], stdout, stderr)
	}
}
