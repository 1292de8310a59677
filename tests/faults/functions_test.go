package faults

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"stillpoint.io/stillpoint/tests/fake"
)

// withHooks puts a blueprint named hooks with these phases into Velero's namespace.
func withHooks(t *testing.T, bed *fake.Bed, pre, post string) {
	t.Helper()
	bed.API.Put(t, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "hooks", Labels: map[string]string{"stillpoint.io/blueprint": ""}},
		Data: map[string]string{"blueprint.yaml": fmt.Sprintf(`
apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata: {name: hooks}
actions:
  backupPrehook: {phases: [%s]}
  backupPosthook: {phases: [%s]}
`, pre, post)},
	})
}

// endContainers makes a pod one whose containers of these names have ended with code 0, among others
// that run on.
func endContainers(bed *fake.Bed, request fake.Request, names ...string) {
	bed.API.Update("pods", request.Namespace, request.Name, func(pod *unstructured.Unstructured) {
		containers, _, _ := unstructured.NestedSlice(pod.Object, "spec", "containers")
		var statuses []any
		phase := "Succeeded"
		for _, each := range containers {
			container, _ := each.(map[string]any)
			state := map[string]any{"running": map[string]any{}}
			for _, name := range names {
				if container["name"] == name {
					state = map[string]any{"terminated": map[string]any{"exitCode": int64(0), "reason": "Completed"}}
				}
			}
			if state["running"] != nil {
				phase = "Running"
			}
			statuses = append(statuses, map[string]any{"name": container["name"], "state": state})
		}
		pod.Object["status"] = map[string]any{"phase": phase, "containerStatuses": statuses}
	})
}

func isTask(request fake.Request, verb string) bool {
	return request.Verb == verb && request.Resource.Resource == "pods" && request.Subresource == "" && strings.HasPrefix(request.Name+nameOf(request), "kanister-job-")
}

func nameOf(request fake.Request) string {
	if request.Object == nil {
		return ""
	}
	return request.Object.GetName()
}

// A function of a posthook that was done, and whose answer was lost, is completed at
// the next try.
func TestPosthooksCanBeCompletedTwice(t *testing.T) {
	t.Parallel()
	configMap := func(name string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Data: map[string]string{"state": "locked"}}
	}
	for name, test := range map[string]struct {
		post, verb, resource string
		// perform is what the API server does before its answer is lost.
		perform func(t *testing.T, bed *fake.Bed, request fake.Request)
		check   func(t *testing.T, bed *fake.Bed)
	}{
		"KubeOps create": {
			post: `{func: KubeOps, name: open, args: {operation: create, namespace: shop, spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: open}, data: {state: "open"}}'}}`,
			verb: "create", resource: "configmaps",
			perform: func(t *testing.T, bed *fake.Bed, request fake.Request) { bed.API.Put(t, request.Object.DeepCopy()) },
			check: func(t *testing.T, bed *fake.Bed) {
				found := configMap("open")
				require.True(t, bed.API.Get(t, found))
				assert.Equal(t, "open", found.Data["state"])
			},
		},
		"KubeOps patch": {
			post: `{func: KubeOps, name: open, args: {operation: patch, spec: '{data: {state: "open"}}', objectReference: {apiVersion: v1, resource: configmaps, name: lock, namespace: shop}}}`,
			verb: "patch", resource: "configmaps",
			perform: func(_ *testing.T, bed *fake.Bed, request fake.Request) {
				bed.API.Update("configmaps", request.Namespace, request.Name, func(o *unstructured.Unstructured) {
					_ = unstructured.SetNestedField(o.Object, "open", "data", "state")
				})
			},
			check: func(t *testing.T, bed *fake.Bed) {
				found := configMap("lock")
				require.True(t, bed.API.Get(t, found))
				assert.Equal(t, "open", found.Data["state"])
			},
		},
		"KubeOps delete": {
			post: `{func: KubeOps, name: open, args: {operation: delete, objectReference: {apiVersion: v1, resource: configmaps, name: lock, namespace: shop}}}`,
			verb: "delete", resource: "configmaps",
			perform: func(_ *testing.T, bed *fake.Bed, request fake.Request) {
				bed.API.Delete("configmaps", request.Namespace, request.Name)
			},
			check: func(t *testing.T, bed *fake.Bed) { assert.False(t, bed.API.Get(t, configMap("lock"))) },
		},
		"KubeTask": {
			post: `{func: KubeTask, name: open, args: {image: tool, command: [open]}}`,
			verb: "create", resource: "pods",
			perform: func(t *testing.T, bed *fake.Bed, request fake.Request) { bed.API.Put(t, request.Object.DeepCopy()) },
			check:   func(*testing.T, *fake.Bed) {},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			withHooks(t, bed, "", test.post)
			app := bed.Deploy(fake.App{Annotations: map[string]string{"stillpoint.io/quiesce": "hooks", "stillpoint.io/prepare-timeout": "20s"}})
			bed.API.Put(t, configMap("lock"))
			var lost atomic.Int32
			bed.API.Inject(func(request fake.Request) error {
				if isTask(request, "get") {
					endContainers(bed, request, "container")
				}
				if request.Verb != test.verb || request.Resource.Resource != test.resource || request.Namespace != "shop" || lost.Add(1) > 1 {
					return nil
				}
				test.perform(t, bed, request)
				return apierrors.NewTimeoutError("the answer was lost", 0)
			})
			v := bed.Velero()
			r := v.Backup(bed.Backup(fake.WithPolicy), app)
			require.Empty(t, r.Dropped)
			assert.Positive(t, lost.Load())
			assert.Empty(t, v.Errors())
			assert.Empty(t, bed.Events("StillFrozen"))
			require.Len(t, bed.Storage.Snapshots(), 1)
			test.check(t, bed)
			for _, pod := range bed.API.All("pods") {
				assert.NotContains(t, pod.GetName(), "kanister-job-")
			}
		})
	}
}

// What another backup has left is not what this one creates.
func TestPosthookCreatesNothingOfOthers(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	create := `{func: KubeOps, name: open, args: {operation: create, namespace: shop, spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: open}}'}}`
	withHooks(t, bed, create, "")
	app := bed.Deploy(fake.App{Annotations: map[string]string{"stillpoint.io/quiesce": "hooks"}})
	v := bed.Velero()
	require.Empty(t, v.Backup(bed.Backup(fake.WithPolicy), app).Dropped)
	require.Empty(t, v.Errors())
	v = bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy, fake.Named("second")), app)
	assert.Contains(t, strings.Join(v.Errors(), "\n"), `configmaps "open" already exists`)
}
