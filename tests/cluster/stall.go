package cluster

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"stillpoint.io/stillpoint/tests/cluster/freeze"
)

// Store is a backing file system that holds the image of one volume.
type Store struct {
	c     *Cluster
	point string
	gone  func() error
}

// OwnStore moves the volume of a claim, which is bound and which no pod may use yet, to
// a backing file system of its own. It cannot be snapshotted any more.
func (c *Cluster) OwnStore(ctx context.Context, namespace, claim string) (*Store, error) {
	volume, err := c.volume(ctx, namespace, claim)
	if err != nil {
		return nil, err
	}
	point, err := c.bed.MoveToOwnStore(ctx, volume)
	if err != nil {
		return nil, err
	}
	return &Store{c: c, point: point, gone: sync.OnceValue(func() error { return c.bed.RemoveOwnStore(point) })}, nil
}

// Stall has every write to the volume wait, in the middle of a write(2) too, until
// Resume. Only this one volume is stalled.
func (s *Store) Stall() error { return freeze.Freeze(s.point) }

// Resume ends a stall.
func (s *Store) Resume() error {
	if thawed, err := freeze.Thaw(s.point); err != nil || !thawed {
		return fmt.Errorf("the store at %s was not stalled: %w", s.point, err)
	}
	return nil
}

// Remove ends a stall and removes the store once nothing uses it. It may be called
// again.
func (s *Store) Remove() error { return s.gone() }

// DirectWrite writes size bytes to a file on the volume of a claim in one write(2) that
// bypasses the page cache, as a database does. It returns when the storage has them.
func (c *Cluster) DirectWrite(ctx context.Context, namespace, claim string, size int) error {
	point, err := c.VolumeMount(ctx, namespace, claim)
	if err != nil {
		return err
	}
	fd, err := unix.Open(point+"/direct", unix.O_CREAT|unix.O_WRONLY|unix.O_DIRECT, 0o600)
	if err != nil {
		return fmt.Errorf("open a file on claim %s/%s: %w", namespace, claim, err)
	}
	defer func() { _ = unix.Close(fd) }()
	pages, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // is aligned
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(pages) }()
	if _, err := unix.Write(fd, pages); err != nil {
		return fmt.Errorf("write to claim %s/%s: %w", namespace, claim, err)
	}
	return nil
}

// Freeze freezes the volume of a claim from the host, as another program does.
func (c *Cluster) Freeze(ctx context.Context, namespace, claim string) error {
	point, err := c.VolumeMount(ctx, namespace, claim)
	if err != nil {
		return err
	}
	return freeze.Freeze(point)
}
