package check

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/tabwriter"
)

// Table writes a report for people.
func (r *Report) Table(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	b := r.Backup
	of := "all namespaces"
	if len(b.Namespaces) > 0 {
		of = "namespaces " + strings.Join(b.Namespaces, ", ")
	}
	if len(b.Namespaces) == 1 {
		of = "namespace " + b.Namespaces[0]
	}
	if b.Schedule != "" {
		of = "Schedule " + b.Schedule + ", " + of
	}
	line("Backup of:\t%s", of)
	line("Volume policies:\t%s; global: %s", orDash(b.VolumePolicies), orDash(b.GlobalVolumePolicies))
	line("Velero server:\t%s; EnableCSI %t, %s, polls every %s", b.Server, b.EnableCSI, plural(b.ItemBlockWorkers, "worker"), b.SnapshotPoll)
	line("Data movement:\t%t; csiSnapshotTimeout %s", b.SnapshotMoveData, b.CSISnapshotTimeout)
	_ = w.Flush()
	says(w, "", r.Failures, r.Warnings, r.Notes)
	for _, u := range r.Units {
		u.table(w)
	}
	units, volumes, failing := r.counts()
	line("")
	switch {
	case failing > 0:
		line("%s with %s: a backup would fail for %d of them.", plural(units, "unit"), plural(volumes, "volume"), failing)
	case r.Fails:
		line("A backup would fail.")
	default:
		line("%s with %s: nothing is known that a backup would fail for.", plural(units, "unit"), plural(volumes, "volume"))
	}
	return w.Flush()
}

// says writes one line for each failure, warning and note.
func says(w *tabwriter.Writer, indent string, failures, warnings, notes []string) {
	for _, kind := range []struct {
		name  string
		texts []string
	}{{"FAILS", failures}, {"WARNING", warnings}, {"NOTE", notes}} {
		for _, text := range kind.texts {
			// Errors can have several lines; a tab would begin a column.
			text = strings.ReplaceAll(strings.ReplaceAll(text, "\t", " "), "\n", "\n"+indent+"    ")
			fmt.Fprintf(w, "%s%s: %s\n", indent, kind.name, text)
		}
	}
	_ = w.Flush()
}

func (u Unit) table(w *tabwriter.Writer) {
	line := func(format string, args ...any) { fmt.Fprintf(w, "  "+format+"\n", args...) }
	fmt.Fprintf(w, "\n%s\n", u.title())
	_ = w.Flush()
	for _, workload := range u.Workloads {
		switch {
		case workload.OfNamespace:
			line("object\t%s %s, for all claims of the namespace", workload.Kind, workload.Name)
		case len(workload.StandsFor) > 0:
			line("object\t%s %s, for %s", workload.Kind, workload.Name, strings.Join(workload.StandsFor, ", "))
		}
		for _, pod := range workload.Pods {
			line("pod\t%s: %s", pod.Name, orDash(strings.Join(pod.Containers, ", ")))
		}
	}
	if q := u.Quiesce; q != nil {
		for _, blueprint := range q.Blueprints {
			line("blueprint\t%s (%s), asked for by %s", blueprint.Name, orNotKnown(blueprint.Source), blueprint.AskedBy)
			for _, command := range blueprint.Pre {
				line("  pre\t%s", command)
			}
			for _, command := range blueprint.Post {
				line("  post\t%s", command)
			}
		}
		line("limits\tprepare %s, frozen %s, on error %s", q.PrepareTimeout, q.QuiesceTimeout, q.OnError)
		if p := q.PredictedFreeze; p != nil {
			line("freeze\tpredicted %s to %s and the time of the storage, for %s", p.Shortest, p.Longest, plural(p.Snapshots, "snapshot"))
		}
	} else {
		line("quiesce\tnot asked for")
	}
	_ = w.Flush()
	line("CLAIM\tSIZE\tACCESS\tMODE\tDRIVER\tPATH\tCLASS\tWHY")
	for _, v := range u.Volumes {
		why := v.SnapshotClassReason
		if v.Path == PathNone {
			why = v.Reason
		}
		line("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s", v.Claim, orDash(v.Size), orDash(access(v.AccessModes)), v.VolumeMode, orDash(v.Driver),
			v.Path, orDash(v.SnapshotClass), orDash(why))
	}
	_ = w.Flush()
	says(w, "  ", u.Failures, u.Warnings, u.Notes)
}

// String is what a person sees of a command.
func (c Command) String() string {
	switch {
	case c.Needs != "":
		return fmt.Sprintf("%s, when %s is known", c.Task, c.Needs)
	case c.Task != "":
		return c.Task
	}
	return fmt.Sprintf("%s/%s: %s", c.Pod, c.Container, shell(c.Command))
}

// title names a unit. A claim without a workload has no running pod.
func (u Unit) title() string {
	if len(u.Workloads) == 0 {
		return u.Name + " (no running pod mounts it)"
	}
	var names []string
	for _, w := range u.Workloads {
		names = append(names, fmt.Sprintf("%s %s/%s", w.Kind, u.Namespace, w.Name))
	}
	title := strings.Join(names, " and ")
	if u.Name != title && strings.HasPrefix(u.Name, "PersistentVolumeClaim ") {
		title = u.Name + " of " + title
	}
	return title
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func orNotKnown(source string) string {
	if source == "" {
		return "source not known"
	}
	return source
}

// access are access modes as kubectl has them.
func access(modes []string) string {
	short := strings.NewReplacer("ReadWriteOncePod", "RWOP", "ReadWriteOnce", "RWO", "ReadOnlyMany", "ROX", "ReadWriteMany", "RWX")
	return short.Replace(strings.Join(modes, ","))
}

// plain are words that a shell takes as they are.
var plain = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./*-]+$`)

// longest is how much is shown of a word that is a script of several lines.
const longest = 30

// shell writes a command on one line, as a shell would take it; of a script
// there is only the beginning.
func shell(command []string) string {
	words := make([]string, len(command))
	for i, word := range command {
		if line, _, more := strings.Cut(word, "\n"); more {
			runes := []rune(line)
			word = string(runes[:min(len(runes), longest)]) + "..."
		}
		if !plain.MatchString(word) {
			word = "'" + strings.ReplaceAll(strings.ReplaceAll(word, "\t", " "), "'", `'\''`) + "'"
		}
		words[i] = word
	}
	return strings.Join(words, " ")
}
