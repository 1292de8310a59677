package house_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPackagesHaveDocumentation requires that each package says in one place what it is
// for.
func TestPackagesHaveDocumentation(t *testing.T) {
	documents := map[string][]string{}
	for _, file := range sources(t) {
		documents[file.room()] = append(documents[file.room()], "")
		if file.syntax.Doc != nil {
			if name := file.syntax.Name.Name; name != "main" && !strings.HasPrefix(file.syntax.Doc.Text(), "Package "+name+" ") {
				t.Errorf("%s: the package comment has to start with %q", file.path, "Package "+name)
			}
			documents[file.room()] = append(documents[file.room()], file.path)
		}
	}
	for room, files := range documents {
		files = slices.DeleteFunc(files, func(path string) bool { return path == "" })
		if len(files) != 1 {
			t.Errorf("package %s: it has to have one package comment, and has %d %v", room, len(files), files)
		}
	}
}

// TestLinksLeadSomewhere follows the relative links of all Markdown files, headings
// included.
func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]*)\)`)
	anchors := map[string][]string{}
	for _, page := range pages(t) {
		for _, found := range link.FindAllStringSubmatch(withoutCode(read(t, page)), -1) {
			target, anchor, _ := strings.Cut(found[1], "#")
			if strings.Contains(target, ":") {
				continue // a web page
			}
			path := page
			if target != "" {
				path = filepath.Join(filepath.Dir(page), target)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: link %s: %v", page, found[1], err)
				continue
			}
			if anchor == "" {
				continue
			}
			if _, ok := anchors[path]; !ok {
				anchors[path] = headings(read(t, path))
			}
			if !slices.Contains(anchors[path], anchor) {
				t.Errorf("%s: link %s: there is no heading for #%s", page, found[1], anchor)
			}
		}
	}
}

// pages returns the Markdown files of the tree.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains([]string{".git", "build", "testdata"}, entry.Name()):
			return filepath.SkipDir
		case strings.HasSuffix(path, ".md"):
			all = append(all, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	fence    = regexp.MustCompile("(?ms)^ *```.*?^ *```")
	code     = regexp.MustCompile("`[^`\n]*`")
	heading  = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	noAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

func withoutCode(page string) string {
	return code.ReplaceAllString(fence.ReplaceAllString(page, ""), "")
}

// headings returns the anchors that GitHub gives the headings of a page.
func headings(page string) []string {
	var anchors []string
	for _, found := range heading.FindAllStringSubmatch(fence.ReplaceAllString(page, ""), -1) {
		anchors = append(anchors, strings.ReplaceAll(noAnchor.ReplaceAllString(strings.ToLower(found[1]), ""), " ", "-"))
	}
	return anchors
}
