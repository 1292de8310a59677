package quiesce

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/intent"
	"stillpoint.io/stillpoint/internal/workload"
)

// rescue finds other ways to run a post command: a frozen file system stays
// frozen when the container dies that froze it, and can be thawed from any
// other that mounts the volume.
type rescue struct {
	kube  kubernetes.Interface
	group *Group
}

// alternatives lists the running containers that mount a volume of call's own
// container, each with the command that does the same there.
func (r *rescue) alternatives(ctx context.Context, call blueprint.Call) []blueprint.Call {
	paths := map[string][]string{} // by claim, in the call's own container
	for _, mount := range r.mountsOf(call) {
		paths[mount.Claim] = append(paths[mount.Claim], mount.Path)
	}
	return elsewhere(ctx, r.kube, call, paths)
}

// elsewhere lists the running containers, other than call's own, that mount one of
// the claims of which paths says where call's container has them. Each comes with
// the command that does the same there: a word that is a mount path is replaced by
// the path of the same volume.
func elsewhere(ctx context.Context, kube kubernetes.Interface, call blueprint.Call, paths map[string][]string) []blueprint.Call {
	pods, err := kube.CoreV1().Pods(call.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil
	}
	var calls []blueprint.Call
	for i := range pods.Items {
		pod := &pods.Items[i]
		renamed := map[string]map[string]string{} // container → old path → new path
		for _, mount := range workload.Mounts(pod) {
			olds, ok := paths[mount.Claim]
			if !ok || mount.Block || (pod.Name == call.Pod && mount.Container == call.Container) {
				continue
			}
			if renamed[mount.Container] == nil {
				renamed[mount.Container] = map[string]string{}
			}
			for _, old := range olds {
				renamed[mount.Container][old] = mount.Path
			}
		}
		for _, container := range workload.RunningContainers(pod) {
			news, ok := renamed[container]
			if !ok {
				continue
			}
			there := call
			there.Pod, there.Container, there.Command = pod.Name, container, slices.Clone(call.Command)
			for j, word := range there.Command {
				there.Command[j] = cmp.Or(news[word], word)
			}
			calls = append(calls, there)
		}
	}
	return calls
}

// pod is call's pod as it was when the plan was made.
func (r *rescue) pod(call blueprint.Call) *corev1.Pod {
	for _, w := range r.group.Unit.Workloads {
		for i := range w.Pods {
			if w.Pods[i].Name == call.Pod && w.Pods[i].Namespace == call.Namespace {
				return &w.Pods[i]
			}
		}
	}
	return nil
}

func (r *rescue) mountsOf(call blueprint.Call) []workload.Mount {
	pod := r.pod(call)
	if pod == nil {
		return nil
	}
	return slices.DeleteFunc(workload.Mounts(pod), func(m workload.Mount) bool { return m.Container != call.Container })
}

// byHand tells a person what to run: the same command, and on the node what
// thaws the volumes it stands for.
func (r *rescue) byHand(call blueprint.Call) string {
	text := fmt.Sprintf("run by hand: kubectl exec -n %s %s -c %s -- %s", call.Namespace, call.Pod, call.Container, quote(call.Command))
	var thaws []string
	node := ""
	for _, volume := range r.volumes(call) {
		node = volume.Node
		thaws = append(thaws, fmt.Sprintf("fsfreeze --unfreeze %s (claim %s, in %s at %s)", volume.Path, volume.Claim, call.Container, volume.MountPath))
	}
	if len(thaws) > 0 {
		text += fmt.Sprintf("; if its container is gone, on node %s: %s", node, strings.Join(thaws, ", "))
	}
	return text
}

// volumes are the file systems of the group that call's container has mounted.
func (r *rescue) volumes(call blueprint.Call) []intent.Volume {
	pod := r.pod(call)
	if pod == nil {
		return nil
	}
	var volumes []intent.Volume
	for _, mount := range r.mountsOf(call) {
		for _, claim := range r.group.Claims {
			if claim.Name == mount.Claim && !mount.Block {
				volumes = append(volumes, intent.Volume{
					Claim: claim.Name, MountPath: mount.Path, Node: pod.Spec.NodeName,
					Path: fmt.Sprintf("%s/pods/%s/volumes/kubernetes.io~csi/%s/mount", config.DefaultKubeletDirectory, pod.UID, claim.Spec.VolumeName),
				})
			}
		}
	}
	return volumes
}

// byNode are the paths of volumes on each node.
func byNode(volumes []intent.Volume) map[string][]string {
	paths := map[string][]string{}
	for _, volume := range volumes {
		if !slices.Contains(paths[volume.Node], volume.Path) {
			paths[volume.Node] = append(paths[volume.Node], volume.Path)
		}
	}
	return paths
}
