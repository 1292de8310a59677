package quiesce

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/unit"
)

// The options that select the password that a recipe sends and its destination.
const (
	optionHost   = "host"
	optionPort   = "port"
	optionSecret = "secret"
)

// local lists the hosts that are in the pod itself.
var local = []string{"", "localhost", "127.0.0.1", "::1"}

// permit returns an error if a blueprint would send a password to a destination that the
// author of the annotations could not send it to. Only users who may change the workload
// have access to its passwords, through its pods.
func (p part) permit(name string, found *blueprint.Found) error {
	if !worksInPods(found.Blueprint) {
		return nil
	}
	if p.Object != nil && found.BuiltIn() && !p.controls() {
		key, value := api.AnnotationQuiesce, p.Object.Annotations[api.AnnotationQuiesce]
		if p.Object.Annotations[api.AnnotationKanister] == name {
			key, value = api.AnnotationKanister, name
		}
		return unit.InvalidValue(unit.Layer{Object: p.Object.String()}, key, value,
			"recipes for databases only on the Deployment, StatefulSet, DaemonSet or other controller of the pods that run the database, on a Pod, on its claims and on its namespace; elsewhere a blueprint of the administrator")
	}
	option := func(key, valid string) error {
		return unit.InvalidValue(p.Settings.Origins[key], api.AnnotationOptionPrefix+key, p.Settings.Options[key], valid)
	}
	if host := p.Settings.Options[optionHost]; !slices.Contains(local, host) && !p.Settings.Origins[optionHost].Workload {
		return option(optionHost, "localhost, 127.0.0.1 and ::1; the workload's password is sent to another host only if the annotation is on the workload itself")
	}
	if port := p.Settings.Options[optionPort]; port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return option(optionPort, "a port number from 1 to 65535")
		}
	}
	if secret := p.Settings.Options[optionSecret]; secret != "" {
		for i := range p.Workload.Pods {
			pod := &p.Workload.Pods[i]
			if used := secrets(&pod.Spec); !slices.Contains(used, secret) {
				return option(optionSecret, fmt.Sprintf("a Secret that pod %s/%s uses in env, envFrom or volumes (%s)", pod.Namespace, pod.Name, cmp.Or(strings.Join(used, ", "), "none")))
			}
		}
	}
	return nil
}

// controls reports whether the annotated object is the controller of all its pods.
func (p part) controls() bool {
	return len(p.Workload.Pods) > 0 && !slices.ContainsFunc(p.Workload.Pods, func(pod corev1.Pod) bool {
		controller := metav1.GetControllerOf(&pod)
		return controller == nil || controller.UID != p.Object.UID
	})
}

// worksInPods reports whether a hook runs commands in pods that it finds itself.
func worksInPods(b *blueprint.Blueprint) bool {
	return slices.ContainsFunc([]string{blueprint.Prehook, blueprint.Posthook}, func(hook string) bool {
		action := b.Actions[hook]
		return action != nil && slices.ContainsFunc(action.Phases, func(p blueprint.Phase) bool { return p.Func == runFunction || p.Func == holdFunction })
	})
}

// secrets returns the names of the Secrets that the containers of a pod can read.
func secrets(pod *corev1.PodSpec) []string {
	var names []string
	for _, container := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, variable := range container.Env {
			if from := variable.ValueFrom; from != nil && from.SecretKeyRef != nil {
				names = append(names, from.SecretKeyRef.Name)
			}
		}
		for _, from := range container.EnvFrom {
			if from.SecretRef != nil {
				names = append(names, from.SecretRef.Name)
			}
		}
	}
	for _, volume := range pod.Volumes {
		if volume.Secret != nil {
			names = append(names, volume.Secret.SecretName)
		}
		if volume.Projected != nil {
			for _, source := range volume.Projected.Sources {
				if source.Secret != nil {
					names = append(names, source.Secret.Name)
				}
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
