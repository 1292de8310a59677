package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCompare(t *testing.T) {
	const (
		one   = "Sat Nov 21 04:00:00 UTC 2026"
		two   = "Sat Nov 21 04:00:02 UTC 2026"
		three = "Sat Nov 21 04:00:04 UTC 2026" // after the snapshot
		later = "Sat Nov 21 04:01:00 UTC 2026"
	)
	before, lost := []string{one, two}, []string{one, two, three}
	lostAt := time.Date(2026, 11, 21, 4, 0, 30, 5, time.UTC)
	file := func(lines ...string) string { return strings.Join(lines, "\n") + "\n" }

	for name, test := range map[string]struct {
		text     string
		restored int
		after    int
		want     string // of the error; "" for none
	}{
		"as of the snapshot":    {file(one, two, later), 2, 1, ""},
		"and a line more":       {file(one, two, three, later), 3, 1, ""},
		"not gone on":           {file(one, two), 2, 0, ""},
		"a line lost":           {file(one, later), 1, 1, `1 lines from before the snapshot did not come back: ["` + two + `"]`},
		"everything lost":       {file(later), 0, 1, "2 lines from before the snapshot did not come back"},
		"torn in the middle":    {file(one, two, "Sat Nov 21 04:0"+later), 2, 1, "1 lines are torn"},
		"zeroes":                {file(one, two, strings.Repeat("\x00", 29)+later), 2, 1, "1 lines are torn"},
		"torn at the end":       {file(one, two) + later, 2, 1, "1 lines are torn"},
		"something in between":  {file(one, "Sat Nov 21 04:00:01 UTC 2026", two, later), 1, 3, "older than the loss"},
		"written while deleted": {file(one, two, "Sat Nov 21 04:00:30 UTC 2026"), 2, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := compare(before, lost, test.text, lostAt)
			assert.Equal(t, test.restored, c.restored)
			assert.Len(t, c.after, test.after)
			if test.want == "" {
				require.NoError(t, c.broken())
			} else {
				require.ErrorContains(t, c.broken(), test.want)
			}
		})
	}
}
