package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// goodbye is how long an interrupted command may take to clean up.
const goodbye = 2 * time.Minute

// session is what `make demo` and `make test` run: they leave no cluster behind
// that was not there before.
func session() *cobra.Command {
	var plugin string
	cmd := &cobra.Command{
		Use:   "session -- COMMAND [ARGUMENT...]",
		Short: "Bring the cluster up, run a command, and take down what was not up before",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find testbed's own program: %w", err)
			}
			b, err := open()
			if err != nil {
				return err
			}
			_, missing := b.Running()
			owned := len(missing) > 0 || b.InSession()
			if owned {
				if err := b.BeginSession(); err != nil {
					return err
				}
				defer func() { // also when ctx has ended
					if err := attached(context.WithoutCancel(cmd.Context()), self, "down"); err != nil {
						fmt.Fprintln(os.Stderr, "testbed: down:", err)
					}
				}()
			}
			up := []string{self, "up", "--session"}
			if plugin != "" {
				up = append(up, "--plugin", plugin)
			}
			if err := attached(cmd.Context(), up...); err != nil {
				return err
			}
			return attached(cmd.Context(), args...)
		},
	}
	cmd.Flags().StringVar(&plugin, "plugin", "", "install our plugin in Velero from this `binary`")
	return cmd
}

// attached runs a command with our standard streams.
func attached(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = goodbye
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return nil
}
