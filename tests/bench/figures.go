package main

import (
	"math"
	"slices"
	"time"
)

// figures are what build/bench.json holds: medians of the runs, with one digit
// after the point. What was not measured is null.
type figures struct {
	Runs           int      `json:"runs"`
	Stall          []stall  `json:"stall"`
	Backup50       backup50 `json:"backup50"`
	RequestsPerPVC perPVC   `json:"requestsPerPVC"`
	Process        needs    `json:"process"`
	Planning       planned  `json:"planning"`
}

// stall is for how long an application was kept waiting for a write. Floor is
// the time in which the storage cuts all its snapshots, without a backup.
type stall struct {
	Volumes     int      `json:"volumes"`
	VeleroHooks *float64 `json:"veleroHooksMillis"`
	VeleroEarly *float64 `json:"veleroEarlyPollMillis"`
	Bracket     *float64 `json:"bracketMillis"`
	Group       *float64 `json:"groupMillis"`
	Floor       *float64 `json:"floorMillis"`
}

// of is the figure of one way.
func (s *stall) of(w way) **float64 {
	return [...]**float64{hooks: &s.VeleroHooks, early: &s.VeleroEarly, bracket: &s.Bracket, group: &s.Group, floor: &s.Floor}[w]
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
	f := figures{Runs: found.runs, Stall: []stall{}}
	for _, s := range found.stalls {
		row := stall{Volumes: s.volumes}
		for _, w := range ways {
			*row.of(w) = figure(s.stalls[w], millis)
		}
		f.Stall = append(f.Stall, row)
	}
	f.Backup50 = backup50{figure(found.claims.velero, seconds), figure(found.claims.stillpoint, seconds)}
	f.RequestsPerPVC = perPVC{figure(found.claims.velero, requestsPerClaim), figure(found.claims.stillpoint, requestsPerClaim)}
	f.Process.Start = figure(found.process.starts, millis)
	f.Process.RSS = figure(found.process.rss, itself)
	if found.process.binary > 0 {
		f.Process.Binary = figure([]float64{found.process.binary}, itself)
	}
	f.Planning = found.planning
	return f
}

func millis(d time.Duration) float64   { return float64(d) / float64(time.Millisecond) }
func seconds(t taken) float64          { return t.time.Seconds() }
func requestsPerClaim(t taken) float64 { return float64(len(t.requests)) / claims }
func itself(f float64) float64         { return f }
func rounded(f float64) float64        { return math.Round(f*10) / 10 }

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
