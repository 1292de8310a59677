// Package house_test checks the shape of the code: that the map of CONTRIBUTING.md is
// true, that each package says what it is for, and that a message leads to the code that
// writes it.
package house_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// root is the top directory of the tree.
const root = "../.."

// source is a parsed Go file of internal/ or plugins/ that is not a test.
type source struct {
	path   string // below root
	syntax *ast.File
	files  *token.FileSet
}

// room returns the directory of the file, such as internal/snapshot.
func (s source) room() string { return filepath.ToSlash(filepath.Dir(s.path)) }

// sources parses all files of internal/ and plugins/ that are not tests.
func sources(t *testing.T) []source {
	t.Helper()
	files := token.NewFileSet()
	var all []source
	for _, top := range []string{"internal", "plugins"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			syntax, err := parser.ParseFile(files, path, nil, parser.ParseComments)
			if err != nil {
				return err
			}
			below, err := filepath.Rel(root, path)
			all = append(all, source{path: below, syntax: syntax, files: files})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(all) == 0 {
		t.Fatal("no Go file is found below internal/ and plugins/")
	}
	return all
}
