package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"stillpoint.io/stillpoint/tests/cluster"
)

// The targets that the report holds the figures against.
const (
	floorFactor, floorMargin = 1.5, 30.0 // the stall of the group path: by the floor, and more, ms
	claimsFactor             = 10.0      // times faster than Velero
	mostMemory, mostDisk     = 60.0, 60.0
	mostAfterExport          = 10.0 // s: one poll of Velero; the driver's own time comes on top
)

// kindsListed is how many kinds of requests are listed of each backup.
const kindsListed = 12

// report is for people; the ratios come first.
func report(found results) string {
	var b strings.Builder
	f := summarize(found)
	for _, of := range []struct {
		limits  string
		all     []series
		medians []stall
	}{
		{"the default request limits of the snapshot controller and the CSI sidecar", found.stallsDefault, f.StallDefault},
		{"raised request limits", found.stalls, f.Stall},
	} {
		if len(of.all) == 0 {
			continue
		}
		fmt.Fprintf(&b, "With %s:\n", of.limits)
		b.WriteString("Stall of the application, the longest that a write had to wait: ratios of the medians.\n")
		b.WriteString(table(ratios(of.medians)))
		b.WriteString("\nThe same in ms: the median of the runs (the shortest to the longest).\n")
		b.WriteString("The floor is no stall: the storage cuts all snapshots at once, without a backup.\n")
		b.WriteString(table(stalls(of.all, found.runs)))
		b.WriteString("\n")
	}
	if len(found.exports) > 0 {
		b.WriteString("From Completed to the storage's snapshot gone, in s: the median of the exports (the shortest to the longest).\n")
		b.WriteString(table(exportRows(found)))
		b.WriteString("\n")
	}
	if len(found.leftovers) > 0 {
		fmt.Fprintf(&b, "Snapshots left in the storage after backups of %d volumes, every %dth upload of which was spoiled.\n", leftVolumes, leftEvery)
		for _, l := range found.leftovers {
			fmt.Fprintf(&b, "  %s\n", l)
		}
		b.WriteString("\n")
	}
	if rows := latencyRows(found); len(rows) > 1 {
		fmt.Fprintf(&b, "Writes of %d KiB to a volume of which the storage holds snapshots, each on stable storage before the next:\n", latencyBlock>>10)
		b.WriteString("ratios to the median without one, then ms: the median of the rounds (the shortest to the longest).\n")
		b.WriteString(table(rows))
		b.WriteString("\n")
	}
	for _, line := range targets(found, f) {
		b.WriteString(line + "\n")
	}
	if len(found.claims.velero) > 0 && len(found.claims.stillpoint) > 0 {
		fmt.Fprintf(&b, "\nRequests to the API server during the backup of %d claims, for each claim (the first run of each).\n", claims)
		b.WriteString(kinds(found.claims.velero[0].requests, found.claims.stillpoint[0].requests))
	}
	return b.String()
}

// table sets rows in columns, aligned at the right.
func table(rows [][]string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t")+"\t")
	}
	_ = w.Flush() // to memory
	return b.String()
}

func ratios(all []stall) [][]string {
	pairs := []struct{ of, by way }{{hooks, group}, {early, group}, {around, group}, {location, group}, {group, floor}, {hooks, around}}
	rows := [][]string{{"volumes"}}
	for _, pair := range pairs {
		rows[0] = append(rows[0], pair.of.String()+"/"+pair.by.String())
	}
	for i := range all {
		row := []string{strconv.Itoa(all[i].Volumes)}
		for _, pair := range pairs {
			row = append(row, ratio(*all[i].of(pair.of), *all[i].of(pair.by)))
		}
		rows = append(rows, row)
	}
	return rows
}

func ratio(of, by *float64) string {
	if of == nil || by == nil || *by == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1fx", *of / *by)
}

func stalls(all []series, runs int) [][]string {
	rows := [][]string{append([]string{"volumes", "runs"}, names[:]...)}
	for _, s := range all {
		row := []string{strconv.Itoa(s.volumes), strconv.Itoa(runsOf(s.volumes, runs))}
		for _, w := range ways {
			row = append(row, spread(s.stalls[w]))
		}
		rows = append(rows, row)
	}
	return rows
}

// spread is in ms.
func spread(d []time.Duration) string { return spreadOf(values(d, millis), "%.0f") }

func spreadOf(of []float64, format string) string {
	if len(of) == 0 {
		return "-"
	}
	middle := fmt.Sprintf(format, median(of))
	if len(of) == 1 {
		return middle
	}
	return fmt.Sprintf("%s ("+format+" to "+format+")", middle, slices.Min(of), slices.Max(of))
}

// exportRows has a line for each class, with the ratio of the medians of Velero
// alone and of Stillpoint with the same mover.
func exportRows(found results) [][]string {
	rows := [][]string{{"class", "Velero/Stillpoint"}}
	for _, who := range []exports{{played: true}, {}, {by: byVelero}} {
		rows[0] = append(rows[0], who.who(), "exports", "left")
	}
	for _, class := range snapshotClasses {
		mine, peer := found.exportsOf(byStillpoint, false, class), found.exportsOf(byVelero, false, class)
		row := []string{class.String(), ratio(figure(peer.gone, time.Duration.Seconds), figure(mine.gone, time.Duration.Seconds))}
		for _, e := range []*exports{found.exportsOf(byStillpoint, true, class), mine, peer} {
			row = append(row, spreadOf(values(e.gone, time.Duration.Seconds), "%.1f"), strconv.Itoa(len(e.gone)+e.left), strconv.Itoa(e.left))
		}
		rows = append(rows, row)
	}
	return rows
}

func latencyRows(found results) [][]string {
	rows := [][]string{{"held", "rounds", "median", "99 of 100", "median ms", "99 of 100 ms"}}
	none := found.latencies[0]
	for i, l := range found.latencies {
		if len(l.median) == 0 {
			continue
		}
		times := func(of, by []time.Duration) string {
			if len(by) == 0 {
				return "-"
			}
			return fmt.Sprintf("%.2fx", median(values(of, millis))/median(values(by, millis)))
		}
		rows = append(rows, []string{
			strconv.Itoa(held[i]), strconv.Itoa(len(l.median)), times(l.median, none.median), times(l.p99, none.p99),
			spreadOf(values(l.median, millis), "%.2f"), spreadOf(values(l.p99, millis), "%.2f"),
		})
	}
	return rows
}

// targets are lines with a figure each, and whether it is what we want.
func targets(found results, f figures) []string {
	var lines []string
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, s := range f.Stall {
		if s.Group != nil && s.Floor != nil {
			most := floorFactor**s.Floor + floorMargin
			say("stall with volumes=%d: %.0f ms in the group path, target at most %.1f x floor + %.0f ms = %.0f ms: %s",
				s.Volumes, *s.Group, floorFactor, floorMargin, most, verdict(most-*s.Group, "%.0f ms"))
		}
	}
	velero, ours := found.claims.velero, found.claims.stillpoint
	if len(velero) > 0 && len(ours) > 0 {
		times := *f.Backup50.Velero / *f.Backup50.Stillpoint
		say("backup of %d claims: Velero alone %s s in %d run, with the volume policy %s s in %d runs: %.1f times faster, target at least %.0f: %s", claims,
			spreadOf(values(velero, seconds), "%.1f"), len(velero), spreadOf(values(ours, seconds), "%.1f"), len(ours), times, claimsFactor, verdict(times-claimsFactor, "%.1f"))
		say("requests for each of them: Velero alone %s, with the volume policy %s, target at most Velero's: %s",
			spreadOf(values(velero, requestsPerClaim), "%.1f"), spreadOf(values(ours, requestsPerClaim), "%.1f"),
			verdict(*f.RequestsPerPVC.Velero-*f.RequestsPerPVC.Stillpoint, "%.1f"))
	}
	for _, e := range f.AfterExport.Exports {
		if e.By == byStillpoint.String() && e.Worst != nil {
			say("after the export, class %s, mover %s: gone after %.1f s at the worst, target one poll of Velero and the driver's time = %.0f s and that: %s; %d of %d left, target none: %s", e.Class, e.DataMover,
				*e.Worst, mostAfterExport, verdict(mostAfterExport-*e.Worst, "%.1f s"), e.Left, e.Exports, verdict(float64(-e.Left), "%.0f"))
		}
	}
	if left := f.AfterExport.Left; left != nil {
		say("after all backups by Stillpoint: %d in the storage, target none: %s", *left, verdict(float64(-*left), "%.0f"))
	}
	if len(found.process.starts) > 0 {
		say("plugin: serves after %s ms, %d starts", spreadOf(values(found.process.starts, millis), "%.1f"), len(found.process.starts))
	}
	if p := f.Process.RSS; p != nil {
		say("plugin: %s MiB resident at the most during the backup of %d claims, target at most %.0f: %s",
			spreadOf(found.process.rss, "%.1f"), claims, mostMemory, verdict(mostMemory-*p, "%.1f MiB"))
	}
	if p := f.Process.Binary; p != nil {
		say("plugin: %.1f MiB on disk, target at most %.0f: %s", *p, mostDisk, verdict(mostDisk-*p, "%.1f MiB"))
	}
	return lines
}

// verdict tells by how much a target is met or missed; spare is negative then.
func verdict(spare float64, format string) string {
	if spare < 0 {
		return "MISSED by " + fmt.Sprintf(format, -spare)
	}
	return "met by " + fmt.Sprintf(format, spare)
}

// kind is what a request asks for, program who asks.
func kind(r cluster.Request) string    { return r.Verb + " " + r.Resource }
func program(r cluster.Request) string { return r.Program }

// kinds shows where the requests come from: the most frequent kinds of either
// backup, and the programs.
func kinds(velero, ours []cluster.Request) string {
	byVelero, byUs := count(velero, kind), count(ours, kind)
	listed := map[string]bool{}
	for _, counts := range []map[string]int{byVelero, byUs} {
		for _, k := range slices.SortedFunc(maps.Keys(counts), frequentFirst(counts, nil))[:min(kindsListed, len(counts))] {
			listed[k] = true
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%8s%8s\n", "Velero", "policy")
	line := func(velero, ours int, what string) {
		fmt.Fprintf(&b, "%8.2f%8.2f  %s\n", float64(velero)/claims, float64(ours)/claims, what)
	}
	restOfVelero, restOfUs := len(velero), len(ours)
	for _, k := range slices.SortedFunc(maps.Keys(listed), frequentFirst(byVelero, byUs)) {
		line(byVelero[k], byUs[k], k)
		restOfVelero -= byVelero[k]
		restOfUs -= byUs[k]
	}
	line(restOfVelero, restOfUs, "all others")
	byVelero, byUs = count(velero, program), count(ours, program)
	for _, k := range slices.SortedFunc(maps.Keys(merged(byVelero, byUs)), frequentFirst(byVelero, byUs)) {
		line(byVelero[k], byUs[k], "by "+k)
	}
	return b.String()
}

func count(requests []cluster.Request, of func(cluster.Request) string) map[string]int {
	counts := map[string]int{}
	for _, r := range requests {
		counts[of(r)]++
	}
	return counts
}

func merged(one, other map[string]int) map[string]int {
	both := maps.Clone(one)
	maps.Copy(both, other)
	return both
}

// frequentFirst orders by the sum of two counts.
func frequentFirst(one, other map[string]int) func(a, b string) int {
	return func(a, b string) int {
		return cmp.Or(cmp.Compare(one[b]+other[b], one[a]+other[a]), cmp.Compare(a, b))
	}
}
