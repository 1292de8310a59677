// Package bed brings a one-node Kubernetes cluster up and down on one Linux
// machine: control plane, kubelet, containerd, a CSI driver with snapshots, an
// S3 server and Velero, all built from Go modules and Debian packages, all in
// one private network namespace. It downloads no container image.
//
// Each step looks at what is there and does what is missing, so a start after
// a crash is a start like any other.
package bed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"stillpoint.io/stillpoint/tests/cluster/process"
)

// DirVariable is the environment variable that names the bed's directory. It
// is set for programs that the bed runs.
const DirVariable = "STILLPOINT_TESTBED"

const (
	nodeName = "node1"
	nodeIP   = "10.244.0.1" // the bridge's address: node and gateway of the pods
	podCIDR  = "10.244.0.0/24"
	bridge   = "spbr0"

	serviceCIDR      = "10.96.0.0/16"
	apiServiceIP     = "10.96.0.1" // the first address of serviceCIDR
	apiServer        = "https://" + nodeIP + ":6443"
	s3Address        = nodeIP + ":7070"
	s3Bucket         = "velero"
	exportBucket     = "exports" // of the CSI driver
	s3User, s3Secret = "stillpoint", "stillpoint-secret"

	objectStore = "s3" // the S3 server's directory, among the data
)

// longestSocket is what the kernel takes for the path of a socket.
const longestSocket = 107

// Bed is one test bed, running or not.
type Bed struct {
	// Dir holds everything that the bed keeps.
	Dir string
	// Say reports progress to the person who waits.
	Say func(format string, args ...any)

	Processes process.Table

	// storage is what the cluster calls its storage, or will.
	storage Storage
}

// Open finds the bed of this user; it starts nothing.
func Open(say func(format string, args ...any)) (*Bed, error) {
	dir := os.Getenv(DirVariable)
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find a directory for the test bed (or set %s): %w", DirVariable, err)
		}
		dir = filepath.Join(cache, "stillpoint")
	}
	dir, err := resolve(dir)
	if err != nil {
		return nil, fmt.Errorf("find the test bed's directory: %w", err)
	}
	return at(dir, say)
}

func at(dir string, say func(format string, args ...any)) (*Bed, error) {
	b := &Bed{Dir: dir, Say: say}
	b.Processes = process.Table{Records: b.run("processes"), Logs: b.path("logs"), Mark: dir}
	var err error
	if b.storage, err = b.recordedStorage(); err != nil {
		return nil, err
	}
	if n := len(b.csiRegistration()); n > longestSocket {
		return nil, fmt.Errorf("the test bed's directory %s is too deep: a socket's path would have %d characters, the kernel takes %d; set %s", dir, n, longestSocket, DirVariable)
	}
	return b, nil
}

// resolve gives a path the form in which the kernel names it, in which mounts
// and loop devices are found again. The end of it need not exist.
func resolve(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for existing, rest := dir, ""; ; existing, rest = filepath.Dir(existing), filepath.Join(filepath.Base(existing), rest) {
		real, err := filepath.EvalSymlinks(existing)
		if !errors.Is(err, fs.ErrNotExist) {
			return filepath.Join(real, rest), err
		}
	}
}

func (b *Bed) path(elements ...string) string {
	return filepath.Join(append([]string{b.Dir}, elements...)...)
}

func (b *Bed) run(elements ...string) string { return b.path(append([]string{"run"}, elements...)...) }

func (b *Bed) data(elements ...string) string {
	return b.path(append([]string{"data"}, elements...)...)
}

// Bin is the directory with the bed's programs under their own names.
func (b *Bed) Bin() string { return b.path("bin") }

// Kubeconfig is that of the cluster's administrator.
func (b *Bed) Kubeconfig() string { return b.run("admin.kubeconfig") }

// KubeletDir is the kubelet's root directory, which holds all volume mounts.
func (b *Bed) KubeletDir() string { return b.data("kubelet") }

func (b *Bed) containerdSocket() string { return b.run("containerd", "containerd.sock") }

// CSISocket is where the CSI driver serves.
func (b *Bed) CSISocket() string {
	return filepath.Join(b.KubeletDir(), "plugins", "loopcsi", "csi.sock")
}

func (b *Bed) csiRegistration() string {
	return filepath.Join(b.KubeletDir(), "plugins_registry", "loopcsi-reg.sock")
}
func (b *Bed) store() string { return b.data("store") }

// ObjectStore is the directory of the S3 server, which has a directory for each
// bucket.
func (b *Bed) ObjectStore() string { return b.data(objectStore) }

func (b *Bed) makeDirs() error {
	for _, dir := range []string{
		b.Bin(), b.path("build"), b.path("own"), b.path("logs"), b.run("processes"), b.run("pki"), b.run("containerd"), b.run("cni"),
		b.data("images"), b.data(objectStore, s3Bucket), b.data(objectStore, exportBucket), b.store(), b.KubeletDir(), b.data("podlogs"),
	} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return fmt.Errorf("make the test bed's directories: %w", err)
		}
	}
	return nil
}

// Lock keeps other commands from changing the bed until unlock is called. It
// waits for them, and says so.
func (b *Bed) Lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(b.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("lock the test bed: %w", err)
	}
	f, err := os.OpenFile(b.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the test bed: %w", err)
	}
	for told := false; ; told = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		if !told {
			b.Say("another testbed command is at work, waiting for it")
		}
		if err := sleep(ctx, pollInterval); err != nil {
			return nil, errors.Join(fmt.Errorf("wait for another testbed command: %w", err), f.Close())
		}
	}
}

// Environ is the environment for programs that work with the cluster.
func (b *Bed) Environ() []string {
	env := []string{
		DirVariable + "=" + b.Dir,
		"KUBECONFIG=" + b.Kubeconfig(),
		"PATH=" + b.Bin() + string(os.PathListSeparator) + os.Getenv("PATH"),
	}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if name != DirVariable && name != "KUBECONFIG" && name != "PATH" {
			env = append(env, v)
		}
	}
	return env
}

// Beside opens a second bed, in a directory of this name beside this one's. It
// uses this one's builds of foreign programs and leaves all else of it alone;
// both may run at the same time.
func (b *Bed) Beside(name string) (*Bed, error) {
	dir := b.Dir + "-" + name
	for _, d := range []string{dir, b.path("build")} {
		if err := os.MkdirAll(d, 0o750); err != nil {
			return nil, fmt.Errorf("make a test bed beside %s: %w", b.Dir, err)
		}
	}
	err := os.Symlink(b.path("build"), filepath.Join(dir, "build"))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make a test bed beside %s: %w", b.Dir, err)
	}
	return at(dir, b.Say)
}
