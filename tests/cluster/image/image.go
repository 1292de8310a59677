// Package image makes the container images of the test bed from files of this
// machine: one layer and no base, as an archive that a container runtime loads.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Contents is what goes into an image. The zero value is an empty image.
type Contents struct {
	Entrypoint []string
	// Root is the directory in which programs, trees and libraries are found, a
	// system of its own; "" is this machine.
	Root    string
	entries map[string]entry
}

type entry struct {
	source string // a file of this machine, or
	link   string // the target of a symbolic link, or
	text   string // the content itself
	dir    bool
	mode   int64
}

func (c *Contents) add(at string, e entry) {
	if c.entries == nil {
		c.entries = map[string]entry{}
	}
	at = path.Clean(at)[1:]
	c.entries[at] = e
	for dir := path.Dir(at); dir != "."; dir = path.Dir(dir) {
		if _, ok := c.entries[dir]; !ok {
			c.entries[dir] = entry{dir: true, mode: 0o755}
		}
	}
}

// Program adds an executable file of this machine. All paths in the image are
// absolute.
func (c *Contents) Program(at, source string) { c.add(at, entry{source: source, mode: 0o755}) }

// Script adds an executable file with the given content.
func (c *Contents) Script(at, content string) { c.add(at, entry{text: content, mode: 0o755}) }

// Text adds a file with the given content.
func (c *Contents) Text(at, content string) { c.add(at, entry{text: content, mode: 0o644}) }

// Tree adds all files and links below a directory of Root, at the same path.
func (c *Contents) Tree(at string) error {
	top := filepath.Join(c.Root, at)
	err := filepath.WalkDir(top, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := path.Join(at, strings.TrimPrefix(file, top))
		switch {
		case d.IsDir():
			c.Dir(to, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			c.Link(to, target)
		case d.Type().IsRegular():
			info, err := d.Info()
			if err != nil {
				return err
			}
			c.add(to, entry{source: file, mode: int64(info.Mode().Perm())})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("add the files below %s: %w", top, err)
	}
	return nil
}

// Dir adds an empty directory.
func (c *Contents) Dir(at string, mode int64) { c.add(at, entry{dir: true, mode: mode}) }

// Link adds a symbolic link.
func (c *Contents) Link(at, target string) { c.add(at, entry{link: target}) }

// Key identifies the contents without reading the files: by their sizes and
// times. It is for deciding whether an image must be made again.
func (c *Contents) Key() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%q\n", c.Entrypoint)
	for _, at := range c.paths() {
		e := c.entries[at]
		fmt.Fprintf(h, "%q %q %q %q %v %o", at, e.source, e.link, e.text, e.dir, e.mode)
		if e.source != "" {
			info, err := os.Stat(e.source)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(h, " %d %d", info.Size(), info.ModTime().UnixNano())
		}
		fmt.Fprintln(h)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Write makes the image and writes it to file as an archive under the name ref.
func (c *Contents) Write(file, ref string) error {
	tag, err := name.NewTag(ref)
	if err != nil {
		return fmt.Errorf("write image %s: %w", ref, err)
	}
	img, err := c.build()
	if err != nil {
		return fmt.Errorf("write image %s: %w", ref, err)
	}
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		return fmt.Errorf("write image %s to %s: %w", ref, file, err)
	}
	return nil
}

func (c *Contents) build() (v1.Image, error) {
	var layerFile bytes.Buffer
	if err := c.writeLayer(&layerFile); err != nil {
		return nil, err
	}
	// Not compressed: it goes to a runtime of this machine, once.
	layer := static.NewLayer(layerFile.Bytes(), types.DockerUncompressedLayer)
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH // a runtime drops images of no platform
	config.Config = v1.Config{
		Entrypoint: c.Entrypoint,
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	return mutate.ConfigFile(img, config)
}

func (c *Contents) paths() []string {
	all := make([]string, 0, len(c.entries))
	for at := range c.entries {
		all = append(all, at)
	}
	slices.Sort(all) // a directory comes before what is in it
	return all
}

func (c *Contents) writeLayer(to io.Writer) error {
	w := tar.NewWriter(to)
	for _, at := range c.paths() {
		if err := writeEntry(w, at, c.entries[at]); err != nil {
			return fmt.Errorf("add /%s: %w", at, err)
		}
	}
	return w.Close()
}

func writeEntry(w *tar.Writer, at string, e entry) error {
	// One fixed time, so that the same files give the same image.
	h := &tar.Header{Name: at, Mode: e.mode, ModTime: time.Unix(0, 0)}
	switch {
	case e.dir:
		h.Typeflag, h.Name = tar.TypeDir, at+"/"
		return w.WriteHeader(h)
	case e.link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.link, 0o777
		return w.WriteHeader(h)
	case e.source != "":
		content, err := os.ReadFile(e.source)
		if err != nil {
			return err
		}
		return writeFile(w, h, content)
	default:
		return writeFile(w, h, []byte(e.text))
	}
}

func writeFile(w *tar.Writer, h *tar.Header, content []byte) error {
	h.Typeflag, h.Size = tar.TypeReg, int64(len(content))
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
