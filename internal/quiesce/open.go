package quiesce

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
)

// open starts the shells of all pre and post commands in parallel.
func (s *Session) open(ctx context.Context) error {
	var opening opening
	for i := range s.plan.Hooks {
		hook := &s.plan.Hooks[i]
		for _, step := range hook.Pre {
			p := &pre{hook: hook, step: step}
			s.openPre(ctx, p, &opening)
			s.pres = append(s.pres, p)
		}
	}
	// Post commands run in reverse order.
	for i := len(s.plan.Hooks) - 1; i >= 0; i-- {
		hook := &s.plan.Hooks[i]
		for _, step := range hook.Post {
			p := &post{hook: hook, step: step}
			s.openPost(ctx, p, &opening)
			s.posts = append(s.posts, p)
		}
	}
	if err := opening.wait(); err != nil {
		s.closePres()
		return err
	}
	for _, p := range s.pres {
		for _, r := range p.runners {
			if r.call.Hold != nil {
				r.held = s.clientTarget(p.hook, r.call)
			}
		}
	}
	return nil
}

// opening collects the errors of shells that are opened in parallel.
type opening struct {
	sync.WaitGroup
	mu   sync.Mutex
	errs []error
}

func (o *opening) wait() error {
	o.Wait()
	return errors.Join(o.errs...)
}

// start opens a shell for a call. A container without a shell can run commands, but
// cannot have a guard.
func (s *Session) start(ctx context.Context, o *opening, hook *Hook, step *render.Step, call render.Call, script string, place **shell) {
	o.Go(func() {
		opened, err := openShell(ctx, s.tools.Executor, call, script, s.show)
		switch {
		case err == nil:
			*place = opened
			return
		case podexec.NoShell(err) && call.Hold == nil && len(call.Env) == 0:
			s.log.Warnf("Running without a guard: %s has no shell: blueprint %s, phase %s", ContainerOf(call), hook.Blueprint, step.Phase)
			return
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.errs = append(o.errs, fmt.Errorf("blueprint %s, phase %s: %w", hook.Blueprint, step.Phase, s.masked(err)))
	})
}

func (s *Session) openPre(ctx context.Context, p *pre, o *opening) {
	for _, call := range p.step.Calls {
		r := &runner{call: call}
		_, r.alone = OnlyFileSystem(call.Command)
		p.runners = append(p.runners, r)
		if call.Hold == nil {
			s.start(ctx, o, p.hook, p.step, call, runnerScript, &r.shell)
		}
	}
}

func (s *Session) openPost(ctx context.Context, p *post, o *opening) {
	p.targets = nil
	if p.step.Task != nil || p.step.Needs != "" {
		p.targets = []*target{{post: p, task: p.step.Task}}
	}
	for _, call := range p.step.Calls {
		t := &target{post: p, call: call}
		p.targets = append(p.targets, t)
		script := guardScript
		if call.Hold != nil {
			script = holdScript
		}
		s.start(ctx, o, p.hook, p.step, call, script, &t.guard)
	}
}

func (s *Session) closePres() {
	for _, p := range s.pres {
		for _, r := range p.runners {
			if r.shell != nil {
				r.shell.close()
			}
		}
	}
}

// clientTarget returns the target that has the client of a HoldSession call.
func (s *Session) clientTarget(hook *Hook, call render.Call) *target {
	for _, t := range s.targets() {
		if t.hook == hook && t.call.Hold != nil && ContainerOf(t.call) == ContainerOf(call) && *t.call.Hold == *call.Hold {
			return t
		}
	}
	return nil
}

// release ends the remaining guards. A guard whose post command is not confirmed
// continues to retry it; all others end without running it.
func (s *Session) release(ctx context.Context) {
	for _, t := range s.targets() {
		switch {
		case t.guard == nil:
		case s.state(t).due() && t.call.Hold == nil:
			t.guard.close()
		default:
			go t.guard.release(ctx)
		}
	}
}
