package loopcsi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// attachLoop gives an image a loop device and returns its path and the open
// device. With autoclear the kernel detaches it after its last user, so the
// caller closes the device once it is mounted.
func attachLoop(image string, autoclear bool) (*os.File, error) {
	back, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", image, err)
	}
	defer back.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", image, err)
	}
	defer control.Close()

	config := unix.LoopConfig{Fd: uint32(back.Fd())}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], image)
	if autoclear {
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	}
	for range 64 { // another program may take the free device before us
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("attach %s: find a free loop device: %w", image, err)
		}
		device, err := openLoop(n)
		if err != nil {
			return nil, fmt.Errorf("attach %s: %w", image, err)
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		_ = device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach %s to %s: %w", image, device.Name(), err)
		}
	}
	return nil, fmt.Errorf("attach %s: every loop device was taken before it could be used", image)
}

// openLoop opens loop device n, and makes its node where no udev does.
func openLoop(n int) (*os.File, error) {
	path := "/dev/loop" + strconv.Itoa(n)
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err := unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(7, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
		device, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	return device, err
}

// findLoop is the loop device that an image is attached to, "" when it is not.
func findLoop(image string) (string, error) {
	backings, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, b := range backings {
		name, err := os.ReadFile(b)
		if err == nil && strings.TrimSpace(string(name)) == image {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(b)))), nil
		}
	}
	return "", nil
}

// detachLoop frees a loop device; one that is free already is no error. While
// somebody has it open the kernel detaches it later, by itself.
func detachLoop(path string) error {
	device, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	defer device.Close()
	if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	return nil
}

// AttachedBelow lists the loop devices of files below dir, for the test bed to
// free what a crash left.
func AttachedBelow(dir string) ([]string, error) {
	backings, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var devices []string
	for _, b := range backings {
		name, err := os.ReadFile(b)
		if err == nil && strings.HasPrefix(string(name), dir+"/") {
			devices = append(devices, filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(b)))))
		}
	}
	return devices, nil
}

// Detach frees a loop device.
func Detach(device string) error { return detachLoop(device) }
