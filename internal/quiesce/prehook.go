package quiesce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
)

// prepare runs the pre commands, step by step, and then holds.
func (s *Session) prepare(ctx context.Context) error {
	defer s.closePres()
	for _, t := range s.targets() {
		t.due = len(t.hook.Pre) == 0
	}
	for i := range s.plan.Hooks {
		if err := s.prehook(ctx, &s.plan.Hooks[i]); err != nil {
			return err
		}
	}
	s.mu.Lock()
	if s.begun.IsZero() { // there are post commands only
		s.begun = time.Now()
	}
	s.report.Prepared = time.Since(s.begun)
	s.mu.Unlock()

	// The guards have a limit that is long enough. The snapshot need not wait
	// until they know the shorter one.
	rearming, cancel := context.WithCancel(ctx)
	s.rearm = cancel
	due := s.due()
	go func() {
		err := s.hold(rearming, "hold", s.plan.QuiesceTimeout, due)
		if rearming.Err() != nil || errors.Is(err, errLost) {
			err = nil // thawed meanwhile, or the watch tells
		}
		close(s.rearmed)
		if err != nil {
			s.Abandon(ctx, err)
		}
	}()
	go s.expire(ctx)
	for _, t := range due {
		if t.guard != nil && !t.hook.disruptive() {
			go s.watch(ctx, t)
		}
	}
	return nil
}

// prehook runs the pre commands of one hook, its deferPhase whatever comes of the
// others, and then renders what of the posthook depends on them.
func (s *Session) prehook(ctx context.Context, hook *Hook) error {
	var (
		failed error
		last   *pre
		begun  bool
	)
	for _, p := range s.pres {
		switch {
		case p.hook != hook || failed != nil && !p.step.Last:
		case p.step.Last:
			last = p
		default:
			begun = true
			failed = s.runPre(ctx, p)
		}
	}
	if last != nil && begun {
		failed = errors.Join(failed, s.runPre(ctx, last))
	}
	if err := s.complete(ctx, hook); err != nil && failed == nil {
		failed = fmt.Errorf("blueprint %s: %w", hook.Blueprint, s.masked(err))
	}
	return failed
}

// complete renders the phases of a posthook that had to wait for its prehook, lets
// guards stand for them, and puts them on record.
func (s *Session) complete(ctx context.Context, hook *Hook) error {
	if hook.Script == nil || !hook.waiting() {
		return nil
	}
	if err := hook.Script.Finish(ctx); err != nil {
		return err
	}
	var (
		opening  opening
		rendered []*post
	)
	for _, p := range s.posts {
		if p.hook != hook || p.step.Needs == "" {
			continue
		}
		if err := s.render(ctx, hook, p.step); err != nil {
			return errors.Join(err, opening.wait())
		}
		if p.step.Needs != "" {
			continue // for a phase of its own action
		}
		rendered = append(rendered, p)
		s.openPost(ctx, p, &opening)
	}
	if err := opening.wait(); err != nil || len(rendered) == 0 {
		return err
	}
	var due []*target
	for _, p := range rendered {
		for _, t := range p.targets {
			t.due = true
			due = append(due, t)
		}
	}
	if err := s.hold(ctx, "prepare", s.plan.PrepareTimeout+s.plan.QuiesceTimeout, due); err != nil {
		return err
	}
	return s.amend(ctx, s.targets())
}

// render renders a phase that had to wait.
func (s *Session) render(ctx context.Context, hook *Hook, step *blueprint.Step) error {
	err := hook.Script.Render(ctx, step)
	if step.Task != nil {
		step.Task.Owner = s.plan.Owed.ID
	}
	s.mu.Lock()
	s.mask = s.mask.Merge(hook.Script.Masker())
	s.mu.Unlock()
	return err
}

// runPre runs one phase.
func (s *Session) runPre(ctx context.Context, p *pre) error {
	left := s.plan.PrepareTimeout
	if !s.begun.IsZero() {
		left -= time.Since(s.begun)
	}
	if left <= 0 {
		return fmt.Errorf("the pre commands took longer than prepare-timeout %s", s.plan.PrepareTimeout)
	}
	where := fmt.Sprintf("blueprint %s, phase %s", p.hook.Blueprint, p.step.Phase)
	if p.step.Needs != "" {
		if err := s.render(ctx, p.hook, p.step); err != nil {
			return fmt.Errorf("%s: %w", where, s.masked(err))
		}
		if p.step.Needs != "" {
			return fmt.Errorf("%s: it needs %s, which there is not", where, p.step.Needs)
		}
		var opening opening
		s.openPre(ctx, p, &opening)
		if err := opening.wait(); err != nil {
			return err
		}
	}
	// Guards first: a pre command whose guard does not answer must not begin.
	due := s.becomesDue(p)
	if err := s.hold(ctx, "prepare", left+s.plan.QuiesceTimeout, due); err != nil {
		for _, t := range due {
			t.due = false
		}
		return err
	}
	if s.begun.IsZero() {
		s.mu.Lock()
		s.begun = time.Now()
		s.frozenAt = s.begun
		s.mu.Unlock()
	}
	outputs, err := s.runStep(ctx, p, left)
	if err == nil && p.hook.Script != nil {
		p.hook.Script.Done(p.step, outputs)
	}
	return err
}

// becomesDue marks the post commands that undo what a phase is about to do: those
// of the same blueprint in the same containers, those that stand in a container
// where the blueprint has no pre command at all, and those that stand in none.
func (s *Session) becomesDue(p *pre) []*target {
	undoes := func(t *target) bool {
		switch {
		case t.due || t.hook != p.hook:
			return false
		case t.task != nil || t.step.Needs != "":
			return true
		case t.call.Hold != nil:
			return slices.ContainsFunc(p.runners, func(r *runner) bool { return r.held == t })
		case !t.hook.prepares(containerOf(t.call)):
			return true
		}
		return slices.ContainsFunc(p.runners, func(r *runner) bool { return containerOf(r.call) == containerOf(t.call) })
	}
	var due []*target
	for _, t := range s.targets() {
		if undoes(t) {
			t.due = true
			due = append(due, t)
		}
	}
	return due
}

// hold gives guards a limit and waits until they have it.
func (s *Session) hold(ctx context.Context, verb string, limit time.Duration, targets []*target) error {
	ctx, cancel := context.WithTimeout(ctx, postLimit)
	defer cancel()
	return each(targets, func(t *target) error {
		if t.guard == nil {
			return nil
		}
		_, err := t.guard.ask(ctx, fmt.Sprintf("%s %d", verb, seconds(limit+graceOfGuard)), "holding")
		if err != nil && !t.hook.disruptive() {
			return fmt.Errorf("arm the guard in %s: %w", t.guard.container, s.masked(err))
		}
		return nil
	})
}

// runStep runs the commands of one phase at the same time, or its task, and returns
// what they put out.
func (s *Session) runStep(ctx context.Context, p *pre, limit time.Duration) (map[string]any, error) {
	where := fmt.Sprintf("blueprint %s, phase %s", p.hook.Blueprint, p.step.Phase)
	if p.step.Task != nil {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		outputs, err := s.runTask(ctx, p.step.Task)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, s.masked(err))
		}
		return outputs, nil
	}
	// The shell in the container keeps the limit; ours is for one that is gone.
	ctx, cancel := context.WithTimeout(ctx, limit+postLimit)
	defer cancel()
	printed := make([]*output, len(p.runners))
	err := each(p.runners, func(r *runner) error {
		i := slices.Index(p.runners, r)
		var err error
		switch {
		case r.held != nil:
			printed[i], err = s.tellHeld(ctx, r.held, limit)
		case r.shell == nil:
			printed[i], err = s.bare(ctx, r.call, limit)
		default:
			printed[i], err = s.runShell(ctx, r.shell, limit)
		}
		if err != nil {
			return fmt.Errorf("%s, %s: %w", where, containerOf(r.call), err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.outputs(printed)
}

func (s *Session) runTask(ctx context.Context, task *blueprint.Task) (map[string]any, error) {
	if s.tools.Tasks == nil {
		return nil, fmt.Errorf("function %s: there is nothing here to run it", task.Func)
	}
	shown := *task
	shown.Show = s.show
	return s.tools.Tasks.Run(ctx, &shown)
}

// outputs are those of all commands of a phase.
func (s *Session) outputs(printed []*output) (map[string]any, error) {
	all := map[string]any{}
	for _, output := range printed {
		if output == nil {
			continue
		}
		if output.full {
			return nil, fmt.Errorf("the phase's output is longer than %d bytes", outputLimit)
		}
		outputs, err := blueprint.ParseOutputs(output.outputs.Bytes())
		if err != nil {
			return nil, s.masked(err)
		}
		maps.Copy(all, outputs)
	}
	return all, nil
}

func (s *Session) runShell(ctx context.Context, shell *shell, limit time.Duration) (*output, error) {
	answer, err := shell.ask(ctx, fmt.Sprintf("run %d", seconds(limit)), "ended")
	switch {
	case err != nil:
		return nil, s.masked(err)
	case answer == "ended 0":
		shell.output.whole()
		return shell.output, nil
	case answer == "ended 124":
		return nil, fmt.Errorf("killed after prepare-timeout %s: %s", s.plan.PrepareTimeout, s.said(shell))
	default:
		return nil, fmt.Errorf("exit code %s: %s", strings.TrimPrefix(answer, "ended "), s.said(shell))
	}
}

// tellHeld has a held client begin.
func (s *Session) tellHeld(ctx context.Context, t *target, limit time.Duration) (*output, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, err := t.guard.ask(ctx, "begin", lineHeld, "ended")
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("the client did not say %q within prepare-timeout %s: %s", lineHeld, s.plan.PrepareTimeout, s.soFar(t.guard))
	case err != nil:
		return nil, s.masked(err)
	case answer != lineHeld:
		return nil, fmt.Errorf("the client ended with exit code %s: %s", strings.TrimPrefix(answer, "ended "), s.said(t.guard))
	}
	return t.guard.output, nil
}

// bare runs a command in a container that has no shell.
func (s *Session) bare(ctx context.Context, call blueprint.Call, limit time.Duration) (*output, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	printed := newOutput(s.show)
	err := s.tools.Executor.Exec(ctx, containerOf(call), call.Command, cluster.Streams{Stdout: printed, Stderr: printed})
	if err != nil {
		return nil, fmt.Errorf("%w: %s", s.masked(err), printed)
	}
	return printed, nil
}
