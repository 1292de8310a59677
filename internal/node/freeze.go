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

// exitNotFrozen is the exit code if a file system was not frozen and no thaw failed.
const exitNotFrozen = 3

// ThawVolumes implements the subcommand: it thaws the file systems that are mounted at
// paths, and returns the exit code.
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

// thawAt thaws the file system that is mounted at path, and reports whether it was frozen.
func thawAt(path string) (bool, error) {
	if err := mounted(path); err != nil {
		return false, err
	}
	// Opening a directory for reading writes nothing, so it does not block on a frozen file
	// system.
	directory, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer directory.Close()
	return thawOnce(path, func() error { return unix.IoctlSetInt(int(directory.Fd()), fithaw, 0) })
}

// thawOnce calls the ioctl once: a second call would undo the freeze of another program.
func thawOnce(path string, call func() error) (bool, error) {
	err := call()
	if errors.Is(err, unix.EINVAL) { // not frozen, or not yet
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ioctl FITHAW %s: %w", path, err)
	}
	return true, nil
}

// mounted returns an error unless path is the root of a mount. Any other directory belongs
// to a file system of the node.
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
