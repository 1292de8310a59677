package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"stillpoint.io/stillpoint/plugins/command"
)

// target is where `velero plugin add` mounts the server's plugin directory.
const target = "/target"

const long = `stillpoint is a Velero plugin set: the Velero server starts it.

  velero plugin add IMAGE      adds it to a server
  stillpoint check             predicts what a backup would do
  stillpoint [DIRECTORY]       copies itself into DIRECTORY, /target by default,
                               which is what its image does in the server's pod`

// install returns the root command, which copies this program into a directory.
func install() *cobra.Command {
	return &cobra.Command{
		Use: "stillpoint [DIRECTORY]", Long: long,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := copySelf(append(args, target)[0]); err != nil {
				fmt.Fprintf(c.ErrOrStderr(), "stillpoint: %v\n", err)
				return command.Exit(1)
			}
			return nil
		},
	}
}

// copySelf copies this program into the plugin directory. The image has no shell and no
// cp.
func copySelf(directory string) error {
	if info, err := os.Stat(directory); err != nil || !info.IsDir() {
		return fmt.Errorf("%s is not a directory; see stillpoint --help", directory)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	return copyProgram(self, filepath.Join(directory, "stillpoint"))
}

// copyProgram replaces a program in one step, so that a starting server never runs an
// incomplete one.
func copyProgram(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("read this program: %w", err)
	}
	defer source.Close()
	partial, err := os.CreateTemp(filepath.Dir(to), ".stillpoint-*")
	if err != nil {
		return fmt.Errorf("install into %s: %w", filepath.Dir(to), err)
	}
	defer os.Remove(partial.Name())
	_, err = io.Copy(partial, source)
	err = errors.Join(err, partial.Chmod(0o755), partial.Close())
	if err == nil {
		err = os.Rename(partial.Name(), to)
	}
	if err != nil {
		return fmt.Errorf("install into %s: %w", filepath.Dir(to), err)
	}
	return nil
}
