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
	"time"

	"stillpoint.io/stillpoint/tests/cluster/freeze"
	"stillpoint.io/stillpoint/tests/cluster/process"
)

// stopGrace is how long a component may take to end by itself.
const stopGrace = 5 * time.Second

// Thaw thaws every volume of the bed and returns the mount points, below the
// bed's directory, of those that were frozen.
func (b *Bed) Thaw() ([]string, error) {
	// A thaw writes to the store, and waits where that is frozen itself.
	stores, storesErr := freeze.ThawAll(b.stalls())
	frozen, err := freeze.ThawAll(b.Dir)
	frozen, err = slices.Concat(stores, frozen), errors.Join(storesErr, err)
	for i, point := range frozen {
		frozen[i] = strings.TrimPrefix(point, b.Dir+"/")
	}
	return frozen, err
}

// Wipe says what of the cluster is forgotten when it goes down.
type Wipe int

const (
	// WipeNothing keeps all of it: the next start goes on with the same cluster.
	WipeNothing Wipe = iota
	// WipeCluster keeps what lies in the object store, as where a site is lost
	// and its backups are elsewhere: the next start makes another cluster.
	WipeCluster
	// WipeAll keeps nothing.
	WipeAll
)

// Down stops everything that belongs to the bed, whether this run of it or one
// that crashed. Builds stay.
func (b *Bed) Down(ctx context.Context, wipe Wipe) error {
	if err := CheckMachine(); err != nil {
		return err
	}
	unlock, err := b.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.tearDown(ctx); err != nil {
		return err
	}
	return b.wipe(wipe)
}

// wipe forgets what a cluster has left that is down.
func (b *Bed) wipe(what Wipe) error {
	if what == WipeNothing {
		return nil
	}
	data, err := b.wiped(what)
	if err != nil {
		return err
	}
	if err := b.removeExternalData(); err != nil {
		return fmt.Errorf("wipe the test bed: %w", err)
	}
	// Last what tells of a cluster: a wipe that is cut off is then repeated.
	for _, dir := range append(append([]string{b.run(), b.path("logs")}, data...), b.storageFile()) {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("wipe the test bed: %w", err)
		}
	}
	return nil
}

// wiped lists the data that a wipe would remove, without the storage's name.
func (b *Bed) wiped(by Wipe) ([]string, error) {
	entries, err := os.ReadDir(b.data())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the test bed's data: %w", err)
	}
	var data []string
	for _, entry := range entries {
		if path := b.data(entry.Name()); path != b.storageFile() && (by == WipeAll || entry.Name() != objectStore) {
			data = append(data, path)
		}
	}
	return data, nil
}

// tearDown goes on past an error: what can be cleaned up is.
func (b *Bed) tearDown(ctx context.Context) error {
	if err := os.MkdirAll(b.run(), 0o750); err != nil {
		return fmt.Errorf("take the test bed down: %w", err)
	}
	if err := os.WriteFile(b.halfDown(), nil, 0o600); err != nil {
		return fmt.Errorf("take the test bed down: %w", err)
	}
	var failed []error
	note := func(err error) {
		if err != nil {
			failed = append(failed, err)
		}
	}
	// First of all, and again while things end: a process that waits for a frozen
	// volume cannot be killed, and a dying guard may freeze once more.
	thaw := func() {
		if frozen, err := b.Thaw(); err != nil || len(frozen) > 0 {
			b.Say("thawed %s", strings.Join(frozen, ", "))
		}
	}
	thaw()
	note(b.Processes.Stop(ctx, Kubelet, stopGrace)) // it would start containers again
	containers := func() []int { return b.ContainerProcesses(func([]string) bool { return true }) }
	note(killAll(ctx, containers, thaw))
	for _, name := range slices.Backward(startOrder) {
		note(b.Processes.Stop(ctx, name, stopGrace))
	}
	// What was started but never recorded, and what it started in turn:
	// containerd's shims, and with them the last of the containers.
	note(killAll(ctx, b.Processes.Marked, thaw))
	note(killAll(ctx, containers, thaw))
	note(b.unmountAll())
	note(b.removeCgroups())
	note(b.removeTraces())
	if len(failed) == 0 {
		note(os.Remove(b.halfDown()))
	}
	return errors.Join(failed...)
}

// halfDown is a file that is there while the bed is taken down: when that was
// cut off, what still runs may have been told to end.
func (b *Bed) halfDown() string { return b.run("going-down") }

func killAll(ctx context.Context, list func() []int, meanwhile func()) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return process.KillAll(ctx, list, meanwhile)
}

// removeTraces removes what would mislead the next start: the state of dead
// containers, sockets nobody listens on, and the mount points of volumes.
func (b *Bed) removeTraces() error {
	paths := []string{
		b.run("containerd"), b.run("processes"), b.run("cni-addresses"), b.namespace(),
		filepath.Join(b.KubeletDir(), "pods"), filepath.Join(b.KubeletDir(), "plugins"), filepath.Join(b.KubeletDir(), "plugins_registry"),
	}
	// What is outside of the bed goes by the containers' ids.
	bundles, _ := filepath.Glob(b.run("containerd", "state", "io.containerd.runtime.v2.task", "k8s.io", "*"))
	for _, bundle := range bundles {
		if address, err := os.ReadFile(filepath.Join(bundle, "address")); err == nil { // the shim's socket
			paths = append(paths, strings.TrimPrefix(strings.TrimSpace(string(address)), "unix://"))
		}
		id := filepath.Base(bundle)
		paths = append(paths, filepath.Join("/run/containerd/runc/k8s.io", id))
		for _, dir := range []string{"/var/lib/cni/results", "/var/lib/cni/cache/results"} {
			paths = append(paths, filepath.Join(dir, "cni-loopback-"+id+"-lo"), filepath.Join(dir, b.id()+"-"+id+"-eth0"))
		}
	}
	for _, p := range paths {
		if err := os.RemoveAll(p); err != nil {
			return fmt.Errorf("remove what is left of the test bed: %w", err)
		}
	}
	return nil
}
