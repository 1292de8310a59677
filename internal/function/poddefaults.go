package function

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/config"
)

// defaultSecurity is what Pod Security asks for under "restricted", as far as it
// suits any image. Whether an image runs as another user than root is not known.
var defaultSecurity = &corev1.SecurityContext{
	AllowPrivilegeEscalation: ptr.To(false),
	Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
}

// fillDefaults gives the containers of a pod what its podOverride has not said of
// them.
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

// fillResources keeps requests within limits, whichever of the two is given.
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

// fillSecurity goes key by key: the container's own come first, then what is said for
// the whole pod, then the settings.
func fillSecurity(container *corev1.Container, pod *corev1.PodSecurityContext, settings *corev1.SecurityContext) error {
	merged, ofPod, own := keysOf(defaultSecurity), keysOf(pod), keysOf(container.SecurityContext)
	maps.Copy(merged, keysOf(settings))
	maps.DeleteFunc(merged, func(key string, _ any) bool { return ofPod[key] != nil })
	maps.Copy(merged, own)
	// A privileged container has all capabilities, and the API server takes neither it
	// nor SYS_ADMIN beside a denied escalation.
	if merged["privileged"] == true || strings.Contains(fmt.Sprint(own["capabilities"]), "SYS_ADMIN") {
		for _, key := range []string{"allowPrivilegeEscalation", "capabilities"} {
			if own[key] == nil {
				delete(merged, key)
			}
		}
	}
	text, err := json.Marshal(merged)
	if err != nil {
		return err
	}
	container.SecurityContext = &corev1.SecurityContext{}
	return json.Unmarshal(text, container.SecurityContext)
}

// keysOf returns what is set of an object of the API.
func keysOf(object any) map[string]any {
	keys := map[string]any{}
	if text, err := json.Marshal(object); err == nil {
		_ = json.Unmarshal(text, &keys) // it was just written
	}
	return keys
}
