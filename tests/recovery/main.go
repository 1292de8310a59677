// Command recovery loses a whole cluster and restores what it ran in another
// one, which has another CSI driver, another StorageClass and other
// VolumeSnapshotClasses. Of the first cluster there is left what lies in the
// object store: Velero's backups, and what the driver has exported. The maps
// are applied beforehand; from then on it is `velero restore create
// --from-schedule` alone.
//
//	build/recovery --plugin build/stillpoint
//
// Both clusters are of a test bed beside the user's own, so that one is left
// alone. It prints what happens and when, and exits with 1 when anything is not
// as promised.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"stillpoint.io/stillpoint/tests/cluster/bed"
	"stillpoint.io/stillpoint/tests/stage"
)

const (
	// runLimit is for all of it, which takes about three minutes.
	runLimit = 20 * time.Minute
	// goodbye is how long a command that is interrupted may take to end.
	goodbye = time.Minute
	// name is that of the bed beside the user's own.
	name = "recovery"
)

// What the two clusters call their storage.
const (
	lostStorage = bed.StandardStorage
	newStorage  = bed.Storage("vault")
)

// options are the command line.
type options struct {
	testbed, plugin string
	keep            bool
	// part and notes are for the parts that run inside of a cluster's network.
	part, notes string
}

// parts are what runs inside of a cluster's network.
var parts = map[string]func(context.Context, *stage.Stage, *notes) error{
	"before": before,
	"after":  after,
}

func main() {
	var o options
	flag.StringVar(&o.testbed, "testbed", filepath.Join("build", "testbed"), "`program` that runs test beds")
	flag.StringVar(&o.plugin, "plugin", filepath.Join("build", "stillpoint"), "our plugin, a `binary`")
	flag.BoolVar(&o.keep, "keep", false, "leave the second cluster up")
	flag.StringVar(&o.part, "part", "", "the `part` to play inside of a cluster's network")
	flag.StringVar(&o.notes, "notes", "", "`file` that takes the notes from one part to the next")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	play := run
	if o.part != "" {
		play = inside
	}
	if err := play(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "recovery:", err)
		os.Exit(1) //nolint:gocritic // the signal handler dies with us
	}
}

// inside plays one part in the network of the cluster that is up.
func inside(ctx context.Context, o options) error {
	part, ok := parts[o.part]
	if !ok {
		return fmt.Errorf("there is no part %q", o.part)
	}
	n, err := readNotes(o.notes)
	if err != nil {
		return err
	}
	s, err := stage.Open(ctx, stage.ContinueTimeline(os.Stdout, n.Began))
	if err != nil {
		return err
	}
	if err := part(ctx, s, n); err != nil {
		return err
	}
	return n.write(o.notes)
}

// recovery is a run of all of it, from outside of the clusters' networks.
type recovery struct {
	*stage.Timeline
	options
	bed  *bed.Bed
	self string
	// took tells how long the steps took.
	took []string
}

func run(ctx context.Context, o options) error {
	if err := bed.CheckMachine(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find our own program: %w", err)
	}
	began := time.Now()
	timeline := stage.ContinueTimeline(os.Stdout, began)
	own, err := bed.Open(timeline.Say)
	if err != nil {
		return err
	}
	beside, err := own.Beside(name)
	if err != nil {
		return err
	}
	if err := (&stage.Stage{Timeline: timeline}).Lock(ctx, name); err != nil {
		return err
	}
	o.notes = filepath.Join(beside.Dir, "notes.json")
	if err := (&notes{Began: began}).write(o.notes); err != nil {
		return err
	}
	r := &recovery{Timeline: timeline, options: o, bed: beside, self: self}
	limited, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	err = r.play(limited)
	if o.keep {
		r.Say("The second cluster stays up: %s=%s %s status", bed.DirVariable, r.bed.Dir, o.testbed)
		return err
	}
	r.Say("Clearing away.")
	if clearErr := r.bed.Down(context.WithoutCancel(ctx), bed.WipeAll); clearErr != nil {
		err = errors.Join(err, fmt.Errorf("clear away: %w", clearErr))
	}
	if err == nil {
		r.Say("Done: everything was as promised. It took %.0f s: %s.", time.Since(began).Seconds(), strings.Join(r.took, ", "))
	}
	return err
}

func (r *recovery) play(ctx context.Context) error {
	r.Say("A cluster of its own, in %s; what an earlier run may have left there is cleared away.", r.bed.Dir)
	if err := r.bed.Down(ctx, bed.WipeAll); err != nil {
		return fmt.Errorf("clear away what an earlier run left: %w", err)
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"first cluster up", func(ctx context.Context) error { return r.up(ctx, lostStorage) }},
		{"applications and backups", func(ctx context.Context) error { return r.part(ctx, "before") }},
		{"disaster", r.disaster},
		{"second cluster up", func(ctx context.Context) error { return r.up(ctx, newStorage) }},
		{"restores", func(ctx context.Context) error { return r.part(ctx, "after") }},
	} {
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return err
		}
		r.took = append(r.took, fmt.Sprintf("%s %.0f s", step.name, time.Since(began).Seconds()))
	}
	return nil
}

// up brings a new cluster up.
func (r *recovery) up(ctx context.Context, storage bed.Storage) error {
	if err := r.run(ctx, r.testbed, "up", "--storage", string(storage), "--plugin", r.plugin); err != nil {
		return err
	}
	r.Say("A new cluster is up. Its driver is %s, its StorageClass %s.", storage.Driver(), storage)
	return nil
}

func (r *recovery) part(ctx context.Context, part string) error {
	return r.run(ctx, r.testbed, "run", "--", r.self, "--part", part, "--notes", r.notes)
}

// disaster takes the cluster down for good, and sees to it that nothing of it is
// left but the object store.
func (r *recovery) disaster(ctx context.Context) error {
	r.Say("The disaster: the cluster goes, and all that its storage had.")
	if err := r.bed.Down(ctx, bed.WipeCluster); err != nil {
		return err
	}
	data, err := os.ReadDir(filepath.Join(r.bed.Dir, "data"))
	if err != nil {
		return fmt.Errorf("look at what is left of the cluster: %w", err)
	}
	var left []string
	for _, entry := range data {
		left = append(left, entry.Name())
	}
	if !slices.Equal(left, []string{filepath.Base(r.bed.ObjectStore())}) {
		return fmt.Errorf("of the cluster's data there is left %s, not the object store alone", strings.Join(left, ", "))
	}
	buckets, err := os.ReadDir(r.bed.ObjectStore())
	if err != nil {
		return fmt.Errorf("look at what is left of the cluster: %w", err)
	}
	left = nil
	for _, bucket := range buckets {
		if strings.HasPrefix(bucket.Name(), ".") {
			continue // the S3 server's own
		}
		objects, bytes, err := size(filepath.Join(r.bed.ObjectStore(), bucket.Name()))
		if err != nil {
			return err
		}
		left = append(left, fmt.Sprintf("%s (%d objects, %.1f MB)", bucket.Name(), objects, float64(bytes)/1e6))
	}
	r.Say("There is left what lies in the object store, in the buckets %s.", strings.Join(left, " and "))
	return nil
}

func size(dir string) (objects int, bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			objects++
			bytes += info.Size()
		}
		return err
	})
	return objects, bytes, err
}

// run runs a program on the bed beside, with our output.
func (r *recovery) run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), bed.DirVariable+"="+r.bed.Dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = goodbye
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", filepath.Base(program), strings.Join(args, " "), err)
	}
	return nil
}
