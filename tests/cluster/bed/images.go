package bed

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"stillpoint.io/stillpoint/tests/cluster/image"
)

// The images of the cluster. Their names lead to no registry.
const (
	// AppImage is for the applications of tests: busybox, dash, bash, fsfreeze
	// of util-linux, and cmd/writer.
	AppImage = "stillpoint.local/app:1"

	pauseImage  = "stillpoint.local/pause:1"
	veleroImage = "stillpoint.local/velero:v1"
	awsImage    = "stillpoint.local/velero-plugin-for-aws:v1"

	// pluginRepository is where our own plugin's image gets its tag.
	pluginRepository = "stillpoint.local/stillpoint"
)

// importImages makes and imports the images that containerd does not have yet
// in this form. It returns the names of those it imported.
func (b *Bed) importImages(ctx context.Context) ([]string, error) {
	app, err := b.appContents(ctx)
	if err != nil {
		return nil, fmt.Errorf("make image %s: %w", AppImage, err)
	}
	pause := &image.Contents{Entrypoint: []string{"/pause"}}
	pause.Program("/pause", b.path("bin", "pause"))
	aws := &image.Contents{Entrypoint: []string{"/bin/cp-plugin", "/plugins/velero-plugin-for-aws", "/target/velero-plugin-for-aws"}}
	aws.Program("/bin/cp-plugin", b.path("bin", "cp-plugin"))
	aws.Program("/plugins/velero-plugin-for-aws", b.path("bin", "velero-plugin-for-aws"))

	return b.importMissing(ctx, map[string]*image.Contents{
		pauseImage: pause, AppImage: app, veleroImage: b.veleroContents(), awsImage: aws,
	})
}

// importMissing imports those images that containerd does not have in this form.
func (b *Bed) importMissing(ctx context.Context, images map[string]*image.Contents) ([]string, error) {
	present, err := b.images(ctx)
	if err != nil {
		return nil, err
	}
	var imported []string
	for ref, contents := range images {
		key, err := contents.Key()
		if err != nil {
			return imported, fmt.Errorf("make image %s: %w", ref, err)
		}
		record := b.data("images", strings.NewReplacer("/", "_", ":", "_").Replace(ref))
		have, _ := os.ReadFile(record)
		if string(have) == key && slices.Contains(present, ref) {
			continue
		}
		if err := b.importImage(ctx, ref, contents); err != nil {
			return imported, err
		}
		imported = append(imported, ref)
		if err := os.WriteFile(record, []byte(key), 0o600); err != nil {
			return imported, fmt.Errorf("make image %s: %w", ref, err)
		}
	}
	return imported, nil
}

func (b *Bed) importImage(ctx context.Context, ref string, contents *image.Contents) error {
	archive := b.data("images", "import.tar")
	defer os.Remove(archive)
	if err := contents.Write(archive, ref); err != nil {
		return err
	}
	_, err := b.ctr(ctx, "images", "import", archive)
	return err
}

// images lists the names of the images that containerd has.
func (b *Bed) images(ctx context.Context) ([]string, error) {
	out, err := b.ctr(ctx, "images", "list", "--quiet")
	return strings.Fields(out), err
}

func (b *Bed) ctr(ctx context.Context, args ...string) (string, error) {
	return command(ctx, "ctr", append([]string{"--address", b.containerdSocket(), "--namespace", "k8s.io"}, args...)...)
}

// appContents is what tests run as applications: three shells, the tools of
// busybox, fsfreeze of util-linux, and our writer.
func (b *Bed) appContents(ctx context.Context) (*image.Contents, error) {
	c := base()
	if err := addBusybox(ctx, c); err != nil {
		return nil, err
	}
	for at, program := range map[string]string{"/sbin/fsfreeze": "fsfreeze", "/bin/dash": "dash", "/bin/bash": "bash"} {
		path, err := filepath.EvalSymlinks(findProgram(program))
		if err != nil {
			return nil, err
		}
		if err := c.Dynamic(at, path); err != nil {
			return nil, err
		}
	}
	c.Program("/bin/writer", b.path("bin", "writer"))
	return c, nil
}

// addBusybox adds busybox under the names of its tools, but for those that an
// image has of its own: bash, dash, and fsfreeze of util-linux.
func addBusybox(ctx context.Context, c *image.Contents) error {
	busybox := findProgram("busybox")
	applets, err := command(ctx, busybox, "--list")
	if err != nil {
		return err
	}
	c.Program("/bin/busybox", busybox)
	for _, applet := range strings.Fields(applets) {
		if !slices.Contains([]string{"bash", "busybox", "dash", "fsfreeze"}, applet) {
			c.Link("/bin/"+applet, "/bin/busybox")
		}
	}
	return nil
}

// veleroContents has the helper programs where Velero's own image has them.
func (b *Bed) veleroContents() *image.Contents {
	c := base()
	c.Entrypoint = []string{"/velero"}
	for _, p := range []string{"velero", "velero-helper", "velero-restore-helper"} {
		c.Program("/"+p, b.path("bin", p))
	}
	return c
}

// base is what programs expect of any system.
func base() *image.Contents {
	c := &image.Contents{}
	for _, dir := range []string{"/dev", "/proc", "/root", "/run", "/sys", "/var"} {
		c.Dir(dir, 0o755)
	}
	c.Dir("/tmp", 0o1777)
	c.Text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
	c.Text("/etc/group", "root:x:0:\nnobody:x:65534:\n")
	return c
}

// importPlugin makes the image of our plugin from its binary, which is all
// that is in it, and imports it under a name that changes with the binary.
func (b *Bed) importPlugin(ctx context.Context, binary string) (ref string, err error) {
	if err := image.CheckStatic(binary); err != nil {
		return "", fmt.Errorf("make the plugin's image: %w", err)
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		return "", fmt.Errorf("make the plugin's image: %w", err)
	}
	sum := sha256.Sum256(content)
	ref = pluginRepository + ":" + hex.EncodeToString(sum[:6])
	present, err := b.images(ctx)
	if err != nil || slices.Contains(present, ref) {
		return ref, err
	}
	c := &image.Contents{Entrypoint: []string{"/stillpoint"}}
	c.Program("/stillpoint", binary)
	c.Dir("/tmp", 0o1777)
	return ref, b.importImage(ctx, ref, c)
}
