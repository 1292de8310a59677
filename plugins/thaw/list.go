package thaw

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"stillpoint.io/stillpoint/internal/journal"
)

// list holds the frozen workloads in the journal.
type list struct {
	entries []journal.Status
	now     time.Time
}

// choose returns the entries that the flags name.
func (l *list) choose(f *flags) ([]journal.Status, error) {
	for _, name := range f.names {
		if !slices.ContainsFunc(l.entries, func(e journal.Status) bool { return e.ID == name }) {
			return nil, fmt.Errorf("%s does not exist; stillpoint thaw lists the names", name)
		}
	}
	var chosen []journal.Status
	for _, e := range l.entries {
		if f.all || (f.abandoned && e.Abandoned()) || slices.Contains(f.names, e.ID) || slices.Contains(f.namespaces, e.Namespace) {
			chosen = append(chosen, e)
		}
	}
	return chosen, nil
}

func (l *list) table(to io.Writer) error {
	if len(l.entries) == 0 {
		_, err := fmt.Fprintln(to, "Nothing is quiesced.")
		return err
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tQUIESCED\tSINCE\tBACKUP\tHELD BY\tPENDING")
	abandoned := 0
	for _, e := range l.entries {
		holder := e.Holder.String()
		switch {
		case e.Abandoned():
			abandoned++
			holder = "none: " + e.HolderGone
		case e.HolderGone != "":
			holder = "backup " + e.FrozenAgainBy + ", which has quiesced it again"
		}
		var pending []string
		for _, undo := range e.Undo {
			pending = append(pending, step(undo))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.ID, e.Name, duration.HumanDuration(l.now.Sub(e.Since)), e.Backup, oneLine(holder), oneLine(strings.Join(pending, ", ")))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, e := range l.entries {
		if e.Failure != "" {
			fmt.Fprintf(to, "\n%s was not released at %s:\n", e.ID, clockTime(e.Tried))
			for line := range strings.Lines(e.Failure) {
				fmt.Fprintf(to, "  %s\n", strings.TrimSpace(line))
			}
		}
	}
	_, err := fmt.Fprintf(to, "\n%d quiesced, %d of them abandoned%s.\n", len(l.entries), abandoned, advice(abandoned))
	return err
}

func advice(abandoned int) string {
	if abandoned == 0 {
		return ""
	}
	return ": `stillpoint thaw --abandoned` releases them"
}

// step describes a pending undo without its command, which can contain secrets.
func step(undo journal.Undo) string {
	name := undo.Blueprint + "/" + undo.Phase
	switch {
	case undo.Unknown != "":
		return name + " (only by hand)"
	case undo.Task != nil:
		return fmt.Sprintf("%s (%s)", name, undo.Task.Func)
	case undo.Call != nil:
		return fmt.Sprintf("%s (in %s/%s)", name, undo.Call.Pod, undo.Call.Container)
	}
	return name
}

// json writes the list as JSON.
func (l *list) json(to io.Writer) error {
	type holder struct {
		Pod  string `json:"pod,omitempty"`
		Host string `json:"host,omitempty"`
		PID  int    `json:"pid,omitempty"`
		Gone string `json:"gone,omitempty"`
	}
	type owed struct {
		Blueprint string           `json:"blueprint"`
		Phase     string           `json:"phase"`
		Pod       string           `json:"pod,omitempty"`
		Container string           `json:"container,omitempty"`
		Func      string           `json:"func,omitempty"`
		Guarded   bool             `json:"guarded"`
		Unknown   string           `json:"unknown,omitempty"`
		ByHand    string           `json:"byHand,omitempty"`
		Volumes   []journal.Volume `json:"volumes,omitempty"`
	}
	type quiesced struct {
		Name      string    `json:"name"`
		Quiesced  string    `json:"quiesced"`
		Namespace string    `json:"namespace"`
		Backup    string    `json:"backup"`
		Since     time.Time `json:"since"`
		Until     time.Time `json:"until,omitzero"`
		Holder    holder    `json:"holder"`
		Abandoned bool      `json:"abandoned"`
		Owed      []owed    `json:"owed"`
		Tried     time.Time `json:"tried,omitzero"`
		Failure   string    `json:"failure,omitempty"`
	}
	all := make([]quiesced, 0, len(l.entries))
	for _, e := range l.entries {
		q := quiesced{
			Name: e.ID, Quiesced: e.Name, Namespace: e.Namespace, Backup: e.Backup, Since: e.Since, Until: e.Until,
			Holder:    holder{Pod: e.Holder.Pod, Host: e.Holder.Host, PID: e.Holder.PID, Gone: e.HolderGone},
			Abandoned: e.Abandoned(), Owed: []owed{}, Tried: e.Tried, Failure: e.Failure,
		}
		for _, undo := range e.Undo {
			o := owed{Blueprint: undo.Blueprint, Phase: undo.Phase, Guarded: undo.Guarded, Unknown: undo.Unknown, ByHand: undo.ByHand, Volumes: undo.Volumes}
			if undo.Call != nil {
				o.Pod, o.Container = undo.Call.Pod, undo.Call.Container
			}
			if undo.Task != nil {
				o.Func = undo.Task.Func
			}
			q.Owed = append(q.Owed, o)
		}
		all = append(all, q)
	}
	encoder := json.NewEncoder(to)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(map[string]any{"quiesced": all})
}

func clockTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// oneLine joins the lines of an error for a table.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
