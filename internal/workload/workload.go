package workload

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Ref identifies a workload: the topmost controller of a pod whose kind is known, or the
// pod itself if it has no controller.
type Ref struct {
	APIVersion, Kind, Namespace, Name string
	UID                               types.UID
}

// groupKind returns the kind with its group, such as "Deployment.apps", or "Pod" for the
// core group. Other groups can have kinds with the same names.
func (r Ref) groupKind() string {
	return schema.FromAPIVersionAndKind(r.APIVersion, r.Kind).GroupKind().String()
}

// Known reports whether the workload is a built-in controller of pods.
func (r Ref) Known() bool {
	switch r.groupKind() {
	case "Deployment.apps", "StatefulSet.apps", "DaemonSet.apps", "ReplicaSet.apps", "Job.batch", "CronJob.batch", "ReplicationController":
		return true
	}
	return false
}

func (r Ref) String() string {
	return fmt.Sprintf("%s %s/%s", r.Kind, r.Namespace, r.Name)
}

// Workload is a controller with its running pods, or a pod without a controller.
type Workload struct {
	Ref
	// Object is the controller or the pod from the API server. It is nil for a controller
	// that is deleted or of an unknown kind.
	Object metav1.Object
	// Pods are the pods that use volumes, sorted by name: those that run or terminate, and
	// those whose containers the kubelet can start. Finished pods are excluded.
	Pods []corev1.Pod
	// CurrentPods are the reachable pods among Pods. For a Deployment, they are limited to
	// the current revision, as .Deployment.Pods in a blueprint requires.
	CurrentPods []corev1.Pod
}

// Component has workloads that share volumes, and all claims that their pods mount.
type Component struct {
	// Workloads are sorted by kind and name.
	Workloads []Workload
	// Claims are the names of the claims, sorted.
	Claims []string
}

func (u Component) String() string {
	names := make([]string, 0, len(u.Workloads))
	for _, w := range u.Workloads {
		names = append(names, w.String())
	}
	return strings.Join(names, " and ")
}

// Inventory has the pods in use of one namespace that mount claims, and their controllers.
// It is safe for concurrent use.
type Inventory struct {
	members []member
	// objects are the controllers of known kinds.
	objects map[Ref]metav1.Object
	// revisions are the revisions of ReplicaSets, by name.
	revisions map[string]string
	// intermediates are the controllers of pods in use that have a controller themselves.
	intermediates map[Ref]Intermediate
	// versions are the resource versions of all pods, and "" for a pod without claims.
	versions map[types.UID]string
	// podOwners are the owner references of all pods, including finished ones.
	podOwners map[types.UID][]types.UID
	unread    error
}

// Unread returns an error that names the controllers whose annotations could not be read,
// and nil if all could be read.
func (i *Inventory) Unread() error { return i.unread }

// Intermediate is a controller of pods that has a controller itself, such as the ReplicaSet
// of a Deployment. Users do not annotate it.
type Intermediate struct {
	Object metav1.Object
	Top    Ref
}

// Intermediates returns the controllers that have a controller. The map is read-only.
func (i *Inventory) Intermediates() map[Ref]Intermediate { return i.intermediates }

// Top returns the topmost controller, or nil if it is unknown.
func (i *Inventory) Top(ref Ref) metav1.Object { return i.objects[ref] }

// Take reads the inventory of a namespace. The number of requests depends on the kinds of
// controllers, not on the number of pods and claims.
func Take(ctx context.Context, kube kubernetes.Interface, namespace string) (*Inventory, error) {
	pods, err := kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the pods of namespace %s: %w", namespace, err)
	}
	inventory := &Inventory{podOwners: map[types.UID][]types.UID{}, versions: map[types.UID]string{}}
	for _, pod := range pods.Items {
		if inventory.versions[pod.UID] = pod.ResourceVersion; len(Claims(&pod)) == 0 {
			inventory.versions[pod.UID] = ""
		}
		for _, owner := range pod.OwnerReferences {
			inventory.podOwners[pod.UID] = append(inventory.podOwners[pod.UID], owner.UID)
		}
		if inUse(&pod) && len(Claims(&pod)) > 0 {
			inventory.members = append(inventory.members, member{pod: pod, owner: directOwner(&pod)})
		}
	}
	controllers := &controllers{kube: kube, namespace: namespace}
	controllers.complete(ctx, inventory)
	return inventory, nil
}

// ComponentOf returns the component of a claim. It is empty if no pod in use mounts the
// claim.
func (i *Inventory) ComponentOf(claim string) Component {
	component := connected(i.members, claim, true)
	for w := range component.Workloads {
		i.describe(&component.Workloads[w])
	}
	return component
}

// Block returns the pods, by workload, and the claims that Velero backs up in one item
// block with a claim: those that are connected with it by shared claims only.
func (i *Inventory) Block(claim string) Component { return connected(i.members, claim, false) }

// Changed reports whether a pod is new, or mounts claims and has another version than in
// the inventory.
func (i *Inventory) Changed(pod types.UID, version string) bool {
	before, known := i.versions[pod]
	return !known || before != "" && before != version
}

// Reachable returns the pods in which hooks can run commands.
func Reachable(pods []corev1.Pod) []corev1.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(pod corev1.Pod) bool { return Unreachable(&pod) != "" })
}

// describe sets Object and CurrentPods of a workload.
func (i *Inventory) describe(w *Workload) {
	w.CurrentPods = Reachable(w.Pods)
	if w.groupKind() == "Pod" {
		w.Object = &w.Pods[0]
		return
	}
	w.Object = i.objects[w.Ref]
	if w.groupKind() != "Deployment.apps" || w.Object == nil {
		return
	}
	revision := w.Object.GetAnnotations()[revisionAnnotation]
	w.CurrentPods = slices.DeleteFunc(w.CurrentPods, func(pod corev1.Pod) bool {
		owner := metav1.GetControllerOf(&pod)
		return owner != nil && i.revisions[owner.Name] != revision
	})
}

// ComponentOfPod returns the component of a pod.
func (i *Inventory) ComponentOfPod(pod *corev1.Pod) Component {
	claims := Claims(pod)
	if len(claims) == 0 || !inUse(pod) {
		return Component{}
	}
	return i.ComponentOf(claims[0])
}

// Owners returns the owner references of all pods of the namespace, including finished
// ones. The map is read-only.
func (i *Inventory) Owners() map[types.UID][]types.UID { return i.podOwners }

// Runs reports whether a workload has a pod in use that mounts a claim.
func (i *Inventory) Runs(controller types.UID) bool {
	return slices.ContainsFunc(i.members, func(m member) bool { return m.owner.UID == controller })
}

// Pods returns the pods in use that mount claims, sorted by name.
func (i *Inventory) Pods() []corev1.Pod {
	pods := make([]corev1.Pod, len(i.members))
	for m := range i.members {
		pods[m] = i.members[m].pod
	}
	slices.SortFunc(pods, func(a, b corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return pods
}

type member struct {
	pod   corev1.Pod
	owner Ref
}

// connected returns the component of a claim. It follows claims to pods and pods to their
// other claims. If controllers is true, it also follows a pod to the other pods of its
// workload.
func connected(members []member, claim string, controllers bool) Component {
	claims := map[string]bool{claim: true}
	pods := map[Ref][]corev1.Pod{}
	for grown := true; grown; {
		grown = false
		for _, m := range members {
			names := Claims(&m.pod)
			_, known := pods[m.owner]
			if (!known || !controllers) && !slices.ContainsFunc(names, func(name string) bool { return claims[name] }) {
				continue
			}
			if slices.ContainsFunc(pods[m.owner], func(pod corev1.Pod) bool { return pod.Name == m.pod.Name }) {
				continue
			}
			pods[m.owner] = append(pods[m.owner], m.pod)
			for _, name := range names {
				claims[name] = true
			}
			grown = true
		}
	}

	var component Component
	if len(pods) == 0 {
		return component
	}
	for ref, of := range pods {
		slices.SortFunc(of, func(a, b corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
		component.Workloads = append(component.Workloads, Workload{Ref: ref, Pods: of})
	}
	slices.SortFunc(component.Workloads, func(a, b Workload) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	for name := range claims {
		component.Claims = append(component.Claims, name)
	}
	slices.Sort(component.Claims)
	return component
}

// inUse reports whether pod writes to its volumes or can start to do so.
func inUse(pod *corev1.Pod) bool {
	return Unreachable(pod) == "" || len(Active(pod)) > 0
}

// Unreachable returns the reason why hooks must not run commands in pod, or "". A
// terminating pod can end at any moment, with the guards in it. A pod that starts still
// changes its containers.
func Unreachable(pod *corev1.Pod) string {
	switch {
	case pod.DeletionTimestamp != nil:
		return "is terminating"
	case pod.Status.Phase != corev1.PodRunning:
		return "is not running yet"
	}
	return ""
}

// neverStarted are the waiting reasons of containers that cannot start before a user
// intervenes. Other waiting containers can start at any moment.
var neverStarted = []string{"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError"}

// Active returns the containers of pod that run or that the kubelet can start, each with
// the reason why it does not run, or "".
func Active(pod *corev1.Pod) map[string]string {
	active := map[string]string{}
	phase := pod.Status.Phase
	if phase == corev1.PodSucceeded || phase == corev1.PodFailed || phase != corev1.PodRunning && pod.Spec.NodeName == "" {
		return active
	}
	statuses := map[string]corev1.ContainerStatus{}
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		statuses[status.Name] = status
	}
	for i, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		status, known := statuses[container.Name]
		state := status.State
		started := status.RestartCount > 0 || status.LastTerminationState.Terminated != nil
		switch {
		case state.Running != nil:
			active[container.Name] = ""
		case pod.DeletionTimestamp != nil && (known || phase != corev1.PodRunning): // the kubelet starts no container now
		case state.Terminated != nil:
			if restarts(pod, container, i < len(pod.Spec.InitContainers), state.Terminated.ExitCode) {
				active[container.Name] = cmp.Or(state.Terminated.Reason, "Terminated")
			}
		case state.Waiting != nil && (started || !slices.Contains(neverStarted, state.Waiting.Reason)):
			active[container.Name] = cmp.Or(state.Waiting.Reason, "Waiting")
		case state.Waiting == nil:
			active[container.Name] = "Waiting"
		}
	}
	return active
}

// restarts reports whether the kubelet restarts a terminated container.
func restarts(pod *corev1.Pod, container corev1.Container, initial bool, exitCode int32) bool {
	policy := pod.Spec.RestartPolicy
	if container.RestartPolicy != nil { // such as a sidecar
		policy, initial = corev1.RestartPolicy(*container.RestartPolicy), false
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return exitCode != 0
	case corev1.RestartPolicyAlways:
	}
	return !initial || exitCode != 0
}

// Uses reports whether an active container of pod mounts claim.
func Uses(pod *corev1.Pod, claim string) bool {
	active := Active(pod)
	return slices.ContainsFunc(mounts(pod, func(container string) bool { _, ok := active[container]; return ok }),
		func(m Mount) bool { return m.Claim == claim })
}

// Claims returns the names of the claims that pod mounts. The claim of a generic ephemeral
// volume has the name pod-volume.
func Claims(pod *corev1.Pod) []string {
	var names []string
	for _, volume := range pod.Spec.Volumes {
		switch {
		case volume.PersistentVolumeClaim != nil:
			names = append(names, volume.PersistentVolumeClaim.ClaimName)
		case volume.Ephemeral != nil:
			names = append(names, pod.Name+"-"+volume.Name)
		}
	}
	return names
}

// Mount is one mount of a volume in a container.
type Mount struct {
	Pod, Container, Claim string
	// Path is the mount path or, for a raw block volume, the device path.
	Path, SubPath, SubPathExpr string
	Block                      bool
}

// MountsClaim reports whether a container of pod mounts a claim. It need not run.
func MountsClaim(pod *corev1.Pod, container string) bool {
	return len(mounts(pod, func(name string) bool { return name == container })) > 0
}

// Mounts returns the mounts of claims in the running containers of pod, in the order of the
// specification: sidecars, which are init containers, come first.
func Mounts(pod *corev1.Pod) []Mount {
	up := RunningContainers(pod)
	return mounts(pod, func(container string) bool { return slices.Contains(up, container) })
}

func mounts(pod *corev1.Pod, in func(container string) bool) []Mount {
	claimOf := map[string]string{}
	for _, volume := range pod.Spec.Volumes {
		switch {
		case volume.PersistentVolumeClaim != nil:
			claimOf[volume.Name] = volume.PersistentVolumeClaim.ClaimName
		case volume.Ephemeral != nil:
			claimOf[volume.Name] = pod.Name + "-" + volume.Name
		}
	}
	var mounts []Mount
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if !in(container.Name) {
			continue
		}
		for _, mount := range container.VolumeMounts {
			if claim, ok := claimOf[mount.Name]; ok {
				mounts = append(mounts, Mount{
					Pod: pod.Name, Container: container.Name, Claim: claim,
					Path: mount.MountPath, SubPath: mount.SubPath, SubPathExpr: mount.SubPathExpr,
				})
			}
		}
		for _, device := range container.VolumeDevices {
			if claim, ok := claimOf[device.Name]; ok {
				mounts = append(mounts, Mount{
					Pod: pod.Name, Container: container.Name, Claim: claim,
					Path: device.DevicePath, Block: true,
				})
			}
		}
	}
	return mounts
}

// RunningContainers returns the names of the running containers of pod, in the order of the
// specification: sidecars, which are init containers, come first.
func RunningContainers(pod *corev1.Pod) []string {
	up := map[string]bool{}
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		up[status.Name] = status.State.Running != nil
	}
	var names []string
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if up[container.Name] {
			names = append(names, container.Name)
		}
	}
	return names
}
