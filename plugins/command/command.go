package command

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit is an error that only sets the exit code: the command has printed the rest.
type Exit int

// Error implements error.
func (e Exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

const (
	// Problems means that the command completed and found problems; each command's
	// help says which.
	Problems Exit = 1
	// failed means wrong usage, or that the cluster cannot be read.
	failed = 2
)

const help = `{{.Long}}
{{if .HasAvailableSubCommands}}
Commands:
{{range .Commands}}{{if .IsAvailableCommand}}  {{rpad .Name .NamePadding}} {{.Short}}
{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}
Flags:
{{.LocalFlags.FlagUsagesWrapped 80}}{{end}}`

// Tree puts commands below root and returns it. Each lists its flags in the order in
// which it defines them.
func Tree(root *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.PersistentFlags().BoolP("help", "h", false, "show this help")
	root.SetHelpTemplate(help)
	root.SetFlagErrorFunc(wrongUsage)
	for _, c := range append(commands, root) {
		c.Flags().SortFlags = false
		if validate := c.Args; validate != nil {
			c.Args = func(c *cobra.Command, args []string) error {
				if err := validate(c, args); err != nil {
					return wrongUsage(c, err)
				}
				return nil
			}
		}
	}
	root.AddCommand(commands...)
	return root
}

func wrongUsage(c *cobra.Command, err error) error {
	return fmt.Errorf("%w; see %s --help", err, c.CommandPath())
}

// Execute runs the command that args name and returns its exit code.
func Execute(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	c, err := root.ExecuteContextC(ctx)
	var exit Exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	}
	fmt.Fprintf(stderr, "%s: %v\n", c.CommandPath(), err)
	return failed
}

// Format is the flag --output.
type Format struct{ name string }

// AddFlag defines the flag; usage says what is printed in the format.
func (f *Format) AddFlag(set *pflag.FlagSet, usage string) {
	set.StringVarP(&f.name, "output", "o", "table", usage)
}

// Validate returns an error for an unknown format.
func (f *Format) Validate() error {
	if f.name != "table" && f.name != "json" {
		return fmt.Errorf("--output %q: must be table or json", f.name)
	}
	return nil
}

// JSON reports whether the output is for programs.
func (f *Format) JSON() bool { return f.name == "json" }
