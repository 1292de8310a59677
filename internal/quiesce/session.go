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

	"github.com/sirupsen/logrus"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/intent"
	"stillpoint.io/stillpoint/internal/node"
)

const (
	// postLimit is how long one try of a post command may take.
	postLimit = 10 * time.Second
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
	graceOfGuard = time.Second
)

// Tools are what a session works with.
type Tools struct {
	Executor Executor
	// Tasks runs what acts through the API server; nil can run nothing.
	Tasks Tasks
	// Intents keeps on record what is owed; nil keeps nothing.
	Intents Intents
	// Node thaws file systems from their node; nil where nobody allows it.
	Node Node
}

// Tasks runs a task until it is done, or ctx ends; blueprint.Tasks is the real one.
type Tasks interface {
	Run(ctx context.Context, task *blueprint.Task) (outputs map[string]any, err error)
}

// Intents is intent.Book.
type Intents interface {
	Open(ctx context.Context, owed *intent.Intent) error
	Update(ctx context.Context, owed *intent.Intent) error
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

	pres  []*pre
	posts []*post // in the order in which they run
	owed  *intent.Intent

	thaw   sync.Once
	thawed chan struct{}
	// rearm ends the giving of new limits to the guards, and rearmed is closed
	// when that has ended.
	rearm   context.CancelFunc
	rearmed chan struct{}

	begun time.Time // the first pre command

	mu       sync.Mutex
	mask     blueprint.Masker
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

// pre is a phase that runs before the snapshots.
type pre struct {
	hook    *Hook
	step    *blueprint.Step
	runners []*runner
}

// runner is a pre command, ready to start.
type runner struct {
	call  blueprint.Call
	shell *shell // nil where the container has none, and for a held client
	// held is whose client the command talks to.
	held *target
}

// post is a phase that runs after them.
type post struct {
	hook    *Hook
	step    *blueprint.Step
	targets []*target
}

// target is a post command and the guard that stands ready for it, or a task, or,
// with neither, a phase that cannot be rendered yet.
type target struct {
	*post
	call  blueprint.Call
	task  *blueprint.Task
	guard *shell
	// due says that a pre command has begun whose effect the target undoes, done
	// that it is undone.
	due, done bool
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
	<-flushed
	if err == nil {
		err = s.record(ctx)
	}
	if err != nil {
		s.release()
		return nil, fmt.Errorf("nothing was frozen: %w", err)
	}
	// What has begun ends by its own limits, not by the caller's.
	life := context.WithoutCancel(ctx)
	if err := s.prepare(life); err != nil {
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
			if err := s.tools.Executor.Exec(ctx, containerOf(call), call.Command, cluster.Streams{}); err != nil {
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
	// Thawing goes the other way round.
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
				r.held = s.holder(p.hook, r.call)
			}
		}
	}
	return nil
}

// opening is shells that are being opened at the same time.
type opening struct {
	sync.WaitGroup
	mu   sync.Mutex
	errs []error
}

func (o *opening) wait() error {
	o.Wait()
	return errors.Join(o.errs...)
}

// start opens a shell for a call. A container without one can be told to run a
// command all the same, but nothing can stand guard in it.
func (s *Session) start(ctx context.Context, o *opening, hook *Hook, step *blueprint.Step, call blueprint.Call, script string, place **shell) {
	o.Go(func() {
		opened, err := openShell(ctx, s.tools.Executor, call, script)
		switch {
		case err == nil:
			*place = opened
			return
		case shellless(err) && call.Hold == nil && len(call.Env) == 0:
			s.log.Warnf("%s has no shell, so no guard can stand in it: blueprint %s, phase %s runs without one", containerOf(call), hook.Blueprint, step.Phase)
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

// holder is the target that has the client of a call of HoldSession.
func (s *Session) holder(hook *Hook, call blueprint.Call) *target {
	for _, t := range s.targets() {
		if t.hook == hook && t.call.Hold != nil && containerOf(t.call) == containerOf(call) && *t.call.Hold == *call.Hold {
			return t
		}
	}
	return nil
}

func (s *Session) targets() []*target {
	var targets []*target
	for _, p := range s.posts {
		targets = append(targets, p.targets...)
	}
	return targets
}

// record writes down what is owed from now on.
func (s *Session) record(ctx context.Context) error {
	if s.tools.Intents == nil {
		return nil
	}
	owed := s.plan.Owed
	owed.Since = time.Now()
	// Both hooks may take as long as the pre commands are allowed to.
	owed.Until = owed.Since.Add(2*s.plan.PrepareTimeout + s.plan.QuiesceTimeout + rescueLimit)
	owed.Undo = s.undo(s.targets())
	if err := s.tools.Intents.Open(ctx, &owed); err != nil {
		return s.masked(err)
	}
	s.owed = &owed
	return nil
}

// undo is what somebody else would have to do in our place.
func (s *Session) undo(targets []*target) []intent.Undo {
	var undo []intent.Undo
	for _, t := range targets {
		u := intent.Undo{Blueprint: t.hook.Blueprint, Phase: t.step.Phase, ByHand: s.byHand(t)}
		switch {
		case t.task != nil:
			u.Task = t.task
		case t.step.Needs != "":
			u.Unknown = fmt.Sprintf("phase %s needs %s, which ended with the process that knew it", t.step.Phase, t.step.Needs)
		default:
			call := t.call
			if call.Hold != nil {
				call = endClient(t)
			}
			u.Call, u.Volumes = &call, s.plan.volumes(call)
			u.Guarded = t.guard != nil && !t.hook.disruptive()
		}
		undo = append(undo, u)
	}
	return undo
}

// endClient is a command that ends a held client, whatever has become of those who
// held it. Its process is known by its environment.
func endClient(t *target) blueprint.Call {
	client := ""
	if t.guard != nil {
		client = t.guard.client
	}
	return blueprint.Call{
		Namespace: t.call.Namespace, Pod: t.call.Pod, Container: t.call.Container,
		Command: []string{"sh", "-c", endClientScript, "stillpoint", client, t.call.Env[sessionVariable]},
	}
}

// byHand tells a person what to run in the place of a target.
func (s *Session) byHand(t *target) string {
	var text string
	switch {
	case t.task != nil:
		text = "do by hand what phase " + t.step.Phase + " would: " + t.task.String()
	case t.step.Needs != "":
		text = fmt.Sprintf("do by hand what phase %s of %s would: %s", t.step.Phase, blueprint.Posthook, t.step.Func)
	case t.call.Hold != nil:
		text = s.plan.byHand(endClient(t))
	default:
		text = s.plan.byHand(t.call)
	}
	return s.masker().Mask(text)
}

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
	var opening opening
	rendered := false
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
		rendered = true
		s.openPost(ctx, p, &opening)
	}
	if err := opening.wait(); err != nil || !rendered {
		return err
	}
	var due []*target
	for _, p := range s.posts {
		for _, t := range p.targets {
			if p.hook == hook && !t.due {
				t.due = true
				due = append(due, t)
			}
		}
	}
	if err := s.hold(ctx, "prepare", s.plan.PrepareTimeout+s.plan.QuiesceTimeout, due); err != nil {
		return err
	}
	return s.amend(ctx, s.targets())
}

// amend changes what is on record.
func (s *Session) amend(ctx context.Context, targets []*target) error {
	if s.owed == nil {
		return nil
	}
	s.owed.Undo = s.undo(targets)
	return s.masked(s.tools.Intents.Update(ctx, s.owed))
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

func (s *Session) masker() blueprint.Masker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mask
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

func (s *Session) due() []*target {
	return slices.DeleteFunc(s.targets(), func(t *target) bool { return !t.due })
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
	return s.tools.Tasks.Run(ctx, task)
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
		return nil, fmt.Errorf("the client did not say %q within prepare-timeout %s: %s", lineHeld, s.plan.PrepareTimeout, s.said(t.guard))
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
	printed := newOutput()
	err := s.tools.Executor.Exec(ctx, containerOf(call), call.Command, cluster.Streams{Stdout: printed, Stderr: printed})
	if err != nil {
		return nil, fmt.Errorf("%w: %s", s.masked(err), s.masker().Mask(printed.String()))
	}
	return printed, nil
}

func (s *Session) said(from *shell) string {
	// Standard error comes over a stream of its own and may be behind.
	for range 20 {
		if text := from.output.String(); text != "" {
			return s.masker().Mask(text)
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
		ctx := context.WithoutCancel(ctx)
		stuck := s.post(ctx)
		s.release()
		defer s.settle(ctx, stuck)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.report.Broken, s.report.Stuck = broken, stuck
		if !s.frozenAt.IsZero() {
			s.report.Frozen = time.Since(s.frozenAt)
		}
	})
	<-s.thawed
}

// settle takes off the record what is undone.
func (s *Session) settle(ctx context.Context, stuck error) {
	if s.owed == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, postLimit)
	defer cancel()
	var err error
	if stuck == nil {
		err = s.tools.Intents.Close(ctx, s.owed.ID)
	} else {
		err = s.amend(ctx, slices.DeleteFunc(s.due(), func(t *target) bool { return t.done }))
	}
	if err != nil {
		s.log.Warnf("The record of what %s was owed stays: %v", s.plan.Name, s.masked(err))
	}
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
			s.log.Infof("The session of blueprint %s in %s said: %s", t.hook.Blueprint, t.guard.container, s.masker().Mask(said))
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
	printed, err := runOnce(ctx, s.tools.Executor, call, postLimit, s.masker().Mask)
	if err != nil {
		return nil, err
	}
	return s.outputs([]*output{printed})
}

// runOnce runs a call that undoes something, in a shell of its own, or in none
// where the container has none. That a file system is not frozen is success. The
// error has what the command printed as show shows it.
func runOnce(ctx context.Context, executor Executor, call blueprint.Call, limit time.Duration, show func(said string) string) (*output, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	shell, err := openShell(ctx, executor, call, runnerScript)
	if shellless(err) && len(call.Env) == 0 {
		printed := newOutput()
		if err = executor.Exec(ctx, containerOf(call), call.Command, cluster.Streams{Stdout: printed, Stderr: printed}); err == nil || notFrozen(printed.String()) {
			return printed, nil
		}
		return nil, fmt.Errorf("%w: %s", err, show(printed.String()))
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
	if said := shell.output.String(); answer != "ended 0" && !notFrozen(said) {
		return nil, fmt.Errorf("exit code %s in %s: %s", strings.TrimPrefix(answer, "ended "), containerOf(call), show(said))
	}
	return shell.output, nil
}

// notFrozen recognizes what fsfreeze --unfreeze says of a file system that is
// not frozen: util-linux and busybox both print EINVAL of ioctl(FITHAW).
func notFrozen(said string) bool {
	return strings.Contains(said, "fsfreeze:") && strings.Contains(said, "Invalid argument")
}

// release lets go of all guards that are left. They leave without a word; one
// whose post command did not succeed goes on trying by itself.
func (s *Session) release() {
	for _, t := range s.targets() {
		if t.guard == nil {
			continue
		}
		go func() {
			defer t.guard.close()
			if t.due && t.call.Hold == nil {
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
	return maskedError{err, s.masker().Mask(err.Error())}
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
