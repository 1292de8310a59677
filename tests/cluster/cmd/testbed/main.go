// Command testbed brings the test bed's cluster up and down and runs programs
// in its network. See package bed for what the cluster is.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"stillpoint.io/stillpoint/tests/cluster/bed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		os.Exit(1) //nolint:gocritic // the signal handler dies with us
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "testbed",
		Short:         "A one-node Kubernetes cluster with CSI snapshots, S3 and Velero, for tests",
		Long:          "A one-node Kubernetes cluster with CSI snapshots, S3 and Velero, for tests.\nIt is kept in $" + bed.DirVariable + ", by default in a directory stillpoint of the user's cache.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(up(), start(), down(), session(), run(), program("kubectl"), program("velero"), databases(), installPlugin(), thaw(), status())
	return root
}

// open finds the bed; its progress goes to standard error with the time since.
func open() (*bed.Bed, error) {
	began := time.Now()
	return bed.Open(func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	})
}

func up() *cobra.Command {
	var (
		plugin, storage, limits string
		inSession               bool
	)
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Build what is missing and start what is not running",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := open()
			if err != nil {
				return err
			}
			if !inSession {
				if err := b.EndSession(); err != nil {
					return err
				}
			}
			if err := b.Prepare(cmd.Context(), bed.Storage(storage)); err != nil {
				return err
			}
			if err := b.RecordLimits(bed.Limits(limits)); err != nil {
				return err
			}
			args := []string{"start"}
			if plugin != "" {
				args = append(args, "--plugin", plugin)
			}
			return reenter(b, args)
		},
	}
	cmd.Flags().StringVar(&plugin, "plugin", "", "install our plugin in Velero from this `binary`")
	cmd.Flags().StringVar(&storage, "storage", string(bed.StandardStorage), "what the cluster calls its storage, a `word`; one that calls it otherwise makes way, but for the object store")
	cmd.Flags().StringVar(&limits, "request-limits", string(bed.RaisedLimits), "how many requests the snapshot controller and the CSI sidecar send, a `word`: "+string(bed.RaisedLimits)+", or "+string(bed.DefaultLimits)+" for their own default of 5 per second")
	cmd.Flags().BoolVar(&inSession, "session", false, "do not take the cluster over from the session that asks for it")
	_ = cmd.Flags().MarkHidden("session")
	return cmd
}

// start is the part of up that runs inside the cluster's network.
func start() *cobra.Command {
	var plugin string
	cmd := &cobra.Command{
		Use:    "start",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := open()
			if err != nil {
				return err
			}
			if err := b.Start(cmd.Context()); err != nil {
				return err
			}
			if plugin != "" {
				if err := b.InstallPlugin(cmd.Context(), plugin); err != nil {
					return err
				}
			}
			b.Say("the cluster is up")
			return nil
		},
	}
	cmd.Flags().StringVar(&plugin, "plugin", "", "")
	return cmd
}

func down() *cobra.Command {
	var all, cluster bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop everything, also what a crashed run left",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := open()
			if err != nil {
				return err
			}
			wipe := bed.WipeNothing
			switch {
			case all:
				wipe = bed.WipeAll
			case cluster:
				wipe = bed.WipeCluster
			}
			return b.Down(cmd.Context(), wipe)
		},
	}
	cmd.Flags().BoolVar(&all, "wipe", false, "forget the cluster and all volumes, too; builds stay")
	cmd.Flags().BoolVar(&cluster, "wipe-cluster", false, "as --wipe, but for the object store")
	cmd.MarkFlagsMutuallyExclusive("wipe", "wipe-cluster")
	return cmd
}

func run() *cobra.Command {
	return &cobra.Command{
		Use:   "run -- COMMAND [ARGUMENT...]",
		Short: "Run a command in the cluster's network, with KUBECONFIG and PATH set",
		Long:  "Run a command in the cluster's network, with KUBECONFIG and PATH set.\nFor tests: go test -exec 'testbed run --' ./...",
		Args:  cobra.MinimumNArgs(1),
		// Flags after the command are the command's.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "--" {
				args = args[1:]
			}
			if len(args) == 0 || args[0] == "--help" || args[0] == "-h" {
				return cmd.Help()
			}
			b, err := open()
			if err != nil {
				return err
			}
			return enter(b, args)
		},
	}
}

func program(name string) *cobra.Command {
	return &cobra.Command{
		Use:                name + " [ARGUMENT...]",
		Short:              "Run " + name + " on the cluster",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := open()
			if err != nil {
				return err
			}
			return enter(b, append([]string{filepath.Join(b.Bin(), name)}, args...))
		},
	}
}

func databases() *cobra.Command {
	return &cobra.Command{
		Use:   "databases",
		Short: "Import the images of databases, made of Debian's packages",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := open()
			if err != nil {
				return err
			}
			return b.Databases(cmd.Context())
		},
	}
}

func installPlugin() *cobra.Command {
	return &cobra.Command{
		Use:   "install-plugin BINARY",
		Short: "Make our plugin's image from its binary and add it to Velero",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := open()
			if err != nil {
				return err
			}
			if !b.Inside() {
				return reenter(b, os.Args[1:])
			}
			return b.InstallPlugin(cmd.Context(), args[0])
		},
	}
}

func thaw() *cobra.Command {
	return &cobra.Command{
		Use:   "thaw",
		Short: "Thaw every volume of the test bed from the host",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := bed.CheckMachine(); err != nil {
				return err
			}
			b, err := open()
			if err != nil {
				return err
			}
			frozen, err := b.Thaw()
			for _, point := range frozen {
				cmd.Println("thawed", point)
			}
			return err
		},
	}
}

func status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say what runs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := open()
			if err != nil {
				return err
			}
			if running, _ := b.Running(); len(running) > 0 && !b.Inside() {
				return reenter(b, os.Args[1:])
			}
			fmt.Fprint(cmd.OutOrStdout(), b.Status(cmd.Context()))
			return nil
		},
	}
}

// reenter runs this program again, inside the cluster's network.
func reenter(b *bed.Bed, args []string) error {
	if err := bed.CheckMachine(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find testbed's own program: %w", err)
	}
	return b.Exec(self, append([]string{self}, args...), b.Environ())
}

// enter replaces this process by a command, inside the cluster's network.
func enter(b *bed.Bed, args []string) error {
	if err := bed.CheckMachine(); err != nil {
		return err
	}
	env := b.Environ()
	for _, v := range env {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			if err := os.Setenv("PATH", path); err != nil { // for the look-up
				return err
			}
		}
	}
	found, err := exec.LookPath(args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return fmt.Errorf("run %s: %w", args[0], err)
	}
	return b.Exec(found, args, env)
}
