package quiesce

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
)

// openLimit limits the start of a shell in a running container.
const openLimit = 30 * time.Second

var (
	//go:embed prelude.sh
	prelude string
	//go:embed guard.sh
	guardSource string
	//go:embed runner.sh
	runnerSource string
	//go:embed hold.sh
	holdSource string

	guardScript  = compact(prelude + guardSource)
	runnerScript = compact(prelude + runnerSource)
	holdScript   = compact(prelude + holdSource)
)

// The lines by which a held client confirms its begin and end statements.
const (
	lineHeld     = "stillpoint: held"
	lineReleased = "stillpoint: released"
)

// answers are the answers of the scripts. All other lines are output of a client.
var answers = []string{"armed", "holding", "thawing", "thawed", "failed", "expired", "ended", lineHeld, lineReleased}

// compact removes comments, indentation and blank lines, since every exec request has
// the script in its URL.
func compact(script string) string {
	var lines []string
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// errLost means that a shell ended unexpectedly.
var errLost = errors.New("the connection to the container was lost")

// shell is a script that runs in a container and reads requests.
type shell struct {
	container  podexec.Container
	stdin      *io.PipeWriter
	lines      chan string
	output     *podexec.Output
	process    string // PID of a guard's shell or of a held client
	disconnect context.CancelFunc
	// ended is closed when the script has ended or the connection is lost. err is set
	// before that.
	ended chan struct{}
	err   error
}

// openShell starts script in a call's container, sends it the call, and waits until it is
// armed. The shell outlives ctx. show filters the output that errors contain.
func openShell(ctx context.Context, executor podexec.Executor, call render.Call, script string, show podexec.Show) (*shell, error) {
	container := ContainerOf(call)
	execCtx, disconnect := context.WithCancel(context.WithoutCancel(ctx))
	stdin, typed := io.Pipe()
	printed, stdout := io.Pipe()
	s := &shell{
		container:  container,
		stdin:      typed,
		lines:      make(chan string, 16),
		output:     podexec.NewOutput(show),
		disconnect: disconnect,
		ended:      make(chan struct{}),
	}
	go func() {
		err := executor.Exec(execCtx, container, []string{"sh", "-c", script},
			podexec.Streams{Stdin: stdin, Stdout: stdout, Stderr: s.output})
		// Unblock send, which has no reader any more.
		stdin.CloseWithError(errLost)
		stdout.Close()
		s.err = err
		close(s.ended)
	}()
	go func() {
		defer close(s.lines)
		for scanner := bufio.NewScanner(printed); scanner.Scan(); {
			if line := scanner.Text(); slices.ContainsFunc(answers, func(word string) bool { return isAnswer(line, word) }) {
				s.lines <- line
			} else {
				_, _ = s.output.Write([]byte(line + "\n"))
			}
		}
	}()

	ctx, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	if err := s.arm(ctx, call); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *shell) arm(ctx context.Context, call render.Call) error {
	var message strings.Builder
	write := func(mark, text string) {
		if text == "" {
			return
		}
		for line := range strings.SplitSeq(text, "\n") {
			message.WriteString(mark + line + "\n")
		}
	}
	if ThawsFileSystem(call.Command) { // hasKernelError expects English messages
		write("=", "export LC_ALL=C")
	}
	if mountPath, ok := OnlyFileSystem(call.Command); ok {
		write("place ", mountPath)
	}
	for _, name := range slices.Sorted(maps.Keys(call.Env)) {
		write("=", "export "+name+"="+podexec.Quote([]string{call.Env[name]}))
	}
	write(":", podexec.Quote(call.Command))
	if call.Hold != nil {
		write("<", call.Hold.Begin)
		write(">", call.Hold.End)
	}
	message.WriteString("armed")
	switch err := s.send(ctx, message.String()); {
	case ctx.Err() != nil:
		return fmt.Errorf("%s did not start a shell: %w", s.container, ctx.Err())
	case err != nil && !errors.Is(err, errLost):
		return err
	}
	answer, err := s.expect(ctx, "armed")
	if err != nil {
		return fmt.Errorf("%w (Stillpoint needs sh, sleep and kill in the container)", err)
	}
	s.process = strings.TrimPrefix(strings.TrimPrefix(answer, "armed"), " ")
	if call.Hold != nil {
		// A client that cannot start has ended by now and printed the reason.
		if err := s.send(ctx, "client "+s.process); err != nil {
			return s.lost(ctx)
		}
	}
	return nil
}

// send writes a line and waits until the script reads it.
func (s *shell) send(ctx context.Context, line string) error {
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(s.stdin, line+"\n")
		sent <- err
	}()
	select {
	case err := <-sent:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// alive reports whether the script is connected.
func (s *shell) alive() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// release ends a guard without running its command.
func (s *shell) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ThawLimit)
	defer cancel()
	_ = s.send(ctx, "release")
	select {
	case <-s.ended:
	case <-ctx.Done():
	}
	s.close()
}

// expect waits for a line that starts with one of words, and returns the line.
func (s *shell) expect(ctx context.Context, words ...string) (string, error) {
	for {
		select {
		case line, open := <-s.lines:
			if !open {
				return "", s.lost(ctx)
			}
			for _, word := range words {
				if isAnswer(line, word) {
					return line, nil
				}
			}
		case <-ctx.Done():
			return "", fmt.Errorf("no answer from %s: %w", s.container, ctx.Err())
		}
	}
}

func isAnswer(line, word string) bool { return line == word || strings.HasPrefix(line, word+" ") }

// lost returns the reason for the loss of the shell.
func (s *shell) lost(ctx context.Context) error {
	select {
	case <-s.ended:
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", s.container, errLost)
	case <-time.After(time.Second):
		return fmt.Errorf("%s: %w", s.container, errLost)
	}
	if s.err != nil {
		if text := s.output.String(); text != "" {
			return fmt.Errorf("%w: %s: %s", errLost, s.err, text) //nolint:errorlint // callers only match errLost
		}
		return fmt.Errorf("%w: %s", errLost, s.err) //nolint:errorlint // as above
	}
	if text := s.output.String(); text != "" {
		return fmt.Errorf("%s: %w: %s", s.container, errLost, text)
	}
	return fmt.Errorf("%s: %w", s.container, errLost)
}

// closeLimit is how long a script may take to end after its standard input has ended.
const closeLimit = 2 * time.Second

// close ends the script's standard input, and after closeLimit the connection.
func (s *shell) close() {
	s.stdin.CloseWithError(io.EOF)
	go func() {
		select {
		case <-s.ended:
		case <-time.After(closeLimit):
		}
		s.disconnect()
	}()
}

// ask sends a line and returns the first line that is one of the answers.
func (s *shell) ask(ctx context.Context, line string, answers ...string) (string, error) {
	switch err := s.send(ctx, line); {
	case err != nil && ctx.Err() != nil:
		return "", fmt.Errorf("no answer from %s: %w", s.container, err)
	case err != nil:
		return "", s.lost(ctx)
	}
	return s.expect(ctx, answers...)
}

// seconds returns d in whole seconds, rounded up, at least one.
func seconds(d time.Duration) int {
	return max(1, int((d+time.Second-1)/time.Second))
}
