package podexec

import (
	"bytes"
	"fmt"
	"sync"
	"time"
)

const (
	// TailLimit is the number of bytes of a command's output that an error shows.
	TailLimit = 2048
	// KeepLimit is the number of bytes that are kept in memory. The kept output is masked
	// before it is truncated, because a part of a secret cannot be recognized.
	KeepLimit = 64 << 10
	// outputLimit is the maximum length in bytes of one output line and of all outputs of a
	// phase.
	outputLimit = 1 << 20
	// endLimit is the time to wait for the end of the output after the exit code, which
	// arrives on another stream.
	endLimit = 5 * time.Second
)

// EndMark is the line that a script prints after the output of a command.
const EndMark = "stillpoint: end"

// Show returns the part of a command's output that may be shown. cut is true if the
// beginning of text is missing.
type Show func(text string, cut bool) string

// Output keeps the end of a command's output and the outputs of its phase.
type Output struct {
	show    Show
	mu      sync.Mutex
	line    []byte // the last line, truncated to outputLimit
	tail    []byte
	cut     bool // the beginning of tail is missing
	outputs bytes.Buffer
	full    bool
	ended   chan struct{}
}

// NewOutput returns an Output whose String is what show returns.
func NewOutput(show Show) *Output { return &Output{show: show, ended: make(chan struct{}, 1)} }

func (o *Output) Write(p []byte) (int, error) {
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

func (o *Output) add(p []byte) {
	o.line = append(o.line, p[:min(len(p), outputLimit-len(o.line))]...)
	o.tail = append(o.tail, p...)
	if excess := len(o.tail) - KeepLimit; excess > 0 {
		o.tail, o.cut = o.tail[excess:], true
	}
}

// take handles a complete line.
func (o *Output) take() {
	text, ends := bytes.CutSuffix(o.line, []byte(EndMark))
	if ends { // the mark can follow a last line without a newline
		o.tail = o.tail[:len(o.tail)-len(EndMark)]
		select {
		case o.ended <- struct{}{}:
		default:
		}
	}
	if bytes.Contains(text, []byte(OutputMark)) {
		if o.outputs.Len()+len(text) > outputLimit {
			o.full = true
		} else {
			o.outputs.Write(append(text, '\n'))
		}
	}
}

// String returns the part of the output that may be shown.
func (o *Output) String() string { return o.show(o.Tail()) }

// Tail returns the end of the output, including secrets.
func (o *Output) Tail() (text string, cut bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.tail), o.cut
}

// Outputs returns the outputs of the command's phase.
func (o *Output) Outputs() (map[string]any, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.full {
		return nil, fmt.Errorf("the phase's output is longer than %d bytes", outputLimit)
	}
	return ParseOutputs(bytes.NewReader(o.outputs.Bytes()))
}

// WaitEnd waits until the whole output has arrived.
func (o *Output) WaitEnd() {
	select {
	case <-o.ended:
	case <-time.After(endLimit):
	}
}
