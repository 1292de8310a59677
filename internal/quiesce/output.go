package quiesce

import (
	"bytes"
	"sync"
	"time"

	"stillpoint.io/stillpoint/internal/function"
	"stillpoint.io/stillpoint/internal/render"
)

const (
	// tailLimit bounds what an error shows of a command's output, in bytes;
	// keptLimit what is kept of it. It is masked as a whole and cut then, since a
	// part of a secret cannot be recognized.
	tailLimit = 2048
	keptLimit = 64 << 10
	// outputLimit bounds the lines that hold a phase's output, in bytes: more would
	// be no value for a template but data.
	outputLimit = 1 << 20
	// endLimit is how long the end of what a command printed may be behind its exit
	// code, which comes over another stream.
	endLimit = 5 * time.Second
)

// lineEnd is the last line that a script prints of a command.
const lineEnd = "stillpoint: end"

// show returns what may be shown of the output of a command; cut reports that the
// beginning of said is missing.
type show func(said string, cut bool) string

// plainly shows the output of a command that was given no secret.
func plainly(said string, cut bool) string { return render.Masker{}.Tail(said, tailLimit, cut) }

// output is what a command prints: its end, and the lines with outputs of its phase.
type output struct {
	show    show
	mu      sync.Mutex
	line    []byte // the beginning of the last one, as long as an output may be
	tail    []byte
	cut     bool // the beginning of tail is missing
	outputs bytes.Buffer
	full    bool
	ended   chan struct{}
}

func newOutput(show show) *output { return &output{show: show, ended: make(chan struct{}, 1)} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for rest := p; len(rest) > 0; {
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			o.add(rest)
			break
		}
		o.add(rest[:end])
		o.take()
		o.add(rest[end : end+1])
		o.line = o.line[:0]
		rest = rest[end+1:]
	}
	return len(p), nil
}

func (o *output) add(p []byte) {
	o.line = append(o.line, p[:min(len(p), outputLimit-len(o.line))]...)
	o.tail = append(o.tail, p...)
	if excess := len(o.tail) - keptLimit; excess > 0 {
		o.tail, o.cut = o.tail[excess:], true
	}
}

// take files a line that is complete.
func (o *output) take() {
	text, ends := bytes.CutSuffix(o.line, []byte(lineEnd))
	if ends { // before it stands what the command printed last, where that had no end
		o.tail = o.tail[:len(o.tail)-len(lineEnd)]
		select {
		case o.ended <- struct{}{}:
		default:
		}
	}
	if bytes.Contains(text, []byte(function.OutputMark)) {
		if o.outputs.Len()+len(text) > outputLimit {
			o.full = true
		} else {
			o.outputs.Write(append(text, '\n'))
		}
	}
}

// String returns what may be shown of the output.
func (o *output) String() string { return o.show(o.kept()) }

// kept returns the end of the output, with the secrets in it.
func (o *output) kept() (said string, cut bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.tail), o.cut
}

// whole waits until all that the command has printed is here.
func (o *output) whole() {
	select {
	case <-o.ended:
	case <-time.After(endLimit):
	}
}
