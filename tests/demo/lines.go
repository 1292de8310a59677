package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// lines splits what `date` has appended. A line that is not a date, or has no
// end, is torn.
func lines(text string) (all, torn []string) {
	for line := range strings.Lines(text) {
		whole, ended := strings.CutSuffix(line, "\n")
		all = append(all, whole)
		if _, err := time.Parse(time.UnixDate, whole); err != nil || !ended {
			torn = append(torn, whole)
		}
	}
	return all, torn
}

// comparison is a restored file beside the lost one.
type comparison struct {
	// restored counts the lines of the lost file that the restored one begins with.
	restored int
	// missing are those of them that were written before the snapshot and did
	// not come back.
	missing []string
	// after are the lines that follow, early those of them that are older than
	// the loss and so cannot have been written since.
	after, early []string
	torn         []string
}

// compare compares the text of a restored file with the lines that the file had
// before the snapshot, and with those that it had when it was lost.
func compare(before, lost []string, text string, lostAt time.Time) comparison {
	restored, torn := lines(text)
	c := comparison{torn: torn}
	for c.restored < min(len(lost), len(restored)) && lost[c.restored] == restored[c.restored] {
		c.restored++
	}
	if c.restored < len(before) {
		c.missing = slices.Clone(before[c.restored:])
	}
	c.after = restored[c.restored:]
	for _, line := range c.after {
		// A date has whole seconds.
		if written, err := time.Parse(time.UnixDate, line); err == nil && written.Before(lostAt.Truncate(time.Second)) {
			c.early = append(c.early, line)
		}
	}
	return c
}

// broken says what is not as it should be, nil when nothing is.
func (c comparison) broken() error {
	var errs []error
	for _, check := range []struct {
		lines []string
		what  string
	}{
		{c.missing, "lines from before the snapshot did not come back"},
		{c.torn, "lines are torn"},
		{c.early, "lines of the restored file are not the lost file's, but older than the loss"},
	} {
		if len(check.lines) > 0 {
			errs = append(errs, fmt.Errorf("%d %s: %q", len(check.lines), check.what, check.lines))
		}
	}
	return errors.Join(errs...)
}
