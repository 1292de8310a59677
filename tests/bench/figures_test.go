package main

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"stillpoint.io/stillpoint/tests/cluster"
)

func ms(all ...int) (d []time.Duration) {
	for _, n := range all {
		d = append(d, time.Duration(n)*time.Millisecond)
	}
	return d
}

// backups that took these seconds, and these requests.
func backups(requests []cluster.Request, seconds ...float64) (all []taken) {
	for _, s := range seconds {
		all = append(all, taken{time.Duration(s * float64(time.Second)), requests})
	}
	return all
}

// times is a request so often.
func times(n int, program, verb, resource string) []cluster.Request {
	return slices.Repeat([]cluster.Request{{Program: program, Verb: verb, Resource: resource}}, n)
}

// measured is a run of everything.
func measured() results {
	velero := slices.Concat(times(500, "velero", "get", "volumesnapshots"), times(50, "velero", "create", "volumesnapshots"), times(3, "velero-server", "get", "/apis"))
	ours := slices.Concat(times(50, "stillpoint", "create", "volumesnapshots"), times(1, "stillpoint", "watch", "volumesnapshots"), times(100, "velero", "list", "pods"))
	return results{
		runs: 5,
		stalls: []series{
			{1, [len(names)][]time.Duration{ms(5300, 5100, 5200), ms(1200), ms(190, 210, 200), ms(90, 110), ms(50)}},
			{16, [len(names)][]time.Duration{ms(81000), ms(17000, 17200), ms(75000), ms(900, 950), ms(500)}},
		},
		claims: bulk{backups(velero, 256), backups(ours, 9, 11, 10)},
		process: process{
			starts: ms(10, 12, 11), rss: []float64{34.04, 35, 33}, binary: 61,
		},
	}
}

func TestReport(t *testing.T) {
	assert.Equal(t, `Stall of the application, the longest that a write had to wait: ratios of the medians.
  volumes  hooks/group  early/group  bracket/group  group/floor  hooks/bracket
        1        52.0x        12.0x           2.0x         2.0x          26.0x
       16        87.6x        18.5x          81.1x         1.9x           1.1x

The same in ms: the median of the runs (the shortest to the longest).
The floor is no stall: the storage cuts all snapshots at once, without a backup.
  volumes  runs                hooks                   early           bracket             group  floor
        1     5  5200 (5100 to 5300)                    1200  200 (190 to 210)   100 (90 to 110)     50
       16     3                81000  17100 (17000 to 17200)             75000  925 (900 to 950)    500

stall with volumes=1: 100 ms in the group path, target at most 1.5 x floor + 30 ms = 105 ms: met by 5 ms
stall with volumes=16: 925 ms in the group path, target at most 1.5 x floor + 30 ms = 780 ms: MISSED by 145 ms
backup of 50 claims: Velero alone 256.0 s in 1 run, with the volume policy 10.0 (9.0 to 11.0) s in 3 runs: 25.6 times faster, target at least 10: met by 15.6
requests for each of them: Velero alone 11.1, with the volume policy 3.0 (3.0 to 3.0), target at most Velero's: met by 8.1
plugin: serves after 11.0 (10.0 to 12.0) ms, 3 starts
plugin: 34.0 (33.0 to 35.0) MiB resident at the most during the backup of 50 claims, target at most 60: met by 26.0 MiB
plugin: 61.0 MiB on disk, target at most 60: MISSED by 1.0 MiB

Requests to the API server during the backup of 50 claims, for each claim (the first run of each).
  Velero  policy
   10.00    0.00  get volumesnapshots
    1.00    1.00  create volumesnapshots
    0.00    2.00  list pods
    0.06    0.00  get /apis
    0.00    0.02  watch volumesnapshots
    0.00    0.00  all others
   11.00    2.00  by velero
    0.00    1.02  by stillpoint
    0.06    0.00  by velero-server
`, report(measured()))
}

// What was not measured is left out of the report, and null in the figures.
func TestPartOfIt(t *testing.T) {
	some := results{runs: 1, stalls: []series{{4, [len(names)][]time.Duration{hooks: ms(20000), floor: ms(90)}}}}
	assert.Equal(t, `Stall of the application, the longest that a write had to wait: ratios of the medians.
  volumes  hooks/group  early/group  bracket/group  group/floor  hooks/bracket
        4            -            -              -            -              -

The same in ms: the median of the runs (the shortest to the longest).
The floor is no stall: the storage cuts all snapshots at once, without a backup.
  volumes  runs  hooks  early  bracket  group  floor
        4     1  20000      -        -      -     90

`, report(some))
	written, err := json.Marshal(summarize(some))
	require.NoError(t, err)
	assert.JSONEq(t, `{"runs": 1,
		"stall": [{"volumes": 4, "veleroHooksMillis": 20000, "veleroEarlyPollMillis": null, "bracketMillis": null, "groupMillis": null, "floorMillis": 90}],
		"backup50": {"veleroSeconds": null, "stillpointSeconds": null},
		"requestsPerPVC": {"velero": null, "stillpoint": null},
		"process": {"startMillis": null, "rssMiB": null, "binaryMiB": null},
		"planning": {"claims": null, "workloads": null, "namespaces": null, "requests": null, "seconds": null, "memoryMiB": null, "requestsAt10Claims": null, "requestsAt500Claims": null}}`, string(written))
}

func TestFigures(t *testing.T) {
	written, err := json.Marshal(summarize(measured()))
	require.NoError(t, err)
	assert.JSONEq(t, `{"runs": 5,
		"stall": [
			{"volumes": 1, "veleroHooksMillis": 5200, "veleroEarlyPollMillis": 1200, "bracketMillis": 200, "groupMillis": 100, "floorMillis": 50},
			{"volumes": 16, "veleroHooksMillis": 81000, "veleroEarlyPollMillis": 17100, "bracketMillis": 75000, "groupMillis": 925, "floorMillis": 500}],
		"backup50": {"veleroSeconds": 256, "stillpointSeconds": 10},
		"requestsPerPVC": {"velero": 11.1, "stillpoint": 3},
		"process": {"startMillis": 11, "rssMiB": 34, "binaryMiB": 61},
		"planning": {"claims": null, "workloads": null, "namespaces": null, "requests": null, "seconds": null, "memoryMiB": null, "requestsAt10Claims": null, "requestsAt500Claims": null}}`, string(written))
}
