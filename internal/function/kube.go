package function

import (
	"context"
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

// KubeFunctions are Kanister's functions that run commands in existing containers.
func KubeFunctions(client kubernetes.Interface) map[string]render.Function {
	return map[string]render.Function{
		"KubeExec": {
			Required: []string{"namespace", "pod", "command"},
			Optional: []string{"container"},
			Calls: func(ctx context.Context, args render.Args) ([]render.Call, error) {
				r := args.Reader()
				pods, containers := []string{r.Required("pod")}, []string(nil)
				if container := r.String("container"); container != "" {
					containers = []string{container}
				}
				return execs(ctx, client, r, pods, containers)
			},
		},
		"KubeExecAll": {
			Required: []string{"namespace", "pods", "containers", "command"},
			Calls: func(ctx context.Context, args render.Args) ([]render.Call, error) {
				r := args.Reader()
				// Kanister runs nothing if one of them is empty, and calls that a success.
				pods, containers := r.Fields("pods"), r.Fields("containers")
				return execs(ctx, client, r, pods, containers)
			},
		},
	}
}

// execs returns a call for each of the containers in each of the pods, or for the
// first container of each pod if containers is empty.
func execs(ctx context.Context, client kubernetes.Interface, r *render.Reader, pods, containers []string) ([]render.Call, error) {
	namespace, command := r.Required("namespace"), r.Command("command")
	if r.Err != nil {
		return nil, r.Err
	}
	var calls []render.Call
	for _, pod := range pods {
		running, err := runningContainers(ctx, client, namespace, pod)
		if err != nil {
			return nil, err
		}
		chosen := containers
		if len(chosen) == 0 {
			chosen = running[:1]
		}
		for _, container := range chosen {
			if !slices.Contains(running, container) {
				return nil, absent(namespace, pod, "container %q is not running in pod %s/%s; running are: %s", container, namespace, pod, strings.Join(running, ", "))
			}
			calls = append(calls, render.Call{Namespace: namespace, Pod: pod, Container: container, Command: slices.Clone(command)})
		}
	}
	return calls, nil
}

// runningContainers returns the names of a pod's running containers, at least one, in
// the order of its specification. Sidecars among the init containers come last, because
// Kanister runs a command in the first container if none is named.
func runningContainers(ctx context.Context, client kubernetes.Interface, namespace, name string) ([]string, error) {
	pod, err := client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, notRunning(ctx, client, namespace, name, "does not exist")
	}
	if err != nil {
		return nil, fmt.Errorf("get pod %s/%s: %w", namespace, name, err)
	}
	if reason := stopped(pod); reason != "" {
		return nil, notRunning(ctx, client, namespace, name, reason)
	}
	up := map[string]bool{}
	for _, status := range slices.Concat(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses) {
		up[status.Name] = status.State.Running != nil
	}
	var running []string
	for _, container := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		if up[container.Name] {
			running = append(running, container.Name)
		}
	}
	if len(running) == 0 {
		return nil, absent(namespace, name, "no container of pod %s/%s is running", namespace, name)
	}
	return running, nil
}

// notRunning is the error that a pod cannot run commands; it lists the pods that can.
func notRunning(ctx context.Context, client kubernetes.Interface, namespace, name, reason string) error {
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("pod %s/%s %s (list the other pods: %w)", namespace, name, reason, err)
	}
	var running []string
	for i := range pods.Items {
		if stopped(&pods.Items[i]) == "" {
			running = append(running, pods.Items[i].Name)
		}
	}
	return absent(namespace, name, "pod %s/%s %s; running pods: %s", namespace, name, reason, blueprint.List(running))
}

// stopped returns why a pod cannot run commands, "" if it can.
func stopped(pod *corev1.Pod) string {
	switch {
	case pod.DeletionTimestamp != nil:
		return "is being deleted"
	case pod.Status.Phase != corev1.PodRunning:
		return fmt.Sprintf("is not running (phase %s)", pod.Status.Phase)
	default:
		return ""
	}
}

func absent(namespace, pod, format string, args ...any) error {
	return &render.Absent{Pod: namespace + "/" + pod, Reason: fmt.Sprintf(format, args...)}
}
