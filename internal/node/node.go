package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
)

const (
	// Command is the subcommand that the pod runs.
	Command = "thaw-volumes"

	container = "thaw"
	// podLimit is the time from the creation of a pod to its end, including an image pull.
	podLimit = time.Minute
	// pollInterval is the time between two reads of the pod.
	pollInterval = 200 * time.Millisecond
	// deleteLimit is the timeout of the request that deletes the pod.
	deleteLimit = 10 * time.Second
)

// ErrOff means that the configuration does not allow a thaw on the node.
var ErrOff = errors.New("a thaw on the node is switched off: the key nodeThaw of the configuration switches it on")

// ErrNotFrozen means that a file system was not frozen and that no thaw failed.
var ErrNotFrozen = errors.New("a file system was not frozen")

// Thawer thaws file systems on nodes.
type Thawer struct {
	kube      kubernetes.Interface
	namespace string
	settings  func(context.Context) (*config.Config, error)
}

// New returns a Thawer. Each thaw reads the settings.
func New(clients *cluster.Clients, settings func(context.Context) (*config.Config, error)) *Thawer {
	return &Thawer{kube: clients.Kube, namespace: clients.VeleroNamespace, settings: settings}
}

// Thaw thaws the file systems that are mounted at paths of a node, each once. Paths below
// /var/lib/kubelet are moved to the kubelet directory of the configuration. A path where
// nothing is mounted is an error, because the frozen file system can be mounted elsewhere.
// Thaw takes at most a minute. It returns ErrOff if the configuration does not allow it,
// and ErrNotFrozen if a file system was not frozen.
func (t *Thawer) Thaw(ctx context.Context, node string, paths []string) error {
	settings, err := t.settings(ctx)
	if err != nil {
		return fmt.Errorf("thaw on node %s: %w", node, err)
	}
	if settings.NodeThaw == nil {
		return ErrOff
	}
	nodePaths := make([]string, len(paths))
	for i, path := range paths {
		nodePaths[i] = path
		if rest, ok := strings.CutPrefix(path, config.DefaultKubeletDirectory+"/"); ok {
			nodePaths[i] = settings.NodeThaw.Directory() + "/" + rest
		}
	}
	pod := podOf(t.namespace, settings.NodeThaw, node, nodePaths)
	pod.Spec.Containers[0].Resources = settings.HelperPods.Requirements()
	if err := t.thaw(ctx, pod); err != nil {
		return fmt.Errorf("thaw %s on node %s: %w", strings.Join(nodePaths, ", "), node, err)
	}
	return nil
}

func (t *Thawer) thaw(ctx context.Context, pod *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, podLimit)
	defer cancel()
	t.deleteFinishedPods(ctx)
	pods := t.kube.CoreV1().Pods(pod.Namespace)
	made, err := pods.Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create a pod in namespace %s: %w", pod.Namespace, err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteLimit)
		defer cancel()
		// A pod that is not deleted ends at its deadline, and the next thaw deletes it.
		_ = pods.Delete(ctx, made.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))})
	}()
	for {
		// Errors of the API server can be transient; the timeout reports the last state of
		// the pod.
		if now, err := pods.Get(ctx, made.Name, metav1.GetOptions{}); err == nil {
			made = now
		} else if apierrors.IsNotFound(err) {
			return fmt.Errorf("pod %s/%s was deleted before it had ended", made.Namespace, made.Name)
		}
		// An injected container can still run after the thaw has ended.
		ended := thawState(made).Terminated
		switch {
		case ended != nil && ended.ExitCode == 0, made.Status.Phase == corev1.PodSucceeded:
			return nil
		case ended != nil && ended.ExitCode == exitNotFrozen:
			return ErrNotFrozen
		case ended != nil, made.Status.Phase == corev1.PodFailed:
			return fmt.Errorf("pod %s/%s: %s", made.Namespace, made.Name, describe(made))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pod %s/%s: %s: %w", made.Namespace, made.Name, describe(made), ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}

// deleteFinishedPods deletes the finished pods of dead processes.
func (t *Thawer) deleteFinishedPods(ctx context.Context) {
	pods, err := t.kube.CoreV1().Pods(t.namespace).List(ctx, metav1.ListOptions{LabelSelector: api.LabelNodeThaw})
	if err != nil {
		return
	}
	for i := range pods.Items {
		if pod := &pods.Items[i]; pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			_ = t.kube.CoreV1().Pods(t.namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{})
		}
	}
}

// podOf returns the pod that thaws. It names its node, so that no scheduler is involved,
// and tolerates all taints.
func podOf(namespace string, settings *config.NodeThaw, node string, paths []string) *corev1.Pod {
	const volume = "kubelet"
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, GenerateName: "stillpoint-thaw-",
			Labels: map[string]string{api.LabelNodeThaw: "", "velero.io/exclude-from-backup": "true"},
		},
		Spec: corev1.PodSpec{
			NodeName:                      node,
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			RestartPolicy:                 corev1.RestartPolicyNever,
			ActiveDeadlineSeconds:         ptr.To(int64(podLimit / time.Second)),
			TerminationGracePeriodSeconds: ptr.To(int64(0)),
			AutomountServiceAccountToken:  ptr.To(false),
			EnableServiceLinks:            ptr.To(false),
			Containers: []corev1.Container{{
				Name: container, Image: settings.Image, ImagePullPolicy: corev1.PullIfNotPresent,
				Args:                     slices.Concat([]string{Command}, paths),
				TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
				SecurityContext:          &corev1.SecurityContext{Privileged: ptr.To(true), RunAsUser: ptr.To(int64(0))},
				VolumeMounts: []corev1.VolumeMount{{
					Name: volume, MountPath: settings.Directory(), ReadOnly: true,
					MountPropagation: ptr.To(corev1.MountPropagationHostToContainer),
				}},
			}},
			Volumes: []corev1.Volume{{Name: volume, VolumeSource: corev1.VolumeSource{
				HostPath: &corev1.HostPathVolumeSource{Path: settings.Directory(), Type: ptr.To(corev1.HostPathDirectory)},
			}}},
		},
	}
}

// thawState returns the state of the container that thaws.
func thawState(pod *corev1.Pod) corev1.ContainerState {
	for _, status := range pod.Status.ContainerStatuses {
		if status.Name == container {
			return status.State
		}
	}
	return corev1.ContainerState{}
}

// describe returns the reason for the state of a pod.
func describe(pod *corev1.Pod) string {
	state := thawState(pod)
	if ended := state.Terminated; ended != nil {
		return fmt.Sprintf("exit code %d: %s", ended.ExitCode, cmp.Or(strings.TrimSpace(ended.Message), ended.Reason, "no output"))
	}
	if waiting := state.Waiting; waiting != nil && waiting.Reason != "" {
		return strings.TrimSuffix(waiting.Reason+": "+waiting.Message, ": ")
	}
	return cmp.Or(strings.Trim(pod.Status.Reason+": "+pod.Status.Message, ": "), "it has not started")
}
