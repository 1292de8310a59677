package thaw

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/journal"
	"stillpoint.io/stillpoint/internal/recovery"
	"stillpoint.io/stillpoint/plugins/command"
)

const long = `stillpoint thaw lists what is quiesced now, and releases it when it is told what.

  stillpoint thaw                  what is quiesced, since when and by which backup
  stillpoint thaw --abandoned      release what no process holds any more, which
                                   the plugin does by itself when Velero starts it
  stillpoint thaw stillpoint-intent-abc
                                   release this, whoever holds it
  stillpoint thaw -n shop          release all of a namespace
  stillpoint thaw --all            release everything
  kubectl -n velero exec deploy/velero -c velero -- /plugins/stillpoint thaw

What a running backup holds is released as well when it is named, or by -n and
--all: the snapshots that the backup takes are not consistent then, and it says so.

It ends with 0, with 1 when something could not be released, with 2 for wrong
usage and when the cluster cannot be read.`

// flags are the command-line flags.
type flags struct {
	connection     cluster.Connection
	format         command.Format
	all, abandoned bool
	forget         bool
	namespaces     []string
	names          []string
	timeout        time.Duration
}

// New returns the command.
func New() *cobra.Command { return (&flags{}).command() }

func (f *flags) command() *cobra.Command {
	c := &cobra.Command{
		Use: "thaw", Short: "List what is quiesced now, and release it", Long: long,
		Args: f.validate,
		RunE: func(c *cobra.Command, _ []string) error {
			return f.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	set := c.Flags()
	set.BoolVar(&f.abandoned, "abandoned", false, "release what no process holds any more")
	set.BoolVar(&f.all, "all", false, "release everything")
	set.StringSliceVarP(&f.namespaces, "namespace", "n", nil, "release what is quiesced in this `namespace`; may be given several times")
	set.BoolVar(&f.forget, "forget", false, "delete the records that are named: what they stand for was undone by hand, or is not to be")
	set.DurationVar(&f.timeout, "timeout", 2*time.Minute, "how long to try again what fails")
	f.format.AddFlag(set, "`format` of the list: table or json")
	f.connection.AddFlags(set)
	return c
}

// validate checks the command line and takes the names from it.
func (f *flags) validate(c *cobra.Command, args []string) error {
	set := c.Flags()
	f.names = args
	ways := 0
	for _, way := range []bool{f.all, f.abandoned, len(f.namespaces) > 0, len(f.names) > 0} {
		if way {
			ways++
		}
	}
	if err := f.format.Validate(); err != nil {
		return err
	}
	switch {
	case slices.Contains(f.names, ""), set.Changed("namespace") && (len(f.namespaces) == 0 || slices.Contains(f.namespaces, "")):
		return errors.New("a name or --namespace is empty")
	case ways > 1:
		return errors.New("--all, --abandoned, --namespace and names: give one of them")
	case f.forget && len(f.names) == 0:
		return errors.New("--forget needs names of the list")
	case f.format.JSON() && ways > 0:
		return errors.New("--output json is for the list: releases are reported line by line")
	case f.timeout <= 0:
		return fmt.Errorf("thaw: --timeout %s: must be longer than 0", f.timeout)
	case set.Changed("timeout") && ways == 0:
		return errors.New("--timeout needs something to release")
	}
	return nil
}

// run lists or releases. It returns command.Problems if a record could not be read or
// released.
func (f *flags) run(ctx context.Context, stdout, stderr io.Writer) error {
	clients, err := f.connection.Open()
	if err != nil {
		return err
	}
	undoer := recovery.NewUndoer(clients, func(ctx context.Context) (*config.Config, error) {
		return config.Load(ctx, clients.Kube, clients.VeleroNamespace)
	}, clock.RealClock{})
	standings, err := undoer.Journal.Statuses(ctx)
	if err != nil && len(standings) == 0 {
		return err
	}
	found := &list{entries: standings, now: time.Now()}
	var result error
	if err != nil { // the other entries are listed and released
		fmt.Fprintf(stderr, "stillpoint thaw: %v\n", err)
		result = command.Problems
	}
	if !f.all && !f.abandoned && len(f.namespaces) == 0 && len(f.names) == 0 {
		show := found.table
		if f.format.JSON() {
			show = found.json
		}
		return cmp.Or(show(stdout), result)
	}
	chosen, err := found.choose(f)
	if err != nil {
		return err
	}
	if len(chosen) == 0 {
		fmt.Fprintln(stdout, "Nothing to release.")
		return result
	}
	var wait sync.WaitGroup
	var mu sync.Mutex
	for _, e := range chosen {
		wait.Go(func() {
			said, failed := f.release(ctx, undoer, e)
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprint(stdout, said)
			if failed != nil {
				result = command.Problems
				fmt.Fprintf(stderr, "NOT RELEASED: %s: %s\n", e.ID, oneLine(failed.Error()))
			}
		})
	}
	wait.Wait()
	return result
}

func (f *flags) release(ctx context.Context, undoer *recovery.Undoer, e journal.Status) (said string, err error) {
	if f.forget {
		if err := undoer.Journal.Close(ctx, e.ID); err != nil {
			return "", err
		}
		return fmt.Sprintf("Forgot %s: %s, quiesced by backup %s\n", e.ID, e.Name, e.Backup), nil
	}
	holder := e.Holder // Undo makes this process the holder
	undone, err := undoer.Undo(ctx, e.Entry, f.timeout)
	if errors.Is(err, journal.ErrTaken) {
		return fmt.Sprintf("%s: another process has released it, or is about to\n", e.ID), nil
	}
	if err != nil {
		return "", err
	}
	for _, warning := range undone.Warnings {
		said += fmt.Sprintf("%s: %s\n", e.ID, oneLine(warning))
	}
	if undone.Pending != nil {
		return said, undone.Pending
	}
	if undone.NothingLeft {
		said += fmt.Sprintf("%s, which backup %s had quiesced since %s, is gone\n", e.Name, e.Backup, clockTime(e.Since))
	} else {
		said += fmt.Sprintf("Released %s, which backup %s had quiesced since %s\n", e.Name, e.Backup, clockTime(e.Since))
	}
	if e.HolderGone == "" {
		said += fmt.Sprintf("%s was holding it: the snapshots that backup %s takes of it are not consistent\n", holder, e.Backup)
	}
	return said, nil
}
