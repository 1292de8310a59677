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

// Command is the subcommand of our program that renders templates; no person
// needs it.
const Command = "render-templates"

const (
	// renderLimit is how long one template may take, scriptLimit all those that one
	// call of a Script renders.
	renderLimit = 10 * time.Second
	scriptLimit = 30 * time.Second
	// memoryLimit is how much memory the process that renders may take, in bytes,
	// without what it shares with this one, such as the program. Its collector of
	// garbage aims at the half.
	memoryLimit = 128 << 20
	// watchInterval is how often its memory is looked at.
	watchInterval = 5 * time.Millisecond
	// renderingVariable is set in its environment: where a program serves no
	// templates it must not start itself again and again.
	renderingVariable = "STILLPOINT_RENDERING"
)

// templates renders for all of this process.
var templates = &sandbox{turn: make(chan struct{}, 1)}

// sandbox renders templates in a process of our own program, since nothing within a
// process can bound what a template takes. The process has no environment, and is
// ended when it takes too much memory or time; the next template starts another one.
type sandbox struct {
	turn  chan struct{} // holds an element while a template is rendered
	child *child
}

type child struct {
	*osexec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// render has a template rendered. An error says that it was not, or took too much.
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
		// One that has died while nothing was asked of it says nothing of the template.
		if !used || !errors.Is(err, errEnded) {
			return nil, err
		}
	}
}

func startChild() (*child, error) {
	if os.Getenv(renderingVariable) != "" {
		return nil, errors.New("this process is one, and does not serve " + Command)
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
	// errEnded is a process that has ended by itself: it found no more memory, or its
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

// memoryOf returns how much memory a process has for itself; 0 where the system does
// not say, as others than Linux.
func memoryOf(pid int) int {
	var size, resident, shared int
	if statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)); err == nil {
		_, _ = fmt.Sscan(string(statm), &size, &resident, &shared)
	}
	return (resident - shared) * os.Getpagesize()
}

func (c *child) end() {
	_ = c.Process.Kill()
	_ = c.Wait() // of no interest: it was killed
}
