// Package node thaws file systems on their node, by a short-lived privileged pod
// of Stillpoint's own image. It is the last way, for a freeze that no container is
// left to undo, and only where the configuration allows it.
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
	// Command is the subcommand of our program that such a pod runs.
	Command = "thaw-volumes"

	container = "thaw"
	// limit is how long a pod may take from its creation to its end, with the pull
	// of an image that the node does not have.
	limit = time.Minute
	// pause lies between two looks at a pod.
	pause = 200 * time.Millisecond
	// partingLimit is how long the removal of a pod may take to be accepted.
	partingLimit = 10 * time.Second
)

// ErrOff says that the configuration does not allow it.
var ErrOff = errors.New("a thaw on the node is switched off: the key nodeThaw of the configuration switches it on")

// ErrNotFrozen says that a file system was not frozen, and none has failed to thaw.
var ErrNotFrozen = errors.New("a file system was not frozen")

// Thawer thaws on nodes.
type Thawer struct {
	kube      kubernetes.Interface
	namespace string
	settings  func(context.Context) (*config.Config, error)
}

// New returns a Thawer. The settings are read when something is to be thawed.
func New(clients *cluster.Clients, settings func(context.Context) (*config.Config, error)) *Thawer {
	return &Thawer{kube: clients.Kube, namespace: clients.VeleroNamespace, settings: settings}
}

// Thaw thaws the file systems that are mounted at paths of a node, which must be
// below the directory of its kubelet; those below /var/lib/kubelet are looked for
// where the configuration has it. Each is thawed once. A path where nothing is mounted
// is an error, as the file system may be frozen and mounted elsewhere. It takes a
// minute at the most. The error is ErrOff if it is not allowed, and ErrNotFrozen if a
// file system was not frozen.
func (t *Thawer) Thaw(ctx context.Context, node string, paths []string) error {
	settings, err := t.settings(ctx)
	if err != nil {
		return fmt.Errorf("thaw on node %s: %w", node, err)
	}
	if settings.NodeThaw == nil {
		return ErrOff
	}
	there := make([]string, len(paths))
	for i, path := range paths {
		there[i] = path
		if rest, ok := strings.CutPrefix(path, config.DefaultKubeletDirectory+"/"); ok {
			there[i] = settings.NodeThaw.Directory() + "/" + rest
		}
	}
	pod := podOf(t.namespace, settings.NodeThaw, node, there)
	pod.Spec.Containers[0].Resources = settings.HelperPods.Requirements()
	if err := t.thaw(ctx, pod); err != nil {
		return fmt.Errorf("thaw %s on node %s: %w", strings.Join(there, ", "), node, err)
	}
	return nil
}

func (t *Thawer) thaw(ctx context.Context, pod *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t.clear(ctx)
	pods := t.kube.CoreV1().Pods(pod.Namespace)
	made, err := pods.Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create a pod in namespace %s: %w", pod.Namespace, err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), partingLimit)
		defer cancel()
		// What stays ends at its deadline, and goes with the next one.
		_ = pods.Delete(ctx, made.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))})
	}()
	for {
		// Trouble of the API server's may pass; how the pod stands is told at the end.
		if now, err := pods.Get(ctx, made.Name, metav1.GetOptions{}); err == nil {
			made = now
		} else if apierrors.IsNotFound(err) {
			return fmt.Errorf("pod %s/%s was deleted before it had ended", made.Namespace, made.Name)
		}
		// A container that was injected may run on when ours has ended.
		ended := own(made).Terminated
		switch {
		case ended != nil && ended.ExitCode == 0, made.Status.Phase == corev1.PodSucceeded:
			return nil
		case ended != nil && ended.ExitCode == exitNotFrozen:
			return ErrNotFrozen
		case ended != nil, made.Status.Phase == corev1.PodFailed:
			return fmt.Errorf("pod %s/%s: %s", made.Namespace, made.Name, why(made))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pod %s/%s: %s: %w", made.Namespace, made.Name, why(made), ctx.Err())
		case <-time.After(pause):
		}
	}
}

// clear removes the pods that processes left which have died.
func (t *Thawer) clear(ctx context.Context) {
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

// podOf is the pod that does it. It goes by the name of its node, not through the
// scheduler, and tolerates whatever is wrong there.
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
			ActiveDeadlineSeconds:         ptr.To(int64(limit / time.Second)),
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

// own is the state of the container that thaws.
func own(pod *corev1.Pod) corev1.ContainerState {
	for _, status := range pod.Status.ContainerStatuses {
		if status.Name == container {
			return status.State
		}
	}
	return corev1.ContainerState{}
}

// why is what a pod says of itself.
func why(pod *corev1.Pod) string {
	state := own(pod)
	if ended := state.Terminated; ended != nil {
		return fmt.Sprintf("exit code %d: %s", ended.ExitCode, cmp.Or(strings.TrimSpace(ended.Message), ended.Reason, "no output"))
	}
	if waiting := state.Waiting; waiting != nil && waiting.Reason != "" {
		return strings.TrimSuffix(waiting.Reason+": "+waiting.Message, ": ")
	}
	return cmp.Or(strings.Trim(pod.Status.Reason+": "+pod.Status.Message, ": "), "it has not started")
}
