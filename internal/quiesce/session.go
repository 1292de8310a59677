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
	// ThawLimit is how long a shell may take to answer, and a file system's thaw to
	// end. Other post commands may take as long as the pre commands.
	ThawLimit = 10 * time.Second
	// killLimit is how long the answer of a runner may be behind the limit at which
	// it kills its command.
	killLimit = 3 * time.Second
	// StartLimit is for how long a pre command whose connection was lost may still
	// begin: its shell has read the line that starts it.
	StartLimit = 3 * time.Second
	// retryPause lies between two tries of a post command.
	retryPause = 500 * time.Millisecond
	// rescueLimit is how long a post command is tried once its guard is lost:
	// long enough for a killed container to be started again.
	rescueLimit = 60 * time.Second
	// nodeAfter is how long no container has been able to thaw before the node is
	// asked to.
	nodeAfter = 10 * time.Second
	// graceOfGuard is by how much a guard's own deadline lies behind ours, so
	// that the two do not run the post command at the same moment.
	guardGrace = time.Second
)

// Tools are what a session works with.
type Tools struct {
	Executor podexec.Executor
	// Tasks runs what acts through the API server; nil can run nothing.
	Tasks Tasks
	// Intents keeps on record what is owed; nil keeps nothing.
	Journal Journal
	// Node thaws file systems from their node; nil where nobody allows it.
	Node Node

	retryLimit time.Duration // in the place of rescueLimit, for tests
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

// Tasks runs a task until it is done, or ctx ends; function.Tasks is the real one.
type Tasks interface {
	Run(ctx context.Context, task *render.Task) (outputs map[string]any, err error)
	// Held returns an error if what a task of a prehook has done did not last.
	Held(ctx context.Context, task *render.Task) error
}

// Intents is journal.Journal.
type Journal interface {
	Open(ctx context.Context, record *journal.Entry) error
	Update(ctx context.Context, record *journal.Entry) error
	Close(ctx context.Context, id string) error
}

// Node thaws file systems by their paths on a node; node.Thawer is the real one.
// Its error is node.ErrOff where the configuration does not allow it.
type Node interface {
	Thaw(ctx context.Context, node string, paths []string) error
}

// Session is one freeze of one unit: armed, frozen, held and thawed. It thaws
// by itself when the plan's quiesce timeout passes or a guard is lost; when
// this process dies the guards do it, and what no guard can do is on record.
type Session struct {
	tools Tools
	plan  *Plan
	log   logrus.FieldLogger

	pres   []*pre
	posts  []*post // in the order in which they run
	record *journal.Entry

	thaw   sync.Once
	thawed chan struct{}
	// rearm ends the giving of new limits to the guards, and rearmed is closed
	// when that has ended.
	rearm   context.CancelFunc
	rearmed chan struct{}

	begun     time.Time // the first pre command
	dismissed bool      // guards have left whose freeze was refused

	mu       sync.Mutex
	mask     render.Masker
	frozenAt time.Time
	report   Report
}

// Report is how a session went.
type Report struct {
	// Prepared is how long pre commands took, Frozen the time from the first
	// pre command's start until the last post command had ended.
	Prepared, Frozen time.Duration
	// Broken says why the freeze is not known to have been ours and whole until the
	// thaw, so that the snapshots cannot be trusted to be consistent; nil otherwise.
	Broken error
	// Stuck lists post commands that could not be confirmed, each with the command to
	// run by hand; nil when all is thawed. Its guards and its record stay.
	Stuck error
}

// pre is a phase that runs before the snapshots.
type pre struct {
	hook    *Hook
	step    *render.Step
	runners []*runner
	task    progress // where the phase has a task
}

// progress is how far a pre command is; Session.mu guards it.
type progress struct {
	state state
	// alone says that it freezes a file system and does nothing else.
	alone bool
	// lost is when the connection was lost over which its end would be told.
	lost time.Time
}

// runner is a pre command, ready to start.
type runner struct {
	progress
	call  render.Call
	shell *shell // nil where the container has none, and for a held client
	// held is whose client the command talks to.
	held *target
}

// post is a phase that runs after them.
type post struct {
	hook    *Hook
	step    *render.Step
	targets []*target
}

// target is a post command and the guard that stands ready for it, or a task, or,
// with neither, a phase that cannot be rendered yet.
type target struct {
	*post
	call  render.Call
	task  *render.Task
	guard *shell
	// undoes are the pre commands whose effect the target undoes; always says that it
	// runs whatever has begun.
	undoes        []*progress
	unconditional bool
	// told says that the guard has confirmed the order to thaw, silent that it did not
	// although its connection stands.
	thawing, unresponsive bool
	// over says that its effect is known to be undone; Session.mu guards it.
	undone bool
}

// Freeze arms a guard for every post command of plan, makes every pre command
// ready, puts on record what is owed from now on, and only then runs the pre
// commands. When it returns a session, the unit is frozen; when it returns an
// error, nothing is, except where the error says so.
//
// ctx bounds the arming; the session lives on when it ends.
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
	err := s.open(ctx) // all of it, before anything begins
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
	// What has begun ends by its own limits, not by the caller's.
	sessionCtx := context.WithoutCancel(ctx)
	if err := s.prepare(sessionCtx); err != nil {
		close(s.rearmed)
		s.Thaw(sessionCtx)
		return nil, errors.Join(err, s.Report().Stuck)
	}
	return s, nil
}

// flush writes out the file systems meanwhile, and sends the result once. An error
// means that the storage did not write within prepare-timeout: a freeze would wait for
// it, and stop every writer. That a container cannot write out is none.
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

// state is what is known of what a target undoes.
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
			states[i] = uncertain // either command does more
		}
	}
	return of(states)
}

// enter records how far a pre command is.
func (s *Session) setState(p *progress, to state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.state = to
}

// broke records why the freeze was not whole; the first reason counts.
func (s *Session) markBroken(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.report.Broken == nil {
		s.report.Broken = reason
	}
}

// said is what a command that has ended printed last.
func (s *Session) finalOutput(from *shell) string {
	from.output.WaitEnd()
	return s.outputSoFar(from)
}

// soFar is what a command has printed last that may go on.
func (s *Session) outputSoFar(from *shell) string {
	return cmp.Or(from.output.String(), "no output")
}

// show masks what a command has printed.
func (s *Session) show(text string, cut bool) string {
	return s.masker().Tail(text, podexec.TailLimit, cut)
}

// expire keeps the quiesce timeout.
func (s *Session) thawAtTimeout(ctx context.Context) {
	deadline := time.NewTimer(s.plan.QuiesceTimeout)
	defer deadline.Stop()
	select {
	case <-deadline.C:
		s.Abandon(ctx, fmt.Errorf("thawed at the quiesce-timeout of %s, before the snapshot was cut", s.plan.QuiesceTimeout))
	case <-s.thawed:
	}
}

// watch notices when a guard thaws or goes away without being told to.
func (s *Session) watchGuard(ctx context.Context, t *target) {
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

// undone returns an error if what pre tasks have done did not last until now.
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

// Thawed is closed when the session is over, for whatever reason.
func (s *Session) Thawed() <-chan struct{} { return s.thawed }

// Report says how it went; it is complete once Thawed is closed.
func (s *Session) Report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.report
}

// masked takes secret values out of an error's text, and keeps what it is.
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
