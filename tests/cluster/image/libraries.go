package image

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Dynamic adds an executable of this machine together with its loader and the
// shared libraries it needs, each at the path where the loader looks for it.
func (c *Contents) Dynamic(at, source string) error {
	c.Program(at, source)
	return c.libraries(source)
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
		c.Program(loader, loader)
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("find the libraries of %s: %w", source, err)
	}
	for _, lib := range needed {
		file, err := findLibrary(lib)
		if err != nil {
			return fmt.Errorf("find the libraries of %s: %w", source, err)
		}
		if _, have := c.entries[file[1:]]; have {
			continue
		}
		c.Program(file, file)
		if err := c.libraries(file); err != nil {
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
func findLibrary(lib string) (string, error) {
	for _, pattern := range []string{"/lib/*-linux-gnu", "/usr/lib/*-linux-gnu", "/lib64", "/lib", "/usr/lib"} {
		matches, _ := filepath.Glob(filepath.Join(pattern, lib))
		for _, m := range matches {
			if _, err := os.Stat(m); err == nil {
				return m, nil
			}
		}
	}
	return "", fmt.Errorf("no %s in the library directories", lib)
}
