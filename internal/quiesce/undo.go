package quiesce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/intent"
	"stillpoint.io/stillpoint/internal/node"
)

const (
	// undoCallLimit is how long one try of an owed command may take, undoTaskLimit
	// one of an owed task: a workload that is scaled up may be waited for.
	undoCallLimit = 30 * time.Second
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
	Book     *intent.Book
	Kube     kubernetes.Interface
	Executor Executor
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
	return &Undoer{
		Book:     intent.NewBook(clients, clock),
		Kube:     clients.Kube,
		Executor: cluster.NewExecutor(clients),
		Tasks:    blueprint.NewTasks(clients),
		Nodes:    node.New(clients, settings),
		Clock:    clock,
	}
}

// Undo does what is left of an intent that Book.List has returned, in its order,
// and tries again what fails, for limit; a task that is under way is given 5 minutes
// all the same. One that fails does not keep the next waiting. When all is done the
// intent is deleted; otherwise it stays, with what is left, and the objects get an
// event. The error is intent.ErrTaken when another process is at it.
//
// A guard that stands in a container does its command by itself once its session
// is dead, so such a command is run once more and may fail. A file system's
// thaw may not: it outlives guard and container.
func (u *Undoer) Undo(ctx context.Context, i *intent.Intent, limit time.Duration) (*Undone, error) {
	gone, err := u.Book.Gone(ctx, i)
	if err != nil {
		return nil, err
	}
	deadline := u.Clock.Now().Add(limit)
	if err := u.Book.Claim(ctx, i, deadline.Add(undoTaskLimit+graceOfClaim)); err != nil {
		return nil, err
	}
	if gone != "" {
		u.clear(ctx, i)
	}
	result := &Undone{}
	steps := make([]*owed, len(i.Undo))
	for j := range i.Undo {
		steps[j] = &owed{Undoer: u, Undo: &i.Undo[j], dead: gone != ""}
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
func (u *Undoer) clear(ctx context.Context, i *intent.Intent) {
	ctx, cancel := context.WithTimeout(ctx, postLimit)
	defer cancel()
	pods, err := u.Kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: blueprint.TaskLabel + "=" + i.ID})
	if err != nil {
		return // what is owed does not wait for them, and their label tells whose they are
	}
	for j := range pods.Items {
		_ = u.Kube.CoreV1().Pods(pods.Items[j].Namespace).Delete(ctx, pods.Items[j].Name, metav1.DeleteOptions{})
	}
}

// settle writes down what came of it.
func (u *Undoer) settle(ctx context.Context, i *intent.Intent, left []*owed, result *Undone) error {
	if len(left) == 0 {
		if !result.Vanished {
			u.event(ctx, i, corev1.EventTypeNormal, reasonThawed, fmt.Sprintf("Released what backup %s had quiesced", i.Backup))
		}
		if err := u.Book.Close(ctx, i.ID); err != nil && !errors.Is(err, intent.ErrTaken) {
			return err
		}
		return nil
	}
	var failures []error
	var undo []intent.Undo
	for _, o := range left {
		failures = append(failures, o.failure)
		undo = append(undo, *o.Undo)
	}
	result.Left = fmt.Errorf("%s MAY STILL BE QUIESCED by backup %s: %w", i.Name, i.Backup, errors.Join(failures...))
	i.Undo, i.Holder, i.Tried, i.Failure = undo, intent.Holder{}, u.Clock.Now(), errors.Join(failures...).Error()
	u.event(ctx, i, corev1.EventTypeWarning, reasonStillFrozen, result.Left.Error())
	return u.Book.Update(ctx, i)
}

// owed is a step on its way.
type owed struct {
	*Undoer
	*intent.Undo
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

// do runs the step once.
func (o *owed) do(ctx context.Context) (warning string, err error) {
	warning, err = o.run(ctx)
	if err == nil {
		return warning, nil
	}
	why := vanished(ctx, o.Kube, o.Undo)
	if why == "" {
		return "", err
	}
	o.vanished = true
	return fmt.Sprintf("blueprint %s, phase %s: %s", o.Blueprint, o.Phase, why), nil
}

// vanished says why nothing is left of what a step undoes; "" is that something
// may be.
func vanished(ctx context.Context, kube kubernetes.Interface, undo *intent.Undo) string {
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
	if _, err := kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		return fmt.Sprintf("namespace %s is gone, and what was quiesced with it", namespace)
	}
	if undo.Call == nil || !thawsFileSystem(undo.Call) || len(undo.Volumes) == 0 {
		return ""
	}
	for _, v := range undo.Volumes {
		if _, err := kube.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, v.Claim, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return ""
		}
	}
	return "its claims are gone, and their file systems with them"
}

func (o *owed) run(ctx context.Context) (warning string, err error) {
	switch {
	case o.Unknown != "":
		return "", o.explain(errors.New(o.Unknown))
	case o.Task != nil:
		return "", o.explain(o.task(ctx))
	case o.Call == nil:
		return "", o.explain(errors.New("there is neither a command nor a task"))
	case thawsFileSystem(o.Call):
		return o.fileSystem(ctx)
	}
	err = o.call(ctx, *o.Call)
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
// volume, and then on the node.
func (o *owed) fileSystem(ctx context.Context) (warning string, err error) {
	if err = o.call(ctx, *o.Call); err == nil {
		return "", nil
	}
	paths := map[string][]string{}
	for _, v := range o.Volumes {
		if v.MountPath != "" {
			paths[v.Claim] = append(paths[v.Claim], v.MountPath)
		}
	}
	for _, call := range elsewhere(ctx, o.Kube, *o.Call, paths) {
		if o.call(ctx, call) == nil {
			return fmt.Sprintf("thawed from %s, since %v", containerOf(call), err), nil
		}
	}
	// A container that is starting again is quicker and needs fewer rights.
	if o.tries%onNodeEvery == 1 && len(o.Volumes) > 0 && !errors.Is(o.onNode, node.ErrOff) {
		if o.onNode = o.onNodes(ctx); o.onNode == nil {
			return fmt.Sprintf("thawed on the node, since %v", err), nil
		}
	}
	if o.onNode != nil {
		err = fmt.Errorf("%w; %w", err, o.onNode)
	}
	return "", o.explain(err)
}

func (o *owed) onNodes(ctx context.Context) error {
	var errs []error
	for of, paths := range byNode(o.Volumes) {
		errs = append(errs, o.Nodes.Thaw(ctx, of, paths))
	}
	return errors.Join(errs...)
}

// call runs a command in its container, directly where that has no shell. Of what
// it prints nothing is shown unless it thaws a file system: it can hold secrets.
func (o *owed) call(ctx context.Context, call blueprint.Call) error {
	ctx, cancel := context.WithTimeout(ctx, undoCallLimit)
	defer cancel()
	show := plainly
	if !thawsFileSystem(&call) {
		show = func(string, bool) string { return "what it printed is not shown, since it can hold secrets" }
	}
	_, err := runOnce(ctx, o.Executor, call, undoCallLimit, show)
	return withoutURL(err)
}

// thawsFileSystem tells that a command undoes a freeze of the kernel's, which
// outlives the container.
func thawsFileSystem(call *blueprint.Call) bool {
	return slices.ContainsFunc(call.Command, func(word string) bool {
		return strings.Contains(word, "fsfreeze") || strings.Contains(word, "xfs_freeze")
	})
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

// eventLimit is how long an event's message may be, in bytes.
const eventLimit = 1024

// event tells it on the objects. It is sent at once: this process may end.
func (u *Undoer) event(ctx context.Context, i *intent.Intent, eventType, reason, message string) {
	if len(message) > eventLimit {
		message = strings.ToValidUTF8(message[:eventLimit-3], "") + "..."
	}
	now := metav1.NewTime(u.Clock.Now())
	for _, ref := range i.Objects {
		namespace := cmp.Or(ref.Namespace, metav1.NamespaceDefault)
		// That the event is missing changes nothing; what it says is in the result.
		_, _ = u.Kube.CoreV1().Events(namespace).Create(ctx, &corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: ref.Name + "."},
			InvolvedObject: corev1.ObjectReference{
				APIVersion: ref.APIVersion, Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID,
			},
			Type: eventType, Reason: reason, Message: message,
			Source: corev1.EventSource{Component: "stillpoint"}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
		}, metav1.CreateOptions{})
	}
}
