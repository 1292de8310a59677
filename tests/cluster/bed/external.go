package bed

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// The snapshot controller for hostPath volumes keeps snapshots in one directory
// and restores them into another, which are written into its code: in the
// machine's own, so that the kubelet finds there what the volumes name.
const (
	externalSnapshots = "/tmp"
	externalRestored  = "/tmp/restore"
)

// externalGroup is the group that the bed's data in these directories belongs to,
// and nobody else's on the machine.
func (b *Bed) externalGroup() uint32 {
	const first, span = 1 << 24, 1 << 30 // nobody's accounts are there
	sum := sha256.Sum256([]byte(b.Dir))
	return first + binary.BigEndian.Uint32(sum[:])%span
}

// ExternalData is what snapshots of the API before CSI's have on the machine,
// and the volumes that were made of them, whatever the API says: paths in order.
func (b *Bed) ExternalData() (snapshots, volumes []string, err error) {
	if snapshots, err = b.ownedIn(externalSnapshots, "*.tgz"); err == nil {
		volumes, err = b.ownedIn(externalRestored, "*")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list the snapshots of hostPath volumes: %w", err)
	}
	return snapshots, volumes, nil
}

func (b *Bed) ownedIn(dir, pattern string) ([]string, error) {
	all, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		return nil, err
	}
	var owned []string
	for _, path := range all {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) { // another bed's may go at any time
			continue
		}
		if err != nil {
			return nil, err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Gid == b.externalGroup() {
			owned = append(owned, path)
		}
	}
	return owned, nil
}

// removeExternalData removes it, when nothing uses it any more.
func (b *Bed) removeExternalData() error {
	snapshots, volumes, err := b.ExternalData()
	if err != nil {
		return err
	}
	for _, path := range append(snapshots, volumes...) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	_ = os.Remove(externalRestored) // another bed may have volumes in it
	return nil
}

func (b *Bed) waitExternalStorage(ctx context.Context) error {
	_, err := b.Kubectl(ctx, nil, "wait", "--for=condition=Established", "--timeout=30s",
		"crd/volumesnapshots.volumesnapshot.external-storage.k8s.io", "crd/volumesnapshotdatas.volumesnapshot.external-storage.k8s.io")
	return err
}
