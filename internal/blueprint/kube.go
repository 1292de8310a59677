package blueprint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Call is one command in one container. Its command can hold secrets: mask it
// before it is shown.
type Call struct {
	Namespace string
	Pod       string
	Container string
	Command   []string
	// Env is set for the command alone. Its values never stand in a list of
	// processes. Only functions of this program's own set it.
	Env map[string]string `json:",omitempty"`
	// Hold is set when the command is a client that stays open.
	Hold *Hold `json:",omitempty"`
}

// Hold is what a client that stays open is told on its standard input: Begin
// when it is opened, End when it may go.
type Hold struct{ Begin, End string }

// Step is a phase of a hook. Its calls run at the same time, steps one after
// another.
type Step struct {
	Phase string
	Func  string
	// Calls are commands in containers; nil where the function has a Task.
	Calls []Call
	// Task is what the function does through the API server.
	Task *Task
	// Needs says what has to happen before the step can be rendered, such as
	// "the output of phase dump"; "" when it is rendered.
	Needs string
	// Last marks the action's deferPhase, which runs whatever happened before
	// it.
	Last bool
}

// Function turns the rendered args of a phase into its calls, or into a task.
// A function that looks at a namespace which its args choose takes it from the
// argument "namespace": that is the one which is held against the blueprint's
// confinement before Calls runs. The namespaces of its calls are checked
// after.
type Function struct {
	Required []string
	Optional []string
	Calls    func(ctx context.Context, args Args) ([]Call, error)

	// task, instead of Calls, makes a task of args that raw leaves as they
	// stand in the blueprint. foretell gives its outputs before it has run,
	// when those of before will have.
	task     func(ctx context.Context, draft *draft) error
	raw      bool
	foretell func(ctx context.Context, task *Task, before []*Task) (map[string]any, error)
}

// Args are the rendered args of a phase. Values are converted as loosely as
// Kanister does it.
type Args map[string]any

// String gives an argument as text, "" where it is absent.
func (a Args) String(name string) (string, error) {
	value, there := a[name]
	if !there || value == nil {
		return "", nil
	}
	text, err := scalar(value)
	if err != nil {
		return "", fmt.Errorf("args.%s: %w", name, err)
	}
	return text, nil
}

// Strings gives a list argument, nil where it is absent. A single value is a
// list of one.
func (a Args) Strings(name string) ([]string, error) {
	value, there := a[name]
	if !there || value == nil {
		return nil, nil
	}
	elements, ok := value.([]any)
	if !ok {
		text, err := scalar(value)
		if err != nil {
			return nil, fmt.Errorf("args.%s: %w", name, err)
		}
		return []string{text}, nil
	}
	texts := make([]string, len(elements))
	for i, element := range elements {
		text, err := scalar(element)
		if err != nil {
			return nil, fmt.Errorf("args.%s[%d]: %w", name, i, err)
		}
		texts[i] = text
	}
	return texts, nil
}

// Fields gives an argument that is a string of names with blanks between
// them. A list is taken too, each element a name.
func (a Args) Fields(name string) ([]string, error) {
	if _, ok := a[name].([]any); ok {
		return a.Strings(name)
	}
	text, err := a.String(name)
	return strings.Fields(text), err
}

// scalar writes a value as Kanister's decoder does, true as "1" included.
func scalar(value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case bool:
		if v {
			return "1", nil
		}
		return "0", nil
	case int:
		return strconv.Itoa(v), nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	case map[string]any:
		return "", errors.New("is a map, must be a string")
	case []any:
		return "", errors.New("is a list, must be a string")
	case nil:
		return "", errors.New("is null, must be a string")
	default:
		return "", fmt.Errorf("is of type %T, must be a string", value)
	}
}

// Pods is what KubeExec and KubeExecAll must know of the cluster.
type Pods interface {
	// Containers gives the names of a pod's running containers in the order
	// of its spec. A pod that does not exist or does not run is an Absent
	// error that says so and lists the pods there are.
	Containers(ctx context.Context, namespace, pod string) (running []string, err error)
}

// Absent is the error that nothing can be run in a pod, or in a container of
// it, as things are. What an earlier phase does can change that.
type Absent struct {
	// Pod is its namespace and name with a slash between them.
	Pod    string
	Reason string
}

func (a *Absent) Error() string { return a.Reason }

func absent(namespace, pod, format string, args ...any) error {
	return &Absent{Pod: namespace + "/" + pod, Reason: fmt.Sprintf(format, args...)}
}

// KubeFunctions are the functions of Kanister that are supported.
func KubeFunctions(pods Pods) map[string]Function {
	return map[string]Function{
		"KubeExec": {
			Required: []string{"namespace", "pod", "command"},
			Optional: []string{"container"},
			Calls: func(ctx context.Context, args Args) ([]Call, error) {
				pod, err := args.String("pod")
				if err != nil {
					return nil, err
				}
				if pod == "" {
					return nil, errors.New("args.pod is empty")
				}
				container, err := args.String("container")
				if err != nil {
					return nil, err
				}
				// Without a container it is the first one.
				containers := []string{container}
				if container == "" {
					containers = nil
				}
				return execs(ctx, pods, args, []string{pod}, containers)
			},
		},
		"KubeExecAll": {
			Required: []string{"namespace", "pods", "containers", "command"},
			Calls: func(ctx context.Context, args Args) ([]Call, error) {
				names, err := args.Fields("pods")
				if err != nil {
					return nil, err
				}
				containers, err := args.Fields("containers")
				if err != nil {
					return nil, err
				}
				// Kanister would run nothing and call that a success.
				if len(names) == 0 {
					return nil, errors.New("args.pods is empty")
				}
				if len(containers) == 0 {
					return nil, errors.New("args.containers is empty")
				}
				return execs(ctx, pods, args, names, containers)
			},
		},
	}
}

// execs makes a call for each container of each pod, for the first container
// of each pod where none is named.
func execs(ctx context.Context, pods Pods, args Args, names, containers []string) ([]Call, error) {
	namespace, err := args.String("namespace")
	if err != nil {
		return nil, err
	}
	if namespace == "" {
		return nil, errors.New("args.namespace is empty")
	}
	command, err := args.Strings("command")
	if err != nil {
		return nil, err
	}
	if len(command) == 0 || command[0] == "" {
		return nil, errors.New("args.command is empty")
	}
	var calls []Call
	for _, pod := range names {
		running, err := pods.Containers(ctx, namespace, pod)
		if err != nil {
			return nil, err
		}
		if len(running) == 0 {
			return nil, absent(namespace, pod, "no container of pod %s/%s is running", namespace, pod)
		}
		chosen := containers
		if len(chosen) == 0 {
			chosen = running[:1]
		}
		for _, container := range chosen {
			if !slices.Contains(running, container) {
				return nil, absent(namespace, pod, "container %q is not running in pod %s/%s; running are: %s", container, namespace, pod, strings.Join(running, ", "))
			}
			calls = append(calls, Call{Namespace: namespace, Pod: pod, Container: container, Command: slices.Clone(command)})
		}
	}
	return calls, nil
}

// NewPods looks pods up in a cluster.
func NewPods(client kubernetes.Interface) Pods { return clusterPods{client} }

type clusterPods struct{ client kubernetes.Interface }

func (c clusterPods) Containers(ctx context.Context, namespace, name string) ([]string, error) {
	pod, err := c.client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, c.missing(ctx, namespace, name, "does not exist")
	}
	if err != nil {
		return nil, fmt.Errorf("get pod %s/%s: %w", namespace, name, err)
	}
	if reason := notRunning(pod); reason != "" {
		return nil, c.missing(ctx, namespace, name, reason)
	}
	up := map[string]bool{}
	for _, status := range slices.Concat(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses) {
		up[status.Name] = status.State.Running != nil
	}
	var running []string
	// Init containers that go on running (sidecars) come last, so that they
	// are never the one which is taken when none is named.
	for _, container := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		if up[container.Name] {
			running = append(running, container.Name)
		}
	}
	return running, nil
}

func (c clusterPods) missing(ctx context.Context, namespace, name, reason string) error {
	pods, err := c.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("pod %s/%s %s (list the pods there are: %w)", namespace, name, reason, err)
	}
	var running []string
	for i := range pods.Items {
		if notRunning(&pods.Items[i]) == "" {
			running = append(running, pods.Items[i].Name)
		}
	}
	return absent(namespace, name, "pod %s/%s %s; running pods: %s", namespace, name, reason, list(running))
}

// notRunning says why nothing can be run in a pod, "" when it can.
func notRunning(pod *corev1.Pod) string {
	switch {
	case pod.DeletionTimestamp != nil:
		return "is being deleted"
	case pod.Status.Phase != corev1.PodRunning:
		return fmt.Sprintf("is not running (phase %s)", pod.Status.Phase)
	default:
		return ""
	}
}
