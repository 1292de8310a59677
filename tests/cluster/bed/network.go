package bed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// namespace is where the cluster's network namespace is mounted. It has one
// bridge and no way out, and what listens in it is not to be reached from
// outside. In the bed's own directory it cannot clash with another one's.
func (b *Bed) namespace() string { return b.run("network") }

// haveNamespace reports whether the network namespace exists.
func (b *Bed) haveNamespace() bool {
	mounted, err := mountinfo.Mounted(b.namespace())
	return err == nil && mounted
}

// makeNamespace makes the network namespace and keeps it by a mount.
func (b *Bed) makeNamespace() error {
	if b.haveNamespace() {
		return nil
	}
	if err := os.WriteFile(b.namespace(), nil, 0o600); err != nil {
		return fmt.Errorf("make the network namespace: %w", err)
	}
	result := make(chan error)
	go func() {
		// Never unlocked: the thread has another network and ends with this goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("make the network namespace: %w", err)
			return
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, b.namespace(), "", unix.MS_BIND, ""); err != nil {
			result <- fmt.Errorf("mount the network namespace on %s: %w", b.namespace(), err)
			return
		}
		result <- nil
	}()
	return <-result
}

// inside reports whether this process is in the cluster's network namespace.
func (b *Bed) inside() bool {
	var own, bed unix.Stat_t
	if unix.Stat("/proc/thread-self/ns/net", &own) != nil || unix.Stat(b.namespace(), &bed) != nil {
		return false
	}
	return own.Ino == bed.Ino && own.Dev == bed.Dev
}

// Inside is inside for those outside of this package.
func (b *Bed) Inside() bool { return b.inside() }

// Exec replaces this process by a program in the cluster's network namespace.
// It returns only on an error.
func (b *Bed) Exec(program string, args, env []string) error {
	runtime.LockOSThread() // exec keeps the namespaces of the thread that calls it
	if !b.inside() {
		f, err := os.Open(b.namespace())
		if errors.Is(err, fs.ErrNotExist) || (err == nil && !b.haveNamespace()) {
			return errors.New("the test bed is not up; start it with `testbed up`")
		}
		if err != nil {
			return fmt.Errorf("enter the cluster's network: %w", err)
		}
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the cluster's network: %w", err)
		}
	}
	if err := syscall.Exec(program, args, env); err != nil {
		return fmt.Errorf("run %s: %w", program, err)
	}
	return nil
}

// setUpNetwork gives the namespace this process is in its bridge and routes.
func (b *Bed) setUpNetwork(ctx context.Context) error {
	if _, err := command(ctx, "ip", "link", "show", bridge); err != nil {
		if _, err := command(ctx, "ip", "link", "add", bridge, "type", "bridge"); err != nil {
			return err
		}
	}
	for _, args := range []string{
		"link set lo up",
		"addr replace " + nodeIP + "/24 dev " + bridge,
		"link set " + bridge + " up",
		"route replace default via " + nodeIP + " dev " + bridge,
	} {
		if _, err := command(ctx, "ip", strings.Fields(args)...); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("switch forwarding on: %w", err)
	}
	return nil
}
