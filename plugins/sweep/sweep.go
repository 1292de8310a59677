// Package sweep is the command `stillpoint sweep`: its flags and what they mean.
// Packages internal/cleanup and internal/location/externalstorage find and delete.
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
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/cleanup"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/location/externalstorage"
	"stillpoint.io/stillpoint/plugins/command"
)

const long = `stillpoint sweep finds the snapshots that are left of backups and restores that
are over. It deletes nothing without --delete.

  stillpoint sweep                             what there is, and why
  stillpoint sweep --delete                    delete what is certainly ours
  stillpoint sweep --delete shop/velero-data-xyz content/snapcontent-abc
                                               these, also where they are only listed
  kubectl -n velero exec deploy/velero -c velero -- /plugins/stillpoint sweep

It ends with 0, with 1 when something could not be deleted, with 2 for wrong
usage and when the cluster cannot be read.`

// flags are the command-line flags.
type flags struct {
	cleanup.Options
	connection cluster.Connection
	format     command.Format
	remove     bool
	timeout    time.Duration
}

// New returns the command.
func New() *cobra.Command { return (&flags{}).command() }

func (f *flags) command() *cobra.Command {
	c := &cobra.Command{
		Use: "sweep", Short: "Find and delete leftover snapshots of backups and restores that are over", Long: long,
		Args: f.validate,
		RunE: func(c *cobra.Command, _ []string) error {
			return f.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	set := c.Flags()
	set.BoolVar(&f.remove, "delete", false, "delete what the table says; without it nothing is changed")
	set.DurationVar(&f.timeout, "timeout", 2*time.Minute, "how long to wait until what is deleted is gone from the storage, and to try again")
	set.StringSliceVarP(&f.Namespaces, "namespace", "n", nil, "`namespace` of VolumeSnapshots to look at; may be given several times (default: all)")
	set.BoolVar(&f.All, "all", false, "show what is not left over, too, and why")
	f.format.AddFlag(set, "`format`: table or json")
	f.connection.AddFlags(set)
	return c
}

// validate checks the command line and takes the names from it.
func (f *flags) validate(c *cobra.Command, args []string) error {
	set := c.Flags()
	f.Objects = args
	for _, object := range f.Objects {
		if namespace, name, ok := strings.Cut(object, "/"); !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
			return fmt.Errorf("argument %q: must be namespace/name of a VolumeSnapshot, or content/name", object)
		}
	}
	if err := f.format.Validate(); err != nil {
		return err
	}
	if f.format.JSON() && f.remove {
		return errors.New("--output json and --delete: deletions are reported line by line")
	}
	if set.Changed("namespace") && (len(f.Namespaces) == 0 || slices.Contains(f.Namespaces, "")) {
		return errors.New("sweep: --namespace is empty")
	}
	if len(f.Namespaces) > 0 && len(f.Objects) > 0 {
		return errors.New("--namespace and names: what is named has its namespace in the name")
	}
	if f.timeout <= 0 {
		return fmt.Errorf("sweep: --timeout %s: must be longer than 0", f.timeout)
	}
	if set.Changed("timeout") && !f.remove {
		return errors.New("--timeout needs --delete")
	}
	return nil
}

// run sweeps. It returns command.Problems if a deletion failed.
func (f *flags) run(ctx context.Context, stdout, stderr io.Writer) error {
	clients, err := f.connection.Open()
	if err != nil {
		return err
	}
	sweeper := cleanup.New(clients, clock.RealClock{})
	report, err := sweeper.Find(ctx, f.Options)
	if err != nil {
		return err
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	external := externalstorage.New(clients, nil, log)
	others, err := f.external(ctx, external, stderr)
	if err != nil {
		return err
	}
	for _, l := range others {
		report.External = append(report.External, cleanup.External{
			Kind: l.Object().GetKind(), Namespace: l.Object().GetNamespace(), Name: l.Object().GetName(),
			Backup: l.Backup(), Over: l.Over, Reason: l.Reason,
		})
	}
	if f.format.JSON() {
		return report.JSON(stdout)
	}
	if err := report.Table(stdout); err != nil || !f.remove {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	var result error
	tell := func(line string, err error) {
		to := stdout
		if err != nil {
			result, to = command.Problems, stderr
		}
		fmt.Fprintln(to, line)
	}
	sweeper.Delete(ctx, report, func(r cleanup.Result) { tell(r.Line(), r.Err) })
	for i, l := range others {
		if !l.Over {
			continue
		}
		begun := time.Now()
		err := external.Discard(ctx, l)
		tell(report.External[i].Line(time.Since(begun), err), err)
	}
	return result
}

// external returns the leftovers of the snapshot API before CSI's. For a user without
// the permission to list them, it prints a note, and the sweep continues without them.
func (f *flags) external(ctx context.Context, snapshotter *externalstorage.Snapshotter, stderr io.Writer) ([]externalstorage.Leftover, error) {
	if len(f.Namespaces)+len(f.Objects) > 0 {
		return nil, nil
	}
	left, err := snapshotter.Leftovers(ctx)
	if apierrors.IsForbidden(err) {
		fmt.Fprintf(stderr, "Leftovers of %s are unknown: %v\n", externalstorage.Group, err)
		return nil, nil
	}
	return left, err
}
