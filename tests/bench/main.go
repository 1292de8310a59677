// Command bench measures for how long a backup keeps an application from
// writing: with Velero's own hooks and with Stillpoint, on 1 and on 4 volumes.
//
//	testbed run -- build/bench --runs 5
//
// It prints a table and writes the medians to build/bench.json.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"stillpoint.io/stillpoint/tests/stage"
)

// volumes are how many the measured applications have.
var volumes = []int{1, 4}

func main() {
	runs := flag.Int("runs", 5, "`number` of backups for each way and number of volumes")
	result := flag.String("result", filepath.Join("build", "bench.json"), "`file` for the medians")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *runs, *result); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:gocritic // the signal handler dies with us
	}
}

func run(ctx context.Context, runs int, result string) error {
	if runs < 1 {
		return fmt.Errorf("--runs %d: it must be at least 1", runs)
	}
	on, err := stage.Open(ctx, stage.NewTimeline(os.Stderr))
	if err != nil {
		return err
	}
	if err := on.Lock(ctx, "bench"); err != nil {
		return err
	}
	b := &bench{Stage: on, runs: runs}
	for _, n := range volumes {
		b.apps = append(b.apps, &app{Stage: on, volumes: n})
	}
	b.Say("clearing away what an earlier run may have left")
	if err := b.clear(ctx); err != nil {
		return fmt.Errorf("clear away what an earlier run left: %w", err)
	}
	all, err := b.run(ctx)
	after := context.WithoutCancel(ctx)
	if err != nil {
		b.thaw(after)
	} else {
		fmt.Print(table(runs, all))
		err = stage.WriteResult(result, summarize(runs, all))
	}
	b.Say("clearing away")
	return errors.Join(err, b.clear(after))
}
