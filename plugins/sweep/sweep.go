// Package sweep is the command `stillpoint sweep`: its flags, and how it prints
// what package internal/sweep has found and deleted.
package sweep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/snapshotter/externalstorage"
	"stillpoint.io/stillpoint/internal/sweep"
)

// Exit codes.
const (
	fine     = 0
	stays    = 1 // something could not be deleted
	notKnown = 2 // wrong usage, or the cluster cannot be read
)

const usage = `stillpoint sweep finds the snapshots that are left of backups and restores that
are over. It deletes nothing without --delete.

  stillpoint sweep                             what there is, and why
  stillpoint sweep --delete                    delete what is certainly ours
  stillpoint sweep --delete shop/velero-data-xyz content/snapcontent-abc
                                               these, also where they are only listed
  kubectl -n velero exec deploy/velero -c velero -- /plugins/stillpoint sweep

It ends with 0, with 1 when something could not be deleted, with 2 for wrong
usage and when the cluster cannot be read.

Flags:
`

// flags are the command line's.
type flags struct {
	sweep.Options
	connection cluster.Connection
	remove     bool
	timeout    time.Duration
	output     string
}

// Run runs the command and returns its exit code.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	f, err := parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		fmt.Fprint(stdout, help())
		return fine
	}
	if err != nil {
		fmt.Fprintf(stderr, "stillpoint sweep: %v; see stillpoint sweep --help\n", err)
		return notKnown
	}
	left, err := f.run(ctx, stdout, stderr)
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "stillpoint sweep: %v\n", err)
		return notKnown
	case left:
		return stays
	default:
		return fine
	}
}

func (f *flags) set() *pflag.FlagSet {
	set := pflag.NewFlagSet("stillpoint sweep", pflag.ContinueOnError)
	set.SortFlags = false
	set.Usage = func() {}
	set.BoolVar(&f.remove, "delete", false, "delete what the table says; without it nothing is changed")
	set.DurationVar(&f.timeout, "timeout", 2*time.Minute, "how long to wait until what is deleted is gone from the storage, and to try again")
	set.StringSliceVarP(&f.Namespaces, "namespace", "n", nil, "`namespace` of VolumeSnapshots to look at; may be given several times (default: all)")
	set.BoolVar(&f.All, "all", false, "show what is not left over, too, and why")
	set.StringVarP(&f.output, "output", "o", "table", "`format`: table or json")
	f.connection.AddFlags(set)
	return set
}

func help() string { return usage + (&flags{}).set().FlagUsagesWrapped(80) }

func parse(args []string) (*flags, error) {
	f := &flags{}
	set := f.set()
	if err := set.Parse(args); err != nil {
		return nil, err
	}
	f.Objects = set.Args()
	for _, object := range f.Objects {
		if namespace, name, ok := strings.Cut(object, "/"); !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
			return nil, fmt.Errorf("argument %q: must be namespace/name of a VolumeSnapshot, or content/name", object)
		}
	}
	if f.output != "table" && f.output != "json" {
		return nil, fmt.Errorf("--output %q: must be table or json", f.output)
	}
	if f.output == "json" && f.remove {
		return nil, errors.New("--output json and --delete: what is deleted is told line by line")
	}
	if set.Changed("namespace") && (len(f.Namespaces) == 0 || slices.Contains(f.Namespaces, "")) {
		return nil, errors.New("--namespace is empty")
	}
	if len(f.Namespaces) > 0 && len(f.Objects) > 0 {
		return nil, errors.New("--namespace and names: what is named has its namespace in the name")
	}
	if f.timeout <= 0 {
		return nil, fmt.Errorf("--timeout %s: must be longer than 0", f.timeout)
	}
	if set.Changed("timeout") && !f.remove {
		return nil, errors.New("--timeout needs --delete")
	}
	return f, nil
}

// run reports whether something is left that was to be deleted.
func (f *flags) run(ctx context.Context, stdout, stderr io.Writer) (left bool, err error) {
	clients, err := f.connection.Open()
	if err != nil {
		return false, err
	}
	settings := func(ctx context.Context) (*config.Config, error) {
		return config.Load(ctx, clients.Kube, clients.VeleroNamespace)
	}
	sweeper := sweep.New(clients, settings, clock.RealClock{})
	report, err := sweeper.Find(ctx, f.Options)
	if err != nil {
		return false, err
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	external := externalstorage.New(clients, nil, log)
	others, err := f.external(ctx, external, stderr)
	if err != nil {
		return false, err
	}
	for _, l := range others {
		report.External = append(report.External, sweep.External{
			Kind: l.Object().GetKind(), Namespace: l.Object().GetNamespace(), Name: l.Object().GetName(),
			Backup: l.Backup(), Over: l.Over, Reason: l.Reason,
		})
	}
	if f.output == "json" {
		return false, report.JSON(stdout)
	}
	if err := report.Table(stdout); err != nil || !f.remove {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	sweeper.Delete(ctx, report, func(result sweep.Result) {
		to := stdout
		if result.Err != nil {
			left, to = true, stderr
		}
		fmt.Fprintln(to, result.Line())
	})
	for i, l := range others {
		if !l.Over {
			continue
		}
		begun := time.Now()
		if err := external.Discard(ctx, l); err != nil {
			left = true
			fmt.Fprintf(stderr, "NOT DELETED: %s: %v\n", report.External[i].Object(), err)
			continue
		}
		fmt.Fprintf(stdout, "Deleted %s with its data, gone after %s\n", report.External[i].Object(), time.Since(begun).Round(time.Millisecond*100))
	}
	return left, nil
}

// external finds what is left of the snapshot API before CSI's. Whoever may not
// list it is told so, and of all else.
func (f *flags) external(ctx context.Context, snapshotter *externalstorage.Snapshotter, stderr io.Writer) ([]externalstorage.Leftover, error) {
	if len(f.Namespaces)+len(f.Objects) > 0 {
		return nil, nil
	}
	left, err := snapshotter.Leftovers(ctx)
	if apierrors.IsForbidden(err) {
		fmt.Fprintf(stderr, "What is left of %s is not known: %v\n", externalstorage.Group, err)
		return nil, nil
	}
	return left, err
}
