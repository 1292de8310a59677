package quiesce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/node"
)

// post runs the due post commands: phases one after another, commands of a
// phase at the same time. One that fails does not keep the next phase waiting.
func (s *Session) post(ctx context.Context) error {
	var (
		late sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	insist := func(t *target, failure error) {
		late.Go(func() {
			if err := s.insist(ctx, t, failure); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	for _, p := range s.posts {
		if err := s.ready(ctx, p); err != nil {
			for _, t := range p.targets {
				if t.due {
					mu.Lock()
					errs = append(errs, s.stuck(t, err))
					mu.Unlock()
				}
			}
			continue
		}
		due := slices.DeleteFunc(slices.Clone(p.targets), func(t *target) bool { return !t.due })
		results := make([]map[string]any, len(due))
		_ = each(due, func(t *target) error {
			i := slices.Index(due, t)
			outputs, failure := s.tell(ctx, t)
			if results[i] = outputs; failure == nil {
				t.done = true
			} else {
				insist(t, failure)
			}
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
	late.Wait()
	return errors.Join(errs...)
}

// ready renders a phase that has waited for one before it.
func (s *Session) ready(ctx context.Context, p *post) error {
	if p.step.Needs == "" || !slices.ContainsFunc(p.targets, func(t *target) bool { return t.due }) {
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
		p.targets = append(p.targets, &target{post: p, task: p.step.Task, due: true})
	}
	for _, call := range p.step.Calls {
		p.targets = append(p.targets, &target{post: p, call: call, due: true})
	}
	return nil
}

// tell has a post command run, by its guard where one stands.
func (s *Session) tell(ctx context.Context, t *target) (map[string]any, error) {
	switch {
	case t.task != nil:
		return s.tryTask(ctx, t.task)
	case t.guard == nil:
		return s.once(ctx, t.call)
	case t.call.Hold != nil:
		return nil, s.letGo(ctx, t)
	}
	ctx, cancel := context.WithTimeout(ctx, postLimit)
	defer cancel()
	answer, err := t.guard.ask(ctx, "thaw", "thawed", "failed", "expired")
	switch {
	case err != nil:
		return nil, s.masked(err)
	case answer == "thawed":
		if t.hook.Script == nil || !t.hook.waiting() {
			return map[string]any{}, nil
		}
		t.guard.output.whole()
		return s.outputs([]*output{t.guard.output})
	case answer == "expired 0":
		return map[string]any{}, nil
	default:
		return nil, fmt.Errorf("exit code %s: %s", answer[strings.LastIndexByte(answer, ' ')+1:], s.said(t.guard))
	}
}

func (s *Session) tryTask(ctx context.Context, task *blueprint.Task) (map[string]any, error) {
	ctx, cancel := context.WithTimeout(ctx, s.plan.PrepareTimeout)
	defer cancel()
	outputs, err := s.runTask(ctx, task)
	return outputs, s.masked(err)
}

// letGo ends a client's session. However it ends, what it has locked is free then.
func (s *Session) letGo(ctx context.Context, t *target) error {
	ctx, cancel := context.WithTimeout(ctx, postLimit)
	defer cancel()
	answer, err := t.guard.ask(ctx, "thaw", lineReleased, "ended")
	switch {
	case err != nil:
		s.log.Warnf("The session of blueprint %s in %s was cut off, which frees what it held: %v", t.hook.Blueprint, t.guard.container, s.masked(err))
	case answer != lineReleased:
		s.log.Warnf("The session of blueprint %s in %s ended before it was told to (exit code %s), which frees what it held: %s",
			t.hook.Blueprint, t.guard.container, strings.TrimPrefix(answer, "ended "), s.said(t.guard))
	default:
		if said := t.guard.output.String(); said != "" {
			s.log.Infof("The session of blueprint %s in %s said: %s", t.hook.Blueprint, t.guard.container, said)
		}
		t.guard.close()
		return nil
	}
	t.guard.close()
	select {
	case <-t.guard.ended:
	case <-time.After(partingLimit + postLimit):
	}
	return nil
}

// insist runs a post command until it succeeds: through the guard while there
// is one, otherwise in the same container when it is up again, then from any
// other that mounts a volume of it, and from the node where that is allowed.
func (s *Session) insist(ctx context.Context, t *target, failure error) error {
	begun := time.Now()
	// A guard that lives may have a command at work that takes its time.
	until := begun.Add(max(rescueLimit, s.plan.PrepareTimeout))
	lost := false
	for time.Now().Before(until) {
		time.Sleep(retryPause)
		if t.task != nil {
			if _, failure = s.tryTask(ctx, t.task); failure == nil {
				t.done = true
				return nil
			}
			continue
		}
		if t.guard != nil {
			select {
			case <-t.guard.ended:
			default:
				if _, failure = s.tell(ctx, t); failure == nil {
					t.done = true
					return nil
				}
				continue
			}
		}
		if !lost {
			lost, begun = true, time.Now()
			until = begun.Add(rescueLimit)
		}
		if failure = s.rescue(ctx, t, failure, time.Since(begun) > nodeAfter); failure == nil {
			t.done = true
			return nil
		}
	}
	return s.stuck(t, failure)
}

// rescue tries everything once that can undo a freeze without a guard.
func (s *Session) rescue(ctx context.Context, t *target, cause error, fromNode bool) error {
	failure := cause
	for _, call := range append([]blueprint.Call{t.call}, s.plan.alternatives(ctx, t.call)...) {
		_, err := s.once(ctx, call)
		if err == nil {
			s.log.Warnf("Thawed from %s, since %s", containerOf(call), s.masked(cause))
			return nil
		}
		failure = s.masked(err)
	}
	if s.tools.Node == nil || !fromNode {
		return failure
	}
	volumes := s.plan.volumes(t.call)
	if len(volumes) == 0 {
		return failure
	}
	for name, paths := range byNode(volumes) {
		ctx, cancel := context.WithTimeout(ctx, rescueLimit)
		err := s.tools.Node.Thaw(ctx, name, paths)
		cancel()
		switch {
		case errors.Is(err, node.ErrOff):
			return failure
		case err != nil:
			return fmt.Errorf("%w; %w", failure, err)
		}
		s.log.Warnf("Thawed on node %s, since %s", name, s.masked(failure))
	}
	return nil
}

func (s *Session) stuck(t *target, failure error) error {
	return fmt.Errorf("%s MAY STILL BE FROZEN: the post command of blueprint %s did not succeed: %w; %s",
		s.plan.Name, t.hook.Blueprint, s.masked(failure), s.byHand(t))
}

// once runs a post command in a shell of its own. That a file system is not
// frozen any more is success: its guard was quicker.
func (s *Session) once(ctx context.Context, call blueprint.Call) (map[string]any, error) {
	printed, err := runOnce(ctx, s.tools.Executor, call, postLimit, s.show)
	if err != nil {
		return nil, err
	}
	return s.outputs([]*output{printed})
}

// runOnce runs a call that undoes something, in a shell of its own, or in none
// where the container has none. That a file system is not frozen is success. The
// error has what the command printed as show shows it.
func runOnce(ctx context.Context, executor Executor, call blueprint.Call, limit time.Duration, show show) (*output, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	shell, err := openShell(ctx, executor, call, runnerScript, show)
	if shellless(err) && len(call.Env) == 0 {
		printed := newOutput(show)
		if err = executor.Exec(ctx, containerOf(call), call.Command, cluster.Streams{Stdout: printed, Stderr: printed}); err == nil || notFrozen(printed) {
			return printed, nil
		}
		return nil, fmt.Errorf("%w: %s", err, printed)
	}
	if err != nil {
		return nil, err
	}
	defer shell.close()
	answer, err := shell.ask(ctx, fmt.Sprintf("run %d", seconds(limit)), "ended")
	if err != nil {
		return nil, err
	}
	shell.output.whole()
	if answer != "ended 0" && !notFrozen(shell.output) {
		return nil, fmt.Errorf("exit code %s in %s: %s", strings.TrimPrefix(answer, "ended "), containerOf(call), shell.output)
	}
	return shell.output, nil
}

// notFrozen recognizes what fsfreeze --unfreeze says of a file system that is
// not frozen: util-linux and busybox both print EINVAL of ioctl(FITHAW).
func notFrozen(printed *output) bool {
	said, _ := printed.kept()
	return strings.Contains(said, "fsfreeze:") && strings.Contains(said, "Invalid argument")
}
