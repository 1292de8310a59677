package function

import (
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/config"
)

// defaultSecurity is the part of Pod Security's profile "restricted" that suits any
// image. (An image may need to run as root.)
var defaultSecurity = &corev1.SecurityContext{
	AllowPrivilegeEscalation: ptr.To(false),
	Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
}

// fillDefaults completes the containers of a pod where its podOverride leaves
// something open.
func fillDefaults(spec *corev1.PodSpec, settings config.HelperPods) error {
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			fillResources(&containers[i].Resources, settings.Requirements())
			if err := fillSecurity(&containers[i], spec.SecurityContext, settings.SecurityContext); err != nil {
				return fmt.Errorf("the security context of container %s: %w", containers[i].Name, err)
			}
		}
	}
	return nil
}

// fillResources keeps requests within limits, whichever of the two own has.
func fillResources(own *corev1.ResourceRequirements, defaults corev1.ResourceRequirements) {
	given := own.DeepCopy()
	fill := func(list *corev1.ResourceList, from, bound corev1.ResourceList, beyond int) {
		for name, value := range from {
			if _, there := (*list)[name]; there {
				continue
			}
			if other, there := bound[name]; there && other.Cmp(value) == beyond {
				value = other
			}
			if *list == nil {
				*list = corev1.ResourceList{}
			}
			(*list)[name] = value
		}
	}
	fill(&own.Limits, defaults.Limits, given.Requests, 1)
	fill(&own.Requests, defaults.Requests, given.Limits, -1)
}

// fillSecurity decides key by key: first the container's own, then what the pod says
// for all containers, then the settings.
func fillSecurity(container *corev1.Container, pod *corev1.PodSecurityContext, settings *corev1.SecurityContext) error {
	merged, ofPod, own := keysOf(defaultSecurity), keysOf(pod), keysOf(container.SecurityContext)
	maps.Copy(merged, keysOf(settings))
	maps.DeleteFunc(merged, func(key string, _ any) bool { return ofPod[key] != nil })
	maps.Copy(merged, own)
	// A privileged container has all capabilities, and the API server refuses it, and
	// SYS_ADMIN, beside a denied escalation.
	if merged["privileged"] == true || strings.Contains(fmt.Sprint(own["capabilities"]), "SYS_ADMIN") {
		for _, key := range []string{"allowPrivilegeEscalation", "capabilities"} {
			if own[key] == nil {
				delete(merged, key)
			}
		}
	}
	container.SecurityContext = &corev1.SecurityContext{}
	return runtime.DefaultUnstructuredConverter.FromUnstructured(merged, container.SecurityContext)
}

// keysOf returns the fields of an object that are set; object may be a nil pointer.
func keysOf(object any) map[string]any {
	keys, _ := runtime.DefaultUnstructuredConverter.ToUnstructured(object) // none of nil
	return keys
}
