package quiesce

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
)

const (
	// postLimit is how long one try of a post command may take.
	postLimit = 10 * time.Second
	// retryPause lies between two tries of a post command.
	retryPause = 500 * time.Millisecond
	// rescueLimit is how long a post command is tried once its guard is lost:
	// long enough for a killed container to be started again.
	rescueLimit = 60 * time.Second
	// graceOfGuard is by how much a guard's own deadline lies behind ours, so
	// that the two do not run the post command at the same moment.
	graceOfGuard = time.Second
)

// Session is one freeze of one unit: armed, frozen, held and thawed. It thaws
// by itself when the plan's quiesce timeout passes or a guard is lost; when
// this process dies the guards do it.
type Session struct {
	executor Executor
	plan     *Plan
	log      logrus.FieldLogger

	targets []*target // post commands, in the order in which they run
	thaw    sync.Once
	thawed  chan struct{}
	// rearm ends the giving of new limits to the guards, and rearmed is closed
	// when that has ended.
	rearm   context.CancelFunc
	rearmed chan struct{}

	mu       sync.Mutex
	frozenAt time.Time
	report   Report
}

// Report is how a session went.
type Report struct {
	// Prepared is how long pre commands took, Frozen the time from the first
	// pre command's start until the last post command had ended.
	Prepared, Frozen time.Duration
	// Broken says why the application was thawed before anybody asked for it,
	// and so what was on the volumes cannot be trusted to be consistent; nil
	// otherwise.
	Broken error
	// Stuck lists post commands that could not be confirmed, each with the
	// command to run by hand; nil when all is thawed.
	Stuck error
}

// target is a post command and the guard that stands ready for it.
type target struct {
	hook  *Hook
	step  int
	call  blueprint.Call
	guard *shell
	// due says that a pre command has begun whose effect the call undoes.
	due bool
}

// runner is a pre command, ready to start.
type runner struct {
	hook  *Hook
	phase string
	call  blueprint.Call
	shell *shell
}

// Freeze arms a guard for every post command of plan, makes every pre command
// ready, and only then runs these. When it returns a session, the unit is
// frozen; when it returns an error, nothing is, except where the error says so.
//
// ctx bounds the arming; the session lives on when it ends.
func Freeze(ctx context.Context, executor Executor, plan *Plan, log logrus.FieldLogger) (*Session, error) {
	s := &Session{
		executor: executor,
		plan:     plan,
		log:      log,
		thawed:   make(chan struct{}),
		rearm:    func() {},
		rearmed:  make(chan struct{}),
	}
	flushed := s.flush(ctx)
	runners, err := s.open(ctx) // all of them, before anything begins
	<-flushed
	if err != nil {
		s.release()
		return nil, fmt.Errorf("nothing was frozen: %w", err)
	}
	// What has begun ends by its own limits, not by the caller's.
	life := context.WithoutCancel(ctx)
	if err := s.prepare(life, runners); err != nil {
		close(s.rearmed)
		s.Thaw(life)
		return nil, errors.Join(err, s.Report().Stuck)
	}
	return s, nil
}

// flush writes out the file systems meanwhile, and closes the channel at the end.
func (s *Session) flush(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(ctx, s.plan.PrepareTimeout)
		defer cancel()
		err := each(s.plan.Flush, func(call blueprint.Call) error {
			if err := s.executor.Exec(ctx, containerOf(call), call.Command, cluster.Streams{}); err != nil {
				return fmt.Errorf("%s in %s: %w", quote(call.Command), containerOf(call), err)
			}
			return nil
		})
		if err != nil {
			s.log.Debugf("The freeze has more to write out: %v", err)
		}
	}()
	return done
}

// open starts the shells of all pre and post commands side by side.
func (s *Session) open(ctx context.Context) ([][]*runner, error) {
	var (
		steps [][]*runner
		wait  sync.WaitGroup
		mu    sync.Mutex
		errs  []error
	)
	start := func(hook *Hook, phase string, call blueprint.Call, script string, place **shell) {
		wait.Go(func() {
			opened, err := openShell(ctx, s.executor, containerOf(call), script, call.Command)
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("blueprint %s, phase %s: %w", hook.Blueprint, phase, s.masked(err)))
				return
			}
			*place = opened
		})
	}
	for i := range s.plan.Hooks {
		hook := &s.plan.Hooks[i]
		for _, step := range hook.Pre {
			ready := make([]*runner, len(step.Calls))
			for j, call := range step.Calls {
				ready[j] = &runner{hook: hook, phase: step.Phase, call: call}
				start(hook, step.Phase, call, runnerScript, &ready[j].shell)
			}
			steps = append(steps, ready)
		}
	}
	// Thawing goes the other way round.
	order := 0
	for i := len(s.plan.Hooks) - 1; i >= 0; i-- {
		hook := &s.plan.Hooks[i]
		for _, step := range hook.Post {
			for _, call := range step.Calls {
				t := &target{hook: hook, step: order, call: call}
				s.targets = append(s.targets, t)
				start(hook, step.Phase, call, guardScript, &t.guard)
			}
			order++
		}
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		for _, step := range steps {
			for _, r := range step {
				if r.shell != nil {
					r.shell.close()
				}
			}
		}
		return nil, err
	}
	return steps, nil
}

// prepare runs the pre commands, step by step, and then holds.
func (s *Session) prepare(ctx context.Context, steps [][]*runner) error {
	defer func() {
		for _, step := range steps {
			for _, r := range step {
				r.shell.close()
			}
		}
	}()
	for _, t := range s.targets {
		t.due = len(t.hook.Pre) == 0
	}
	begun := time.Now()
	for i, step := range steps {
		left := s.plan.PrepareTimeout - time.Since(begun)
		if left <= 0 {
			return fmt.Errorf("the pre commands took longer than prepare-timeout %s", s.plan.PrepareTimeout)
		}
		// Guards first: a pre command whose guard does not answer must not begin.
		due := s.becomesDue(step)
		if err := s.hold(ctx, "prepare", left+s.plan.QuiesceTimeout, due); err != nil {
			for _, t := range due {
				t.due = false
			}
			return err
		}
		if i == 0 {
			begun = time.Now()
			s.mu.Lock()
			s.frozenAt = begun
			s.mu.Unlock()
		}
		if err := s.runStep(ctx, step, left); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.report.Prepared = time.Since(begun)
	s.mu.Unlock()

	// The guards have a limit that is long enough. The snapshot need not wait
	// until they know the shorter one.
	rearming, cancel := context.WithCancel(ctx)
	s.rearm = cancel
	go func() {
		err := s.hold(rearming, "hold", s.plan.QuiesceTimeout, s.due())
		if rearming.Err() != nil {
			err = nil // thawed meanwhile
		}
		close(s.rearmed)
		if err != nil {
			s.Abandon(ctx, err)
		}
	}()
	go s.expire(ctx)
	for _, t := range s.due() {
		go s.watch(ctx, t)
	}
	return nil
}

// becomesDue marks the post commands that undo what step is about to do: those
// of the same blueprint in the same containers, and those that stand in a
// container where the blueprint has no pre command at all.
func (s *Session) becomesDue(step []*runner) []*target {
	var due []*target
	for _, t := range s.targets {
		if t.due {
			continue
		}
		for _, r := range step {
			if r.hook == t.hook && (containerOf(r.call) == containerOf(t.call) || !t.hook.prepares(containerOf(t.call))) {
				t.due = true
				due = append(due, t)
				break
			}
		}
	}
	return due
}

func (s *Session) due() []*target {
	var due []*target
	for _, t := range s.targets {
		if t.due {
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
		_, err := t.guard.ask(ctx, fmt.Sprintf("%s %d", verb, seconds(limit+graceOfGuard)), "holding")
		if err != nil {
			return fmt.Errorf("arm the guard in %s: %w", t.guard.container, s.masked(err))
		}
		return nil
	})
}

// runStep runs the commands of one phase at the same time.
func (s *Session) runStep(ctx context.Context, step []*runner, limit time.Duration) error {
	// The shell in the container keeps the limit; ours is for one that is gone.
	ctx, cancel := context.WithTimeout(ctx, limit+postLimit)
	defer cancel()
	return each(step, func(r *runner) error {
		answer, err := r.shell.ask(ctx, fmt.Sprintf("run %d", seconds(limit)), "ended")
		if err == nil && answer == "ended 0" {
			return nil
		}
		where := fmt.Sprintf("blueprint %s, phase %s, %s", r.hook.Blueprint, r.phase, r.shell.container)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", where, s.masked(err))
		case answer == "ended 124":
			return fmt.Errorf("%s: killed after prepare-timeout %s: %s", where, s.plan.PrepareTimeout, s.said(r.shell))
		default:
			return fmt.Errorf("%s: exit code %s: %s", where, strings.TrimPrefix(answer, "ended "), s.said(r.shell))
		}
	})
}

func (s *Session) said(from *shell) string {
	// Standard error comes over a stream of its own and may be behind.
	for range 20 {
		if text := from.output.String(); text != "" {
			return s.plan.Mask.Mask(text)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "no output"
}

// expire keeps the quiesce timeout.
func (s *Session) expire(ctx context.Context) {
	deadline := time.NewTimer(s.plan.QuiesceTimeout)
	defer deadline.Stop()
	select {
	case <-deadline.C:
		s.Abandon(ctx, fmt.Errorf("thawed at the quiesce-timeout of %s, before the snapshot was cut", s.plan.QuiesceTimeout))
	case <-s.thawed:
	}
}

// watch notices when a guard thaws or goes away without being told to.
func (s *Session) watch(ctx context.Context, t *target) {
	select {
	case <-t.guard.ended:
		s.Abandon(ctx, fmt.Errorf("the guard in %s was lost while frozen: %w", t.guard.container, s.masked(t.guard.lost(ctx))))
	case <-s.thawed:
	}
}

// Abandon thaws because the freeze cannot be held; reason becomes the report's
// Broken.
func (s *Session) Abandon(ctx context.Context, reason error) {
	s.finish(ctx, reason)
}

// Thaw runs the post commands and returns when all have ended, or could not be
// made to. Further calls wait for the first. What came of it is in Report.
func (s *Session) Thaw(ctx context.Context) {
	s.finish(ctx, nil)
}

func (s *Session) finish(ctx context.Context, broken error) {
	s.thaw.Do(func() {
		defer close(s.thawed)
		s.rearm()
		<-s.rearmed // one question at a time
		// A post command is owed whoever has stopped waiting.
		stuck := s.post(context.WithoutCancel(ctx))
		s.release()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.report.Broken, s.report.Stuck = broken, stuck
		if !s.frozenAt.IsZero() {
			s.report.Frozen = time.Since(s.frozenAt)
		}
	})
	<-s.thawed
}

// Thawed is closed when the session is over, for whatever reason.
func (s *Session) Thawed() <-chan struct{} { return s.thawed }

// Report says how it went; it is complete once Thawed is closed.
func (s *Session) Report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.report
}

// post runs the due post commands: phases one after another, commands of a
// phase at the same time. One that fails does not keep the next phase waiting.
func (s *Session) post(ctx context.Context) error {
	var (
		late sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	due := s.due()
	for i := 0; i < len(due); {
		var now []*target
		for step := due[i].step; i < len(due) && due[i].step == step; i++ {
			now = append(now, due[i])
		}
		_ = each(now, func(t *target) error {
			failure := s.tell(ctx, t)
			if failure == nil {
				return nil
			}
			late.Go(func() {
				if err := s.insist(ctx, t, failure); err != nil {
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, err)
				}
			})
			return nil
		})
	}
	late.Wait()
	return errors.Join(errs...)
}

// tell has the guard run its post command.
func (s *Session) tell(ctx context.Context, t *target) error {
	ctx, cancel := context.WithTimeout(ctx, postLimit)
	defer cancel()
	answer, err := t.guard.ask(ctx, "thaw", "thawed", "failed", "expired")
	switch {
	case err != nil:
		return s.masked(err)
	case answer == "thawed", answer == "expired 0":
		return nil
	default:
		return fmt.Errorf("exit code %s: %s", answer[strings.LastIndexByte(answer, ' ')+1:], s.said(t.guard))
	}
}

// insist runs a post command until it succeeds: through the guard while there
// is one, otherwise in the same container when it is up again, and then from
// any other that mounts a volume of it.
func (s *Session) insist(ctx context.Context, t *target, failure error) error {
	// A guard that lives may have a command at work that takes its time.
	until := time.Now().Add(max(rescueLimit, s.plan.PrepareTimeout))
	lost := false
	for time.Now().Before(until) {
		select {
		case <-t.guard.ended:
			if !lost {
				lost, until = true, time.Now().Add(rescueLimit)
			}
			calls := append([]blueprint.Call{t.call}, s.plan.alternatives(ctx, t.call)...)
			for _, call := range calls {
				err := s.once(ctx, call)
				if err == nil {
					s.log.Warnf("Thawed from %s, since %s", containerOf(call), s.masked(failure))
					return nil
				}
				failure = fmt.Errorf("%s: %w", containerOf(call), s.masked(err))
			}
		default:
			err := s.tell(ctx, t)
			if err == nil {
				return nil
			}
			failure = err
		}
		time.Sleep(retryPause)
	}
	return fmt.Errorf("%s MAY STILL BE FROZEN: the post command of blueprint %s did not succeed: %w; %s",
		s.plan.Name, t.hook.Blueprint, s.masked(failure), s.plan.Mask.Mask(s.plan.byHand(t.call)))
}

// once runs a post command in a shell of its own. That a file system is not
// frozen any more is success: its guard was quicker.
func (s *Session) once(ctx context.Context, call blueprint.Call) error {
	ctx, cancel := context.WithTimeout(ctx, postLimit)
	defer cancel()
	shell, err := openShell(ctx, s.executor, containerOf(call), runnerScript, call.Command)
	if err != nil {
		return err
	}
	defer shell.close()
	answer, err := shell.ask(ctx, fmt.Sprintf("run %d", seconds(postLimit)), "ended")
	if err != nil {
		return err
	}
	if said := ""; answer != "ended 0" {
		if said = s.said(shell); !notFrozen(said) {
			return fmt.Errorf("exit code %s: %s", strings.TrimPrefix(answer, "ended "), said)
		}
	}
	return nil
}

// notFrozen recognizes what fsfreeze --unfreeze says of a file system that is
// not frozen: util-linux and busybox both print EINVAL of ioctl(FITHAW).
func notFrozen(said string) bool {
	return strings.Contains(said, "fsfreeze:") && strings.Contains(said, "Invalid argument")
}

// release lets go of all guards that are left. They leave without a word; one
// whose post command did not succeed goes on trying by itself.
func (s *Session) release() {
	for _, t := range s.targets {
		if t.guard == nil {
			continue
		}
		go func() {
			defer t.guard.close()
			if t.due {
				return
			}
			_ = t.guard.send("release")
			select {
			case <-t.guard.ended:
			case <-time.After(postLimit):
			}
		}()
	}
}

// masked takes secret values out of an error's text, and keeps what it is.
func (s *Session) masked(err error) error {
	if err == nil {
		return nil
	}
	return maskedError{err, s.plan.Mask.Mask(err.Error())}
}

type maskedError struct {
	cause error
	text  string
}

func (e maskedError) Error() string        { return e.text }
func (e maskedError) Is(target error) bool { return errors.Is(e.cause, target) }

func containerOf(call blueprint.Call) cluster.Container {
	return cluster.Container{Namespace: call.Namespace, Pod: call.Pod, Name: call.Container}
}

// each runs do for all items at the same time and joins the errors.
func each[T any](items []T, do func(T) error) error {
	errs := make([]error, len(items))
	var wait sync.WaitGroup
	for i, item := range items {
		wait.Go(func() { errs[i] = do(item) })
	}
	wait.Wait()
	return errors.Join(errs...)
}
