package stage

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// indentation is the width of the time at the left of the timeline.
const indentation = 10

// Timeline tells a person what happens, with the seconds since the beginning
// at the left.
type Timeline struct {
	began time.Time
	out   io.Writer
}

// NewTimeline begins a timeline.
func NewTimeline(out io.Writer) *Timeline { return ContinueTimeline(out, time.Now()) }

// ContinueTimeline goes on with one that another program has begun.
func ContinueTimeline(out io.Writer, began time.Time) *Timeline {
	return &Timeline{began: began, out: out}
}

// Say adds an entry.
func (t *Timeline) Say(format string, args ...any) {
	fmt.Fprintf(t.out, "%7.1fs  %s\n", time.Since(t.began).Seconds(), indent(fmt.Sprintf(format, args...)))
}

// Command adds a command line, as it would be typed.
func (t *Timeline) Command(line ...string) {
	quoted := make([]string, len(line))
	for i, word := range line {
		if quoted[i] = word; strings.ContainsAny(word, " *\"$") {
			quoted[i] = "'" + word + "'"
		}
	}
	t.Say("$ %s", strings.Join(quoted, " "))
}
