package image

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Dynamic adds an executable or library of Root together with its loader and
// the shared libraries it needs, each at the path where the loader looks for it.
func (c *Contents) Dynamic(at, source string) error {
	file, err := c.resolve(source)
	if err != nil {
		return fmt.Errorf("find %s: %w", source, err)
	}
	c.Program(at, file)
	return c.libraries(file)
}

// resolve is where this machine has a file of Root. Links in it are followed as
// they would be with Root as the root.
func (c *Contents) resolve(source string) (string, error) {
	if c.Root == "" {
		return filepath.EvalSymlinks(source)
	}
	const most = 10 // links of links
	for range most {
		file := filepath.Join(c.Root, source)
		info, err := os.Lstat(file)
		if err != nil {
			return "", err
		}
		if info.Mode()&os.ModeSymlink == 0 {
			return file, nil
		}
		target, err := os.Readlink(file)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(source), target)
		}
		source = target
	}
	return "", fmt.Errorf("%s: too many links", source)
}

// CheckStatic is an error unless source is an executable that needs no loader,
// and so runs in an image of its own.
func CheckStatic(source string) error {
	f, err := elf.Open(source)
	if err != nil {
		return fmt.Errorf("look how %s is linked: %w", source, err)
	}
	defer f.Close()
	if loader := interpreter(f); loader != "" {
		return fmt.Errorf("%s needs %s, which its image does not have: build it with CGO_ENABLED=0", source, loader)
	}
	return nil
}

func (c *Contents) libraries(source string) error {
	f, err := elf.Open(source)
	if err != nil {
		return fmt.Errorf("find the libraries of %s: %w", source, err)
	}
	defer f.Close()
	if loader := interpreter(f); loader != "" {
		found, err := c.resolve(loader)
		if err != nil {
			return fmt.Errorf("find the loader of %s: %w", source, err)
		}
		c.Program(loader, found)
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("find the libraries of %s: %w", source, err)
	}
	for _, lib := range needed {
		at, err := c.findLibrary(lib)
		if err != nil {
			return fmt.Errorf("find the libraries of %s: %w", source, err)
		}
		if _, have := c.entries[at[1:]]; have {
			continue
		}
		if err := c.Dynamic(at, at); err != nil {
			return err
		}
	}
	return nil
}

// interpreter is the loader that the executable names, if it has one.
func interpreter(f *elf.File) string {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return ""
		}
		return strings.TrimRight(string(b), "\x00")
	}
	return ""
}

// findLibrary looks where Debian's loader looks by default. A library that the
// loader itself provides is found there, too.
func (c *Contents) findLibrary(lib string) (string, error) {
	for _, pattern := range []string{"/lib/*-linux-gnu", "/usr/lib/*-linux-gnu", "/lib64", "/lib", "/usr/lib"} {
		matches, _ := filepath.Glob(filepath.Join(c.Root, pattern, lib))
		for _, m := range matches {
			at := strings.TrimPrefix(m, c.Root)
			if _, err := c.resolve(at); err == nil {
				return at, nil
			}
		}
	}
	return "", fmt.Errorf("no %s in the library directories of %s", lib, filepath.Join(c.Root, "/"))
}
