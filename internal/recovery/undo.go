package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/function"
	"stillpoint.io/stillpoint/internal/journal"
	"stillpoint.io/stillpoint/internal/node"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/quiesce"
	"stillpoint.io/stillpoint/internal/render"
)

const (
	// undoThawLimit is the timeout of one try to thaw a file system, and undoTaskLimit that
	// of any other command or task, which can wait for a workload to scale up.
	undoThawLimit = 30 * time.Second
	undoTaskLimit = 5 * time.Minute
	// undoPause is the time between two tries of failed steps.
	undoPause = 2 * time.Second
	// onNodeEvery is the number of tries per thaw on the node. The first is at the second
	// try.
	onNodeEvery = 10
	// claimGrace is the time by which the claim of an entry outlasts the tries.
	claimGrace = time.Minute
)

// Undoer completes the journal's entries for the processes that wrote them.
type Undoer struct {
	Journal  *journal.Journal
	Kube     kubernetes.Interface
	Executor podexec.Executor
	Tasks    quiesce.Tasks
	// Nodes thaws file systems that no container can thaw.
	Nodes quiesce.Node
	Clock clock.Clock
}

// Result is the outcome of one entry.
type Result struct {
	// Warnings are the errors of steps that count as done, because their guard or the end
	// of the container has undone them before.
	Warnings []string
	// Pending has the errors of the failed steps and the commands for a user. nil means
	// none.
	Pending error
	// NothingLeft is true if the namespace or the claims do not exist any more.
	NothingLeft bool
}

// NewUndoer returns an Undoer for a cluster.
func NewUndoer(clients *cluster.Clients, settings func(context.Context) (*config.Config, error), clock clock.Clock) *Undoer {
	tasks := function.NewTasks(clients)
	// An invalid configuration must not prevent the undo.
	tasks.Pods = func(ctx context.Context) config.HelperPods {
		if c, err := settings(ctx); err == nil {
			return c.HelperPods
		}
		return config.HelperPods{}
	}
	return &Undoer{
		Journal:  journal.New(clients, clock),
		Kube:     clients.Kube,
		Executor: podexec.New(clients),
		Tasks:    tasks,
		Nodes:    node.New(clients, settings),
		Clock:    clock,
	}
}

// Undo runs the steps of an entry from Journal.List in their order, and retries failed ones
// until limit has passed. A started task may run for 5 minutes in any case. A failed step
// does not delay the next. If all steps succeed, Undo deletes the entry; otherwise the
// entry keeps the failed steps. The objects get an event. Undo returns journal.ErrTaken if
// another process completes the entry.
//
// A guard runs its command when its session ends, so that the same command may fail here.
// The thaw of a file system must succeed, because a frozen file system outlives the guard
// and its container.
func (u *Undoer) Undo(ctx context.Context, i *journal.Entry, limit time.Duration) (*Result, error) {
	gone, err := u.Journal.HolderGone(ctx, i)
	if err != nil {
		return nil, err
	}
	deadline := u.Clock.Now().Add(limit)
	if err := u.Journal.Claim(ctx, i, deadline.Add(undoTaskLimit+claimGrace)); err != nil {
		return nil, err
	}
	if gone != "" {
		u.deleteTaskPods(ctx, i)
	}
	result := &Result{}
	steps := make([]*step, len(i.Undo))
	for j := range i.Undo {
		steps[j] = &step{Undoer: u, Undo: &i.Undo[j], entry: i, sessionEnded: gone != ""}
	}
	pending := slices.Clone(steps)
	for {
		pending = slices.DeleteFunc(pending, func(o *step) bool {
			var warning string
			warning, o.failure = o.do(ctx)
			if warning != "" {
				result.Warnings = append(result.Warnings, warning)
			}
			o.tries++
			return o.failure == nil
		})
		if len(pending) == 0 || !u.Clock.Now().Add(undoPause).Before(deadline) || ctx.Err() != nil || !slices.ContainsFunc(pending, (*step).again) {
			break
		}
		select {
		case <-ctx.Done():
		case <-u.Clock.After(undoPause):
		}
	}
	result.NothingLeft = len(steps) > 0 && !slices.ContainsFunc(steps, func(o *step) bool { return !o.nothingLeft })
	// Record the result even if the caller has stopped waiting.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quiesce.ThawLimit)
	defer cancel()
	return result, u.recordResult(ctx, i, pending, result)
}

// deleteTaskPods deletes the task pods of a dead session, because they could still quiesce.
func (u *Undoer) deleteTaskPods(ctx context.Context, i *journal.Entry) {
	ctx, cancel := context.WithTimeout(ctx, quiesce.ThawLimit)
	defer cancel()
	pods, err := u.Kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: api.LabelTask + "=" + i.ID})
	if err != nil {
		return // the undo does not wait for them
	}
	for j := range pods.Items {
		_ = u.Kube.CoreV1().Pods(pods.Items[j].Namespace).Delete(ctx, pods.Items[j].Name, metav1.DeleteOptions{})
	}
}

// recordResult writes the result to the journal and sends the events.
func (u *Undoer) recordResult(ctx context.Context, i *journal.Entry, failed []*step, result *Result) error {
	if len(failed) == 0 {
		if !result.NothingLeft {
			u.event(ctx, i, corev1.EventTypeNormal, quiesce.ReasonThawed, fmt.Sprintf("Released what backup %s had quiesced", i.Backup))
		}
		if err := u.Journal.Close(ctx, i.ID); err != nil && !errors.Is(err, journal.ErrTaken) {
			return err
		}
		return nil
	}
	var failures []error
	var undo []journal.Undo
	for _, o := range failed {
		failures = append(failures, o.failure)
		undo = append(undo, *o.Undo)
	}
	result.Pending = fmt.Errorf("%s MAY STILL BE QUIESCED by backup %s: %w", i.Name, i.Backup, errors.Join(failures...))
	i.Undo, i.Holder, i.Tried, i.Failure = undo, journal.Holder{}, u.Clock.Now(), errors.Join(failures...).Error()
	u.event(ctx, i, corev1.EventTypeWarning, quiesce.ReasonStillFrozen, result.Pending.Error())
	return u.Journal.Update(ctx, i)
}

// step is one undo operation of an entry and its progress.
type step struct {
	*Undoer
	*journal.Undo
	entry *journal.Entry
	// sessionEnded is true if the session is dead, so that any guard has run the command.
	sessionEnded bool
	tries        int
	failure      error
	// nothingLeft is true if the objects of the step do not exist any more.
	nothingLeft bool
	// nodeFailure is the error of the last thaw on the node.
	nodeFailure error
}

// again reports whether a retry can succeed.
func (o *step) again() bool { return o.Unknown == "" }

// do runs the step once, unless its objects are gone.
func (o *step) do(ctx context.Context) (warning string, err error) {
	why := vanished(ctx, o.Kube, o.entry, o.Undo)
	if why == "" {
		warning, err = o.run(ctx)
		if err == nil {
			return warning, nil
		}
		if why = vanished(ctx, o.Kube, o.entry, o.Undo); why == "" {
			return "", err
		}
	}
	o.nothingLeft = true
	return fmt.Sprintf("blueprint %s, phase %s: %s", o.Blueprint, o.Phase, why), nil
}

// vanished returns why the objects that a step undoes are gone, or "" if they may exist.
// An object with the same name and another UID is another object.
func vanished(ctx context.Context, kube kubernetes.Interface, i *journal.Entry, undo *journal.Undo) string {
	namespace := ""
	switch {
	case undo.Task != nil:
		namespace = undo.Task.Namespace
	case undo.Call != nil:
		namespace = undo.Call.Namespace
	}
	if namespace == "" {
		return ""
	}
	found, err := kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Sprintf("namespace %s is gone, and what was quiesced with it", namespace)
	case err == nil && namespace == i.Namespace && another(i.NamespaceUID, found.UID):
		return fmt.Sprintf("namespace %s is another one of that name, and what was quiesced is gone with the earlier", namespace)
	}
	if undo.Call == nil || !quiesce.ThawsFileSystem(undo.Call.Command) || len(undo.Volumes) == 0 {
		return ""
	}
	for _, v := range undo.Volumes {
		claim, err := kube.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, v.Claim, metav1.GetOptions{})
		if !apierrors.IsNotFound(err) && (err != nil || !another(v.ClaimUID, claim.UID)) {
			return ""
		}
	}
	return "its claims are gone, and their file systems with them"
}

func another(recorded, found types.UID) bool { return recorded != "" && recorded != found }

func (o *step) run(ctx context.Context) (warning string, err error) {
	switch {
	case o.Unknown != "":
		return "", o.withInstructions(errors.New(o.Unknown))
	case o.Task != nil:
		return "", o.withInstructions(o.task(ctx))
	case o.Call == nil:
		return "", o.withInstructions(errors.New("there is neither a command nor a task"))
	case quiesce.ThawsFileSystem(o.Call.Command):
		return o.thawFileSystem(ctx)
	}
	_, err = o.call(ctx, *o.Call)
	if err != nil && o.Guarded && o.sessionEnded {
		return fmt.Sprintf("blueprint %s, phase %s: %v; its guard has run it before, or ended with its container", o.Blueprint, o.Phase, err), nil
	}
	return "", o.withInstructions(err)
}

// withInstructions adds the commands for a user.
func (o *step) withInstructions(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("blueprint %s, phase %s: %w; %s", o.Blueprint, o.Phase, err, cmp.Or(o.ByHand, "no way to undo it by hand is known"))
}

func (o *step) task(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, undoTaskLimit)
	defer cancel()
	_, err := o.Tasks.Run(ctx, o.Task)
	switch {
	case err == nil:
		return nil
	case o.Task.Func == "ScaleWorkload":
		return err
	default:
		reason := cmp.Or(string(apierrors.ReasonForError(err)), "no reason of the API server's")
		if ctx.Err() != nil {
			reason = ctx.Err().Error()
		}
		// The args can contain secrets, and their values are not known here.
		return fmt.Errorf("%s failed (%s); its error is not shown, since it can hold secrets", o.Task.Func, reason)
	}
}

// thawFileSystem thaws from the container of the step, from any other container that mounts
// the volume, and then on the node. A command of the session may still start to freeze, so
// that "not frozen" counts only if no such command runs.
func (o *step) thawFileSystem(ctx context.Context) (warning string, err error) {
	own, err := o.call(ctx, *o.Call)
	if err == nil && own.NoneRunning && own.Reply != quiesce.Undone {
		// After this time, a freeze that the session requested just before its end has
		// started.
		o.Clock.Sleep(quiesce.StartLimit)
		own, err = o.call(ctx, *o.Call)
	}
	switch {
	case err == nil && own.Confirmed():
		return "", nil
	case err == nil:
		return "", o.withInstructions(fmt.Errorf("the file system is not frozen, but a command that freezes it may still be at work in %s", quiesce.ContainerOf(*o.Call)))
	}
	outside := quiesce.Outside{Executor: o.Executor, Show: quiesce.Unmasked}
	// A container that restarts is faster and needs fewer permissions.
	if o.tries%onNodeEvery == 1 && !errors.Is(o.nodeFailure, node.ErrOff) {
		outside.Node, outside.Volumes = o.Nodes, quiesce.VolumesIn(o.Call.Command, o.Volumes)
	}
	gone := quiesce.ContainerGone(ctx, o.Kube, *o.Call)
	tried, where, elsewhere := outside.Thaw(ctx, quiesce.ThawsElsewhere(ctx, o.Kube, *o.Call, quiesce.VolumesIn(o.Call.Command, o.Volumes)))
	tried.NoneRunning = gone
	switch {
	case elsewhere == nil && tried.Confirmed():
		return fmt.Sprintf("thawed %s, since %v", where, err), nil
	case elsewhere == nil:
		err = fmt.Errorf("%w; %s it is not frozen, but a command of that container may still freeze it", err, where)
	case !errors.Is(elsewhere, quiesce.ErrNowhere) || outside.Node != nil:
		o.nodeFailure = elsewhere
	}
	if o.nodeFailure != nil {
		err = fmt.Errorf("%w; %w", err, withoutURL(o.nodeFailure))
	}
	return "", o.withInstructions(err)
}

// call runs a command in its container, directly if the container has no shell.
func (o *step) call(ctx context.Context, call render.Call) (quiesce.Try, error) {
	tried, err := quiesce.UndoOnce(ctx, o.Executor, call, o.limit(call), showOf(call))
	return tried, withoutURL(err)
}

func (o *step) limit(call render.Call) time.Duration {
	if quiesce.ThawsFileSystem(call.Command) {
		return undoThawLimit
	}
	return undoTaskLimit
}

// showOf shows the output of a command only if it thaws a file system and does nothing
// else. Other output can contain secrets, and their values are not known here.
func showOf(call render.Call) podexec.Show {
	if _, alone := quiesce.OnlyFileSystem(call.Command); alone {
		return quiesce.Unmasked
	}
	return func(text string, _ bool) string {
		if text == "" {
			return ""
		}
		return "what it printed is not shown, since it can hold secrets"
	}
}

// withoutURL removes the URL of a request from its error. The URL of an exec contains the
// command.
func withoutURL(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		return request.Err
	}
	return err
}

// event sends an event to the objects. It waits for the response, because the process can
// end.
func (u *Undoer) event(ctx context.Context, i *journal.Entry, eventType, reason, message string) {
	for _, ref := range i.Objects {
		_ = quiesce.SendEvent(ctx, u.Kube, u.Clock, ref, eventType, reason, message)
	}
}
