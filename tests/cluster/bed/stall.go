package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"stillpoint.io/stillpoint/tests/cluster/freeze"
)

// stallSize is how much a store of one volume can hold, bytes: the least for XFS.
const stallSize = 400 << 20

// stalls is where stores of one volume are mounted.
func (b *Bed) stalls(elements ...string) string {
	return b.data(append([]string{"stalls"}, elements...)...)
}

// MoveToOwnStore moves the image of a volume, which nothing may have mounted, to a
// file system of its own, and returns where that is mounted. Whoever freezes it stalls
// the volume and no other. The volume cannot be snapshotted any more: its image and its
// snapshots lie on different file systems.
func (b *Bed) MoveToOwnStore(ctx context.Context, volume string) (string, error) {
	image := filepath.Join(b.store(), "volumes", volume, "image")
	backing, point := b.stalls(volume+".img"), b.stalls(volume)
	failed := func(err error) (string, error) {
		return "", fmt.Errorf("move the image of volume %s to a store of its own: %w", volume, err)
	}
	if err := os.MkdirAll(point, 0o750); err != nil {
		return failed(err)
	}
	if err := os.WriteFile(backing, nil, 0o600); err != nil {
		return failed(err)
	}
	if err := os.Truncate(backing, stallSize); err != nil {
		return failed(err)
	}
	for _, step := range [][]string{
		{"mkfs.xfs", "-q", "-f", backing},
		{"mount", "-o", "loop", backing, point},
		{"cp", "--sparse=always", image, filepath.Join(point, "image")},
		{"ln", "-sf", filepath.Join(point, "image"), image},
	} {
		if _, err := command(ctx, step[0], step[1:]...); err != nil {
			return failed(err)
		}
	}
	return point, nil
}

// RemoveOwnStore thaws a store of MoveToOwnStore and removes it; the volume may still
// be mounted, and the store goes with that then.
func (b *Bed) RemoveOwnStore(point string) error {
	_, err := freeze.Thaw(point)
	return errors.Join(err, unix.Unmount(point, unix.MNT_DETACH), os.Remove(point), os.Remove(point+".img"))
}
