package quiesce

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"stillpoint.io/stillpoint/internal/cluster"
)

// Executor runs a command in a container; cluster.Executor is the real one.
// The command must see end of file on its standard input soon after ctx ends
// or the connection breaks: every guarantee of this package rests on that.
type Executor interface {
	Exec(ctx context.Context, container cluster.Container, command []string, streams cluster.Streams) error
}

// openLimit is how long a shell may take to start in a container that runs.
const openLimit = 30 * time.Second

var (
	//go:embed prelude.sh
	prelude string
	//go:embed guard.sh
	guardSource string
	//go:embed runner.sh
	runnerSource string

	guardScript  = compact(prelude + guardSource)
	runnerScript = compact(prelude + runnerSource)
)

// compact drops comments, indentation and blank lines: the script travels in
// the URL of every exec request.
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

// errLost is the end of a shell that nobody asked for.
var errLost = errors.New("the connection to the container was lost")

// shell is one of the two scripts, running in a container and waiting for
// lines.
type shell struct {
	container cluster.Container
	stdin     *io.PipeWriter
	lines     chan string
	output    *tail
	hangUp    context.CancelFunc
	// ended is closed when the script has ended or the connection is gone;
	// err says which.
	ended chan struct{}
	err   error
}

// openShell starts script in a container, hands it command and waits until it
// is armed. The shell outlives ctx.
func openShell(ctx context.Context, executor Executor, container cluster.Container, script string, command []string) (*shell, error) {
	life, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	stdin, typed := io.Pipe()
	printed, stdout := io.Pipe()
	s := &shell{
		container: container,
		stdin:     typed,
		lines:     make(chan string, 16),
		output:    &tail{},
		hangUp:    hangUp,
		ended:     make(chan struct{}),
	}
	go func() {
		err := executor.Exec(life, container, []string{"sh", "-c", script},
			cluster.Streams{Stdin: stdin, Stdout: stdout, Stderr: s.output})
		// Without a reader no writer may hang.
		stdin.CloseWithError(errLost)
		stdout.Close()
		s.err = err
		close(s.ended)
	}()
	go func() {
		defer close(s.lines)
		for scanner := bufio.NewScanner(printed); scanner.Scan(); {
			s.lines <- scanner.Text()
		}
	}()

	ctx, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	if err := s.arm(ctx, command); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *shell) arm(ctx context.Context, command []string) error {
	var message strings.Builder
	for line := range strings.SplitSeq(quote(command), "\n") {
		message.WriteString(":" + line + "\n")
	}
	message.WriteString("armed")
	// The write blocks until the other end reads.
	sent := make(chan error, 1)
	go func() { sent <- s.send(message.String()) }()
	select {
	case err := <-sent:
		if err != nil && !errors.Is(err, errLost) {
			return err
		}
	case <-ctx.Done():
		return fmt.Errorf("%s did not start a shell: %w", s.container, ctx.Err())
	}
	if _, err := s.expect(ctx, "armed"); err != nil {
		return fmt.Errorf("%w (Stillpoint needs sh, sleep and kill in the container)", err)
	}
	return nil
}

func (s *shell) send(line string) error {
	_, err := io.WriteString(s.stdin, line+"\n")
	return err
}

// expect waits for a line that starts with one of words, and returns it whole.
func (s *shell) expect(ctx context.Context, words ...string) (string, error) {
	for {
		select {
		case line, open := <-s.lines:
			if !open {
				return "", s.lost(ctx)
			}
			for _, word := range words {
				if line == word || strings.HasPrefix(line, word+" ") {
					return line, nil
				}
			}
		case <-ctx.Done():
			return "", fmt.Errorf("no answer from %s: %w", s.container, ctx.Err())
		}
	}
}

// lost explains why the shell is gone.
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
			return fmt.Errorf("%w: %s: %s", errLost, s.err, text) //nolint:errorlint // the cause is what matters to callers
		}
		return fmt.Errorf("%w: %s", errLost, s.err) //nolint:errorlint // as above
	}
	return fmt.Errorf("%s: %w", s.container, errLost)
}

// partingLimit is how long a script may take to end by itself when its standard
// input has ended, before the connection is cut.
const partingLimit = 2 * time.Second

// close ends the script's standard input, and it does what it does then.
func (s *shell) close() {
	s.stdin.CloseWithError(io.EOF)
	go func() {
		select {
		case <-s.ended:
		case <-time.After(partingLimit):
		}
		s.hangUp()
	}()
}

// ask sends a line and waits for one of the answers.
func (s *shell) ask(ctx context.Context, line string, answers ...string) (string, error) {
	if err := s.send(line); err != nil {
		return "", s.lost(ctx)
	}
	return s.expect(ctx, answers...)
}

// seconds is what `sleep` takes: whole seconds, rounded up, at least one.
func seconds(d time.Duration) int {
	return max(1, int((d+time.Second-1)/time.Second))
}

// quote writes command as words of a POSIX shell.
func quote(command []string) string {
	words := make([]string, len(command))
	for i, word := range command {
		words[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	return strings.Join(words, " ")
}

// tailLimit bounds what of a command's output is kept for an error, in bytes.
const tailLimit = 2048

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if excess := len(t.text) - tailLimit; excess > 0 {
		t.text = t.text[excess:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text))
}
