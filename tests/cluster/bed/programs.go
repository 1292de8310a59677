package bed

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// module is a group of foreign programs built from one folder of programs/,
// whose go.mod and go.sum pin them.
type module struct {
	name     string
	packages []string
	// versionOf is the module whose version the programs are to report, by the
	// linker flags that versionFlags makes.
	versionOf    string
	versionFlags func(version string) []string
	// links are further names of the one program.
	links []string
	// crds is the module whose config/crd is kept beside the programs.
	crds string
}

var modules = []module{
	{
		name: "kube", packages: []string{"."},
		versionOf: "k8s.io/kubernetes", versionFlags: kubeVersion,
		links: []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet"},
	},
	{
		name: "velero", packages: []string{
			"github.com/vmware-tanzu/velero/cmd/velero",
			"github.com/vmware-tanzu/velero/cmd/velero-helper",
			"github.com/vmware-tanzu/velero/cmd/velero-restore-helper",
		},
		versionOf: "github.com/vmware-tanzu/velero",
		versionFlags: func(v string) []string {
			const p = "github.com/vmware-tanzu/velero/pkg/buildinfo."
			return []string{p + "Version=" + v, p + "GitTreeState=clean"}
		},
	},
	{
		name:      "velero-plugin-for-aws",
		packages:  []string{"github.com/vmware-tanzu/velero-plugin-for-aws/velero-plugin-for-aws", "github.com/vmware-tanzu/velero-plugin-for-aws/hack/cp-plugin"},
		versionOf: "github.com/vmware-tanzu/velero-plugin-for-aws",
	},
	{
		name: "snapshotter", packages: []string{
			"github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller",
			"github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter",
		},
		versionOf: "github.com/kubernetes-csi/external-snapshotter/v8", versionFlags: mainVersion("version"),
		crds: "github.com/kubernetes-csi/external-snapshotter/client/v8",
	},
	{
		name: "provisioner", packages: []string{"github.com/kubernetes-csi/external-provisioner/v5/cmd/csi-provisioner"},
		versionOf: "github.com/kubernetes-csi/external-provisioner/v5", versionFlags: mainVersion("version"),
	},
	{
		name: "external-storage", packages: []string{"./external-snapshot-controller", "./external-snapshot-provisioner"},
	},
	{
		name: "s3", packages: []string{"github.com/versity/versitygw/cmd/versitygw"},
		versionOf: "github.com/versity/versitygw", versionFlags: mainVersion("Version"),
	},
}

// ownPrograms are built from this module each time; Go's cache makes it quick.
var ownPrograms = []string{"loopcsi", "pause", "writer"}

func mainVersion(variable string) func(string) []string {
	return func(v string) []string { return []string{"main." + variable + "=" + v} }
}

func kubeVersion(version string) []string {
	minor := strings.Split(version, ".")[1]
	var flags []string
	for _, p := range []string{"k8s.io/component-base/version.", "k8s.io/client-go/pkg/version."} {
		flags = append(flags, p+"gitVersion="+version, p+"gitMajor=1", p+"gitMinor="+minor, p+"gitTreeState=clean")
	}
	return flags
}

// buildsAtOnce is how many modules are built at the same time: while the linker of one
// works, which is one processor's work, the other compiles.
const buildsAtOnce = 2

// build makes sure that all programs are there, for these sources and this Go.
func (b *Bed) build(ctx context.Context) error {
	source, err := findSource()
	if err != nil {
		return err
	}
	steps := len(modules) + 1
	builds, building := errgroup.WithContext(ctx)
	builds.SetLimit(buildsAtOnce)
	for i, m := range modules {
		builds.Go(func() error {
			if err := b.buildModule(building, filepath.Join(source, "tests", "cluster", "programs", m.name), m, fmt.Sprintf("[%d/%d]", i+1, steps)); err != nil {
				return fmt.Errorf("build %s: %w", m.name, err)
			}
			return nil
		})
	}
	if err := builds.Wait(); err != nil {
		return err
	}
	return b.progress(fmt.Sprintf("[%d/%d] own programs", steps, steps), func() error {
		for _, p := range ownPrograms {
			if err := b.buildOwn(ctx, source, p); err != nil {
				return fmt.Errorf("build %s: %w", p, err)
			}
		}
		return nil
	})
}

// buildOwn builds a program of this module. One that comes out the same keeps
// its file and so its time, by which it is seen whether it must be restarted.
// It is not built among the foreign programs, which beds may share.
func (b *Bed) buildOwn(ctx context.Context, source, name string) error {
	built, current := b.path("own", name), b.path("bin", name)
	if err := goBuild(ctx, source, built, nil, "./tests/cluster/cmd/"+name); err != nil {
		return err
	}
	content, err := os.ReadFile(built)
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(current); err == nil && bytes.Equal(have, content) {
		return nil
	}
	if err := os.WriteFile(current+".new", content, 0o700); err != nil {
		return err
	}
	return os.Rename(current+".new", current)
}

// buildModule builds a module's programs into a directory named by its key and
// links them into Bin. What is already there for the same key is kept.
func (b *Bed) buildModule(ctx context.Context, source string, m module, step string) error {
	key, err := moduleKey(ctx, source, m)
	if err != nil {
		return err
	}
	dir := b.path("build", m.name+"-"+key)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := b.progress(step+" "+m.name, func() error { return buildInto(ctx, source, dir, m) }); err != nil {
			return err
		}
	}
	if err := b.linkPrograms(dir, m); err != nil {
		return err
	}
	return b.forgetOlder(m.name, dir)
}

// buildInto fills a directory aside and then gives it its name, so that a
// build that was cut off leaves nothing that looks whole.
func buildInto(ctx context.Context, source, dir string, m module) error {
	aside := dir + ".unfinished"
	if err := os.RemoveAll(aside); err != nil {
		return err
	}
	if err := os.MkdirAll(aside, 0o750); err != nil {
		return err
	}
	var flags []string
	if m.versionFlags != nil {
		version, err := requiredVersion(source, m.versionOf)
		if err != nil {
			return err
		}
		flags = m.versionFlags(version)
	}
	// In a directory, go build gives each program the last part of its package's name.
	output := aside + string(filepath.Separator)
	if len(m.packages) == 1 {
		output = filepath.Join(aside, m.program(m.packages[0]))
	}
	if err := goBuild(ctx, source, output, flags, m.packages...); err != nil {
		return err
	}
	if m.crds != "" {
		if err := copyCRDs(ctx, source, m.crds, filepath.Join(aside, "crds")); err != nil {
			return err
		}
	}
	return os.Rename(aside, dir)
}

func (m module) program(pkg string) string {
	if pkg == "." {
		return m.name
	}
	return filepath.Base(pkg)
}

func (b *Bed) linkPrograms(dir string, m module) error {
	links := map[string]string{}
	for _, p := range m.packages {
		links[m.program(p)] = m.program(p)
	}
	for _, l := range m.links {
		links[l] = m.program(m.packages[0])
	}
	if m.crds != "" {
		links["crds"] = "crds"
	}
	for name, program := range links {
		link := b.path("bin", name)
		if err := os.Symlink(filepath.Join(dir, program), link+".new"); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := os.Rename(link+".new", link); err != nil {
			return err
		}
	}
	return nil
}

// forgetOlder removes a module's earlier builds.
func (b *Bed) forgetOlder(name, current string) error {
	all, _ := filepath.Glob(b.path("build", name+"-*"))
	for _, dir := range all {
		key := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(dir), name+"-"), ".unfinished")
		if dir == current || len(key) != keyLength || strings.Contains(key, "-") {
			continue // another module's name may begin with this one's
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

const keyLength = 16

// moduleKey tells builds apart: by all that is in the folder, how it is built
// and with which Go.
func moduleKey(ctx context.Context, source string, m module) (string, error) {
	version, err := goCommand(ctx, source, "env", "GOVERSION", "GOARCH")
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %q %q %q\n", version, m.packages, m.crds, buildFlags)
	if m.versionFlags != nil {
		fmt.Fprintf(h, "%q\n", m.versionFlags("v0.0.0"))
	}
	files := os.DirFS(source)
	err = fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(files, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s %x\n", path, sha256.Sum256(content))
		return nil
	})
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil))[:keyLength], nil
}

// requiredVersion is the version at which a folder's go.mod requires a module.
func requiredVersion(source, module string) (string, error) {
	content, err := os.ReadFile(filepath.Join(source, "go.mod"))
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`(?m)^(?:require)?\s+` + regexp.QuoteMeta(module) + ` (v\S+)`).FindSubmatch(content)
	if m == nil {
		return "", fmt.Errorf("%s does not require %s", filepath.Join(source, "go.mod"), module)
	}
	return string(m[1]), nil
}

var buildFlags = []string{"-mod=readonly", "-trimpath", "-buildvcs=false"}

// goBuild builds packages by one command, which compiles what they share once.
func goBuild(ctx context.Context, dir, output string, variables []string, packages ...string) error {
	link := "-s -w"
	for _, v := range variables {
		link += " -X " + v
	}
	args := append([]string{"build"}, buildFlags...)
	args = append(args, "-ldflags", link, "-o", output)
	_, err := goCommand(ctx, dir, append(args, packages...)...)
	return err
}

func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s in %s: %w\n%s", strings.Join(args, " "), dir, err, strings.TrimSpace(complaint.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// copyCRDs keeps the CustomResourceDefinitions that come with a module.
func copyCRDs(ctx context.Context, source, module, to string) error {
	dir, err := goCommand(ctx, source, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o750); err != nil {
		return err
	}
	for _, kind := range snapshotKinds {
		file := "snapshot.storage.k8s.io_" + kind + ".yaml"
		content, err := os.ReadFile(filepath.Join(dir, "config", "crd", file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, file), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// findSource is the root of this module's source: the bed builds from it.
func findSource() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		content, err := os.ReadFile(filepath.Join(at, "go.mod"))
		if err == nil && bytes.HasPrefix(content, []byte("module stillpoint.io/stillpoint\n")) {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("%s is not in a checkout of Stillpoint: the test bed builds its programs from there", dir)
		}
	}
}

// progress does a step that may take minutes and says so from time to time.
func (b *Bed) progress(step string, do func() error) error {
	began := time.Now()
	elapsed := func() time.Duration { return time.Since(began).Round(time.Second) }
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Second):
				b.Say("%s … %s", step, elapsed())
			}
		}
	}()
	b.Say("%s …", step)
	err := do()
	close(done)
	if err == nil {
		b.Say("%s done, %s", step, elapsed())
	}
	return err
}
