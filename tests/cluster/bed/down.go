package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"stillpoint.io/stillpoint/tests/cluster/freeze"
)

// stopGrace is how long a component may take to end by itself.
const stopGrace = 5 * time.Second

// Thaw thaws every volume of the bed and returns the mount points, below the
// bed's directory, of those that were frozen.
func (b *Bed) Thaw() ([]string, error) {
	frozen, err := freeze.ThawAll(b.Dir)
	for i, point := range frozen {
		frozen[i] = strings.TrimPrefix(point, b.Dir+"/")
	}
	return frozen, err
}

// Down stops everything that belongs to the bed, whether this run of it or one
// that crashed. The cluster's data stays unless wipe is set.
func (b *Bed) Down(ctx context.Context, wipe bool) error {
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
	if !wipe {
		return nil
	}
	for _, dir := range []string{b.run(), b.data(), b.path("logs")} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("wipe the test bed: %w", err)
		}
	}
	return nil
}

// tearDown goes on past an error: what can be cleaned up is.
func (b *Bed) tearDown(ctx context.Context) error {
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
	note(b.killContainers(ctx, thaw))
	for _, name := range slices.Backward(startOrder) {
		note(b.Processes.Stop(ctx, name, stopGrace))
	}
	// What was started but never recorded, and what it started in turn.
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	note(b.Processes.KillMarked(limited, func([]string) bool { return true }, thaw))
	cancel()
	note(b.unmountAll())
	note(b.removeCgroups())
	note(b.removeTraces())
	return errors.Join(failed...)
}

// killContainers ends the processes in all containers, and their shims.
func (b *Bed) killContainers(ctx context.Context, meanwhile func()) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return b.Processes.KillMarked(ctx, func(args []string) bool {
		return len(args) > 0 && strings.HasPrefix(filepath.Base(args[0]), "containerd-shim")
	}, meanwhile)
}

// removeTraces removes what would mislead the next start: the state of dead
// containers, sockets nobody listens on, and the mount points of volumes.
func (b *Bed) removeTraces() error {
	paths := []string{
		b.run("containerd"), b.run("processes"), b.run("cni-addresses"), b.namespace(),
		filepath.Join(b.KubeletDir(), "pods"), filepath.Join(b.KubeletDir(), "plugins"), filepath.Join(b.KubeletDir(), "plugins_registry"),
	}
	// runc's own records are outside of the bed, by the containers' ids.
	bundles, _ := filepath.Glob(b.run("containerd", "state", "io.containerd.runtime.v2.task", "k8s.io", "*"))
	for _, bundle := range bundles {
		paths = append(paths, filepath.Join("/run/containerd/runc/k8s.io", filepath.Base(bundle)))
	}
	results, _ := filepath.Glob(filepath.Join("/var/lib/cni/results", cniNetwork+"-*"))
	cached, _ := filepath.Glob(filepath.Join("/var/lib/cni/cache/results", cniNetwork+"-*"))
	paths = slices.Concat(paths, results, cached)
	for _, p := range paths {
		if err := os.RemoveAll(p); err != nil {
			return fmt.Errorf("remove what is left of the test bed: %w", err)
		}
	}
	return nil
}
