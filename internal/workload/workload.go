// Package workload knows which pods and volumes belong together. It decides
// what one freeze covers: everything that shares a volume, directly or through
// the pods of one controller.
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

// Ref names a workload: the topmost controller of a pod that is known here, or
// the pod itself where it has none.
type Ref struct {
	APIVersion, Kind, Namespace, Name string
	UID                               types.UID
}

// groupKind is "Deployment.apps", or "Pod" for the core group: other groups have
// kinds of the same names.
func (r Ref) groupKind() string {
	return schema.FromAPIVersionAndKind(r.APIVersion, r.Kind).GroupKind().String()
}

// Known tells whether it is a controller of pods that Kubernetes has, and not
// somebody's own.
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

// Workload is a controller, or a bare pod, with its running pods.
type Workload struct {
	Ref
	// Object is the controller as the API server has it: a Deployment,
	// StatefulSet, DaemonSet, ReplicaSet, Job, CronJob or Pod; nil for any
	// other kind.
	Object metav1.Object
	// Pods are those that run, sorted by name. Finished and terminating pods
	// do not count: there is nothing to quiesce in them.
	Pods []corev1.Pod
	// CurrentPods are the Pods of a Deployment's current revision, which is
	// what a blueprint's .Deployment.Pods means; of any other kind all Pods.
	CurrentPods []corev1.Pod
}

// Unit is what one freeze may cover: workloads that share volumes, and all the
// claims that their pods mount.
type Unit struct {
	// Workloads are sorted by kind and name.
	Workloads []Workload
	// Claims are the names of all claims that Workloads' pods mount, sorted.
	Claims []string
}

func (u Unit) String() string {
	names := make([]string, 0, len(u.Workloads))
	for _, w := range u.Workloads {
		names = append(names, w.String())
	}
	return strings.Join(names, " and ")
}

// Inventory is what runs in one namespace and mounts claims, as it was when it
// was taken. It is safe for concurrent use.
type Inventory struct {
	members []member
	// objects are the controllers that are known here, by their refs.
	objects map[Ref]metav1.Object
	// revisions are those of ReplicaSets, by name.
	revisions map[string]string
	// podOwners are the owner references of all pods, whether or not they run.
	podOwners map[types.UID][]types.UID
}

// Take makes the inventory of a namespace. The number of its requests depends
// on the kinds of controllers there, and not on how many pods or claims.
func Take(ctx context.Context, kube kubernetes.Interface, namespace string) (*Inventory, error) {
	pods, err := kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the pods of namespace %s: %w", namespace, err)
	}
	inventory := &Inventory{podOwners: map[types.UID][]types.UID{}}
	for _, pod := range pods.Items {
		for _, owner := range pod.OwnerReferences {
			inventory.podOwners[pod.UID] = append(inventory.podOwners[pod.UID], owner.UID)
		}
		if running(&pod) && len(Claims(&pod)) > 0 {
			inventory.members = append(inventory.members, member{pod: pod, owner: directOwner(&pod)})
		}
	}
	controllers := &controllers{kube: kube, namespace: namespace}
	return inventory, controllers.complete(ctx, inventory)
}

// Unit returns the unit that claim belongs to; one without workloads when no
// running pod mounts it.
func (i *Inventory) Unit(claim string) Unit {
	unit := connected(i.members, claim)
	for w := range unit.Workloads {
		i.describe(&unit.Workloads[w])
	}
	return unit
}

// describe adds what the controller tells of a workload. A controller that is
// gone, or of a kind that is not known here, leaves Object nil.
func (i *Inventory) describe(w *Workload) {
	if w.groupKind() == "Pod" {
		w.Object = &w.Pods[0]
		return
	}
	w.Object = i.objects[w.Ref]
	if w.groupKind() != "Deployment.apps" || w.Object == nil {
		return
	}
	revision := w.Object.GetAnnotations()[revisionAnnotation]
	w.CurrentPods = slices.DeleteFunc(slices.Clone(w.Pods), func(pod corev1.Pod) bool {
		owner := metav1.GetControllerOf(&pod)
		return owner != nil && i.revisions[owner.Name] != revision
	})
}

// Of returns the unit that pod belongs to, as Unit does for its claims.
func (i *Inventory) Of(pod *corev1.Pod) Unit {
	claims := Claims(pod)
	if len(claims) == 0 || !running(pod) {
		return Unit{}
	}
	return i.Unit(claims[0])
}

// Owners are the owner references of all pods of the namespace that have any,
// whether or not they run. They are not to be changed.
func (i *Inventory) Owners() map[types.UID][]types.UID { return i.podOwners }

// Runs tells whether a controller, or a bare pod, has a running pod that mounts
// a claim.
func (i *Inventory) Runs(controller types.UID) bool {
	return slices.ContainsFunc(i.members, func(m member) bool { return m.owner.UID == controller })
}

// Pods are the running pods that mount claims, sorted by name.
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

// connected follows claims to pods, pods to workloads and workloads to their
// other pods and claims until nothing new is found.
func connected(members []member, claim string) Unit {
	claims := map[string]bool{claim: true}
	pods := map[Ref][]corev1.Pod{}
	for grown := true; grown; {
		grown = false
		for _, m := range members {
			names := Claims(&m.pod)
			_, known := pods[m.owner]
			if !known && !slices.ContainsFunc(names, func(name string) bool { return claims[name] }) {
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

	var unit Unit
	if len(pods) == 0 {
		return unit
	}
	for ref, of := range pods {
		slices.SortFunc(of, func(a, b corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
		unit.Workloads = append(unit.Workloads, Workload{Ref: ref, Pods: of, CurrentPods: of})
	}
	slices.SortFunc(unit.Workloads, func(a, b Workload) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	for name := range claims {
		unit.Claims = append(unit.Claims, name)
	}
	slices.Sort(unit.Claims)
	return unit
}

// running reports whether commands can be run in pod now.
func running(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil
}

// Claims returns the names of the claims that pod mounts, those of generic
// ephemeral volumes included, whose claims are called pod-volume.
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

// Mount is one place where a container sees a volume.
type Mount struct {
	Pod, Container, Claim string
	// Path is the mount path or, for a raw block volume, the device path.
	Path, SubPath string
	Block         bool
}

// Mounts returns where the running containers of pod see claims, in the order
// of the pod's specification: init containers that keep running (sidecars)
// first.
func Mounts(pod *corev1.Pod) []Mount {
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
	up := RunningContainers(pod)
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if !slices.Contains(up, container.Name) {
			continue
		}
		for _, mount := range container.VolumeMounts {
			if claim, ok := claimOf[mount.Name]; ok {
				mounts = append(mounts, Mount{
					Pod: pod.Name, Container: container.Name, Claim: claim,
					Path: mount.MountPath, SubPath: mount.SubPath,
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

// RunningContainers returns the names of pod's containers that run now, in the
// order of the specification: sidecars among the init containers first.
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
