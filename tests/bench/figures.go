package main

import (
	"math"
	"slices"
	"time"

	"k8s.io/utils/ptr"
)

// figures are what build/bench.json holds: medians of the runs, with one digit
// after the point. What was not measured is null.
type figures struct {
	Runs int `json:"runs"`
	// StallDefault is with the default request limits of the snapshot controller and
	// the CSI sidecar, Stall and all else with raised ones.
	StallDefault   []stall        `json:"stallDefault"`
	Stall          []stall        `json:"stall"`
	Snapshotter    snapshotter    `json:"snapshotter"`
	Backup50       backup50       `json:"backup50"`
	RequestsPerPVC perPVC         `json:"requestsPerPVC"`
	Process        needs          `json:"process"`
	Planning       planned        `json:"planning"`
	AfterExport    afterExport    `json:"afterExport"`
	WriteLatency   []writeLatency `json:"writeLatency"`
}

// afterExport is how long Stillpoint takes, with a class of policy Retain and a
// mover that deletes nothing, from when an upload is Completed until the storage's
// snapshot is gone; and how many are left in the storage after all the backups by
// Stillpoint of the part left.
type afterExport struct {
	Median  *float64      `json:"medianSeconds"`
	Worst   *float64      `json:"worstSeconds"`
	Left    *int          `json:"left"`
	Exports []exportsOf   `json:"exports"`
	Backups []leftBackups `json:"backups"`
}

// exportsOf are the exports with one class by "stillpoint", or by "velero" without
// the plugin. DataMover is Velero's, "velero", or the one that the bench plays. Those that stayed in the storage have no time.
type exportsOf struct {
	By        string   `json:"by"`
	DataMover string   `json:"dataMover"`
	Class     string   `json:"class"`
	Exports   int      `json:"exports"`
	Median    *float64 `json:"medianSeconds"`
	Worst     *float64 `json:"worstSeconds"`
	Left      int      `json:"left"`
}

// leftBackups are backups of 5 volumes each, and what they left.
type leftBackups struct {
	By        string         `json:"by"`
	DataMover string         `json:"dataMover"`
	Backups   int            `json:"backups"`
	Uploads   map[string]int `json:"uploads"`
	Left      int            `json:"left"`
	ByClass   map[string]int `json:"leftByClass"`
}

// writeLatency is of small writes to a volume of which the storage holds so many
// snapshots: medians of the rounds.
type writeLatency struct {
	Held   int     `json:"snapshotsHeld"`
	Median float64 `json:"medianMillis"`
	P99    float64 `json:"p99Millis"`
}

// stall is for how long an application was kept waiting for a write. Floor is
// the time in which the storage cuts all its snapshots, without a backup.
type stall struct {
	Volumes     int      `json:"volumes"`
	VeleroHooks *float64 `json:"veleroHooksMillis"`
	VeleroEarly *float64 `json:"veleroEarlyPollMillis"`
	Around      *float64 `json:"aroundMillis"`
	Group       *float64 `json:"groupMillis"`
	Snapshotter *float64 `json:"snapshotterMillis"`
	Floor       *float64 `json:"floorMillis"`
}

// of is the figure of one way.
func (s *stall) of(w way) **float64 {
	return [...]**float64{hooks: &s.VeleroHooks, early: &s.VeleroEarly, around: &s.Around, group: &s.Group, location: &s.Snapshotter, floor: &s.Floor}[w]
}

// snapshotter is the stall through a VolumeSnapshotLocation, of the application with
// that many volumes: the largest that was measured.
type snapshotter struct {
	Volumes *int     `json:"volumes"`
	Stall   *float64 `json:"stallMillis"`
}

// backup50 is how long a backup of 50 claims takes.
type backup50 struct {
	Velero     *float64 `json:"veleroSeconds"`
	Stillpoint *float64 `json:"stillpointSeconds"`
}

// perPVC is what Velero and its plugins asked of the API server during the
// backup of 50 claims, for each claim.
type perPVC struct {
	Velero     *float64 `json:"velero"`
	Stillpoint *float64 `json:"stillpoint"`
}

// needs are the plugin's own: until it serves; at the most, during the backup
// of 50 claims; on disk.
type needs struct {
	Start  *float64 `json:"startMillis"`
	RSS    *float64 `json:"rssMiB"`
	Binary *float64 `json:"binaryMiB"`
}

func summarize(found results) figures {
	f := figures{Runs: found.runs, StallDefault: summarizeStalls(found.stallsDefault), Stall: summarizeStalls(found.stalls), WriteLatency: []writeLatency{}}
	for _, row := range f.Stall {
		if row.Snapshotter != nil && (f.Snapshotter.Volumes == nil || *f.Snapshotter.Volumes < row.Volumes) {
			f.Snapshotter = snapshotter{&row.Volumes, row.Snapshotter}
		}
	}
	f.Backup50 = backup50{figure(found.claims.velero, seconds), figure(found.claims.stillpoint, seconds)}
	f.RequestsPerPVC = perPVC{figure(found.claims.velero, requestsPerClaim), figure(found.claims.stillpoint, requestsPerClaim)}
	f.Process.Start = figure(found.process.starts, millis)
	f.Process.RSS = figure(found.process.rss, itself)
	if found.process.binary > 0 {
		f.Process.Binary = figure([]float64{found.process.binary}, itself)
	}
	f.Planning = found.planning
	f.AfterExport = summarizeExports(found)
	for i, l := range found.latencies {
		if len(l.median) > 0 {
			f.WriteLatency = append(f.WriteLatency, writeLatency{
				held[i], hundredths(median(values(l.median, millis))), hundredths(median(values(l.p99, millis))),
			})
		}
	}
	return f
}

func summarizeStalls(all []series) []stall {
	rows := []stall{}
	for _, s := range all {
		row := stall{Volumes: s.volumes}
		for _, w := range ways {
			*row.of(w) = figure(s.stalls[w], millis)
		}
		rows = append(rows, row)
	}
	return rows
}

func summarizeExports(found results) afterExport {
	a := afterExport{Exports: []exportsOf{}, Backups: []leftBackups{}}
	for _, e := range found.exports {
		row := exportsOf{By: e.by.String(), DataMover: dataMoverOf(e.played), Class: e.class.name(), Exports: len(e.gone) + e.left, Left: e.left}
		if len(e.gone) > 0 {
			row.Median = figure(e.gone, time.Duration.Seconds)
			row.Worst = ptr.To(rounded(slices.Max(e.gone).Seconds()))
		}
		if e.played && e.class == snapshotClasses[0] {
			a.Median, a.Worst = row.Median, row.Worst
		}
		a.Exports = append(a.Exports, row)
	}
	for _, l := range found.leftovers {
		row := leftBackups{By: l.by.String(), DataMover: dataMoverOf(l.played), Backups: l.backups, Uploads: l.ended, Left: l.total(), ByClass: map[string]int{}}
		for class, n := range l.left {
			row.ByClass[class.name()] = n
		}
		if l.by == byStillpoint {
			if a.Left == nil {
				a.Left = new(int)
			}
			*a.Left += row.Left
		}
		a.Backups = append(a.Backups, row)
	}
	return a
}

func dataMoverOf(plays bool) string {
	if plays {
		return played
	}
	return veleroMover
}

func millis(d time.Duration) float64   { return float64(d) / float64(time.Millisecond) }
func seconds(t taken) float64          { return t.time.Seconds() }
func requestsPerClaim(t taken) float64 { return float64(len(t.requests)) / claims }
func itself(f float64) float64         { return f }
func rounded(f float64) float64        { return math.Round(f*10) / 10 }
func hundredths(f float64) float64     { return math.Round(f*100) / 100 }

// figure is the median, nil when nothing was measured.
func figure[T any](runs []T, value func(T) float64) *float64 {
	if len(runs) == 0 {
		return nil
	}
	f := rounded(median(values(runs, value)))
	return &f
}

func values[T any](runs []T, value func(T) float64) []float64 {
	all := make([]float64, len(runs))
	for i, run := range runs {
		all[i] = value(run)
	}
	return all
}

// median of at least one.
func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	half := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[half-1] + sorted[half]) / 2
	}
	return sorted[half]
}
