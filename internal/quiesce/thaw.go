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

// runPosthooks runs the due post commands: phases one after another, the commands of a
// phase in parallel. A failed command is retried while the next phases run.
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
	if s.dismissed { // recovery must not thaw another program's freeze
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

// renderPost renders a phase that depends on an earlier post phase.
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
	// These targets need no guard, since they run at once.
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
	// NoneRunning reports whether the container showed no running freeze command when the
	// post command started.
	NoneRunning bool
}

// Confirmed reports whether the try has undone everything, even if a pre command was
// still pending.
func (t Try) Confirmed() bool {
	next, _ := pending.after(t.Reply, t.NoneRunning)
	return !next.due()
}

// attempt tries a post command once and updates the target's state. It returns an error
// unless the undo is confirmed.
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

// preEnded reports whether no pre command of the target is connected and pending, or can
// still begin after the loss of its connection.
func (s *Session) preEnded(t *target) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(t.undoes, func(p *progress) bool {
		return p.state == pending && (p.lost.IsZero() || time.Since(p.lost) < StartLimit)
	})
}

// limit returns the time limit of a post command.
func (s *Session) limit(call render.Call) time.Duration {
	if ThawsFileSystem(call.Command) {
		return ThawLimit
	}
	return max(ThawLimit, s.plan.PrepareTimeout)
}

// runPost runs a post command, by its guard if it has one.
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

// orderThaw orders a guard to thaw. done reports that the guard had already thawed by
// itself. In that case the freeze is broken, since the thaw may have preceded the cut.
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
	if !s.plan.rescue.endsPod(t.hook, t.call) {
		s.markBroken(fmt.Errorf("the guard in %s was lost before it was told to thaw: %w", t.guard.container, s.masked(err)))
	}
	if answer == "expired 0" {
		return true, nil
	}
	return false, s.masked(err)
}

// judge parses the answer of a script: a word, the exit code, and "freezing" if a freeze
// was running.
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

// endHeld ends a held session, which releases its locks. If the session had ended before,
// the freeze is broken, since the locks may not have lasted until the cut.
func (s *Session) endHeld(ctx context.Context, t *target) {
	ctx, cancel := context.WithTimeout(ctx, rescueLimit)
	defer cancel()
	asking, stop := context.WithTimeout(ctx, ThawLimit)
	defer stop()
	answer, err := t.guard.ask(asking, "thaw", "thawing", "ended")
	if held := err == nil && answer == "thawing"; held {
		answer, err = t.guard.expect(ctx, lineReleased, "ended")
	} else if !s.plan.rescue.endsPod(t.hook, t.call) {
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

// retryPost runs a post command until it is confirmed or the limit passes. It uses the
// guard while the guard answers, and then new connections to the same container. File
// systems are also thawed from other containers that mount them, and from the node if
// the configuration allows it.
func (s *Session) retryPost(ctx context.Context, t *target, failure error) error {
	begun := time.Now()
	// The command of a connected guard may still be running.
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

// rescue tries each way of undoing a freeze without a guard once.
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
				outside.Node, outside.Volumes = s.tools.Node, s.plan.rescue.volumes(t.call)
			}
			sure := s.plan.rescue.gone(ctx, t.call)
			tried, from, err := outside.Thaw(ctx, s.plan.rescue.alternatives(ctx, t.call))
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

// dismissGuard ends an unresponsive guard by a signal, so that it does not thaw again at
// its deadline. If the post command thaws no file system, the guard may have run it
// before, so the freeze counts as broken.
func (s *Session) dismissGuard(ctx context.Context, t *target) {
	if !ThawsFileSystem(t.call.Command) && !s.plan.rescue.endsPod(t.hook, t.call) {
		s.markBroken(fmt.Errorf("the guard in %s did not answer when it was told to thaw, and it is not known whether it had run its post command before", t.guard.container))
	}
	ctx, cancel := context.WithTimeout(ctx, ThawLimit)
	defer cancel()
	_ = s.tools.Executor.Exec(ctx, t.guard.container, []string{"sh", "-c", `kill -USR1 "$0"`, t.guard.process}, podexec.Streams{Stdout: io.Discard, Stderr: io.Discard})
}

// stuckError means that a workload may still be frozen.
type stuckError struct{ error }

func (e stuckError) Unwrap() error { return e.error }

func (s *Session) stuck(t *target, failure error) error {
	return stuckError{fmt.Errorf("%s MAY STILL BE FROZEN: the post command of blueprint %s did not succeed: %w; %s",
		s.plan.Name, t.hook.Blueprint, s.masked(failure), s.byHand(t))}
}

// runInNewShell runs a post command in a new shell.
func (s *Session) runInNewShell(ctx context.Context, call render.Call) (map[string]any, Try, error) {
	tried, err := UndoOnce(ctx, s.tools.Executor, call, s.limit(call), s.show)
	if err != nil {
		return nil, tried, s.masked(err)
	}
	outputs, err := s.outputs([]*podexec.Output{tried.printed})
	return outputs, tried, err
}

// UndoOnce runs a post command in a new shell, or directly if the container has no shell.
// The error contains the command's output, filtered by show. A file system that is not
// frozen is no error.
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
