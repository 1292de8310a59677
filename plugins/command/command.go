// Package command is the frame that Stillpoint's commands have in common: flags,
// --help, what is printed where, and exit codes.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/pflag"
)

// Exit codes.
const (
	fine     = 0
	amiss    = 1 // what that is each command's help says
	notKnown = 2 // wrong usage, or the cluster cannot be read
)

// Flags are those of one call of a command.
type Flags interface {
	// Define adds them to set.
	Define(set *pflag.FlagSet)
	// Validate says what is wrong with what was given, arguments included.
	Validate(set *pflag.FlagSet) error
	// Run does what was asked for. The error is that this is not known: what has
	// been found out and is not well is amiss.
	Run(ctx context.Context, stdout, stderr io.Writer) (amiss bool, err error)
}

// Run runs a command and returns its exit code. Its help is usage and its flags.
func Run(ctx context.Context, name, usage string, flags Flags, args []string, stdout, stderr io.Writer) int {
	set := setOf(name, flags)
	switch err := parse(set, flags, args); {
	case errors.Is(err, pflag.ErrHelp):
		fmt.Fprint(stdout, usage+set.FlagUsagesWrapped(80))
		return fine
	case err != nil:
		fmt.Fprintf(stderr, "stillpoint %s: %v; see stillpoint %s --help\n", name, err, name)
		return notKnown
	}
	bad, err := flags.Run(ctx, stdout, stderr)
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "stillpoint %s: %v\n", name, err)
		return notKnown
	case bad:
		return amiss
	default:
		return fine
	}
}

// Parse reads arguments into flags.
func Parse(name string, flags Flags, args []string) error {
	return parse(setOf(name, flags), flags, args)
}

func parse(set *pflag.FlagSet, flags Flags, args []string) error {
	if err := set.Parse(args); err != nil {
		return err
	}
	return flags.Validate(set)
}

func setOf(name string, flags Flags) *pflag.FlagSet {
	set := pflag.NewFlagSet("stillpoint "+name, pflag.ContinueOnError)
	set.SortFlags = false
	set.Usage = func() {}
	flags.Define(set)
	return set
}

// Format is a flag for how something is printed.
type Format struct{ name string }

// Define adds the flag to set; of what it is the format, usage says.
func (f *Format) Define(set *pflag.FlagSet, usage string) {
	set.StringVarP(&f.name, "output", "o", "table", usage)
}

// Validate says that there is no such format.
func (f *Format) Validate() error {
	if f.name != "table" && f.name != "json" {
		return fmt.Errorf("--output %q: must be table or json", f.name)
	}
	return nil
}

// JSON tells that it is for programs.
func (f *Format) JSON() bool { return f.name == "json" }
