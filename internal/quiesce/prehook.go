package quiesce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
)

// prepare runs the pre commands and starts monitoring the freeze.
func (s *Session) prepare(ctx context.Context) error {
	for _, t := range s.targets() {
		t.unconditional = len(t.hook.Pre) == 0
	}
	for i := range s.plan.Hooks {
		if err := s.runPrehook(ctx, &s.plan.Hooks[i]); err != nil {
			return err // keep the shells: a pending pre command can still complete
		}
	}
	s.closePres()
	s.mu.Lock()
	if s.begun.IsZero() { // no pre commands
		s.begun = time.Now()
	}
	s.report.Prepared = time.Since(s.begun)
	s.mu.Unlock()

	// The guards already have a longer limit, so the snapshots need not wait until the
	// guards confirm the shorter one.
	rearming, cancel := context.WithCancel(ctx)
	s.rearm = cancel
	due := s.due()
	go func() {
		err := s.armGuards(rearming, "hold", s.plan.QuiesceTimeout, due)
		if rearming.Err() != nil || errors.Is(err, errLost) {
			err = nil // thawed meanwhile, or watchGuard reports it
		}
		close(s.rearmed)
		if err != nil {
			s.Abandon(ctx, err)
		}
	}()
	go s.thawAtTimeout(ctx)
	for _, t := range due {
		if t.guard != nil && !s.plan.rescue.endsPod(t.hook, t.call) {
			go s.watchGuard(ctx, t)
		}
	}
	return nil
}

// runPrehook runs the pre commands of one hook and then renders the phases of its posthook
// that depend on them. Once a phase has begun, deferPhase runs even if a phase fails.
func (s *Session) runPrehook(ctx context.Context, hook *Hook) error {
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
	if err := s.renderPosthook(ctx, hook); err != nil && failed == nil {
		failed = fmt.Errorf("blueprint %s: %w", hook.Blueprint, s.masked(err))
	}
	return failed
}

// renderPosthook renders the phases of a posthook that depend on its prehook, arms guards
// for them, and adds them to the record.
func (s *Session) renderPosthook(ctx context.Context, hook *Hook) error {
	if hook.Script == nil || !hook.hasUnrendered() {
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
			continue // depends on a phase of the posthook
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
			for _, of := range s.pres {
				if of.hook == hook {
					t.undoes = append(t.undoes, of.commands()...)
				}
			}
			due = append(due, t)
		}
	}
	if err := s.armGuards(ctx, "prepare", s.plan.PrepareTimeout+s.plan.QuiesceTimeout, due); err != nil {
		return err
	}
	return s.updateRecord(ctx, s.targets())
}

// render renders a phase that depends on the outputs of others.
func (s *Session) render(ctx context.Context, hook *Hook, step *render.Step) error {
	err := hook.Script.Render(ctx, step)
	if step.Task != nil {
		step.Task.Owner = s.plan.Record.ID
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
	// A pre command must not begin before its guard has answered.
	if err := s.armGuards(ctx, "prepare", left+s.plan.QuiesceTimeout, s.linkPosts(p)); err != nil {
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

// commands returns the progress of all commands of a phase.
func (p *pre) commands() []*progress {
	commands := []*progress{&p.task}
	for _, r := range p.runners {
		commands = append(commands, &r.progress)
	}
	return commands
}

// linkPosts links the commands of a phase to the targets of the same hook that undo them:
// those in the same container, those in a container without a pre command of the hook,
// and those without a container. It returns the targets linked for the first time.
func (s *Session) linkPosts(p *pre) []*target {
	undoes := func(t *target) (linked []*progress) {
		if t.task != nil || t.step.Needs != "" || t.call.Hold == nil && !t.hook.prepares(ContainerOf(t.call)) {
			return p.commands()
		}
		thaws, alone := OnlyFileSystem(t.call.Command)
		for _, r := range p.runners {
			frozen, freezes := OnlyFileSystem(r.call.Command)
			switch {
			case t.call.Hold != nil && r.held != t, ContainerOf(r.call) != ContainerOf(t.call):
			case p.step.Func == freezeFunction && r.call.Command[0] == "sync": // nothing to undo
			case alone && freezes && path.Clean(thaws) != path.Clean(frozen): // another file system
			default:
				linked = append(linked, &r.progress)
			}
		}
		return linked
	}
	var due []*target
	for _, t := range s.targets() {
		if t.hook != p.hook {
			continue
		}
		linked := undoes(t)
		if len(linked) > 0 && len(t.undoes) == 0 && !t.unconditional {
			due = append(due, t)
		}
		t.undoes = append(t.undoes, linked...)
	}
	return due
}

// armGuards sends a limit to guards and waits until they confirm it.
func (s *Session) armGuards(ctx context.Context, verb string, limit time.Duration, targets []*target) error {
	ctx, cancel := context.WithTimeout(ctx, ThawLimit)
	defer cancel()
	return each(targets, func(t *target) error {
		if t.guard == nil {
			return nil
		}
		_, err := t.guard.ask(ctx, fmt.Sprintf("%s %d", verb, seconds(limit+guardGrace)), "holding")
		if err != nil && !s.plan.rescue.endsPod(t.hook, t.call) {
			return fmt.Errorf("arm the guard in %s: %w", t.guard.container, s.masked(err))
		}
		return nil
	})
}

// runStep runs the commands of one phase in parallel, or its task, and returns their
// outputs.
func (s *Session) runStep(ctx context.Context, p *pre, limit time.Duration) (map[string]any, error) {
	where := fmt.Sprintf("blueprint %s, phase %s", p.hook.Blueprint, p.step.Phase)
	if p.step.Task != nil {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		s.setState(&p.task, uncertain)
		outputs, err := s.runTask(ctx, p.step.Task)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, s.masked(err))
		}
		s.setState(&p.task, frozen)
		return outputs, nil
	}
	printed := make([]*podexec.Output, len(p.runners))
	err := each(p.runners, func(r *runner) error {
		i := slices.Index(p.runners, r)
		s.setState(&r.progress, pending)
		var err error
		switch {
		case r.held != nil:
			printed[i], err = s.beginHeld(ctx, r, limit)
		case r.shell == nil:
			printed[i], err = s.runWithoutShell(ctx, r, limit)
		default:
			printed[i], err = s.runShell(ctx, r, limit)
		}
		if err != nil {
			return fmt.Errorf("%s, %s: %w", where, ContainerOf(r.call), err)
		}
		return nil
	})
	s.dismissGuards(ctx, p.hook)
	if err != nil {
		return nil, err
	}
	return s.outputs(printed)
}

// dismissGuards releases the guards of a hook whose freeze belongs to another program, so
// that they do not undo that freeze.
func (s *Session) dismissGuards(ctx context.Context, hook *Hook) {
	for _, t := range s.targets() {
		if t.hook == hook && t.guard != nil && s.state(t) == foreign {
			s.dismissed = true
			go t.guard.release(ctx)
		}
	}
}

func (s *Session) runTask(ctx context.Context, task *render.Task) (map[string]any, error) {
	if s.tools.Tasks == nil {
		return nil, fmt.Errorf("function %s: there is nothing here to run it", task.Func)
	}
	shown := *task
	shown.Show = s.show
	return s.tools.Tasks.Run(ctx, &shown)
}

// outputs merges the outputs of all commands of a phase.
func (s *Session) outputs(printed []*podexec.Output) (map[string]any, error) {
	all := map[string]any{}
	for _, output := range printed {
		if output == nil {
			continue
		}
		outputs, err := output.Outputs()
		if err != nil {
			return nil, s.masked(err)
		}
		maps.Copy(all, outputs)
	}
	return all, nil
}

func (s *Session) runShell(ctx context.Context, r *runner, limit time.Duration) (*podexec.Output, error) {
	// The shell enforces the limit. This context covers a shell that is gone, and a command
	// that the kernel keeps from ending.
	waiting, cancel := context.WithTimeout(ctx, limit+killLimit)
	defer cancel()
	answer, err := r.shell.ask(waiting, fmt.Sprintf("run %d", seconds(limit)), "ended")
	if err == nil {
		return s.ended(r, answer)
	}
	go s.await(ctx, r)
	if waiting.Err() != nil {
		return nil, fmt.Errorf("it has not ended at prepare-timeout %s and can still complete: %s", s.plan.PrepareTimeout, s.outputSoFar(r.shell))
	}
	return nil, s.masked(err)
}

// await waits until a command that exceeded its limit ends or its connection is lost.
func (s *Session) await(ctx context.Context, r *runner) {
	if answer, err := r.shell.expect(context.WithoutCancel(ctx), "ended"); err == nil {
		_, _ = s.ended(r, answer) // only for its effect on the state
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.lost = time.Now()
}

// ended sets the state of a command that has ended, and returns its output or an error.
func (s *Session) ended(r *runner, answer string) (*podexec.Output, error) {
	code := strings.TrimPrefix(answer, "ended ")
	r.shell.output.WaitEnd()
	to := ended(r.call.Command, code, r.shell.output)
	s.setState(&r.progress, to)
	switch {
	case to == frozen:
		return r.shell.output, nil
	case code == "124":
		return nil, fmt.Errorf("killed after prepare-timeout %s: %s", s.plan.PrepareTimeout, s.outputSoFar(r.shell))
	case to == foreign:
		return nil, fmt.Errorf("another program has frozen the file system already, such as Velero's own hooks, a second backup tool or the storage, and its freeze is left alone: exit code %s: %s", code, s.outputSoFar(r.shell))
	default:
		return nil, fmt.Errorf("exit code %s: %s", code, s.outputSoFar(r.shell))
	}
}

// beginHeld sends a held client its begin statements.
func (s *Session) beginHeld(ctx context.Context, r *runner, limit time.Duration) (*podexec.Output, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	guard := r.held.guard
	answer, err := guard.ask(ctx, "begin", lineHeld, "ended")
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("the client did not say %q within prepare-timeout %s: %s", lineHeld, s.plan.PrepareTimeout, s.outputSoFar(guard))
	case err != nil:
		return nil, s.masked(err)
	case answer != lineHeld:
		s.setState(&r.progress, uncertain)
		return nil, fmt.Errorf("the client ended with exit code %s: %s", strings.TrimPrefix(answer, "ended "), s.finalOutput(guard))
	}
	s.setState(&r.progress, frozen)
	return guard.output, nil
}

// runWithoutShell runs a command in a container that has no shell.
func (s *Session) runWithoutShell(ctx context.Context, r *runner, limit time.Duration) (*podexec.Output, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	printed := podexec.NewOutput(s.show)
	err := s.tools.Executor.Exec(ctx, ContainerOf(r.call), r.call.Command, podexec.Streams{Stdout: printed, Stderr: printed})
	if code, known := podexec.ExitCode(err); known {
		s.setState(&r.progress, ended(r.call.Command, code, printed))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s", s.masked(err), printed)
	}
	return printed, nil
}
