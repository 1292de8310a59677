package render

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"time"
)

// Command is the internal subcommand that renders templates.
const Command = "render-templates"

const (
	// renderLimit limits one template, scriptLimit all that one call of a Script
	// renders.
	renderLimit = 10 * time.Second
	scriptLimit = 30 * time.Second
	// memoryLimit limits the child's own memory, in bytes, without what it shares
	// with this process, such as the program. The child's garbage collector aims at
	// half of it.
	memoryLimit = 128 << 20
	// watchInterval is how often the memory is checked.
	watchInterval = 5 * time.Millisecond
	// renderingVariable is set in the child's environment, so that a program that does
	// not serve templates does not start itself without end.
	renderingVariable = "STILLPOINT_RENDERING"
)

// templates renders all templates of this process.
var templates = &sandbox{turn: make(chan struct{}, 1)}

// sandbox renders templates in a child process, because nothing inside a process can
// limit a template. The child runs our own program without our environment. The sandbox
// kills it if it takes too much memory or time; the next template starts another one.
type sandbox struct {
	turn  chan struct{} // has an element while a template is rendered
	child *child
}

type child struct {
	*osexec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// render renders a template in the child. The error is not one of the template.
func (s *sandbox) render(ctx context.Context, q *question, limit time.Duration) (*answer, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for {
		used := s.child != nil
		if !used {
			var err error
			if s.child, err = startChild(); err != nil {
				return nil, fmt.Errorf("start the process that renders templates: %w", err)
			}
		}
		reply, err := s.child.ask(ctx, q, limit)
		if err == nil {
			return reply, nil
		}
		s.child.end()
		s.child = nil
		// The template is not the reason if the child died while it was idle.
		if !used || !errors.Is(err, errEnded) {
			return nil, err
		}
	}
}

func startChild() (*child, error) {
	if os.Getenv(renderingVariable) != "" {
		return nil, errors.New("this process is the child and does not serve " + Command)
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{Cmd: osexec.Command(program, Command)}
	c.Env = []string{renderingVariable + "=1", "GOMAXPROCS=1", fmt.Sprintf("GOMEMLIMIT=%d", memoryLimit/2)}
	if zone, ok := os.LookupEnv("TZ"); ok { // for functions that print dates
		c.Env = append(c.Env, "TZ="+zone)
	}
	if c.in, err = c.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = json.NewDecoder(out)
	return c, c.Start()
}

var (
	errTime   = fmt.Errorf("the template takes too much time; a template may take %s, and all of a blueprint %s", renderLimit, scriptLimit)
	errMemory = fmt.Errorf("the template takes too much memory; a template may take %d MiB", memoryLimit>>20)
	// errEnded means that the child exited by itself: it was out of memory, or its
	// stack was full.
	errEnded = fmt.Errorf("%w", errMemory)
)

func (c *child) ask(ctx context.Context, q *question, limit time.Duration) (*answer, error) {
	reply, answered := &answer{}, make(chan error, 1)
	go func() {
		err := json.NewEncoder(c.in).Encode(q)
		if err == nil {
			err = c.out.Decode(reply)
		}
		answered <- err
	}()
	late := time.NewTimer(limit)
	defer late.Stop()
	watch := time.NewTicker(watchInterval)
	defer watch.Stop()
	for {
		select {
		case err := <-answered:
			if err != nil {
				return nil, errEnded
			}
			return reply, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-late.C:
			return nil, errTime
		case <-watch.C:
			if memoryOf(c.Process.Pid) > memoryLimit {
				return nil, errMemory
			}
		}
	}
}

// memoryOf returns the size of a process's own memory, 0 on systems other than Linux.
func memoryOf(pid int) int {
	var size, resident, shared int
	if statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)); err == nil {
		_, _ = fmt.Sscan(string(statm), &size, &resident, &shared)
	}
	return (resident - shared) * os.Getpagesize()
}

func (c *child) end() {
	_ = c.Process.Kill()
	_ = c.Wait() // the error is that it was killed
}
