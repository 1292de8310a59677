package quiesce

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"stillpoint.io/stillpoint/internal/journal"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/unit"
	"stillpoint.io/stillpoint/internal/workload"
)

// noRescue is a rescuer that knows no pods. endsPods applies to all pods; container, if
// set, can run all post commands.
type noRescue struct {
	endsPods  bool
	container string
}

func (n noRescue) alternatives(_ context.Context, call render.Call) [][]render.Call {
	if n.container == "" {
		return nil
	}
	call.Container = n.container
	return [][]render.Call{{call}}
}

func (noRescue) gone(context.Context, render.Call) bool { return false }
func (n noRescue) endsPod(*Hook, render.Call) bool      { return n.endsPods }
func (noRescue) byHand(render.Call) string              { return "by hand" }
func (noRescue) volumes(render.Call) []journal.Volume   { return nil }

// rescueFor returns a rescue for a pod of the plan; now has the existing pods.
func rescueFor(planned corev1.Pod, now ...corev1.Pod) *rescue {
	var objects []runtime.Object
	for i := range now {
		objects = append(objects, &now[i])
	}
	return &rescue{
		kube: fake.NewClientset(objects...),
		unit: &unit.Unit{
			Component: workload.Component{Workloads: []workload.Workload{{Pods: []corev1.Pod{planned}}}},
			Claims:    []corev1.PersistentVolumeClaim{claim("data"), claim("wal")},
		},
	}
}

func thaw(path string) render.Call {
	return render.Call{Namespace: "shop", Pod: "db-0", Container: "pg", Command: []string{"fsfreeze", "--unfreeze", path}}
}

func TestAlternatives(t *testing.T) {
	own := pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"pg", "wal", "/wal", ""})
	device := pod("db-1", "n1", volume{"raw", "other", "/x", ""})
	device.Spec.Volumes[0].PersistentVolumeClaim.ClaimName = "data"
	device.Spec.Containers[0].VolumeMounts = nil
	device.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "v0", DevicePath: "/dev/data"}}
	dead := pod("db-1", "n1", volume{"side", "data", "/f", ""})
	dead.Status.ContainerStatuses[0].State = corev1.ContainerState{}

	for name, test := range map[string]struct {
		planned corev1.Pod
		now     []corev1.Pod
		call    render.Call
		want    []string // pod/container: last word of the command
	}{
		"a sidecar, at its own path": {
			planned: own,
			now:     []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"side", "data", "/f", ""})},
			call:    thaw("/data"), want: []string{"db-0/side: /f"},
		},
		"another pod": {
			planned: own,
			now:     []corev1.Pod{own, pod("copy", "n1", volume{"c", "wal", "/w", ""}), pod("web", "n1", volume{"c", "www", "/wal", ""})},
			call:    thaw("/wal"), want: []string{"copy/c: /w"},
		},
		"the pod is gone": {
			planned: own,
			now:     []corev1.Pod{pod("db-1", "n1", volume{"pg", "wal", "/wal2", ""}, volume{"pg", "data", "/data2", ""})},
			call:    thaw("/data"), want: []string{"db-1/pg: /data2"},
		},
		"the same path for another volume": {
			planned: own,
			now:     []corev1.Pod{pod("db-1", "n1", volume{"pg", "wal", "/data", ""}, volume{"pg", "data", "/wal", ""})},
			call:    thaw("/data"), want: []string{"db-1/pg: /wal"},
		},
		"one volume at two paths": {
			planned: pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"pg", "data", "/part", "a"}),
			now:     []corev1.Pod{pod("db-1", "n1", volume{"side", "data", "/f", ""})},
			call:    thaw("/data"), want: []string{"db-1/side: /f"},
		},
		"one volume at two paths, the second": {
			planned: pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"pg", "data", "/part", "a"}),
			now:     []corev1.Pod{pod("db-1", "n1", volume{"side", "data", "/f", ""})},
			call:    thaw("/part"), want: []string{"db-1/side: /f"},
		},
		"a directory of the volume": {
			planned: own,
			now:     []corev1.Pod{pod("db-1", "n1", volume{"side", "data", "/f", ""}, volume{"side", "wal", "/w", ""})},
			call:    thaw("/data/x"), want: []string{"db-1/side: /f"},
		},
		"a command that does more": {
			planned: own,
			now:     []corev1.Pod{pod("db-1", "n1", volume{"side", "data", "/f", ""})},
			call:    render.Call{Namespace: "shop", Pod: "db-0", Container: "pg", Command: []string{"rm lock", "kill -CONT 1", "fsfreeze -u '/data'; start"}}, want: []string{"db-1/side: /f"},
		},
		"a command that thaws no file system": {
			planned: own,
			now:     []corev1.Pod{pod("db-1", "n1", volume{"side", "data", "/f", ""})},
			call:    render.Call{Namespace: "shop", Pod: "db-0", Container: "pg", Command: []string{"rm", "-f", "/data/lock"}},
		},
		"not from a raw device":                  {own, []corev1.Pod{device}, thaw("/data"), nil},
		"not from a container that does not run": {own, []corev1.Pod{dead}, thaw("/data"), nil},
		"no other pod mounts it":                 {own, []corev1.Pod{own}, thaw("/data"), nil},
		"a call in a pod outside the plan":       {pod("other", "n1"), []corev1.Pod{own}, thaw("/data"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			before := len(test.call.Command)
			for _, ways := range rescueFor(test.planned, test.now...).alternatives(t.Context(), test.call) {
				for _, call := range ways {
					assert.Equal(t, "shop", call.Namespace)
					assert.Equal(t, []string{"fsfreeze", "--unfreeze"}, call.Command[:2])
					got = append(got, call.Pod+"/"+call.Container+": "+call.Command[2])
				}
			}
			assert.Equal(t, test.want, got)
			assert.Len(t, test.call.Command, before)
		})
	}
}

func TestByHand(t *testing.T) {
	own := pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"pg", "cache", "/c", ""}, volume{"pg", "wal", "/wal", ""}, volume{"side", "wal", "/w", ""})
	for name, test := range map[string]struct {
		call render.Call
		text string
	}{
		"node, volume and command": {
			thaw("/data"),
			"run by hand: kubectl exec -n shop db-0 -c pg -- 'fsfreeze' '--unfreeze' '/data'; if its container is gone, on node n1: " +
				"fsfreeze --unfreeze /var/lib/kubelet/pods/uid-db-0/volumes/kubernetes.io~csi/pv-data/mount (claim data, in pg at /data)",
		},
		"a command with quotes": {
			render.Call{Namespace: "shop", Pod: "db-0", Container: "metrics", Command: []string{"sh", "-c", "echo 'resume'"}},
			`run by hand: kubectl exec -n shop db-0 -c metrics -- 'sh' '-c' 'echo '\''resume'\'''`,
		},
		"a pod outside the plan": {
			render.Call{Namespace: "shop", Pod: "proxy", Container: "c", Command: []string{"resume"}},
			"run by hand: kubectl exec -n shop proxy -c c -- 'resume'",
		},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, test.text, rescueFor(own).byHand(test.call))
		})
	}
}
