package function

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/render"
)

// What containers of helper pods have: by default, by the configuration, and by a
// podOverride, which wins.
func TestDefaultsOfHelperPods(t *testing.T) {
	configured := config.HelperPods{
		Resources:       &corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}},
		SecurityContext: &corev1.SecurityContext{RunAsUser: ptr.To(int64(65534)), RunAsNonRoot: ptr.To(true), Capabilities: &corev1.Capabilities{}},
	}
	var report strings.Builder
	for _, test := range []struct {
		title    string
		settings config.HelperPods
		override string
	}{
		{"nothing is said", config.HelperPods{}, ""},
		{"the configuration", configured, ""},
		{"no resources", config.HelperPods{Resources: &corev1.ResourceRequirements{}}, ""},
		{"an override for the pod", configured, "securityContext: {runAsUser: 1000, runAsNonRoot: false, seccompProfile: {type: Unconfined}}"},
		{"an override for the container", configured, "containers: [{name: container, securityContext: {runAsUser: 0, runAsNonRoot: false, capabilities: {add: [NET_ADMIN]}}, resources: {requests: {memory: 2Gi, cpu: 5m}}}]"},
		{"limits below the requests by default", config.HelperPods{}, "containers: [{name: container, resources: {limits: {memory: 16Mi, ephemeral-storage: 1Gi}}}]"},
		{"a privileged container", configured, "containers: [{name: container, securityContext: {privileged: true}}]"},
		{"a capability that is nearly all", config.HelperPods{}, "containers: [{name: container, securityContext: {capabilities: {add: [SYS_ADMIN]}}}]"},
		{"another container", config.HelperPods{}, "containers: [{name: more, image: other}]"},
	} {
		args := render.Args{"image": "tool", "command": "true"}
		if test.override != "" {
			var override map[string]any
			require.NoError(t, yaml.Unmarshal([]byte(test.override), &override))
			args["podOverride"] = override
		}
		pod, err := podOf(&render.Task{Func: "KubeTask", Namespace: "shop", Args: args})
		require.NoError(t, err)
		require.NoError(t, fillDefaults(&pod.Spec, test.settings))
		fmt.Fprintf(&report, "# %s: %s\n", test.title, test.override)
		for _, container := range pod.Spec.Containers {
			text, err := yaml.Marshal(map[string]any{container.Name: map[string]any{"resources": container.Resources, "securityContext": container.SecurityContext}})
			require.NoError(t, err)
			report.Write(text)
		}
	}
	golden(t, "poddefaults.golden", report.String())
}
