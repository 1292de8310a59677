// Command bench measures Stillpoint against Velero alone, on one cluster in one
// run: for how long a backup keeps an application from writing, how long a
// backup of many volumes takes, what it asks of the API server, what the plugin
// itself needs, how soon after an export the storage's snapshot is gone, what
// stays of many backups, and what a snapshot that stays costs.
//
//	testbed run -- build/bench --runs 5
//	testbed run -- build/bench --parts stall --ways hooks,around --volumes 1,4
//
// It prints what it has found and writes the medians to build/bench.json, after
// each part, so that one that fails leaves what the others have found. A target
// that is missed is a result; a measurement that fails is an error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

func main() {
	o := options{}
	flag.IntVar(&o.runs, "runs", 5, fmt.Sprintf("`number` of backups for each way and number of volumes; %d at most for applications with %d volumes and more", largeRuns, large))
	flag.StringVar(&o.ways, "ways", strings.Join(names[:], ","), "`list` of the ways whose stall is measured")
	flag.StringVar(&o.volumes, "volumes", "1,4,16", "`list` of the numbers of volumes of the applications")
	flag.StringVar(&o.limits, "limits", strings.Join(limitNames, ","), "`list` of the request limits of the snapshot controller and the CSI sidecar with which the stall is measured")
	flag.StringVar(&o.parts, "parts", strings.Join(parts, ","), "`list` of what is measured")
	flag.StringVar(&o.movers, "movers", strings.Join(dataMovers, ","), "`list` of the data movers whose exports are measured")
	flag.StringVar(&o.plugin, "plugin", filepath.Join("build", "stillpoint"), "`binary` of the plugin that is installed")
	flag.StringVar(&o.result, "result", filepath.Join("build", "bench.json"), "`file` for the medians")
	flag.IntVar(&o.backups, "backups", 20, "`number` of backups with Velero's data mover after which the part left counts snapshots; 100 take 40 minutes and more")
	flag.IntVar(&o.veleroBackups, "velero-backups", 10, "the same `number` for Velero without the plugin")
	flag.IntVar(&o.played, "played-backups", playedBackups, "the same `number` for a data mover that the bench plays")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:gocritic // the signal handler dies with us
	}
}

// options are the command line's.
type options struct {
	runs                                         int
	backups, veleroBackups, played               int
	ways, volumes, parts, movers, plugin, result string
	limits                                       string
}

// The parts of the bench.
const (
	partStall    = "stall"
	partClaims   = "backup50"
	partProcess  = "process"
	partPlanning = "planning"
	partExport   = "export"
	partLeft     = "left"
	partLatency  = "latency"
)

var parts = []string{partStall, partClaims, partProcess, partPlanning, partExport, partLeft, partLatency}

// limitNames are the request limits with which the stall is measured. Most clusters
// run with the default.
var limitNames = []string{string(cluster.DefaultLimits), string(cluster.RaisedLimits)}

// dataMovers are those whose exports are measured.
var dataMovers = []string{played, veleroMover}

func run(ctx context.Context, o options) error {
	if o.runs < 1 {
		return fmt.Errorf("--runs %d: it must be at least 1", o.runs)
	}
	if min(o.backups, o.veleroBackups, o.played) < 0 {
		return errors.New("--backups, --velero-backups and --played-backups must not be negative")
	}
	chosen, err := parseWays(o.ways)
	if err != nil {
		return fmt.Errorf("--ways: %w", err)
	}
	volumes, err := parseVolumes(o.volumes)
	if err != nil {
		return fmt.Errorf("--volumes: %w", err)
	}
	asked := strings.Split(o.parts, ",")
	for _, part := range asked {
		if !slices.Contains(parts, part) {
			return fmt.Errorf("--parts: no part %q; there are %s", part, strings.Join(parts, ", "))
		}
	}
	for _, name := range strings.Split(o.movers, ",") {
		if !slices.Contains(dataMovers, name) {
			return fmt.Errorf("--movers: no mover %q; there are %s", name, strings.Join(dataMovers, ", "))
		}
	}
	limits := strings.Split(o.limits, ",")
	for _, name := range limits {
		if !slices.Contains(limitNames, name) {
			return fmt.Errorf("--limits: no limits %q; there are %s", name, strings.Join(limitNames, ", "))
		}
	}
	on, err := stage.Open(ctx, stage.NewTimeline(os.Stderr))
	if err != nil {
		return err
	}
	if err := on.Lock(ctx, "bench"); err != nil {
		return err
	}
	b := &bench{
		Stage: on, runs: o.runs, ways: chosen, parts: asked, plugin: o.plugin, result: o.result,
		limits: limits, backups: o.backups, veleroBackups: o.veleroBackups, playedBackups: o.played, dataMovers: strings.Split(o.movers, ","),
	}
	for _, n := range volumes {
		b.apps = append(b.apps, &app{Stage: on, volumes: n})
	}
	b.Say("clearing away what an earlier run may have left")
	if err := b.clear(ctx); err != nil {
		return fmt.Errorf("clear away what an earlier run left: %w", err)
	}
	found, err := b.run(ctx)
	after := context.WithoutCancel(ctx)
	if err != nil {
		b.thaw(after)
	}
	fmt.Print(report(found))
	b.Say("clearing away")
	return errors.Join(err, b.clear(after))
}
