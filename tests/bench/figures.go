package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// series are the stalls of one application, for each way in the order of runs.
type series struct {
	volumes int
	stalls  [2][]time.Duration // by way
}

// figures are what build/bench.json holds.
type figures struct {
	Runs  int     `json:"runs"`
	Stall []stall `json:"stall"`
}

// stall is for how long an application was kept waiting for a write, medians of
// the runs, milliseconds.
type stall struct {
	Volumes     int     `json:"volumes"`
	VeleroHooks float64 `json:"veleroHooksMillis"`
	Stillpoint  float64 `json:"stillpointMillis"`
	Ratio       float64 `json:"ratio"` // VeleroHooks by Stillpoint
}

func summarize(runs int, all []series) figures {
	f := figures{Runs: runs}
	for _, s := range all {
		hooks, ours := millis(median(s.stalls[veleroHooks])), millis(median(s.stalls[stillpoint]))
		f.Stall = append(f.Stall, stall{
			Volumes: s.volumes, VeleroHooks: hooks, Stillpoint: ours, Ratio: math.Round(10*hooks/ours) / 10,
		})
	}
	return f
}

// table is for people; the ratio comes first.
func table(runs int, all []series) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%7s  %7s  %-28s  %-28s\n", "ratio", "volumes", veleroHooks.String(), stillpoint.String())
	for i, s := range summarize(runs, all).Stall {
		fmt.Fprintf(&b, "%6.1fx  %7d  %-28s  %-28s\n", s.Ratio, s.Volumes, spread(all[i].stalls[veleroHooks]), spread(all[i].stalls[stillpoint]))
	}
	fmt.Fprintf(&b, "The longest that a write had to wait: median of %d runs (shortest to longest), ms.\n", runs)
	return b.String()
}

func spread(d []time.Duration) string {
	return fmt.Sprintf("%.0f (%.0f to %.0f)", millis(median(d)), millis(slices.Min(d)), millis(slices.Max(d)))
}

// median of at least one duration.
func median(d []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	half := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[half-1] + sorted[half]) / 2
	}
	return sorted[half]
}

// millis has one digit after the point.
func millis(d time.Duration) float64 { return math.Round(float64(d)/float64(time.Millisecond)*10) / 10 }
