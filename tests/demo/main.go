// Command demo is the walk-through on the test bed: an application that writes
// to a file is quiesced, snapshotted and exported by a Velero schedule, its
// snapshot goes, its namespace is deleted, and all of it comes back.
//
//	testbed run -- build/demo
//
// It prints what happens, writes the figures to build/demo.json, and exits with
// 1 when anything is not as promised.
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
	"time"

	"stillpoint.io/stillpoint/tests/stage"
)

const (
	// runLimit is for the walk-through, which takes about a minute and a half.
	runLimit = 20 * time.Minute
	// clearLimit is for clearing away what this or an earlier run set up.
	clearLimit = 5 * time.Minute
)

func main() {
	example := flag.String("example", filepath.Join("examples", "fsfreeze-deployment"), "`directory` of the application and its blueprint")
	result := flag.String("result", filepath.Join("build", "demo.json"), "`file` for the figures")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *example, *result); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1) //nolint:gocritic // the signal handler dies with us
	}
}

func run(ctx context.Context, example, result string) error {
	if _, err := os.Stat(example); err != nil {
		return fmt.Errorf("find the example (run this from the checkout's root, or say --example): %w", err)
	}
	on, err := stage.Open(ctx, stage.NewTimeline(os.Stdout))
	if err != nil {
		return err
	}
	if err := on.Lock(ctx, "demo"); err != nil {
		return err
	}
	// What is there when we fail must not be from an earlier run.
	if err := os.Remove(result); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	d := &demo{Stage: on, example: example}
	d.Say("What an earlier run may have left is cleared away.")
	if err := d.clear(ctx); err != nil {
		return fmt.Errorf("clear away what an earlier run left: %w", err)
	}
	err = d.walk(ctx, result)
	d.Say("Clearing away.")
	if clearErr := d.clear(context.WithoutCancel(ctx)); clearErr != nil {
		err = errors.Join(err, fmt.Errorf("clear away: %w", clearErr))
	}
	if err == nil {
		d.Say("Done: everything was as promised.")
	}
	return err
}
