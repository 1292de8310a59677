package quiesce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
)

// post runs the due post commands: phases one after another, commands of a
// phase at the same time. One that fails does not keep the next phase waiting.
func (s *Session) runPosthooks(ctx context.Context) error {
	var (
		retries sync.WaitGroup
		mu      sync.Mutex
		errs    []error
	)
	for _, p := range s.posts {
		if err := s.renderPost(ctx, p); err != nil {
			for _, t := range s.dueOf(p) {
				mu.Lock()
				errs = append(errs, s.stuck(t, err))
				mu.Unlock()
			}
			continue
		}
		due := s.dueOf(p)
		results := make([]map[string]any, len(due))
		_ = each(due, func(t *target) error {
			outputs, failure := s.attempt(t, func() (map[string]any, Try, error) { return s.runPost(ctx, t) })
			if results[slices.Index(due, t)] = outputs; failure == nil {
				return nil
			}
			retries.Go(func() {
				if err := s.retryPost(ctx, t, failure); err != nil {
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, err)
				}
			})
			return nil
		})
		if p.hook.Script != nil {
			all := map[string]any{}
			for _, outputs := range results {
				maps.Copy(all, outputs)
			}
			p.hook.Script.Done(p.step, all)
		}
	}
	if s.dismissed { // a successor must not thaw what is not ours
		if err := s.updateRecord(ctx, s.due()); err != nil {
			s.log.Warnf("The record of %s still lists a thaw that is not due: %v", s.plan.Name, err)
		}
	}
	retries.Wait()
	return errors.Join(errs...)
}

func (s *Session) dueOf(p *post) []*target {
	return slices.DeleteFunc(slices.Clone(p.targets), func(t *target) bool { return !s.state(t).due() })
}

// ready renders a phase that has waited for one before it.
func (s *Session) renderPost(ctx context.Context, p *post) error {
	if p.step.Needs == "" || len(s.dueOf(p)) == 0 {
		return nil
	}
	if err := s.render(ctx, p.hook, p.step); err != nil {
		return err
	}
	if p.step.Needs != "" {
		return fmt.Errorf("it needs %s, which there is not", p.step.Needs)
	}
	// A guard would have nothing to wait for.
	p.targets = nil
	if p.step.Task != nil {
		p.targets = append(p.targets, &target{post: p, task: p.step.Task, unconditional: true})
	}
	for _, call := range p.step.Calls {
		p.targets = append(p.targets, &target{post: p, call: call, unconditional: true})
	}
	return nil
}

// Try is one run of a post command.
type Try struct {
	Reply   Reply
	printed *podexec.Output
	// sure says that none of the commands that it undoes was at work when it started, as
	// far as could be seen there.
	NoneRunning bool
}

// Confirmed reports whether nothing can be frozen any more, if nothing is known of what
// has begun.
func (t Try) Confirmed() bool {
	next, _ := pending.after(t.Reply, t.NoneRunning)
	return !next.due()
}

// attempt tries a post command once, and judges what came of it. The error is nil
// when its effect is known to be undone.
func (s *Session) attempt(t *target, run func() (map[string]any, Try, error)) (map[string]any, error) {
	before, preEnded := s.state(t), s.preEnded(t)
	outputs, tried, err := run()
	next, broken := before.after(tried.Reply, tried.NoneRunning && preEnded)
	if broken {
		s.markBroken(fmt.Errorf("the file system was not frozen any more when it was to be thawed (%s): another program has thawed it meanwhile", ContainerOf(t.call)))
	}
	s.mu.Lock()
	t.undone = next == thawed
	s.mu.Unlock()
	if next == thawed {
		return outputs, nil
	}
	if err == nil {
		err = fmt.Errorf("the file system is not frozen, but the command that freezes it may still be at work in %s", ContainerOf(t.call))
	}
	return nil, err
}

// settled reports whether no pre command can be about to begin or is known to be at
// work: of those that may be, the connection was lost a while ago.
func (s *Session) preEnded(t *target) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(t.undoes, func(p *progress) bool {
		return p.state == pending && (p.lost.IsZero() || time.Since(p.lost) < StartLimit)
	})
}

// limit is how long a post command may take.
func (s *Session) limit(call render.Call) time.Duration {
	if ThawsFileSystem(call.Command) {
		return ThawLimit
	}
	return max(ThawLimit, s.plan.PrepareTimeout)
}

// tell has a post command run, by its guard where one stands.
func (s *Session) runPost(ctx context.Context, t *target) (map[string]any, Try, error) {
	switch {
	case t.task != nil:
		outputs, err := s.tryTask(ctx, t.task)
		if err != nil {
			return nil, Try{}, err
		}
		return outputs, Try{Reply: Undone}, nil
	case t.guard == nil:
		return s.runInNewShell(ctx, t.call)
	case t.call.Hold != nil:
		s.endHeld(ctx, t)
		return nil, Try{Reply: Undone}, nil
	}
	if done, err := s.orderThaw(ctx, t); err != nil {
		return nil, Try{}, err
	} else if done {
		return map[string]any{}, Try{Reply: Undone}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.limit(t.call))
	defer cancel()
	answer, err := t.guard.expect(ctx, "thawed", "failed", "expired")
	if err != nil {
		return nil, Try{}, s.masked(err)
	}
	t.thawing = false
	t.guard.output.WaitEnd()
	tried, err := judge(t.call, t.guard.output, answer)
	if err != nil || t.hook.Script == nil || !t.hook.hasUnrendered() {
		return map[string]any{}, tried, err
	}
	outputs, err := s.outputs([]*podexec.Output{t.guard.output})
	return outputs, tried, err
}

// order tells a guard to thaw. Before it confirms that, it may have thawed by itself,
// which done reports, and it is not known when: before or after the snapshots were cut.
func (s *Session) orderThaw(ctx context.Context, t *target) (done bool, err error) {
	if t.thawing {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, ThawLimit)
	defer cancel()
	answer, err := t.guard.ask(ctx, "thaw", "thawing", "expired")
	switch {
	case err == nil && answer == "thawing":
		t.thawing = true
		return false, nil
	case err == nil:
		err = errors.New("it had run its post command by itself")
	case !errors.Is(err, errLost):
		t.unresponsive = true
		return false, s.masked(err)
	}
	if !s.plan.endsPod(t) {
		s.markBroken(fmt.Errorf("the guard in %s was lost before it was told to thaw: %w", t.guard.container, s.masked(err)))
	}
	if answer == "expired 0" {
		return true, nil
	}
	return false, s.masked(err)
}

// judge reads the answer of a script: a word, the exit code, and whether a freeze was
// under way.
func judge(call render.Call, printed *podexec.Output, answer string) (Try, error) {
	code, freezing := strings.CutSuffix(answer, " freezing")
	code = code[strings.LastIndexByte(code, ' ')+1:]
	if code == "thawed" {
		code = "0"
	}
	tried := Try{Reply: replyOf(call.Command, code, printed), printed: printed, NoneRunning: !freezing}
	if tried.Reply == failed {
		return tried, fmt.Errorf("exit code %s in %s: %s", code, ContainerOf(call), printed)
	}
	return tried, nil
}

func (s *Session) tryTask(ctx context.Context, task *render.Task) (map[string]any, error) {
	ctx, cancel := context.WithTimeout(ctx, s.plan.PrepareTimeout)
	defer cancel()
	outputs, err := s.runTask(ctx, task)
	return outputs, s.masked(err)
}

// letGo ends a client's session. However it ends, what it has locked is free then; one
// that ended before it was told to has not held the lock until the cut.
func (s *Session) endHeld(ctx context.Context, t *target) {
	ctx, cancel := context.WithTimeout(ctx, rescueLimit)
	defer cancel()
	asking, stop := context.WithTimeout(ctx, ThawLimit)
	defer stop()
	answer, err := t.guard.ask(asking, "thaw", "thawing", "ended")
	if held := err == nil && answer == "thawing"; held {
		answer, err = t.guard.expect(ctx, lineReleased, "ended")
	} else if !s.plan.endsPod(t) {
		s.markBroken(fmt.Errorf("the session of blueprint %s in %s had ended before it was told to", t.hook.Blueprint, t.guard.container))
	}
	switch {
	case err != nil:
		s.log.Warnf("The held session was interrupted, which frees what it held: blueprint %s in %s: %v", t.hook.Blueprint, t.guard.container, s.masked(err))
	case answer != lineReleased:
		s.log.Warnf("The held session ended by itself, which frees what it held: blueprint %s in %s (exit code %s): %s",
			t.hook.Blueprint, t.guard.container, strings.TrimPrefix(answer, "ended "), s.finalOutput(t.guard))
	default:
		if text := t.guard.output.String(); text != "" {
			s.log.Infof("The held session printed: blueprint %s in %s: %s", t.hook.Blueprint, t.guard.container, text)
		}
		t.guard.close()
		return
	}
	t.guard.close()
	select {
	case <-t.guard.ended:
	case <-time.After(closeLimit + ThawLimit):
	}
}

// insist runs a post command until it is confirmed: through the guard while that
// answers, otherwise by a new connection to the same container, and what thaws a file
// system then from any other that mounts it, and from the node where that is allowed.
func (s *Session) retryPost(ctx context.Context, t *target, failure error) error {
	begun := time.Now()
	// A guard that lives may have a command at work that takes its time.
	retryLimit := cmp.Or(s.tools.retryLimit, rescueLimit)
	until := begun.Add(max(retryLimit, s.limit(t.call)-ThawLimit))
	lost := false
	for time.Now().Before(until) {
		time.Sleep(retryPause)
		if t.task != nil || t.guard != nil && !t.unresponsive && t.guard.alive() {
			_, failure = s.attempt(t, func() (map[string]any, Try, error) { return s.runPost(ctx, t) })
		} else {
			if !lost {
				lost, begun = true, time.Now()
				until = begun.Add(retryLimit)
			}
			failure = s.rescue(ctx, t, failure, time.Since(begun) > nodeAfter)
		}
		if failure == nil {
			return nil
		}
	}
	return s.stuck(t, failure)
}

// rescue tries everything once that can undo a freeze without a guard.
func (s *Session) rescue(ctx context.Context, t *target, cause error, fromNode bool) error {
	where := "from " + ContainerOf(t.call).String()
	_, failure := s.attempt(t, func() (map[string]any, Try, error) { return s.runInNewShell(ctx, t.call) })
	if failure == nil && t.unresponsive {
		s.dismissGuard(ctx, t)
	}
	if failure != nil && ThawsFileSystem(t.call.Command) {
		_, err := s.attempt(t, func() (map[string]any, Try, error) {
			outside := Outside{Executor: s.tools.Executor, Show: s.show}
			if fromNode {
				outside.Node, outside.Volumes = s.tools.Node, s.plan.volumes(t.call)
			}
			sure := s.plan.gone(ctx, t.call)
			tried, from, err := outside.Thaw(ctx, s.plan.alternatives(ctx, t.call))
			where, tried.NoneRunning = from, sure
			return nil, tried, err
		})
		switch {
		case err == nil:
			failure = nil
		case !errors.Is(err, ErrNowhere):
			failure = fmt.Errorf("%w; %w", failure, s.masked(err))
		}
	}
	if failure == nil && t.guard != nil {
		s.log.Warnf("The guard did not thaw, Stillpoint did: thawed %s, since %s", where, s.masked(cause))
	}
	return failure
}

// leave has a guard that does not answer leave, by a signal: its deadline would have it
// thaw a second time. What no file system's thaw has found to be still frozen, it may
// have undone by itself before.
func (s *Session) dismissGuard(ctx context.Context, t *target) {
	if !ThawsFileSystem(t.call.Command) && !s.plan.endsPod(t) {
		s.markBroken(fmt.Errorf("the guard in %s did not answer when it was told to thaw, and it is not known whether it had run its post command before", t.guard.container))
	}
	ctx, cancel := context.WithTimeout(ctx, ThawLimit)
	defer cancel()
	_ = s.tools.Executor.Exec(ctx, t.guard.container, []string{"sh", "-c", `kill -USR1 "$0"`, t.guard.process}, podexec.Streams{Stdout: io.Discard, Stderr: io.Discard})
}

// stuckError says that something may still be frozen.
type stuckError struct{ error }

func (e stuckError) Unwrap() error { return e.error }

func (s *Session) stuck(t *target, failure error) error {
	return stuckError{fmt.Errorf("%s MAY STILL BE FROZEN: the post command of blueprint %s did not succeed: %w; %s",
		s.plan.Name, t.hook.Blueprint, s.masked(failure), s.byHand(t))}
}

// once runs a post command in a shell of its own.
func (s *Session) runInNewShell(ctx context.Context, call render.Call) (map[string]any, Try, error) {
	tried, err := UndoOnce(ctx, s.tools.Executor, call, s.limit(call), s.show)
	if err != nil {
		return nil, tried, s.masked(err)
	}
	outputs, err := s.outputs([]*podexec.Output{tried.printed})
	return outputs, tried, err
}

// UndoOnce runs a call that undoes something, in a shell of its own, or in none
// where the container has none. The error has what the command printed as show
// returns it; that a file system is not frozen is none.
func UndoOnce(ctx context.Context, executor podexec.Executor, call render.Call, limit time.Duration, show podexec.Show) (Try, error) {
	ctx, cancel := context.WithTimeout(ctx, limit+killLimit)
	defer cancel()
	shell, err := openShell(ctx, executor, call, runnerScript, show)
	if podexec.NoShell(err) && len(call.Env) == 0 {
		printed := podexec.NewOutput(show)
		err = executor.Exec(ctx, ContainerOf(call), call.Command, podexec.Streams{Stdout: printed, Stderr: printed})
		code, known := podexec.ExitCode(err)
		tried := Try{Reply: replyOf(call.Command, code, printed), printed: printed}
		if known && tried.Reply != failed {
			return tried, nil
		}
		return Try{}, fmt.Errorf("%w: %s", err, printed)
	}
	if err != nil {
		return Try{}, err
	}
	defer shell.close()
	answer, err := shell.ask(ctx, fmt.Sprintf("undo %d", seconds(limit)), "ended")
	if err != nil {
		return Try{}, err
	}
	shell.output.WaitEnd()
	return judge(call, shell.output, answer)
}
