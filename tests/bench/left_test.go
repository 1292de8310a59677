package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// Every tenth upload is spoiled, and each volume in each way within 40 backups.
func TestSpoiling(t *testing.T) {
	type pair struct {
		volume int
		how    spoiling
	}
	pairs := map[pair]int{}
	spoiled := 0
	for backup := range 40 {
		for volume := range leftVolumes {
			if how := spoilingOf(backup, volume); how != spared {
				spoiled++
				pairs[pair{volume, how}]++
			}
		}
	}
	assert.Equal(t, 40*leftVolumes/leftEvery, spoiled)
	assert.Len(t, pairs, leftVolumes*len(spoilings))
}

func TestSightings(t *testing.T) {
	now := time.Now()
	after := func(seconds int) time.Time { return now.Add(time.Duration(seconds) * time.Second) }
	completed := func(claim string) watch.Event {
		upload := &velerov2alpha1.DataUpload{}
		upload.Spec.SourcePVC, upload.Status.Phase = claim, velerov2alpha1.DataUploadPhaseCompleted
		return watch.Event{Type: watch.Modified, Object: upload}
	}
	retain := snapshotClasses[0]
	claims := []movedClaim{{name: "data1", volume: "v1", class: retain}, {name: "data2", volume: "v2", class: retain}, {name: "data3", volume: "v3", class: retain}}
	s := newSightings(claims)
	s.storage(nil, now) // not cut yet
	s.storage(map[string][]string{"v1": {"s1"}, "v2": {"s2"}, "v3": {"s3"}}, after(1))
	s.storage(map[string][]string{"v1": {"s1"}, "v3": {"s3"}}, after(2))
	s.upload(completed("data1"), after(3))
	require.ErrorContains(t, s.into(&results{}, byVelero, false), "data2")
	s.upload(completed("data2"), after(3))
	s.upload(completed("data3"), after(3))
	s.storage(map[string][]string{"v3": {"s3"}}, after(7))
	s.upload(completed("data1"), after(9)) // seen once more
	assert.False(t, s.allGone())

	found := &results{}
	require.NoError(t, s.into(found, byVelero, false))
	assert.Equal(t, []*exports{{byVelero, false, retain, []time.Duration{4 * time.Second, 0}, 1}}, found.exports)
}

func TestSetArgument(t *testing.T) {
	c := &corev1.Container{Args: []string{"server", parallelArgument + "3", "--features=EnableCSI"}}
	setArgument(c, parallelArgument, parallelArgument+"5")
	assert.Equal(t, []string{"server", "--features=EnableCSI", parallelArgument + "5"}, c.Args)
	setArgument(c, parallelArgument, "")
	assert.Equal(t, []string{"server", "--features=EnableCSI"}, c.Args)
}

func TestQuantile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i))
	}
	assert.Equal(t, time.Duration(51), quantile(hundred, 0.5))
	assert.Equal(t, time.Duration(100), quantile(hundred, 0.99))
	assert.Equal(t, time.Duration(7), quantile([]time.Duration{7}, 0.99))
}

// As its mover the bench ends an upload only once it runs.
func TestPlayedPhase(t *testing.T) {
	for _, how := range append([]spoiling{spared}, spoilings...) {
		assert.Equal(t, velerov2alpha1.DataUploadPhaseInProgress, playedPhase(how, false))
	}
	for how, want := range map[spoiling]velerov2alpha1.DataUploadPhase{
		spared: velerov2alpha1.DataUploadPhaseCompleted, failed: velerov2alpha1.DataUploadPhaseFailed,
		cancelled: velerov2alpha1.DataUploadPhaseCanceled, cancelledRunning: velerov2alpha1.DataUploadPhaseCanceled,
	} {
		phase := playedPhase(how, true)
		assert.Equal(t, want, phase)
		assert.True(t, uploadEnded(&velerov2alpha1.DataUpload{Status: velerov2alpha1.DataUploadStatus{Phase: phase}}))
	}
}
