package soak

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// Report writes the results as a table for people, and what was wrong below it.
func Report(results []Result) string {
	var table, text strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DATABASE\tWAY\tBACKUPS\tINTACT\tBROKEN\tQUIESCED (median, longest)")
	for _, r := range results {
		frozen := ""
		if len(r.Frozen) > 0 {
			sorted := slices.Sorted(slices.Values(r.Frozen))
			frozen = fmt.Sprintf("%d ms, %d ms", sorted[len(sorted)/2].Milliseconds(), sorted[len(sorted)-1].Milliseconds())
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%s\n", r.Database, r.Way, r.Backups, r.Intact, r.Broken, frozen)
	}
	_ = w.Flush() // to memory
	for line := range strings.Lines(table.String()) {
		text.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	for _, r := range results {
		for _, reason := range r.Reasons {
			fmt.Fprintf(&text, "\n%s\n", strings.TrimSpace(reason))
		}
	}
	return text.String()
}

// Failed are the broken backups that Stillpoint stands for.
func Failed(results []Result) int {
	failed := 0
	for _, r := range results {
		if r.Promised {
			failed += r.Broken
		}
	}
	return failed
}
