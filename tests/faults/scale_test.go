package faults

import (
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/tests/fake"
)

var scaleDown = map[string]string{"stillpoint.io/quiesce": "scale-down"}

func replicas(t *testing.T, bed *fake.Bed, resource, name string) int64 {
	t.Helper()
	for _, object := range bed.API.All(resource) {
		if object.GetName() == name {
			n, _, _ := unstructured.NestedInt64(object.Object, "spec", "replicas")
			return n
		}
	}
	return -1
}

// scaledDown is a bed with a workload of three pods, and a storage that takes its time
// to cut, which calls during when it has begun.
func scaledDown(t *testing.T, kind string, during func(bed *fake.Bed)) (*fake.Bed, *fake.Workload) {
	t.Helper()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Kind: kind, Annotations: scaleDown, Replicas: 3})
	bed.RunControllers()
	begun := false
	bed.Storage.Behave(func(types.NamespacedName) fake.Behaviour {
		if !begun && during != nil {
			begun = true
			go during(bed)
		}
		return fake.Behaviour{Cut: 300 * time.Millisecond}
	})
	return bed, app
}

// Without a fault the pods have ended when the volumes are cut, and come back.
func TestScaleDown(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"Deployment", "StatefulSet"} {
		bed, app := scaledDown(t, kind, nil)
		v := bed.Velero()
		r := v.Backup(bed.Backup(fake.WithPolicy), app)
		assert.Empty(t, v.Errors())
		assert.Empty(t, r.Dropped)
		assert.Len(t, bed.Storage.Snapshots(), len(app.Claims))
		assert.Equal(t, int64(3), replicas(t, bed, map[string]string{"Deployment": "deployments", "StatefulSet": "statefulsets"}[kind], "db"))
	}
}

// 8a: who scales up again while volumes are cut makes the snapshots inconsistent.
func TestScaledUpDuringTheFreeze(t *testing.T) {
	t.Parallel()
	for name, during := range map[string]func(bed *fake.Bed){
		"up": func(bed *fake.Bed) { bed.Scale("deployments", "shop", "db", 2) },
		"up, and down": func(bed *fake.Bed) {
			bed.Scale("deployments", "shop", "db", 1)
			time.Sleep(100 * time.Millisecond)
			bed.Scale("deployments", "shop", "db", 0)
		},
		"to what it was": func(bed *fake.Bed) { bed.Scale("deployments", "shop", "db", 3) },
	} {
		for path, change := range map[string]func(*velerov1.Backup){"group": fake.WithPolicy, "around Velero's": func(*velerov1.Backup) {}} {
			t.Run(name+", "+path, func(t *testing.T) {
				t.Parallel()
				bed, app := scaledDown(t, "Deployment", during)
				v := bed.Velero()
				r := v.Backup(bed.Backup(change), app)
				said := v.Errors()
				for _, err := range r.Dropped {
					said = append(said, err.Error())
				}
				require.NotEmpty(t, said)
				assert.Contains(t, said[0], "Deployment shop/db was changed while it was scaled to 0 replicas")
				assert.Eventually(t, func() bool { return len(bed.Storage.Snapshots()) == 0 }, 2*time.Second, 10*time.Millisecond, "a snapshot that is not consistent")
				assert.Equal(t, int64(3), replicas(t, bed, "deployments", "db"))
			})
		}
	}
}

// 8b: a second installation, or another backup, does not take the zero of the first
// for what the user wants. Pods that have not ended yet are still to be quiesced then.
func TestTwoScaleDownAtOnce(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Replicas: 2, Annotations: map[string]string{"stillpoint.io/quiesce": "scale-down", "stillpoint.io/prepare-timeout": "1m"}})
	first, second := bed.Velero(), bed.Velero()
	done := make(chan struct{})
	go func() {
		defer close(done)
		first.Backup(bed.Backup(fake.WithPolicy), app)
	}()
	require.Eventually(t, func() bool { return replicas(t, bed, "deployments", "db") == 0 }, 5*time.Second, time.Millisecond)
	second.Backup(bed.Backup(fake.WithPolicy, fake.Named("other")), app)
	assert.True(t, second.Said(logrus.ErrorLevel, "Deployment shop/db is scaled by another backup, or by another installation of Stillpoint"), second.Errors())
	_, said := checked(bed)
	assert.Contains(t, said, "Deployment shop/db is scaled by another backup, or by another installation of Stillpoint")
	assert.Zero(t, replicas(t, bed, "deployments", "db"), "the first is at it")
	bed.RunControllers()
	<-done
	assert.Empty(t, first.Errors())
	assert.Equal(t, int64(2), replicas(t, bed, "deployments", "db"), "what the first has found")

	// Nothing of the first keeps a later one from it.
	next := bed.Velero()
	next.Backup(bed.Backup(fake.WithPolicy, fake.Named("next")), app)
	assert.Empty(t, next.Errors())
	assert.Equal(t, int64(2), replicas(t, bed, "deployments", "db"))
}

// 8c: a StatefulSet that deletes its claims when it is scaled down is not scaled down.
func TestScaleDownThatDeletesClaimsIsRefused(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Kind: "StatefulSet", Annotations: scaleDown, Replicas: 2})
	bed.RunControllers()
	bed.API.Update("statefulsets", "shop", "db", func(o *unstructured.Unstructured) {
		_ = unstructured.SetNestedStringMap(o.Object, map[string]string{"whenDeleted": "Retain", "whenScaled": "Delete"}, "spec", "persistentVolumeClaimRetentionPolicy")
	})
	const want = "StatefulSet shop/db has spec.persistentVolumeClaimRetentionPolicy.whenScaled: Delete"
	code, said := checked(bed)
	assert.Equal(t, 1, code)
	assert.Contains(t, said, want)
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.True(t, v.Said(logrus.ErrorLevel, want), v.Errors())
	for _, request := range bed.API.Requests() {
		assert.NotContains(t, request, "patch statefulsets", "it was scaled")
	}
	assert.Equal(t, int64(2), replicas(t, bed, "statefulsets", "db"))
}
