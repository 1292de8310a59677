package faults

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/tests/fake"
)

func within(timeout time.Duration) func(*velerov1.Backup) {
	return func(backup *velerov1.Backup) { backup.Spec.CSISnapshotTimeout = metav1.Duration{Duration: timeout} }
}

// failing has some volumes fail, each of a workload of its own, and returns how
// long the backup of all took.
func failing(t *testing.T, behaviour fake.Behaviour, change ...func(*velerov1.Backup)) (time.Duration, *fake.Result, *fake.Bed) {
	t.Helper()
	bed := fake.New(t)
	bed.Storage.Behave(func(claim types.NamespacedName) fake.Behaviour {
		if claim.Name == "good-data0" {
			return fake.Behaviour{}
		}
		return behaviour
	})
	apps := []*fake.Workload{bed.Deploy(fake.App{Name: "good"})}
	for i := range 4 {
		apps = append(apps, bed.Deploy(fake.App{Name: fmt.Sprintf("bad%d", i)}))
	}
	backup := bed.Backup(append(change, fake.WithPolicy)...)
	v, r := bed.Velero(), fake.NewResult()
	start := time.Now()
	for _, app := range apps {
		v.BackUpClaim(backup, app.Namespace, app.Claims[0], r)
	}
	took := time.Since(start)
	if behaviour.Never { // it is waited for once
		for claim, progress := range v.Progress(backup, r) {
			assert.True(t, progress.Completed, "%s: %+v", claim, progress)
		}
	}
	assert.Len(t, v.Errors(), 4)
	assert.NotEmpty(t, r.Claims["good-data0"].Labels["velero.io/volume-snapshot-name"])
	for i := range 4 {
		assert.NotEmpty(t, r.Claims[fmt.Sprintf("bad%d-data0", i)].Annotations["stillpoint.io/no-snapshot"])
	}
	return took, r, bed
}

// 24: any number of claims that fail takes csiSnapshotTimeout once.
func TestFailingClaimsWaitSideBySide(t *testing.T) {
	t.Parallel()
	for name, behaviour := range map[string]fake.Behaviour{
		"no answer":                    {Never: true},
		"an error that may pass":       {Err: errors.New("rpc error: code = Unavailable desc = connection lost")},
		"an error that is no driver's": {Err: errors.New("lost")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			took, r, _ := failing(t, behaviour, within(1500*time.Millisecond))
			assert.Less(t, took, 5*time.Second, "four times 1.5 s one after another takes 6 s")
			assert.Contains(t, r.Claims["bad3-data0"].Annotations["stillpoint.io/no-snapshot"], "csiSnapshotTimeout 1.5s")
		})
	}
}

// 24: a final error of the driver ends the wait.
func TestAFinalErrorEndsTheWait(t *testing.T) {
	t.Parallel()
	took, r, bed := failing(t, fake.Behaviour{Err: errors.New("rpc error: code = InvalidArgument desc = no such pool"), Final: true}, within(8*time.Second))
	assert.Less(t, took, 6*time.Second)
	assert.Contains(t, r.Claims["bad0-data0"].Annotations["stillpoint.io/no-snapshot"], "no such pool")
	require.Eventually(t, func() bool { return len(bed.API.All("volumesnapshots")) == 1 }, 5*time.Second, 10*time.Millisecond)
}

// The CSI sidecar tries again after a final error, too, and may succeed.
func TestAFinalErrorThatPasses(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{})
	until := time.Now().Add(time.Second)
	bed.Storage.Behave(func(types.NamespacedName) fake.Behaviour {
		if time.Now().Before(until) {
			return fake.Behaviour{Err: errors.New("rpc error: code = Internal desc = busy"), Final: true}
		}
		return fake.Behaviour{}
	})
	v := bed.Velero()
	r := v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.Empty(t, v.Errors())
	assert.NotEmpty(t, r.Claims["db-data0"].Labels["velero.io/volume-snapshot-name"])
}

// What is taken ahead keeps out of what another call decides: claims that are
// quiesced, left to Velero's hooks, or not in the backup.
func TestOnlyWhatMayBeTakenAheadIs(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	first := bed.Deploy(fake.App{Name: "first"})
	bed.Deploy(fake.App{Name: "second"})
	bed.Deploy(fake.App{Name: "quiesced", Annotations: fsfreeze})
	bed.Deploy(fake.App{Name: "hooked", Pod: func(pod *corev1.Pod) {
		pod.Annotations = map[string]string{"pre.hook.backup.velero.io/command": "sync"}
	}})
	bed.Deploy(fake.App{Name: "excluded", Claim: func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
		claim.Labels["velero.io/exclude-from-backup"] = "true"
	}})
	bed.Deploy(fake.App{Namespace: "office", Name: "other"})
	v, backup, r := bed.Velero(), bed.Backup(fake.WithPolicy), fake.NewResult()
	v.BackUpClaim(backup, "shop", first.Claims[0], r)
	sources := func() (names []string) {
		for _, vs := range bed.API.All("volumesnapshots") {
			name, _, _ := unstructured.NestedString(vs.Object, "spec", "source", "persistentVolumeClaimName")
			names = append(names, name)
		}
		return names
	}
	require.Eventually(t, func() bool { return len(sources()) == 2 }, 2*time.Second, 10*time.Millisecond)
	time.Sleep(200 * time.Millisecond)
	assert.ElementsMatch(t, []string{"first-data0", "second-data0"}, sources())
	// Velero has never called for the second one.
	v.Progress(backup, r)
	require.Eventually(t, func() bool { return len(sources()) == 1 }, 5*time.Second, 10*time.Millisecond)
}
