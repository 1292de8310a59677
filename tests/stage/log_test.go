package stage

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	thawed = `time="2026-11-21T04:05:42Z" level=info msg="Thawed Deployment date/date: frozen for 202 ms, 1 volume cut" cmd=/plugins/stillpoint frozenMillis=202 pluginName=stillpoint` + "\n"
	early  = `time="2026-11-21T04:05:42Z" level=warning msg="Thawed Deployment date/date early: frozen for 30001 ms: too long" frozenMillis=30001` + "\n"
	other  = `time="2026-11-21T04:05:42Z" level=error msg="Nothing was Thawed" frozenMillis=1` + "\n"
)

func TestFrozen(t *testing.T) {
	frozen, err := Log(other + thawed).Frozen()
	require.NoError(t, err)
	assert.Equal(t, 202*time.Millisecond, frozen)

	for name, test := range map[string]struct {
		log  Log
		want string
	}{
		"not frozen":    {other, "tells of 0 thawed workloads, not of one: was the plugin installed? " + other[:len(other)-1]},
		"two workloads": {thawed + thawed, "tells of 2 thawed workloads, not of one: was the plugin installed? its log has neither errors nor warnings"},
		"thawed early":  {early, "Thawed Deployment date/date early: frozen for 30001 ms: too long"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := test.log.Frozen()
			assert.ErrorContains(t, err, test.want)
		})
	}
}
