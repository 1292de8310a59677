// Package freeze looks at the file systems of the test bed from the host, and
// thaws them. A frozen volume with a blocked writer keeps its pod from being
// killed, so whatever ends a test or the bed begins here.
package freeze

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// The requests of linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int).
const (
	fifreeze = 0xC0045877
	fithaw   = 0xC0045878
)

// Mounts lists the mount points of file systems of their own below dir, each
// file system once, the one mounted last first.
func Mounts(dir string) ([]string, error) {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("list mounts below %s: %w", dir, err)
	}
	seen := map[[2]int]bool{}
	var points []string
	for _, m := range slices.Backward(all) {
		device := [2]int{m.Major, m.Minor}
		if !strings.HasPrefix(m.Mountpoint, dir+"/") || !strings.HasPrefix(m.Source, "/dev/") || m.Root != "/" || seen[device] {
			continue
		}
		seen[device] = true
		points = append(points, m.Mountpoint)
	}
	return points, nil
}

// Thaw thaws the file system mounted at point, and reports whether it was
// frozen. A file system frozen several times over is thawed wholly.
func Thaw(point string) (bool, error) {
	dir, err := open(point)
	if err != nil {
		return false, fmt.Errorf("thaw %s: %w", point, err)
	}
	defer dir.Close()
	for thawed := false; ; thawed = true {
		err := unix.IoctlSetInt(int(dir.Fd()), fithaw, 0)
		switch {
		case errors.Is(err, unix.EINVAL): // it is not frozen
			return thawed, nil
		case err != nil:
			return thawed, fmt.Errorf("thaw %s: %w", point, err)
		}
	}
}

// Freeze freezes the file system mounted at point.
func Freeze(point string) error {
	if err := onLoop(point); err != nil {
		return fmt.Errorf("freeze %s: %w", point, err)
	}
	dir, err := open(point)
	if err != nil {
		return fmt.Errorf("freeze %s: %w", point, err)
	}
	defer dir.Close()
	if err := unix.IoctlSetInt(int(dir.Fd()), fifreeze, 0); err != nil {
		return fmt.Errorf("freeze %s: %w", point, err)
	}
	return nil
}

// Frozen reports whether the file system mounted at point is frozen. There is
// no way to ask: it is tried by freezing, which fails where it is frozen
// already and is undone at once where it succeeds. A writer notices that as a
// pause of some milliseconds, so this is no call for the middle of a measurement.
func Frozen(point string) (bool, error) {
	if err := onLoop(point); err != nil {
		return false, fmt.Errorf("look whether %s is frozen: %w", point, err)
	}
	dir, err := open(point)
	if err != nil {
		return false, fmt.Errorf("look whether %s is frozen: %w", point, err)
	}
	defer dir.Close()
	err = unix.IoctlSetInt(int(dir.Fd()), fifreeze, 0)
	if errors.Is(err, unix.EBUSY) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look whether %s is frozen: %w", point, err)
	}
	if err := unix.IoctlSetInt(int(dir.Fd()), fithaw, 0); err != nil {
		return false, fmt.Errorf("thaw %s after a look whether it is frozen: %w", point, err)
	}
	return false, nil
}

// onLoop is an error unless a file system on a loop device is mounted at point:
// a directory that is no mount would have the machine's own file system frozen.
func onLoop(point string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(point))
	if err != nil {
		return err
	}
	if len(mounts) == 0 {
		return errors.New("nothing is mounted there")
	}
	if source := mounts[0].Source; !strings.HasPrefix(source, "/dev/loop") {
		return fmt.Errorf("%s is mounted there, which is no loop device", source)
	}
	return nil
}

// ThawAll thaws every file system mounted below dir and names those that were
// frozen. It goes on past an error.
func ThawAll(dir string) ([]string, error) {
	points, err := Mounts(dir)
	if err != nil {
		return nil, err
	}
	var frozen []string
	var failed []error
	for _, p := range points {
		was, err := Thaw(p)
		if was {
			frozen = append(frozen, p)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) {
			failed = append(failed, err)
		}
	}
	return frozen, errors.Join(failed...)
}

// open never blocks on a frozen file system: it asks for no write, and a
// directory's access time is not written on opening it.
func open(point string) (*os.File, error) {
	return os.OpenFile(point, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
}
