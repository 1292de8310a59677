package faults

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

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

// endContainers makes a pod one whose containers of these names have ended with code
// 0, among others that run on.
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

// measure is a task that gives where the data is, and remember a phase that uses it.
const (
	measure  = `{func: %s, name: measure, args: {%s}}`
	remember = `{func: KubeOps, name: remember, args: {operation: create, namespace: shop, spec: "{apiVersion: v1, kind: ConfigMap, metadata: {name: '{{ .Phases.measure.Output.at }}'}}"}}`
	oneImage = `image: tool, command: [measure]`
	twoImage = `outputImage: tool, outputCommand: [measure], backgroundImage: tool, backgroundCommand: [serve]`
)

// A task is over when its own containers have ended, whatever else was injected into
// its pod and runs on; the pod is deleted then.
func TestTaskPodsWithInjectedSidecars(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		function, args string
		own            []string
	}{
		"KubeTask":          {"KubeTask", oneImage, []string{"container"}},
		"MultiContainerRun": {"MultiContainerRun", twoImage, []string{"output", "background"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			withHooks(t, bed, fmt.Sprintf(measure, test.function, test.args)+", "+remember, "")
			app := bed.Deploy(fake.App{Annotations: map[string]string{"stillpoint.io/quiesce": "hooks", "stillpoint.io/prepare-timeout": "20s"}})
			bed.API.Inject(func(request fake.Request) error {
				switch {
				case isTask(request, "create"):
					containers, _, _ := unstructured.NestedSlice(request.Object.Object, "spec", "containers")
					containers = append([]any{map[string]any{"name": "istio-proxy", "image": "proxy"}}, containers...)
					_ = unstructured.SetNestedSlice(request.Object.Object, containers, "spec", "containers")
					request.Object.SetAnnotations(map[string]string{fake.LogAnnotation + "-" + test.own[0]: `###Phase-output###: {"key": "at", "value": "here"}`})
				case isTask(request, "get"):
					endContainers(bed, request, test.own...)
				}
				return nil
			})
			v := bed.Velero()
			r := v.Backup(bed.Backup(fake.WithPolicy), app)
			require.Empty(t, r.Dropped)
			assert.Empty(t, v.Errors())
			assert.True(t, bed.API.Get(t, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "here"}}))
			for _, pod := range bed.API.All("pods") {
				assert.NotContains(t, pod.GetName(), "kanister-job-")
			}
		})
	}
}

// admit refuses pods as Pod Security does under "restricted", and a quota of requests
// and limits.
func admit(request fake.Request) error {
	pod := &corev1.Pod{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(request.Object.Object, pod); err != nil {
		return err
	}
	refuse := func(why string) error {
		return apierrors.NewForbidden(request.Resource.GroupResource(), pod.Name, errors.New(why))
	}
	for _, container := range pod.Spec.Containers {
		s := container.SecurityContext
		var wrong []string
		if s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation {
			wrong = append(wrong, "allowPrivilegeEscalation != false")
		}
		if s == nil || s.Capabilities == nil || !slices.Contains(s.Capabilities.Drop, "ALL") {
			wrong = append(wrong, "unrestricted capabilities")
		}
		if s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot {
			wrong = append(wrong, "runAsNonRoot != true")
		}
		if s == nil || s.SeccompProfile == nil {
			wrong = append(wrong, "seccompProfile")
		}
		if len(wrong) > 0 {
			return refuse(`violates PodSecurity "restricted:latest": ` + strings.Join(wrong, ", "))
		}
		if container.Resources.Requests.Cpu().IsZero() || container.Resources.Limits.Memory().IsZero() {
			return refuse("failed quota: small: must specify limits.memory, requests.cpu")
		}
	}
	return nil
}

// Pods of tasks are admitted where Pod Security is restricted and a quota holds, and
// the configuration says what they have.
func TestTaskPodsWherePodsAreRestricted(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		document string
		check    func(t *testing.T, container corev1.Container)
	}{
		"by default": {"version: v1", func(t *testing.T, container corev1.Container) {
			assert.Nil(t, container.SecurityContext.RunAsUser)
			assert.Equal(t, "10m", container.Resources.Requests.Cpu().String())
		}},
		"by the configuration": {
			"version: v1\nhelperPods: {securityContext: {runAsUser: 4711, runAsNonRoot: true}, resources: {requests: {cpu: 7m}, limits: {memory: 9Mi}}}",
			func(t *testing.T, container corev1.Container) {
				assert.Equal(t, int64(4711), *container.SecurityContext.RunAsUser)
				assert.Equal(t, "7m", container.Resources.Requests.Cpu().String())
				assert.Equal(t, "9Mi", container.Resources.Limits.Memory().String())
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			bed.Configure(test.document)
			withHooks(t, bed, fmt.Sprintf(measure, "KubeTask", oneImage), fmt.Sprintf(measure, "MultiContainerRun", twoImage))
			app := bed.Deploy(fake.App{Annotations: map[string]string{"stillpoint.io/quiesce": "hooks", "stillpoint.io/prepare-timeout": "20s"}})
			var seen atomic.Int32
			bed.API.Inject(func(request fake.Request) error {
				switch {
				case isTask(request, "create"):
					if err := admit(request); err != nil {
						return err
					}
					pod := &corev1.Pod{}
					if err := runtime.DefaultUnstructuredConverter.FromUnstructured(request.Object.Object, pod); err != nil {
						return err
					}
					for _, container := range pod.Spec.Containers {
						test.check(t, container)
						seen.Add(1)
					}
				case isTask(request, "get"):
					endContainers(bed, request, "container", "output", "background")
				}
				return nil
			})
			v := bed.Velero()
			r := v.Backup(bed.Backup(fake.WithPolicy), app)
			require.Empty(t, r.Dropped)
			assert.Empty(t, v.Errors())
			assert.EqualValues(t, 3, seen.Load())
		})
	}
}

// An image that runs as root cannot run where that is forbidden; the error says what
// can be done.
func TestTaskPodsThatRunAsRoot(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	withHooks(t, bed, fmt.Sprintf(measure, "KubeTask", oneImage), "")
	app := bed.Deploy(fake.App{Annotations: map[string]string{"stillpoint.io/quiesce": "hooks"}})
	bed.API.Inject(func(request fake.Request) error {
		switch {
		case isTask(request, "create"):
			return admit(request)
		case isTask(request, "get"):
			bed.API.Update("pods", request.Namespace, request.Name, func(pod *unstructured.Unstructured) {
				pod.Object["status"] = map[string]any{"phase": "Pending", "containerStatuses": []any{map[string]any{
					"name": "container", "state": map[string]any{"waiting": map[string]any{
						"reason": "CreateContainerConfigError", "message": "container has runAsNonRoot and image will run as root",
					}},
				}}}
			})
		}
		return nil
	})
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.Contains(t, strings.Join(v.Errors(), "\n"), "runAsUser chooses another user, in podOverride or in helperPods.securityContext of the configuration")
}

// A secret in the log of a task that fails is masked before the log is cut.
func TestErrorsOfTasksShowNoPartOfASecret(t *testing.T) {
	t.Parallel()
	const secret = "correct-horse-battery-staple"
	bed := fake.New(t)
	bed.API.Put(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}, Data: map[string][]byte{"password": []byte(secret)}})
	withHooks(t, bed, `{func: KubeTask, name: dump, objects: {db: {kind: Secret, namespace: shop, name: db}}, args: {image: tool, command: [dump, '{{ index .Phases.dump.Secrets.db.Data "password" | toString }}']}}`, "")
	app := bed.Deploy(fake.App{Annotations: map[string]string{"stillpoint.io/quiesce": "hooks"}})
	bed.API.Inject(func(request fake.Request) error {
		switch {
		case isTask(request, "create"):
			// The last 2 KiB begin within the secret.
			request.Object.SetAnnotations(map[string]string{fake.LogAnnotation: strings.Repeat("=", 3000) + secret + strings.Repeat("+", 2048-len(secret)/2)})
		case isTask(request, "get"):
			bed.API.Update("pods", request.Namespace, request.Name, func(pod *unstructured.Unstructured) {
				pod.Object["status"] = map[string]any{"phase": "Failed", "containerStatuses": []any{map[string]any{
					"name": "container", "state": map[string]any{"terminated": map[string]any{"exitCode": int64(1)}},
				}}}
			})
		}
		return nil
	})
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	_, said, found := strings.Cut(strings.Join(v.Errors(), "\n"), "the end of its log: ")
	require.True(t, found, "%v", v.Errors())
	assert.NotContains(t, said, secret[len(secret)/2+1:len(secret)-1])
	assert.Contains(t, said, "++++")
}
