package bed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"stillpoint.io/stillpoint/tests/cluster/loopcsi"
)

// storeSize is how much the volumes may take together, bytes. The file behind
// it takes only what is written.
const storeSize = 16 << 30

// mountStore makes and mounts the file system on which volumes and snapshots
// lie, and makes what is mounted below the kubelet's directory visible to
// containers.
func (b *Bed) mountStore(ctx context.Context) error {
	if mounted, err := mountinfo.Mounted(b.store()); err != nil {
		return fmt.Errorf("mount the store: %w", err)
	} else if !mounted {
		if err := b.makeStore(ctx); err != nil {
			return err
		}
		if _, err := command(ctx, "mount", "-o", "loop", b.storeImage(), b.store()); err != nil {
			return err
		}
	}
	dir := b.KubeletDir()
	mounted, err := mountinfo.Mounted(dir)
	if err != nil {
		return fmt.Errorf("share %s: %w", dir, err)
	}
	if !mounted {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s to itself: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share %s: %w", dir, err)
	}
	return nil
}

func (b *Bed) storeImage() string { return b.data("store.img") }

func (b *Bed) makeStore(ctx context.Context) error {
	_, err := os.Stat(b.storeImage())
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	aside := b.storeImage() + ".new"
	if err := os.WriteFile(aside, nil, 0o600); err != nil {
		return fmt.Errorf("make the store: %w", err)
	}
	if err := os.Truncate(aside, storeSize); err != nil {
		return fmt.Errorf("make the store: %w", err)
	}
	if _, err := command(ctx, "mkfs.xfs", "-q", "-f", "-m", "reflink=1", aside); err != nil {
		return err
	}
	return os.Rename(aside, b.storeImage())
}

// ownMount picks what the bed has mounted. The directories themselves may be
// mounts of the user's.
func (b *Bed) ownMount(m *mountinfo.Info) (skip, stop bool) {
	return !strings.HasPrefix(m.Mountpoint, b.run()+"/") && !strings.HasPrefix(m.Mountpoint, b.data()+"/"), false
}

// unmountAll takes down every mount that the bed made, the last first, and
// frees the loop devices that are left without one.
func (b *Bed) unmountAll() error {
	var failed []error
	// What hid another mount is gone after a round; a mount that stays is an error.
	for range 5 {
		mounts, err := mountinfo.GetMounts(b.ownMount)
		if err != nil {
			return fmt.Errorf("list the test bed's mounts: %w", err)
		}
		failed = nil
		for _, m := range slices.Backward(mounts) {
			if err := unmount(m.Mountpoint); err != nil {
				failed = append(failed, err)
			}
		}
		if len(mounts) == 0 {
			break
		}
	}
	devices, err := loopcsi.AttachedBelow(b.Dir)
	if err != nil {
		failed = append(failed, err)
	}
	for _, d := range devices {
		if err := loopcsi.Detach(d); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// unmount takes one mount down, at the worst only out of sight: some process
// of the machine may still stand in it.
func unmount(point string) error {
	err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it went with another one
		return fmt.Errorf("unmount %s: %w", point, err)
	}
	return nil
}

// cgroupHierarchies are the mount points of the machine's cgroups.
func cgroupHierarchies() []string {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil
	}
	var points []string
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	return points
}

// makeCgroups makes the group below which the kubelet puts its pods.
func (b *Bed) makeCgroups() error {
	for _, h := range cgroupHierarchies() {
		// Version 2 hands its controllers down only where that is asked for; the
		// kubelet says clearly which one it misses if that should fail here.
		if available, err := os.ReadFile(filepath.Join(h, "cgroup.controllers")); err == nil {
			for _, controller := range strings.Fields(string(available)) {
				_ = os.WriteFile(filepath.Join(h, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
			}
		}
		if err := os.Mkdir(filepath.Join(h, b.id()), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make the pods' cgroup: %w", err)
		}
	}
	return nil
}

// removeCgroups removes the pods' groups; they are empty of processes by now.
func (b *Bed) removeCgroups() error {
	var failed []error
	for _, h := range cgroupHierarchies() {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(h, b.id()), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				failed = append(failed, fmt.Errorf("remove cgroup %s: %w", dir, err))
				break // nor can those around it be
			}
		}
	}
	return errors.Join(failed...)
}
