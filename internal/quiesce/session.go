package quiesce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/journal"
	"stillpoint.io/stillpoint/internal/node"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
)

const (
	// ThawLimit limits the answer of a shell and the thaw of a file system. Other post
	// commands may take as long as the pre commands.
	ThawLimit = 10 * time.Second
	// killLimit is how long a runner may take to answer after the limit at which it kills
	// its command.
	killLimit = 3 * time.Second
	// StartLimit is how long after the loss of its connection a pre command may still
	// begin, since its shell may already have read the line that starts it.
	StartLimit = 3 * time.Second
	// retryPause is the pause between two tries of a post command.
	retryPause = 500 * time.Millisecond
	// rescueLimit is how long a post command is retried after its guard is lost. It is long
	// enough for a killed container to restart.
	rescueLimit = 60 * time.Second
	// nodeAfter is how long thawing from containers must fail before the node thaws.
	nodeAfter = 10 * time.Second
	// guardGrace is how much later a guard's deadline is than the session's, so that they
	// do not run the post command at the same time.
	guardGrace = time.Second
)

// Tools are the dependencies of a session.
type Tools struct {
	Executor podexec.Executor
	// Tasks runs tasks; nil can run none.
	Tasks Tasks
	// Journal records the pending undo; nil records nothing.
	Journal Journal
	// Node thaws file systems from their node; nil disables that.
	Node Node

	retryLimit time.Duration // replaces rescueLimit in tests
}

// NewTools returns the tools for sessions of a planner's plans.
func NewTools(clients *cluster.Clients, planner *Planner) Tools {
	return Tools{
		Executor: planner.Executor,
		Tasks:    planner.Tasks,
		Journal:  journal.New(clients, clock.RealClock{}),
		Node:     node.New(clients, func(context.Context) (*config.Config, error) { return planner.Settings, nil }),
	}
}

// Tasks runs tasks through the API server; function.Tasks implements it.
type Tasks interface {
	Run(ctx context.Context, task *render.Task) (outputs map[string]any, err error)
	// Held returns an error if the effect of a prehook's task has not lasted.
	Held(ctx context.Context, task *render.Task) error
}

// Journal records the pending undo of sessions; journal.Journal implements it.
type Journal interface {
	Open(ctx context.Context, record *journal.Entry) error
	Update(ctx context.Context, record *journal.Entry) error
	Close(ctx context.Context, id string) error
}

// Node thaws file systems by their paths on a node; node.Thawer implements it. Thaw
// returns node.ErrOff if the configuration does not allow it.
type Node interface {
	Thaw(ctx context.Context, node string, paths []string) error
}

// Session is one freeze of one unit. It thaws by itself when the plan's quiesce timeout
// passes or a guard is lost. If this process dies, the guards thaw. The journal records
// the undo that guards cannot do.
type Session struct {
	tools Tools
	plan  *Plan
	log   logrus.FieldLogger

	pres   []*pre
	posts  []*post // in the order in which they run
	record *journal.Entry

	thaw   sync.Once
	thawed chan struct{}
	// rearm cancels the arming of the guards with the quiesce timeout; rearmed is closed
	// when that has ended.
	rearm   context.CancelFunc
	rearmed chan struct{}

	begun     time.Time // start of the first pre command
	dismissed bool      // dismissGuards has released a guard

	mu       sync.Mutex
	mask     render.Masker
	frozenAt time.Time
	report   Report
}

// Report is the result of a session.
type Report struct {
	// Prepared is the duration of the pre commands. Frozen is the time from the start of the
	// first pre command to the end of the last post command.
	Prepared, Frozen time.Duration
	// Broken is non-nil if it is not certain that the session's freeze lasted until the
	// thaw. The snapshots may then be inconsistent.
	Broken error
	// Stuck is non-nil if post commands could not be confirmed; it has the commands to run
	// by hand. Their guards and the record stay.
	Stuck error
}

// pre is a phase that runs before the snapshots.
type pre struct {
	hook    *Hook
	step    *render.Step
	runners []*runner
	task    progress // of the phase's task, if it has one
}

// progress is the progress of a pre command. Session.mu guards it.
type progress struct {
	state state
	// alone reports whether the command only freezes a file system.
	alone bool
	// lost is when the connection to the command was lost.
	lost time.Time
}

// runner is a pre command, ready to start.
type runner struct {
	progress
	call  render.Call
	shell *shell // nil if the container has no shell, and for a held session
	// held is the target of the held session that the command begins.
	held *target
}

// post is a phase that runs after the snapshots.
type post struct {
	hook    *Hook
	step    *render.Step
	targets []*target
}

// target is a post command with its guard, a task, or a phase that is not rendered yet.
type target struct {
	*post
	call  render.Call
	task  *render.Task
	guard *shell
	// undoes has the pre commands that the target undoes. unconditional reports whether the
	// target runs even if none of them has begun.
	undoes        []*progress
	unconditional bool
	// thawing reports whether the guard has confirmed the order to thaw, unresponsive
	// whether it did not answer although it is connected.
	thawing, unresponsive bool
	// undone reports whether the undo is confirmed. Session.mu guards it.
	undone bool
}

// Freeze arms a guard for every post command of plan, prepares every pre command, records
// the pending undo, and then runs the pre commands. If Freeze returns a session, the unit
// is frozen. If it returns an error, nothing is frozen unless the error says so.
//
// ctx limits the arming; the session outlives it.
func Freeze(ctx context.Context, tools Tools, plan *Plan, log logrus.FieldLogger) (*Session, error) {
	s := &Session{
		tools:   tools,
		plan:    plan,
		log:     log,
		mask:    plan.Mask,
		thawed:  make(chan struct{}),
		rearm:   func() {},
		rearmed: make(chan struct{}),
	}
	flushed := s.flush(ctx)
	err := s.open(ctx)
	if unwritten := <-flushed; err == nil {
		err = unwritten
	}
	if err == nil {
		err = s.openRecord(ctx)
	}
	if err != nil {
		s.closePres()
		s.release(ctx)
		return nil, fmt.Errorf("nothing was frozen: %w", err)
	}
	// The session has its own limits.
	sessionCtx := context.WithoutCancel(ctx)
	if err := s.prepare(sessionCtx); err != nil {
		close(s.rearmed)
		s.Thaw(sessionCtx)
		return nil, errors.Join(err, s.Report().Stuck)
	}
	return s, nil
}

// flush writes out the file systems in the background and sends the result. An error
// means that the storage did not write within prepare-timeout: a freeze would block all
// writers while it waits for the storage. Commands that fail are only logged.
func (s *Session) flush(ctx context.Context) <-chan error {
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(ctx, s.plan.PrepareTimeout)
		defer cancel()
		err := each(s.plan.Flush, func(call render.Call) error {
			stderr := podexec.NewOutput(Unmasked)
			if err := s.tools.Executor.Exec(ctx, ContainerOf(call), call.Command, podexec.Streams{Stderr: stderr}); err != nil {
				return fmt.Errorf("%s in %s: %w: %s", podexec.Quote(call.Command), ContainerOf(call), err, stderr.String())
			}
			return nil
		})
		switch {
		case ctx.Err() != nil:
			done <- fmt.Errorf("the storage did not write the file systems out within prepare-timeout %s: %w", s.plan.PrepareTimeout, err)
		case err != nil:
			s.log.Infof("Not written out before the freeze, which takes longer for it: %v", err)
			fallthrough
		default:
			done <- nil
		}
	}()
	return done
}

func (s *Session) targets() []*target {
	var targets []*target
	for _, p := range s.posts {
		targets = append(targets, p.targets...)
	}
	return targets
}

func (s *Session) masker() render.Masker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mask
}

func (s *Session) due() []*target {
	return slices.DeleteFunc(s.targets(), func(t *target) bool { return !s.state(t).due() })
}

// state returns the state of the effect that a target undoes.
func (s *Session) state(t *target) state {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case t.undone:
		return thawed
	case t.unconditional:
		return uncertain
	}
	_, alone := OnlyFileSystem(t.call.Command)
	states := make([]state, len(t.undoes))
	for i, p := range t.undoes {
		if states[i] = p.state; p.state == foreign && !p.alone && !alone {
			states[i] = uncertain // a command does more than freeze or thaw
		}
	}
	return combine(states)
}

func (s *Session) setState(p *progress, to state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.state = to
}

// markBroken sets Report.Broken unless it is set.
func (s *Session) markBroken(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.report.Broken == nil {
		s.report.Broken = reason
	}
}

// finalOutput returns the end of the output of a command that has ended.
func (s *Session) finalOutput(from *shell) string {
	from.output.WaitEnd()
	return s.outputSoFar(from)
}

// outputSoFar returns the end of the output of a command that may still run.
func (s *Session) outputSoFar(from *shell) string {
	return cmp.Or(from.output.String(), "no output")
}

// show masks secrets in the output of a command.
func (s *Session) show(text string, cut bool) string {
	return s.masker().Tail(text, podexec.TailLimit, cut)
}

// thawAtTimeout thaws when the quiesce timeout passes.
func (s *Session) thawAtTimeout(ctx context.Context) {
	deadline := time.NewTimer(s.plan.QuiesceTimeout)
	defer deadline.Stop()
	select {
	case <-deadline.C:
		s.Abandon(ctx, fmt.Errorf("thawed at the quiesce-timeout of %s, before the snapshot was cut", s.plan.QuiesceTimeout))
	case <-s.thawed:
	}
}

// watchGuard thaws when a guard ends before the session does.
func (s *Session) watchGuard(ctx context.Context, t *target) {
	select {
	case <-t.guard.ended:
		s.Abandon(ctx, fmt.Errorf("the guard in %s was lost while frozen: %w", t.guard.container, s.masked(t.guard.lost(ctx))))
	case <-s.thawed:
	}
}

// Abandon thaws and reports the freeze as broken for the given reason.
func (s *Session) Abandon(ctx context.Context, reason error) {
	s.finish(ctx, reason)
}

// Thaw runs the post commands and returns when all have ended or have failed for good.
// Further calls wait for the first. Report has the result.
func (s *Session) Thaw(ctx context.Context) {
	s.finish(ctx, nil)
}

func (s *Session) finish(ctx context.Context, broken error) {
	s.thaw.Do(func() {
		defer close(s.thawed)
		s.rearm()
		<-s.rearmed // a guard answers one request at a time
		// Post commands run even if the caller's context has ended.
		ctx := context.WithoutCancel(ctx)
		if broken == nil {
			broken = s.verifyTasks(ctx)
		}
		if broken != nil {
			s.markBroken(broken)
		}
		stuck := s.runPosthooks(ctx)
		s.closePres()
		s.release(ctx)
		defer s.closeRecord(ctx, stuck)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.report.Stuck = stuck
		if !s.frozenAt.IsZero() {
			s.report.Frozen = time.Since(s.frozenAt)
		}
	})
	<-s.thawed
}

// verifyTasks returns an error if the effect of a pre task has not lasted until now.
func (s *Session) verifyTasks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ThawLimit)
	defer cancel()
	return each(s.pres, func(p *pre) error {
		if p.step.Task == nil || s.tools.Tasks == nil {
			return nil
		}
		return s.masked(s.tools.Tasks.Held(ctx, p.step.Task))
	})
}

// Thawed returns a channel that is closed when the session is over.
func (s *Session) Thawed() <-chan struct{} { return s.thawed }

// Report returns the result of the session. It is complete once Thawed is closed.
func (s *Session) Report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.report
}

// masked masks secrets in the text of an error, and keeps the error for errors.Is.
func (s *Session) masked(err error) error {
	if err == nil {
		return nil
	}
	return maskedError{err, s.masker().Mask(err.Error())}
}

type maskedError struct {
	cause error
	text  string
}

func (e maskedError) Error() string { return e.text }

func (e maskedError) Is(target error) bool { return errors.Is(e.cause, target) }

// ContainerOf returns the container of a call.
func ContainerOf(call render.Call) podexec.Container {
	return podexec.Container{Namespace: call.Namespace, Pod: call.Pod, Name: call.Container}
}

// each runs do for all items in parallel and joins the errors.
func each[T any](items []T, do func(T) error) error {
	errs := make([]error, len(items))
	var wait sync.WaitGroup
	for i, item := range items {
		wait.Go(func() { errs[i] = do(item) })
	}
	wait.Wait()
	return errors.Join(errs...)
}
