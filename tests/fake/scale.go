package fake

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// scale answers requests for the subresource of that name. The caller holds mu.
func (a *API) scale(w http.ResponseWriter, r *http.Request, request Request, found *unstructured.Unstructured, body []byte) error {
	if request.Verb == "patch" || request.Verb == "update" {
		var wanted struct {
			Spec struct {
				Replicas *int64 `json:"replicas"`
			} `json:"spec"`
		}
		if err := utiljson.Unmarshal(body, &wanted); err != nil || wanted.Spec.Replicas == nil {
			return apierrors.NewBadRequest("spec.replicas is missing")
		}
		changed := found.DeepCopy()
		setReplicas(changed, *wanted.Spec.Replicas, r.URL.Query().Get("fieldManager"))
		a.store(request.Resource, changed)
		found = changed
	}
	replicas, _, _ := unstructured.NestedInt64(found.Object, "spec", "replicas")
	there, _, _ := unstructured.NestedInt64(found.Object, "status", "replicas")
	labels, _, _ := unstructured.NestedStringMap(found.Object, "spec", "selector", "matchLabels")
	respond(w, http.StatusOK, map[string]any{
		"apiVersion": "autoscaling/v1", "kind": "Scale",
		"metadata": map[string]any{"name": found.GetName(), "namespace": found.GetNamespace(), "uid": string(found.GetUID()), "resourceVersion": found.GetResourceVersion()},
		"spec":     map[string]any{"replicas": replicas},
		"status":   map[string]any{"replicas": there, "selector": metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: labels})},
	})
	return nil
}

// setReplicas scales as the API server does: a change makes a new generation, and
// takes the field over from those who owned it; none leaves everything as it was.
func setReplicas(workload *unstructured.Unstructured, replicas int64, manager string) {
	before, _, _ := unstructured.NestedInt64(workload.Object, "spec", "replicas")
	if before == replicas {
		return
	}
	_ = unstructured.SetNestedField(workload.Object, replicas, "spec", "replicas")
	workload.SetGeneration(workload.GetGeneration() + 1)
	now := metav1.Now()
	workload.SetManagedFields([]metav1.ManagedFieldsEntry{{
		Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: workload.GetAPIVersion(), Subresource: "scale",
		Time: &now, FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:spec":{"f:replicas":{}}}`)},
	}})
}

// Scale scales a workload as a person, an autoscaler or a GitOps tool does.
func (b *Bed) Scale(resource, namespace, name string, replicas int) {
	b.T.Helper()
	b.API.Update(resource, namespace, name, func(o *unstructured.Unstructured) { setReplicas(o, int64(replicas), "kubectl") })
}

// RunControllers has the pods of Deployments and StatefulSets go and come with
// spec.replicas, as long as the test runs. Pods are those that were there, under
// their names.
func (b *Bed) RunControllers() {
	done, ended := make(chan struct{}), make(chan struct{})
	saved := map[types.UID][]*corev1.Pod{}
	go func() {
		defer close(ended)
		for {
			changed := b.API.Changed()
			for _, resource := range []string{"deployments", "statefulsets"} {
				for _, workload := range b.API.All(resource) {
					b.control(resource, &workload, saved)
				}
			}
			select {
			case <-changed:
			case <-done:
				return
			}
		}
	}()
	b.T.Cleanup(func() { close(done); <-ended })
}

func (b *Bed) control(resource string, workload *unstructured.Unstructured, saved map[types.UID][]*corev1.Pod) {
	wanted, _, _ := unstructured.NestedInt64(workload.Object, "spec", "replicas")
	there := b.podsOf(workload)
	for _, pod := range there {
		if !slices.ContainsFunc(saved[workload.GetUID()], func(p *corev1.Pod) bool { return p.Name == pod.Name }) {
			saved[workload.GetUID()] = append(saved[workload.GetUID()], pod)
		}
	}
	for i, pod := range saved[workload.GetUID()] {
		runs := slices.ContainsFunc(there, func(p *corev1.Pod) bool { return p.Name == pod.Name })
		switch {
		case runs && int64(i) >= wanted:
			b.API.Delete("pods", pod.Namespace, pod.Name)
		case !runs && int64(i) < wanted:
			again := pod.DeepCopy()
			again.ResourceVersion, again.UID = "", ""
			Started(again)
			b.API.add(again)
		}
	}
	status := map[string]any{}
	for _, field := range []string{"replicas", "readyReplicas"} {
		status[field] = min(wanted, int64(len(saved[workload.GetUID()])))
	}
	status["observedGeneration"] = workload.GetGeneration()
	before, _, _ := unstructured.NestedMap(workload.Object, "status")
	if fmt.Sprint(before["replicas"], before["observedGeneration"]) == fmt.Sprint(status["replicas"], status["observedGeneration"]) {
		return
	}
	time.Sleep(time.Millisecond) // a controller is never quicker
	b.API.Update(resource, workload.GetNamespace(), workload.GetName(), func(o *unstructured.Unstructured) {
		_ = unstructured.SetNestedMap(o.Object, status, "status")
	})
}

// podsOf are the pods of a workload, through its ReplicaSets.
func (b *Bed) podsOf(workload *unstructured.Unstructured) []*corev1.Pod {
	owners := map[types.UID]bool{workload.GetUID(): true}
	for _, rs := range b.API.All("replicasets") {
		if owner := metav1.GetControllerOf(&rs); owner != nil && owners[owner.UID] {
			owners[rs.GetUID()] = true
		}
	}
	var pods []*corev1.Pod
	for _, object := range b.API.All("pods") {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: object.GetNamespace(), Name: object.GetName()}}
		if owner := metav1.GetControllerOf(&object); owner != nil && owners[owner.UID] && b.API.Get(b.T, pod) {
			pods = append(pods, pod)
		}
	}
	return pods
}
