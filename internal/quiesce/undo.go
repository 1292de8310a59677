package quiesce

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
	"stillpoint.io/stillpoint/internal/render"
)

const (
	// undoThawLimit is how long one try to thaw a file system may take, undoTaskLimit one
	// of any other command or task: a workload that is scaled up may be waited for.
	undoThawLimit = 30 * time.Second
	undoTaskLimit = 5 * time.Minute
	// undoPause lies between two tries of what has failed.
	undoPause = 2 * time.Second
	// onNodeEvery is how many tries lie between two thaws on the node; the first
	// comes at the second try.
	onNodeEvery = 10
	// graceOfClaim is by how much a claim outlasts the tries, for what was begun.
	graceOfClaim = time.Minute
)

// Undoer completes intents in the place of those who made them.
type Undoer struct {
	Journal  *journal.Journal
	Kube     kubernetes.Interface
	Executor podexec.Executor
	Tasks    Tasks
	// Nodes thaws what no container can.
	Nodes Node
	Clock clock.Clock
}

// Undone is what came of an intent.
type Undone struct {
	// Warnings are of steps that failed and are taken for done all the same: their
	// guard, or the death of its container, has done them before.
	Warnings []string
	// Left says what is still owed, and what a person runs; nil when nothing is.
	Left error
	// Vanished tells that all of it went with its namespace or its claims, so that
	// nothing was there to be released.
	Vanished bool
}

// NewUndoer returns an Undoer for a cluster.
func NewUndoer(clients *cluster.Clients, settings func(context.Context) (*config.Config, error), clock clock.Clock) *Undoer {
	tasks := function.NewTasks(clients)
	// A configuration that is not valid must not keep anything quiesced.
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

// Undo does what is left of an intent that Journal.List has returned, in its order,
// and tries again what fails, for limit; a task that is under way is given 5 minutes
// all the same. One that fails does not keep the next waiting. When all is done the
// intent is deleted; otherwise it stays, with what is left, and the objects get an
// event. The error is journal.ErrTaken when another process is at it.
//
// A guard that stands in a container does its command by itself once its session
// is dead, so such a command is run once more and may fail. A file system's
// thaw may not: it outlives guard and container.
func (u *Undoer) Undo(ctx context.Context, i *journal.Entry, limit time.Duration) (*Undone, error) {
	gone, err := u.Journal.HolderGone(ctx, i)
	if err != nil {
		return nil, err
	}
	deadline := u.Clock.Now().Add(limit)
	if err := u.Journal.Claim(ctx, i, deadline.Add(undoTaskLimit+graceOfClaim)); err != nil {
		return nil, err
	}
	if gone != "" {
		u.clear(ctx, i)
	}
	result := &Undone{}
	steps := make([]*owed, len(i.Undo))
	for j := range i.Undo {
		steps[j] = &owed{Undoer: u, Undo: &i.Undo[j], of: i, dead: gone != ""}
	}
	pending := slices.Clone(steps)
	for {
		pending = slices.DeleteFunc(pending, func(o *owed) bool {
			var warning string
			warning, o.failure = o.do(ctx)
			if warning != "" {
				result.Warnings = append(result.Warnings, warning)
			}
			o.tries++
			return o.failure == nil
		})
		if len(pending) == 0 || !u.Clock.Now().Add(undoPause).Before(deadline) || ctx.Err() != nil || !slices.ContainsFunc(pending, (*owed).again) {
			break
		}
		select {
		case <-ctx.Done():
		case <-u.Clock.After(undoPause):
		}
	}
	result.Vanished = len(steps) > 0 && !slices.ContainsFunc(steps, func(o *owed) bool { return !o.vanished })
	// What was done is to be known whoever has stopped waiting.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), postLimit)
	defer cancel()
	return result, u.settle(ctx, i, pending, result)
}

// clear deletes the pods that tasks of a dead session have left, before anything
// is undone that they may still be doing.
func (u *Undoer) clear(ctx context.Context, i *journal.Entry) {
	ctx, cancel := context.WithTimeout(ctx, postLimit)
	defer cancel()
	pods, err := u.Kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: api.LabelTask + "=" + i.ID})
	if err != nil {
		return // what is owed does not wait for them, and their label tells whose they are
	}
	for j := range pods.Items {
		_ = u.Kube.CoreV1().Pods(pods.Items[j].Namespace).Delete(ctx, pods.Items[j].Name, metav1.DeleteOptions{})
	}
}

// settle writes down what came of it.
func (u *Undoer) settle(ctx context.Context, i *journal.Entry, left []*owed, result *Undone) error {
	if len(left) == 0 {
		if !result.Vanished {
			u.event(ctx, i, corev1.EventTypeNormal, reasonThawed, fmt.Sprintf("Released what backup %s had quiesced", i.Backup))
		}
		if err := u.Journal.Close(ctx, i.ID); err != nil && !errors.Is(err, journal.ErrTaken) {
			return err
		}
		return nil
	}
	var failures []error
	var undo []journal.Undo
	for _, o := range left {
		failures = append(failures, o.failure)
		undo = append(undo, *o.Undo)
	}
	result.Left = fmt.Errorf("%s MAY STILL BE QUIESCED by backup %s: %w", i.Name, i.Backup, errors.Join(failures...))
	i.Undo, i.Holder, i.Tried, i.Failure = undo, journal.Holder{}, u.Clock.Now(), errors.Join(failures...).Error()
	u.event(ctx, i, corev1.EventTypeWarning, reasonStillFrozen, result.Left.Error())
	return u.Journal.Update(ctx, i)
}

// owed is a step on its way.
type owed struct {
	*Undoer
	*journal.Undo
	of *journal.Entry
	// dead tells that its session is, so that a guard has run.
	dead    bool
	tries   int
	failure error
	// vanished tells that nothing was left of what the step undoes.
	vanished bool
	// onNode is why a thaw on the node has failed.
	onNode error
}

// again tells that another try may help.
func (o *owed) again() bool { return o.Unknown == "" }

// do runs the step once, unless nothing is left of what it undoes.
func (o *owed) do(ctx context.Context) (warning string, err error) {
	why := vanished(ctx, o.Kube, o.of, o.Undo)
	if why == "" {
		warning, err = o.run(ctx)
		if err == nil {
			return warning, nil
		}
		if why = vanished(ctx, o.Kube, o.of, o.Undo); why == "" {
			return "", err
		}
	}
	o.vanished = true
	return fmt.Sprintf("blueprint %s, phase %s: %s", o.Blueprint, o.Phase, why), nil
}

// vanished says why nothing is left of what a step undoes; "" is that something
// may be. What has the same name and another UID is another object.
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
	if undo.Call == nil || !thawsFileSystem(undo.Call.Command) || len(undo.Volumes) == 0 {
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

func (o *owed) run(ctx context.Context) (warning string, err error) {
	switch {
	case o.Unknown != "":
		return "", o.explain(errors.New(o.Unknown))
	case o.Task != nil:
		return "", o.explain(o.task(ctx))
	case o.Call == nil:
		return "", o.explain(errors.New("there is neither a command nor a task"))
	case thawsFileSystem(o.Call.Command):
		return o.fileSystem(ctx)
	}
	_, err = o.call(ctx, *o.Call)
	if err != nil && o.Guarded && o.dead {
		return fmt.Sprintf("blueprint %s, phase %s: %v; its guard has run it before, or ended with its container", o.Blueprint, o.Phase, err), nil
	}
	return "", o.explain(err)
}

// explain adds what a person needs to know.
func (o *owed) explain(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("blueprint %s, phase %s: %w; %s", o.Blueprint, o.Phase, err, cmp.Or(o.ByHand, "no way to undo it by hand is known"))
}

func (o *owed) task(ctx context.Context) error {
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
		// The args can hold secrets, and the secrets' values are not known here.
		return fmt.Errorf("%s failed (%s); its error is not shown, since it can hold secrets", o.Task.Func, reason)
	}
}

// fileSystem thaws from the step's own container, from any other that mounts the
// volume, and then on the node. The session has ended and may have left a freeze that
// is still under way, so that "not frozen" is believed only where it is seen that no
// command freezes any more.
func (o *owed) fileSystem(ctx context.Context) (warning string, err error) {
	own, err := o.call(ctx, *o.Call)
	if err == nil && own.sure && own.reply != undone {
		// A freeze that was ordered just before the session's end has begun by now.
		o.Clock.Sleep(doubtLimit)
		own, err = o.call(ctx, *o.Call)
	}
	switch {
	case err == nil && o.confirmed(own):
		return "", nil
	case err == nil:
		return "", o.explain(fmt.Errorf("the file system is not frozen, but a command that freezes it may still be at work in %s", containerOf(*o.Call)))
	}
	away := outside{executor: o.Executor, show: plainly}
	// A container that is starting again is quicker and needs fewer rights.
	if o.tries%onNodeEvery == 1 && !errors.Is(o.onNode, node.ErrOff) {
		away.node, away.volumes = o.Nodes, named(o.Call.Command, o.Volumes)
	}
	sure := containerGone(ctx, o.Kube, *o.Call)
	tried, where, elsewhere := away.thaw(ctx, elsewhere(ctx, o.Kube, *o.Call, named(o.Call.Command, o.Volumes)))
	tried.sure = sure
	switch {
	case elsewhere == nil && o.confirmed(tried):
		return fmt.Sprintf("thawed %s, since %v", where, err), nil
	case elsewhere == nil:
		err = fmt.Errorf("%w; %s it is not frozen, but a command of that container may still freeze it", err, where)
	case !errors.Is(elsewhere, errNowhere) || away.node != nil:
		o.onNode = elsewhere
	}
	if o.onNode != nil {
		err = fmt.Errorf("%w; %w", err, withoutURL(o.onNode))
	}
	return "", o.explain(err)
}

// confirmed reports whether nothing can be frozen any more.
func (o *owed) confirmed(tried try) bool {
	next, _ := pending.after(tried.reply, tried.sure)
	return !next.due()
}

// call runs a command in its container, directly where that has no shell.
func (o *owed) call(ctx context.Context, call render.Call) (try, error) {
	tried, err := runOnce(ctx, o.Executor, call, o.limit(call), hidden(call))
	return tried, withoutURL(err)
}

func (o *owed) limit(call render.Call) time.Duration {
	if thawsFileSystem(call.Command) {
		return undoThawLimit
	}
	return undoTaskLimit
}

// hidden shows of what a call has printed only what a thaw says that does nothing else:
// all other output can hold secrets, and their values are not known here.
func hidden(call render.Call) podexec.Show {
	if _, alone := fileSystem(call.Command); alone {
		return plainly
	}
	return func(said string, _ bool) string {
		if said == "" {
			return ""
		}
		return "what it printed is not shown, since it can hold secrets"
	}
}

// withoutURL takes the address of a request out of its error: that of an exec
// holds the command.
func withoutURL(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		return request.Err
	}
	return err
}

// event sends an event to the objects. It is sent at once: this process may end.
func (u *Undoer) event(ctx context.Context, i *journal.Entry, eventType, reason, message string) {
	for _, ref := range i.Objects {
		// That the event is missing changes nothing; what it says is in the result.
		_ = sendEvent(ctx, u.Kube, u.Clock, ref, eventType, reason, message)
	}
}
