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
	retain, remove, fails := snapshotClasses[0], snapshotClasses[1], snapshotClasses[2]
	return results{
		runs: 5,
		stalls: []series{
			{1, [len(names)][]time.Duration{ms(5300, 5100, 5200), ms(1200), ms(190, 210, 200), ms(90, 110), ms(150), ms(50)}},
			{16, [len(names)][]time.Duration{ms(81000), ms(17000, 17200), ms(75000), ms(900, 950), nil, ms(500)}},
		},
		stallsDefault: []series{
			{16, [len(names)][]time.Duration{ms(85000), nil, nil, ms(10000, 10200), nil, ms(9000)}},
		},
		claims: bulk{backups(velero, 256), backups(ours, 9, 11, 10)},
		process: process{
			starts: ms(10, 12, 11), rss: []float64{34.04, 35, 33}, binary: 61,
		},
		exports: []*exports{
			{byStillpoint, true, retain, ms(1000, 2000, 11000), 0},
			{byStillpoint, false, retain, ms(1000, 4000), 0},
			{byVelero, false, retain, ms(4000, 6000), 1},
			{byVelero, false, fails, nil, 1},
		},
		leftovers: []leftovers{
			{byStillpoint, true, 2, map[string]int{"Completed": 9, "gone": 1}, map[snapshotClass]int{retain: 1}, map[snapshotClass]int{retain: 10}, time.Minute},
			{byVelero, false, 2, map[string]int{"Completed": 10}, map[snapshotClass]int{retain: 3, remove: 0}, map[snapshotClass]int{retain: 6, remove: 4}, 2 * time.Minute},
		},
		latencies: latencies{{ms(1), ms(2)}, {}, {ms(1, 2), ms(2, 4)}},
	}
}

func TestReport(t *testing.T) {
	assert.Equal(t, `With the default request limits of the snapshot controller and the CSI sidecar:
Stall of the application, the longest that a write had to wait: ratios of the medians.
  volumes  hooks/group  early/group  around/group  snapshotter/group  group/floor  hooks/around
       16         8.4x            -             -                  -         1.1x             -

The same in ms: the median of the runs (the shortest to the longest).
The floor is no stall: the storage cuts all snapshots at once, without a backup.
  volumes  runs  hooks  early  around                   group  snapshotter  floor
       16     3  85000      -       -  10100 (10000 to 10200)            -   9000

With raised request limits:
Stall of the application, the longest that a write had to wait: ratios of the medians.
  volumes  hooks/group  early/group  around/group  snapshotter/group  group/floor  hooks/around
        1        52.0x        12.0x          2.0x               1.5x         2.0x         26.0x
       16        87.6x        18.5x         81.1x                  -         1.9x          1.1x

The same in ms: the median of the runs (the shortest to the longest).
The floor is no stall: the storage cuts all snapshots at once, without a backup.
  volumes  runs                hooks                   early            around             group  snapshotter  floor
        1     5  5200 (5100 to 5300)                    1200  200 (190 to 210)   100 (90 to 110)          150     50
       16     3                81000  17100 (17000 to 17200)             75000  925 (900 to 950)            -    500

From Completed to the storage's snapshot gone, in s: the median of the exports (the shortest to the longest).
                     class  Velero/Stillpoint  Stillpoint, the bench as the mover  exports  left  Stillpoint, Velero's mover  exports  left      Velero alone  exports  left
                    Retain               2.0x                   2.0 (1.0 to 11.0)        3     0            2.5 (1.0 to 4.0)        2     0  5.0 (4.0 to 6.0)        3     1
                    Delete                  -                                   -        0     0                           -        0     0                 -        0     0
  Retain, 2 deletions fail                  -                                   -        0     0                           -        0     0                 -        1     1

Snapshots left in the storage after backups of 5 volumes, every 10th upload of which was spoiled.
  Stillpoint, the bench as the mover, 2 backups of 5 volumes (9 Completed, 1 gone; 1 min): left 1 of 10 with class Retain
  Velero alone, 2 backups of 5 volumes (10 Completed; 2 min): left 3 of 6 with class Retain, 0 of 4 with class Delete

Writes of 4 KiB to a volume of which the storage holds snapshots, each on stable storage before the next:
ratios to the median without one, then ms: the median of the rounds (the shortest to the longest).
  held  rounds  median  99 of 100            median ms         99 of 100 ms
     0       1   1.00x      1.00x                 1.00                 2.00
     5       2   1.50x      1.50x  1.50 (1.00 to 2.00)  3.00 (2.00 to 4.00)

stall with volumes=1: 100 ms in the group path, target at most 1.5 x floor + 30 ms = 105 ms: met by 5 ms
stall with volumes=16: 925 ms in the group path, target at most 1.5 x floor + 30 ms = 780 ms: MISSED by 145 ms
backup of 50 claims: Velero alone 256.0 s in 1 run, with the volume policy 10.0 (9.0 to 11.0) s in 3 runs: 25.6 times faster, target at least 10: met by 15.6
requests for each of them: Velero alone 11.1, with the volume policy 3.0 (3.0 to 3.0), target at most Velero's: met by 8.1
after the export, class bench-retain, mover bench-mover: gone after 11.0 s at the worst, target one poll of Velero and the driver's time = 10 s and that: MISSED by 1.0 s; 0 of 3 left, target none: met by 0
after the export, class bench-retain, mover velero: gone after 4.0 s at the worst, target one poll of Velero and the driver's time = 10 s and that: met by 6.0 s; 0 of 2 left, target none: met by 0
after all backups by Stillpoint: 1 in the storage, target none: MISSED by 1
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
	assert.Equal(t, `With raised request limits:
Stall of the application, the longest that a write had to wait: ratios of the medians.
  volumes  hooks/group  early/group  around/group  snapshotter/group  group/floor  hooks/around
        4            -            -             -                  -            -             -

The same in ms: the median of the runs (the shortest to the longest).
The floor is no stall: the storage cuts all snapshots at once, without a backup.
  volumes  runs  hooks  early  around  group  snapshotter  floor
        4     1  20000      -       -      -            -     90

`, report(some))
	written, err := json.Marshal(summarize(some))
	require.NoError(t, err)
	assert.JSONEq(t, `{"runs": 1,
		"stallDefault": [],
		"stall": [{"volumes": 4, "veleroHooksMillis": 20000, "veleroEarlyPollMillis": null, "aroundMillis": null, "groupMillis": null, "snapshotterMillis": null, "floorMillis": 90}],
		"snapshotter": {"volumes": null, "stallMillis": null},
		"backup50": {"veleroSeconds": null, "stillpointSeconds": null},
		"requestsPerPVC": {"velero": null, "stillpoint": null},
		"process": {"startMillis": null, "rssMiB": null, "binaryMiB": null},
		"planning": {"claims": null, "workloads": null, "namespaces": null, "customKinds": null, "customObjects": null, "requests": null, "seconds": null, "memoryMiB": null, "requestsAt10Claims": null, "requestsAt500Claims": null},
		"afterExport": {"medianSeconds": null, "worstSeconds": null, "left": null, "exports": [], "backups": []},
		"writeLatency": []}`, string(written))
}

func TestFigures(t *testing.T) {
	written, err := json.Marshal(summarize(measured()))
	require.NoError(t, err)
	assert.JSONEq(t, `{"runs": 5,
		"stallDefault": [
			{"volumes": 16, "veleroHooksMillis": 85000, "veleroEarlyPollMillis": null, "aroundMillis": null, "groupMillis": 10100, "snapshotterMillis": null, "floorMillis": 9000}],
		"stall": [
			{"volumes": 1, "veleroHooksMillis": 5200, "veleroEarlyPollMillis": 1200, "aroundMillis": 200, "groupMillis": 100, "snapshotterMillis": 150, "floorMillis": 50},
			{"volumes": 16, "veleroHooksMillis": 81000, "veleroEarlyPollMillis": 17100, "aroundMillis": 75000, "groupMillis": 925, "snapshotterMillis": null, "floorMillis": 500}],
		"snapshotter": {"volumes": 1, "stallMillis": 150},
		"backup50": {"veleroSeconds": 256, "stillpointSeconds": 10},
		"requestsPerPVC": {"velero": 11.1, "stillpoint": 3},
		"process": {"startMillis": 11, "rssMiB": 34, "binaryMiB": 61},
		"planning": {"claims": null, "workloads": null, "namespaces": null, "customKinds": null, "customObjects": null, "requests": null, "seconds": null, "memoryMiB": null, "requestsAt10Claims": null, "requestsAt500Claims": null},
		"afterExport": {"medianSeconds": 2, "worstSeconds": 11, "left": 1,
			"exports": [
				{"by": "stillpoint", "dataMover": "bench-mover", "class": "bench-retain", "exports": 3, "medianSeconds": 2, "worstSeconds": 11, "left": 0},
				{"by": "stillpoint", "dataMover": "velero", "class": "bench-retain", "exports": 2, "medianSeconds": 2.5, "worstSeconds": 4, "left": 0},
				{"by": "velero", "dataMover": "velero", "class": "bench-retain", "exports": 3, "medianSeconds": 5, "worstSeconds": 6, "left": 1},
				{"by": "velero", "dataMover": "velero", "class": "bench-retain-fails", "exports": 1, "medianSeconds": null, "worstSeconds": null, "left": 1}],
			"backups": [
				{"by": "stillpoint", "dataMover": "bench-mover", "backups": 2, "uploads": {"Completed": 9, "gone": 1}, "left": 1, "leftByClass": {"bench-retain": 1}},
				{"by": "velero", "dataMover": "velero", "backups": 2, "uploads": {"Completed": 10}, "left": 3, "leftByClass": {"bench-retain": 3, "bench-delete": 0}}]},
		"writeLatency": [
			{"snapshotsHeld": 0, "medianMillis": 1, "p99Millis": 2}, {"snapshotsHeld": 5, "medianMillis": 1.5, "p99Millis": 3}]}`, string(written))
}
