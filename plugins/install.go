package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// target is where `velero plugin add` mounts the server's plugin directory.
const target = "/target"

const usage = `stillpoint is a Velero plugin set: the Velero server starts it.

  velero plugin add IMAGE      adds it to a server
  stillpoint check             tells what a backup would do, and what would fail;
                               see stillpoint check --help
  stillpoint sweep             finds snapshots that are left of backups that are
                               over; see stillpoint sweep --help
  stillpoint thaw              tells what is quiesced now, and releases it; see
                               stillpoint thaw --help
  stillpoint [DIRECTORY]       copies itself into DIRECTORY, /target by default,
                               which is what its image does in the server's pod`

// install copies this program into the plugin directory. The image is made
// FROM scratch: there is no shell and no cp to do it.
func install(args []string) error {
	directory := target
	switch {
	case len(args) == 1 && args[0] != "-h" && args[0] != "--help":
		directory = args[0]
	case len(args) > 0:
		return errors.New(usage)
	}
	if info, err := os.Stat(directory); err != nil || !info.IsDir() {
		return fmt.Errorf("%s is not a directory\n\n%s", directory, usage)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	return copyProgram(self, filepath.Join(directory, "stillpoint"))
}

// copyProgram puts a program in its place in one step, so that a server that is
// just starting never runs half of it.
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
