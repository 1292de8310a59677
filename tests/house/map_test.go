package house_test

import (
	"go/ast"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var (
	drawing = regexp.MustCompile("(?s)## The map of the code\n.*?```text\n(.*?)```")
	level   = regexp.MustCompile(`^(\d+)  \S`)
	drawn   = regexp.MustCompile(`^   (\S+) {2,}\S`)
)

// TestMapIsTrue holds the map of CONTRIBUTING.md against the code: it has all packages of
// internal/ and no others, and a package imports only those of lower floors.
func TestMapIsTrue(t *testing.T) {
	floors := floorsOf(t)
	found := map[string]bool{"plugins": true}
	for _, file := range sources(t) {
		room := roomOf(file.room())
		found[room] = true
		if _, ok := floors[room]; !ok {
			t.Errorf("internal/%s is not on the map of CONTRIBUTING.md", room)
			continue
		}
		for _, imported := range file.syntax.Imports {
			path, err := strconv.Unquote(imported.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			below, ours := strings.CutPrefix(path, "stillpoint.io/stillpoint/")
			if other := roomOf(below); ours && other != room && floors[other] >= floors[room] {
				t.Errorf("%s: %s (floor %d) imports %s (floor %d): arrows only go down", file.path, room, floors[room], other, floors[other])
			}
		}
	}
	for room := range floors {
		if !found[room] {
			t.Errorf("the map of CONTRIBUTING.md has the room %s, which does not exist", room)
		}
	}
}

var station = regexp.MustCompile("(?m)^[0-9]+\\. `([a-z/]+)`, `(?:\\w+\\.)?(\\w+)`")

// TestWalkIsTrue requires that the stations of the walk in CONTRIBUTING.md exist, and that
// there are ten at the most, no two of them in the same room.
func TestWalkIsTrue(t *testing.T) {
	declared := map[string]bool{}
	for _, file := range sources(t) {
		for _, declaration := range file.syntax.Decls {
			if function, ok := declaration.(*ast.FuncDecl); ok {
				declared[file.room()+" "+function.Name.Name] = true
			}
		}
	}
	stations := station.FindAllStringSubmatch(read(t, filepath.Join(root, "CONTRIBUTING.md")), -1)
	if len(stations) == 0 || len(stations) > 10 {
		t.Errorf("the walk has %d stations", len(stations))
	}
	entered := map[string]bool{}
	for _, s := range stations {
		if !declared[s[1]+" "+s[2]] {
			t.Errorf("the walk has the station %s, %s, which does not exist", s[1], s[2])
		}
		if entered[s[1]] {
			t.Errorf("the walk enters %s twice", s[1])
		}
		entered[s[1]] = true
	}
}

// roomOf returns the name that a directory has on the map: all of plugins/ is one room.
func roomOf(directory string) string {
	if room, ok := strings.CutPrefix(directory, "internal/"); ok {
		return room
	}
	return "plugins"
}

// floorsOf reads the map: the floor of each room.
func floorsOf(t *testing.T) map[string]int {
	t.Helper()
	found := drawing.FindStringSubmatch(read(t, filepath.Join(root, "CONTRIBUTING.md")))
	if found == nil {
		t.Fatal("CONTRIBUTING.md has no map")
	}
	floors := map[string]int{}
	floor := 0
	for line := range strings.Lines(found[1]) {
		if number := level.FindStringSubmatch(line); number != nil {
			floor, _ = strconv.Atoi(number[1])
		} else if room := drawn.FindStringSubmatch(line); room != nil {
			floors[room[1]] = floor
		}
	}
	return floors
}
