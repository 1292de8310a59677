package node

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fithaw is the request FITHAW of linux/fs.h: _IOWR('X', 120, int).
const fithaw = 0xC0045878

// exitNotFrozen is the exit code if a file system was not frozen and nothing failed.
const exitNotFrozen = 3

// ThawVolumes is the subcommand: it thaws the file systems that are mounted at
// paths, and returns its exit code. It runs in the pod that Thaw makes.
func ThawVolumes(paths []string, stdout, stderr io.Writer) int {
	return thawVolumes(paths, thawAt, stdout, stderr)
}

func thawVolumes(paths []string, thaw func(path string) (bool, error), stdout, stderr io.Writer) int {
	code := 0
	for _, path := range paths {
		thawed, err := thaw(path)
		switch {
		case err != nil:
			fmt.Fprintln(stderr, err)
			code = 1
		case thawed:
			fmt.Fprintln(stdout, "thawed", path)
		default:
			fmt.Fprintln(stdout, "not frozen:", path)
			code = cmp.Or(code, exitNotFrozen)
		}
	}
	if len(paths) == 0 {
		fmt.Fprintln(stderr, "no paths are given")
		code = 2
	}
	return code
}

// thawAt reports whether the file system at path was frozen.
func thawAt(path string) (bool, error) {
	if err := mounted(path); err != nil {
		return false, err
	}
	// For reading a directory nothing is written, so this does not block on a
	// frozen file system.
	directory, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer directory.Close()
	return thawOnce(path, func() error { return unix.IoctlSetInt(int(directory.Fd()), fithaw, 0) })
}

// thawOnce makes one call for one freeze: a second one would take away the freeze of
// another program.
func thawOnce(path string, call func() error) (bool, error) {
	err := call()
	if errors.Is(err, unix.EINVAL) { // it is not frozen, or not yet
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ioctl FITHAW %s: %w", path, err)
	}
	return true, nil
}

// mounted is an error unless path is the root of a mount: of any other directory
// the file system is the node's own, and says nothing of the volume.
func mounted(path string) error {
	var at, above unix.Stat_t
	if err := unix.Stat(path, &at); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := unix.Stat(filepath.Dir(path), &above); err != nil {
		return &os.PathError{Op: "stat", Path: filepath.Dir(path), Err: err}
	}
	if at.Dev == above.Dev {
		return fmt.Errorf("nothing is mounted at %s", path)
	}
	return nil
}
