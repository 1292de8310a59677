package quiesce

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

	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/function"
	"stillpoint.io/stillpoint/internal/journal"
	"stillpoint.io/stillpoint/internal/node"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/unit"
	"stillpoint.io/stillpoint/internal/workload"
)

// rescuer finds alternatives to a post command and its guard.
type rescuer interface {
	// alternatives returns, for each file system that call thaws, the commands that thaw
	// it in other running containers.
	alternatives(ctx context.Context, call render.Call) [][]render.Call
	// gone reports whether all processes of call's container have ended.
	gone(ctx context.Context, call render.Call) bool
	// endsPod reports whether a hook itself ends the pod of a call, and with it the guard.
	endsPod(hook *Hook, call render.Call) bool
	// byHand returns instructions for a user to run call by hand.
	byHand(call render.Call) string
	// volumes returns the file systems that call thaws, with their paths on the node.
	volumes(call render.Call) []journal.Volume
}

// rescue finds alternatives by the pods of the unit. A frozen file system stays frozen after
// its container has ended, and can be thawed from any other container that mounts the
// volume.
type rescue struct {
	kube kubernetes.Interface
	unit *unit.Unit
}

func (r *rescue) alternatives(ctx context.Context, call render.Call) [][]render.Call {
	return ThawsElsewhere(ctx, r.kube, call, r.volumes(call))
}

func (r *rescue) gone(ctx context.Context, call render.Call) bool {
	return ContainerGone(ctx, r.kube, call)
}

// ThawsElsewhere returns, for each volume, the commands that thaw it in running containers
// other than call's own. They do nothing else that call does.
func ThawsElsewhere(ctx context.Context, kube kubernetes.Interface, call render.Call, volumes []journal.Volume) [][]render.Call {
	var claims []string
	for _, v := range volumes {
		if !slices.Contains(claims, v.Claim) {
			claims = append(claims, v.Claim)
		}
	}
	pods, err := kube.CoreV1().Pods(call.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil || len(claims) == 0 {
		return nil
	}
	alternatives := make([][]render.Call, len(claims))
	for i := range pods.Items {
		pod := &pods.Items[i]
		running := workload.RunningContainers(pod)
		for _, mount := range workload.Mounts(pod) {
			of := slices.Index(claims, mount.Claim)
			if of < 0 || mount.Block || (pod.Name == call.Pod && mount.Container == call.Container) || !slices.Contains(running, mount.Container) {
				continue
			}
			alternatives[of] = append(alternatives[of], render.Call{
				Namespace: call.Namespace, Pod: pod.Name, Container: mount.Container,
				Command: []string{"fsfreeze", "--unfreeze", mount.Path},
			})
		}
	}
	return alternatives
}

// ContainerGone reports whether all processes of call's container have ended. The kubelet
// reports the end of a container, and removes its pod, only after that.
func ContainerGone(ctx context.Context, kube kubernetes.Interface, call render.Call) bool {
	pod, err := kube.CoreV1().Pods(call.Namespace).Get(ctx, call.Pod, metav1.GetOptions{})
	if err != nil {
		return apierrors.IsNotFound(err)
	}
	return !slices.Contains(workload.RunningContainers(pod), call.Container)
}

// ErrNowhere means that no other container can thaw.
var ErrNowhere = errors.New("no other container mounts the volume")

// Outside thaws file systems from other containers than the one that froze them, or from
// their node.
type Outside struct {
	Executor podexec.Executor
	Show     podexec.Show
	// Node thaws volumes that no container can thaw; nil disables that.
	Node    Node
	Volumes []journal.Volume
}

// Thaw thaws each file system by one of its alternatives, or from the node if that fails.
// It returns where it thawed.
func (o Outside) Thaw(ctx context.Context, alternatives [][]render.Call) (tried Try, where string, err error) {
	if tried, where, err = o.fromContainers(ctx, alternatives); err == nil || o.Node == nil || len(o.Volumes) == 0 {
		return tried, where, err
	}
	tried, where, onNode := o.onNodes(ctx)
	if onNode == nil {
		return tried, where, nil
	}
	if !errors.Is(err, ErrNowhere) {
		onNode = fmt.Errorf("%w; %w", err, onNode)
	}
	return tried, where, onNode
}

func (o Outside) fromContainers(ctx context.Context, alternatives [][]render.Call) (tried Try, where string, err error) {
	all, err := Try{Reply: Undone}, ErrNowhere
	var from []string
	for _, calls := range alternatives {
		err = ErrNowhere
		for _, call := range calls {
			if tried, err = UndoOnce(ctx, o.Executor, call, ThawLimit, o.Show); err == nil {
				from = append(from, ContainerOf(call).String())
				all.Reply = max(all.Reply, tried.Reply)
				break
			}
		}
		if err != nil {
			break
		}
	}
	if err != nil {
		return Try{}, "", err
	}
	return all, "from " + strings.Join(from, " and "), nil
}

func (o Outside) onNodes(ctx context.Context) (tried Try, where string, err error) {
	all := Try{Reply: Undone}
	var on []string
	for name, paths := range byNode(o.Volumes) {
		ctx, cancel := context.WithTimeout(ctx, rescueLimit)
		err := o.Node.Thaw(ctx, name, paths)
		cancel()
		switch {
		case errors.Is(err, node.ErrNotFrozen):
			all.Reply = notFrozen
		case err != nil:
			return Try{}, "", err
		}
		on = append(on, name)
	}
	return all, "on node " + strings.Join(on, " and "), nil
}

// pod returns call's pod as it was when the plan was made, or nil.
func (r *rescue) pod(call render.Call) *corev1.Pod {
	for _, w := range r.unit.Component.Workloads {
		for i := range w.Pods {
			if w.Pods[i].Name == call.Pod && w.Pods[i].Namespace == call.Namespace {
				return &w.Pods[i]
			}
		}
	}
	return nil
}

// byHand names the same command, and those that thaw its volumes on the node.
func (r *rescue) byHand(call render.Call) string {
	text := fmt.Sprintf("run by hand: kubectl exec -n %s %s -c %s -- %s", call.Namespace, call.Pod, call.Container, podexec.Quote(call.Command))
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

func (r *rescue) volumes(call render.Call) []journal.Volume {
	pod := r.pod(call)
	if pod == nil || !ThawsFileSystem(call.Command) {
		return nil
	}
	var volumes []journal.Volume
	for _, mount := range workload.Mounts(pod) {
		for _, claim := range r.unit.Claims {
			if mount.Container == call.Container && claim.Name == mount.Claim && !mount.Block {
				volumes = append(volumes, journal.Volume{
					Claim: claim.Name, ClaimUID: claim.UID, MountPath: mount.Path, Node: pod.Spec.NodeName,
					Path: fmt.Sprintf("%s/pods/%s/volumes/kubernetes.io~csi/%s/mount", config.DefaultKubeletDirectory, pod.UID, claim.Spec.VolumeName),
				})
			}
		}
	}
	return VolumesIn(call.Command, volumes)
}

// VolumesIn returns the volumes that a command names by their mount paths, or otherwise by
// directories below these. It returns all volumes if the command names none.
func VolumesIn(command []string, volumes []journal.Volume) []journal.Volume {
	for _, below := range []bool{false, true} {
		found := slices.DeleteFunc(slices.Clone(volumes), func(v journal.Volume) bool { return !namesPath(command, v.MountPath, below) })
		if len(found) > 0 {
			return found
		}
	}
	return volumes
}

// endsPod reports whether a task of the hook scales or changes the pod, its controller, or
// an owner of that.
func (r *rescue) endsPod(hook *Hook, call render.Call) bool {
	pod := r.pod(call)
	if pod == nil {
		return false
	}
	owners := []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name}}
	owners = append(owners, pod.OwnerReferences...)
	for _, w := range r.unit.Component.Workloads {
		if !slices.ContainsFunc(w.Pods, func(p corev1.Pod) bool { return p.UID == pod.UID }) {
			continue
		}
		owners = append(owners, metav1.OwnerReference{APIVersion: w.APIVersion, Kind: w.Kind, Name: w.Name})
		if w.Object != nil {
			owners = append(owners, w.Object.GetOwnerReferences()...)
		}
	}
	for _, step := range slices.Concat(hook.Pre, hook.Post) {
		if step.Task == nil {
			continue
		}
		if slices.ContainsFunc(owners, func(o metav1.OwnerReference) bool {
			return function.Changes(step.Task, pod.Namespace, o.APIVersion, o.Kind, o.Name)
		}) {
			return true
		}
	}
	return false
}

// byNode returns the paths of the volumes on each node.
func byNode(volumes []journal.Volume) map[string][]string {
	paths := map[string][]string{}
	for _, volume := range volumes {
		if !slices.Contains(paths[volume.Node], volume.Path) {
			paths[volume.Node] = append(paths[volume.Node], volume.Path)
		}
	}
	return paths
}
