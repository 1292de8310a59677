package quiesce

import (
	"bytes"
	"strings"
	"sync"
	"time"

	"stillpoint.io/stillpoint/internal/blueprint"
)

const (
	// tailLimit bounds what of a command's output is kept for an error, in bytes.
	tailLimit = 2048
	// outputLimit bounds the lines that hold a phase's output, in bytes: more would
	// be no value for a template but data.
	outputLimit = 1 << 20
	// endLimit is how long the end of what a command printed may be behind its exit
	// code, which comes over another stream.
	endLimit = 5 * time.Second
)

// lineEnd is the last line that a script prints of a command.
const lineEnd = "stillpoint: end"

// output is what a command prints: its last lines, and those with outputs of its
// phase.
type output struct {
	mu      sync.Mutex
	line    []byte // without its end so far
	tail    []byte
	outputs bytes.Buffer
	full    bool
	ended   chan struct{}
}

func newOutput() *output { return &output{ended: make(chan struct{}, 1)} }

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
		rest = rest[end+1:]
	}
	return len(p), nil
}

// add keeps the start of a line that is too long to be of use.
func (o *output) add(p []byte) {
	if space := outputLimit - len(o.line); len(p) > space {
		p = p[:space]
	}
	o.line = append(o.line, p...)
}

// take files a line that is complete.
func (o *output) take() {
	defer func() { o.line = o.line[:0] }()
	if text, ends := bytes.CutSuffix(o.line, []byte(lineEnd)); ends {
		if len(text) > 0 { // what the command printed last had no end
			o.line = text
			o.keep()
		}
		select {
		case o.ended <- struct{}{}:
		default:
		}
		return
	}
	o.keep()
}

func (o *output) keep() {
	if bytes.Contains(o.line, []byte(blueprint.OutputMark)) {
		if o.outputs.Len()+len(o.line) > outputLimit {
			o.full = true
		} else {
			o.outputs.Write(append(o.line, '\n'))
		}
	}
	o.tail = append(append(o.tail, o.line...), '\n')
	if excess := len(o.tail) - tailLimit; excess > 0 {
		o.tail = o.tail[excess:]
	}
}

// String is the end of what was printed.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := append(append([]byte{}, o.tail...), o.line...)
	if excess := len(text) - tailLimit; excess > 0 {
		text = text[excess:]
	}
	return strings.TrimSpace(string(text))
}

// whole waits until all that the command has printed is here.
func (o *output) whole() {
	select {
	case <-o.ended:
	case <-time.After(endLimit):
	}
}
