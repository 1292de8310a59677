// Package check is the command `stillpoint check`: its flags and what they mean.
// Package internal/check does the work and prints the report.
package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/check"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/plugins/command"
)

const long = `stillpoint check tells what a backup would do, and what would fail, without
doing it. It changes nothing; in containers it runs the probes of the plan.

  stillpoint check                             a backup of all namespaces
  stillpoint check --namespace shop            a backup of this namespace
  stillpoint check -n shop --workload deployment/db
  stillpoint check --schedule nightly          the next backup of a schedule
  kubectl -n velero exec deploy/velero -c velero -- /plugins/stillpoint check

It ends with 0 when nothing is known that would fail, with 1 when a backup would
fail for any volume, with 2 for wrong usage and when the cluster cannot be read.`

// flags are the command-line flags.
type flags struct {
	check.Options
	connection cluster.Connection
	format     command.Format
	workload   string
	move       bool
	serverArgs string
}

// New returns the command.
func New() *cobra.Command { return (&flags{}).command() }

func (f *flags) command() *cobra.Command {
	c := &cobra.Command{
		Use: "check", Short: "Predict what a backup would do, and what would fail", Long: long,
		Args: f.validate,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c.Context(), c.OutOrStdout()) },
	}
	set := c.Flags()
	set.StringSliceVarP(&f.Namespaces, "namespace", "n", nil, "`namespace` to look at; may be given several times (default: all of the backup)")
	set.StringVar(&f.workload, "workload", "", "`kind/name` of the only workload to look at, such as deployment/db")
	set.StringVar(&f.Schedule, "schedule", "", "`name` of the schedule whose next backup is checked")
	set.StringVar(&f.VolumePolicies, "policy", "", "`ConfigMap` of volume policies, as in velero backup create --resource-policies-configmap")
	set.BoolVar(&f.move, "snapshot-move-data", false, "whether the backup moves data (default: the server's)")
	set.StringToStringVar(&f.Labels, "labels", nil, "labels of the backup, `key=value`")
	set.StringToStringVar(&f.Annotations, "annotations", nil, "annotations of the backup, `key=value`")
	f.format.AddFlag(set, "`format`: table or json")
	f.connection.AddFlags(set)
	set.StringVar(&f.Deployment, "velero-deployment", "velero", "`name` of the Velero server's Deployment, whose flags say how backups are made")
	set.StringVar(&f.serverArgs, "server-args", "", "`flags` of the Velero server, where its Deployment cannot be read: \"--features=EnableCSI --item-block-worker-count=2\"; NAME=VALUE is its environment")
	return c
}

// validate checks the command line and completes the options from it.
func (f *flags) validate(c *cobra.Command, args []string) error {
	set := c.Flags()
	if len(args) > 0 {
		return fmt.Errorf("unknown argument %q", args[0])
	}
	if err := f.format.Validate(); err != nil {
		return err
	}
	if set.Changed("namespace") && (len(f.Namespaces) == 0 || slices.Contains(f.Namespaces, "")) {
		return errors.New("check: --namespace is empty")
	}
	if f.workload != "" {
		kind, name, ok := strings.Cut(f.workload, "/")
		if f.Kind, f.Name = kindOf(kind), name; !ok || f.Kind == "" || name == "" {
			return fmt.Errorf("--workload %q: must be kind/name, such as deployment/db", f.workload)
		}
		if len(f.Namespaces) != 1 {
			return errors.New("--workload needs the --namespace that it is in, and no other")
		}
	}
	if set.Changed("snapshot-move-data") {
		f.SnapshotMoveData = &f.move
	}
	for _, flag := range []string{"policy", "snapshot-move-data", "labels", "annotations"} {
		if f.Schedule != "" && set.Changed(flag) {
			return fmt.Errorf("--%s and --schedule: the schedule says what the backup is like", flag)
		}
	}
	f.ServerArgs = strings.Fields(f.serverArgs)
	return nil
}

// kinds are kubectl's other names for the kinds of workloads.
var kinds = map[string][]string{
	"Deployment":  {"deployments", "deploy", "deployment.apps", "deployments.apps"},
	"StatefulSet": {"statefulsets", "sts", "statefulset.apps", "statefulsets.apps"},
	"DaemonSet":   {"daemonsets", "ds", "daemonset.apps", "daemonsets.apps"},
	"ReplicaSet":  {"replicasets", "rs", "replicaset.apps", "replicasets.apps"},
	"CronJob":     {"cronjobs", "cj"},
	"Job":         {"jobs"},
	"Pod":         {"pods", "po"},
}

// kindOf returns the kind that name stands for; an unknown name is returned as it is.
func kindOf(name string) string {
	for kind, others := range kinds {
		if strings.EqualFold(kind, name) || slices.Contains(others, strings.ToLower(name)) {
			return kind
		}
	}
	return name
}

// run checks. It returns command.Problems if a backup would fail for at least one
// volume.
func (f *flags) run(ctx context.Context, stdout io.Writer) error {
	glance := cluster.NewGlance()
	f.connection.Wrap = glance.Wrap
	clients, err := f.connection.Open()
	if err != nil {
		return err
	}
	report, err := check.New(clients, podexec.New(clients), clock.RealClock{}, glance.Forget).Check(ctx, f.Options)
	if err != nil {
		return err
	}
	show := report.Table
	if f.format.JSON() {
		show = report.JSON
	}
	if err := show(stdout); err != nil {
		return err
	}
	if report.Fails {
		return command.Problems
	}
	return nil
}
