package cleanup

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/duration"
)

// Table writes the report as a table.
func (r *Report) Table(to io.Writer) error {
	if len(r.Findings)+len(r.External) == 0 {
		_, err := fmt.Fprintln(to, "Nothing is left of backups and restores that are over.")
		return err
	}
	if len(r.Findings) == 0 {
		return r.tableOfExternal(to)
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "OBJECT\tSIZE\tAGE\tBACKUP\tACTION\tREASON")
	for i := range r.Findings {
		f := &r.Findings[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", f.Object(), size(f.Size), duration.HumanDuration(f.Age(r.now)), cmp.Or(f.Backup, "-"), f.actionText(), oneLine(f.Reason))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(to, "\n%s\n", r.summary()); err != nil || len(r.External) == 0 {
		return err
	}
	fmt.Fprintln(to)
	return r.tableOfExternal(to)
}

func (r *Report) tableOfExternal(to io.Writer) error {
	for i := range r.External {
		e := &r.External[i]
		then := "stays until somebody deletes it"
		if e.Over {
			then = "is deleted by --delete, and by the next backup that has such volumes"
		}
		if _, err := fmt.Fprintf(to, "%s %s: %s\n", e.Object(), then, oneLine(e.Reason)); err != nil {
			return err
		}
	}
	return nil
}

// Object returns kind and name.
func (e *External) Object() string {
	return fmt.Sprintf("%s %s of volumesnapshot.external-storage.k8s.io", e.Kind, strings.TrimPrefix(e.Namespace+"/"+e.Name, "/"))
}

// JSON writes the report as JSON.
func (r *Report) JSON(to io.Writer) error {
	encoder := json.NewEncoder(to)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(r)
}

// actionText returns the action in words.
func (f *Finding) actionText() string {
	words := map[Action]string{Delete: "delete", DeleteObjectsOnly: "delete objects", List: "list", Keep: "keep"}
	return words[f.Action]
}

// summary counts the findings by action. A storage snapshot that several objects refer
// to is counted once.
func (r *Report) summary() string {
	counts := map[Action]int{}
	sizes := map[string]int64{}
	for i := range r.Findings {
		f := &r.Findings[i]
		counts[f.Action]++
		if f.Action == Delete {
			key := f.Driver + " " + f.Handle
			if f.Handle == "" {
				key = f.Object()
			}
			sizes[key] = max(sizes[key], f.Size)
		}
	}
	var bytes int64
	for _, size := range sizes {
		bytes += size
	}
	return fmt.Sprintf("%d to delete (snapshots of %s), %d to delete without the storage's snapshot, %d only listed, %d kept.",
		counts[Delete], size(bytes), counts[DeleteObjectsOnly], counts[List], counts[Keep])
}

// Line describes the result of a deletion.
func (r Result) Line() string {
	switch {
	case r.Err != nil:
		return notDeleted(r.Finding.Object(), r.Err)
	case r.Finding.Action == DeleteObjectsOnly:
		return fmt.Sprintf("Deleted the objects of %s; the storage's snapshot stays", r.Finding.Object())
	default:
		return deleted(r.Finding.Object(), r.Took)
	}
}

// Line describes the result of its deletion.
func (e *External) Line(took time.Duration, err error) string {
	if err != nil {
		return notDeleted(e.Object(), err)
	}
	return deleted(e.Object()+" with its data", took)
}

func notDeleted(object string, err error) string {
	return fmt.Sprintf("NOT DELETED: %s: %s", object, oneLine(err.Error()))
}

func deleted(object string, took time.Duration) string {
	return fmt.Sprintf("Deleted %s, gone after %s", object, took.Round(time.Millisecond*100))
}

func size(bytes int64) string {
	if bytes == 0 {
		return "-"
	}
	return resource.NewQuantity(bytes, resource.BinarySI).String()
}

// oneLine joins the lines of a text for a table.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
