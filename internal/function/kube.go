package function

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/render"
)

// Pods is what KubeExec and KubeExecAll must know of the cluster.
type Pods interface {
	// Containers gives the names of a pod's running containers in the order
	// of its spec. A pod that does not exist or does not run is an Absent
	// error that says so and lists the pods there are.
	Containers(ctx context.Context, namespace, pod string) (running []string, err error)
}

// KubeFunctions are the functions of Kanister that are supported.
func KubeFunctions(pods Pods) map[string]render.Function {
	return map[string]render.Function{
		"KubeExec": {
			Required: []string{"namespace", "pod", "command"},
			Optional: []string{"container"},
			Calls: func(ctx context.Context, args render.Args) ([]render.Call, error) {
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
			Calls: func(ctx context.Context, args render.Args) ([]render.Call, error) {
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
func execs(ctx context.Context, pods Pods, args render.Args, names, containers []string) ([]render.Call, error) {
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
	var calls []render.Call
	for _, pod := range names {
		running, err := pods.Containers(ctx, namespace, pod)
		if err != nil {
			return nil, err
		}
		if len(running) == 0 {
			return nil, render.NewAbsent(namespace, pod, "no container of pod %s/%s is running", namespace, pod)
		}
		chosen := containers
		if len(chosen) == 0 {
			chosen = running[:1]
		}
		for _, container := range chosen {
			if !slices.Contains(running, container) {
				return nil, render.NewAbsent(namespace, pod, "container %q is not running in pod %s/%s; running are: %s", container, namespace, pod, strings.Join(running, ", "))
			}
			calls = append(calls, render.Call{Namespace: namespace, Pod: pod, Container: container, Command: slices.Clone(command)})
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
	return render.NewAbsent(namespace, name, "pod %s/%s %s; running pods: %s", namespace, name, reason, blueprint.List(running))
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
