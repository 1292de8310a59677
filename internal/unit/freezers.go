package unit

import (
	"fmt"
	"slices"
	"strings"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/util/collections"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/discovery"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/workload"
)

// hookCommand is Velero's annotation for a hook of a pod. A prefix names the phase; without
// one, the hook is a pre hook (item_hook_handler.go of Velero 1.18).
const hookCommand = "hook.backup.velero.io/command"

// veleroHooks lists the hooks that Velero runs in a pod, by the place that defines them:
// the annotations of the pod or, without one, the spec of the backup.
func veleroHooks(pod *corev1.Pod, backup *velerov1.Backup) []string {
	var found []string
	for _, phase := range []string{"pre.", "post."} {
		key := phase + hookCommand
		if phase == "pre." && pod.Annotations[key] == "" {
			key = hookCommand
		}
		if command := pod.Annotations[key]; command != "" {
			found = append(found, "annotation "+key+freezeNote(command))
			continue
		}
		for _, spec := range backup.Spec.Hooks.Resources {
			hooks := map[string][]velerov1.BackupResourceHook{"pre.": spec.PreHooks, "post.": spec.PostHooks}[phase]
			for _, hook := range hooks {
				if hook.Exec != nil && hookApplies(&spec, pod) {
					found = append(found, fmt.Sprintf("spec.hooks of the backup, %q", spec.Name)+freezeNote(strings.Join(hook.Exec.Command, " ")))
				}
			}
		}
	}
	return slices.Compact(found)
}

// freezeNote describes a command without printing it, because it can contain a password.
func freezeNote(command string) string {
	if strings.Contains(command, "fsfreeze") || strings.Contains(command, "virt-freezer") {
		return ", which freezes file systems"
	}
	return ""
}

// hookApplies reports whether Velero runs the hooks of spec in pod.
func hookApplies(spec *velerov1.BackupResourceHookSpec, pod *corev1.Pod) bool {
	within := func(includes, excludes []string, names ...string) bool {
		filter := collections.NewIncludesExcludes().Includes(includes...).Excludes(excludes...)
		// Velero accepts any name of a resource.
		return !slices.ContainsFunc(names, func(name string) bool { return slices.Contains(excludes, name) }) && slices.ContainsFunc(names, filter.ShouldInclude)
	}
	selector, err := metav1.LabelSelectorAsSelector(spec.LabelSelector)
	if spec.LabelSelector == nil {
		selector = labels.Everything()
	}
	return err == nil && selector.Matches(labels.Set(pod.Labels)) &&
		within(spec.IncludedNamespaces, spec.ExcludedNamespaces, pod.Namespace) &&
		within(spec.IncludedResources, spec.ExcludedResources, "pods", "pod", "po")
}

// OtherFreezes lists the Velero hooks and K10 blueprints that also quiesce the workloads of
// the unit.
func (u *Unit) OtherFreezes(groups discovery.ServerGroupsInterface, backup *velerov1.Backup) []string {
	var found []string
	pods := map[string][]string{} // by hook
	for _, w := range u.Component.Workloads {
		for i := range w.Pods {
			for _, hook := range veleroHooks(&w.Pods[i], backup) {
				if w.Pods[i].Labels["kubevirt.io"] == "virt-launcher" {
					hook += ", for KubeVirt"
				}
				if pods[hook] == nil {
					found = append(found, hook)
				}
				pods[hook] = append(pods[hook], w.Pods[i].Name)
			}
		}
	}
	for i, hook := range found {
		found[i] = fmt.Sprintf("Velero runs hooks in %s (%s)", strings.Join(pods[hook], ", "), hook)
	}
	for _, part := range u.quiescedParts() {
		name := part.annotations[api.AnnotationKanister]
		if part.Object != nil {
			name = part.Object.Annotations[api.AnnotationKanister]
		}
		if name == "" {
			continue
		}
		served, err := groups.ServerGroups()
		if err == nil && slices.ContainsFunc(served.Groups, func(group metav1.APIGroup) bool { return group.Name == "config.kio.kasten.io" }) {
			found = append(found, fmt.Sprintf("Kasten K10 is installed and runs blueprint %s in its own backups of %s (annotation %s)", name, part.Workload, api.AnnotationKanister))
		}
	}
	return found
}

// RunsHooks reports whether Velero runs hooks in any pod of a component.
func RunsHooks(component workload.Component, backup *velerov1.Backup) bool {
	return slices.ContainsFunc(component.Workloads, func(w workload.Workload) bool {
		return slices.ContainsFunc(w.Pods, func(pod corev1.Pod) bool { return len(veleroHooks(&pod, backup)) > 0 })
	})
}

// LimitToHookBlock limits a unit without quiesce to the claims of one item block, if Velero
// runs hooks in its pods: Velero runs the hooks of a block just before it snapshots the
// volumes of the block.
func (f *Facts) LimitToHookBlock(unit *Unit, backup *velerov1.Backup) {
	if unit.Quiesced() || !RunsHooks(unit.Component, backup) {
		return
	}
	block := f.inventory.Block(unit.foundBy)
	unit.Claims = slices.DeleteFunc(unit.Claims, func(claim corev1.PersistentVolumeClaim) bool {
		return claim.Name != unit.foundBy && !slices.Contains(block.Claims, claim.Name)
	})
}

// HookBlock returns the pods and claims that Velero backs up in one item block with a pod
// that mounts claims. It reports whether Velero runs hooks in the block.
func (f *Facts) HookBlock(pod *corev1.Pod, backup *velerov1.Backup) (workload.Component, bool) {
	block := f.inventory.Block(workload.Claims(pod)[0])
	return block, RunsHooks(block, backup)
}
