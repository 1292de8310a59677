package fake

import (
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Node runs the commands of containers in real shells on this machine. The file
// systems that the containers mount, and the kernel's part of a freeze, are made up:
// fsfreeze and sync are programs of the fake, and what a script reads below
// /proc/self and /sys are files that a test can change.
type Node struct {
	t     testing.TB
	dir   string
	shell []string

	mu          sync.Mutex
	containers  map[string]*Container
	fileSystems map[string]*FileSystem
}

// Container is one container of a pod on the node.
type Container struct {
	node *Node
	dir  string

	mu      sync.Mutex
	gone    bool
	env     []string
	running []*exec.Cmd
	silent  []*atomic.Bool
}

// FileSystem is the file system of a claim.
type FileSystem struct {
	node *Node
	dir  string
	// Type is what mountinfo says, Device "major:minor".
	Type, Device string
}

var (
	//go:embed fsfreeze.sh
	fsfreeze string
	//go:embed sync.sh
	syncProgram string
	//go:embed kill.sh
	killFunction string
)

// tools are what a container's image has beside fsfreeze and sync.
var tools = []string{"awk", "cat", "cp", "cut", "date", "env", "false", "grep", "head", "ls", "mkdir", "mv", "rm", "sed", "sleep", "tail", "touch", "true", "tr", "wc"}

// NewNode returns a node whose containers the API's exec reaches.
func NewNode(t testing.TB, api *API) *Node {
	n := &Node{t: t, dir: t.TempDir(), shell: []string{"sh"}, containers: map[string]*Container{}, fileSystems: map[string]*FileSystem{}}
	for _, folder := range []string{"bin", "fs", "uninterruptible"} {
		n.must(os.MkdirAll(filepath.Join(n.dir, folder), 0o755))
	}
	for name, program := range map[string]string{"fsfreeze": fsfreeze, "sync": syncProgram} {
		n.must(os.WriteFile(filepath.Join(n.dir, "bin", name), []byte(program), 0o755))
	}
	api.exec = n.serveExec
	t.Cleanup(n.end)
	return n
}

func (n *Node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// end kills what still runs, and lets stalled freezes end.
func (n *Node) end() {
	for _, fs := range n.fileSystems {
		_ = os.Remove(filepath.Join(fs.dir, "stalled"))
		_ = os.Remove(filepath.Join(fs.dir, "unwritten"))
	}
	for _, c := range n.containers {
		c.Kill()
	}
}

// UseShell has containers run another shell, such as "busybox sh".
func (n *Node) UseShell(shell ...string) { n.shell = shell }

// FileSystem is the file system of a claim, which is made by the first call.
func (n *Node) FileSystem(namespace, claim string) *FileSystem {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := namespace + "_" + claim
	if n.fileSystems[key] == nil {
		fs := &FileSystem{node: n, dir: filepath.Join(n.dir, "fs", key), Type: "ext4", Device: fmt.Sprintf("7:%d", len(n.fileSystems)+1)}
		n.must(os.MkdirAll(fs.dir, 0o755))
		n.fileSystems[key] = fs
	}
	return n.fileSystems[key]
}

// Run starts the containers of a pod: privileged, with fsfreeze, and with the
// pod's claims mounted where its specification has them. Run again writes the
// mounts again, after a change of a FileSystem.
func (n *Node) Run(pod *corev1.Pod) {
	n.t.Helper()
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		mountinfo := []string{"100 1 0:50 / / rw - overlay overlay rw", "101 100 8:1 /var/lib/kubelet/etc-hosts /etc/hosts rw - ext4 /dev/sda1 rw"}
		var mounts []string
		for i, mount := range c.VolumeMounts {
			for _, volume := range pod.Spec.Volumes {
				claim := ""
				switch {
				case volume.Name != mount.Name:
					continue
				case volume.PersistentVolumeClaim != nil:
					claim = volume.PersistentVolumeClaim.ClaimName
				case volume.Ephemeral != nil:
					claim = pod.Name + "-" + volume.Name
				default:
					continue
				}
				fs := n.FileSystem(pod.Namespace, claim)
				root := "/" + mount.SubPath
				mountinfo = append(mountinfo, fmt.Sprintf("%d 100 %s %s %s rw - %s /dev/%s rw", 200+i, fs.Device, root, mount.MountPath, fs.Type, claim))
				mounts = append(mounts, mount.MountPath+" "+fs.dir)
			}
		}
		n.container(pod.Namespace, pod.Name, c.Name, mountinfo, mounts)
		var env []string
		for _, variable := range c.Env {
			value := variable.Value
			if from := variable.ValueFrom; from != nil && from.FieldRef != nil && from.FieldRef.FieldPath == "metadata.name" {
				value = pod.Name
			}
			env = append(env, variable.Name+"="+value)
		}
		n.Container(pod.Namespace, pod.Name, c.Name).env = env
	}
}

func (n *Node) container(namespace, pod, name string, mountinfo, mounts []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := namespace + "_" + pod + "_" + name
	c := n.containers[key]
	if c == nil {
		c = &Container{node: n, dir: filepath.Join(n.dir, "containers", key)}
		n.containers[key] = c
		for _, folder := range []string{"bin", "proc", "sys"} {
			n.must(os.MkdirAll(filepath.Join(c.dir, folder), 0o755))
		}
		for _, tool := range tools {
			if path, err := exec.LookPath(tool); err == nil {
				n.must(os.Symlink(path, filepath.Join(c.dir, "bin", tool)))
			}
		}
		if shell, err := exec.LookPath("sh"); err == nil {
			n.must(os.Symlink(shell, filepath.Join(c.dir, "bin", "sh")))
		}
		for _, tool := range []string{"fsfreeze", "sync"} {
			n.must(os.Symlink(filepath.Join(n.dir, "bin", tool), filepath.Join(c.dir, "bin", tool)))
		}
		c.WriteFile("/proc/self/status", "Name:\tsh\nUid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n")
	}
	c.WriteFile("/proc/self/mountinfo", strings.Join(mountinfo, "\n")+"\n")
	c.WriteFile("/mounts", strings.Join(mounts, "\n")+"\n")
}

// Container is a container that runs, or has run.
func (n *Node) Container(namespace, pod, name string) *Container {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.containers[namespace+"_"+pod+"_"+name]
	if c == nil {
		n.t.Fatalf("the node runs no container %s of pod %s/%s", name, namespace, pod)
	}
	return c
}

// running is what the kubelet finds for an exec.
func (n *Node) running(namespace, pod, name string) (*Container, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.containers[namespace+"_"+pod+"_"+name]
	if c == nil || c.isGone() {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "containers"}, name)
	}
	return c, nil
}

// WriteFile writes a file of the container: /proc/self/..., /sys/... or, by
// another path, one that the fake's own programs read.
func (c *Container) WriteFile(path, content string) {
	c.node.t.Helper()
	path = filepath.Join(c.dir, strings.Replace(path, "/proc/self/", "/proc/", 1))
	c.node.must(os.MkdirAll(filepath.Dir(path), 0o755))
	c.node.must(os.WriteFile(path, []byte(content), 0o644))
}

// ReadFile returns a file of the container, "" if there is none.
func (c *Container) ReadFile(path string) string {
	content, _ := os.ReadFile(filepath.Join(c.dir, path))
	return string(content)
}

// Program adds a program to the container's PATH, or takes the place of one.
func (c *Container) Program(name, script string) {
	c.node.t.Helper()
	c.RemoveProgram(name)
	c.node.must(os.WriteFile(filepath.Join(c.dir, "bin", name), []byte(script), 0o755))
}

// RemoveProgram takes a program out of the container, such as fsfreeze or sh.
func (c *Container) RemoveProgram(name string) { _ = os.Remove(filepath.Join(c.dir, "bin", name)) }

// Start runs a command in the container beside the plugin's, and does not wait for it.
func (c *Container) Start(command ...string) {
	go func() { _ = c.exec(command, streams{stdout: io.Discard, stderr: io.Discard}) }()
}

// Kill ends all processes of the container, and lets none start, until Restart.
func (c *Container) Kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	for _, cmd := range c.running {
		_ = cmd.Process.Kill()
	}
}

// Restart lets processes start again after Kill.
func (c *Container) Restart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = false
}

// Silence has all open connections to the container carry nothing any more,
// without an end: a half-dead connection. New ones work.
func (c *Container) Silence() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, silent := range c.silent {
		silent.Store(true)
	}
}

func (c *Container) isGone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

// exec runs a command until it ends. The end of the connection closes its standard
// input and kills nothing.
func (c *Container) exec(command []string, s streams) error {
	program := filepath.Join(c.dir, "bin", command[0])
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("failed to exec in container: failed to start exec: OCI runtime exec failed: exec failed: unable to start container process: exec: %q: executable file not found in $PATH", command[0])
	}
	argv := append([]string{program}, command[1:]...)
	if command[0] == "sh" {
		argv = append(slices.Clone(c.node.shell), command[1:]...)
		if len(command) > 2 && command[1] == "-c" {
			script := strings.NewReplacer("/proc/self/", c.dir+"/proc/", "/proc/[0-9]", c.dir+"/proc/[0-9]").Replace(command[2])
			script = strings.ReplaceAll(script, "/sys/", c.dir+"/sys/")
			argv[len(c.node.shell)+1] = killFunction + script
		}
	}
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:gosec // what a test runs
	cmd.Env = append(slices.Clone(c.env), "PATH="+c.dir+"/bin", "FAKE_NODE="+c.node.dir, "FAKE_CONTAINER="+c.dir)
	silent := &atomic.Bool{}
	cmd.Stdout, cmd.Stderr = quietable{s.stdout, silent}, quietable{s.stderr, silent}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	c.mu.Lock()
	if err = cmd.Start(); err == nil {
		c.running, c.silent = append(c.running, cmd), append(c.silent, silent)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	go func() {
		if s.stdin != nil {
			_, _ = io.Copy(quietable{stdin, silent}, s.stdin)
		}
		if !silent.Load() {
			_ = stdin.Close()
		}
	}()
	return cmd.Wait()
}

// quietable passes on what is written until it is silent.
type quietable struct {
	to     io.Writer
	silent *atomic.Bool
}

func (q quietable) Write(p []byte) (int, error) {
	if q.silent.Load() {
		return len(p), nil
	}
	return q.to.Write(p)
}

// Frozen reports whether the file system is frozen, by whoever it was.
func (f *FileSystem) Frozen() bool {
	_, err := os.Stat(filepath.Join(f.dir, "frozen"))
	return err == nil
}

// Stall has every freeze that begins from now on wait, as behind a writer on a
// stalled device: uninterruptible, and neither to be thawed nor to be killed. It
// returns what ends the stall; the freezes complete then.
func (f *FileSystem) Stall() (end func()) {
	f.node.t.Helper()
	path := filepath.Join(f.dir, "stalled")
	f.node.must(os.WriteFile(path, nil, 0o644))
	return func() { _ = os.Remove(path) }
}

// StallWrites has nothing be written out any more: sync waits. It returns what ends
// that.
func (f *FileSystem) StallWrites() (end func()) {
	f.node.t.Helper()
	path := filepath.Join(f.dir, "unwritten")
	f.node.must(os.WriteFile(path, nil, 0o644))
	return func() { _ = os.Remove(path) }
}

// Freeze freezes the file system as a third party.
func (f *FileSystem) Freeze() error { return f.ioctl("--freeze") }

// Thaw thaws the file system as a third party.
func (f *FileSystem) Thaw() error { return f.ioctl("--unfreeze") }

func (f *FileSystem) ioctl(option string) error {
	container := f.node.t.TempDir()
	f.node.must(os.WriteFile(filepath.Join(container, "mounts"), []byte("/mnt "+f.dir+"\n"), 0o644))
	cmd := exec.Command(filepath.Join(f.node.dir, "bin", "fsfreeze"), option, "/mnt")
	cmd.Env = []string{"FAKE_NODE=" + f.node.dir, "FAKE_CONTAINER=" + container, "FAKE_WHO=third party: "}
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, said)
	}
	return nil
}

// Journal is what happened to the file system, a word or two for each: "freeze",
// "frozen", "busy" (EBUSY), "thawed", "not frozen" (EINVAL), "sync"; what a third
// party did begins with "third party: ".
func (f *FileSystem) Journal() []string {
	content, err := os.ReadFile(filepath.Join(f.dir, "journal"))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
}
