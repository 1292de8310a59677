package function

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/render"
)

const (
	scaleWorkload = "ScaleWorkload"
	// replicaCount is the output of ScaleWorkload.
	replicaCount = "originalReplicaCount"
	// quiesceManager begins the name of the field manager that owns spec.replicas
	// while a prehook keeps a workload scaled; the session's ID follows. From it other
	// installations of Stillpoint know that the user did not set the number.
	quiesceManager = "stillpoint-quiesce-"
)

// scalable is a kind that ScaleWorkload scales.
type scalable struct {
	kind     string
	resource schema.GroupVersionResource
	// owns reports whether a pod with this controller belongs to the workload of that name.
	owns func(name string, owner *metav1.OwnerReference, pod *corev1.Pod) bool
}

var scalables = []scalable{
	{
		"Deployment",
		schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"},
		func(name string, owner *metav1.OwnerReference, pod *corev1.Pod) bool {
			return owner.Kind == "ReplicaSet" && owner.Name == name+"-"+pod.Labels["pod-template-hash"]
		},
	},
	{
		"StatefulSet",
		schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "statefulsets"},
		func(name string, owner *metav1.OwnerReference, _ *corev1.Pod) bool {
			return owner.Kind == "StatefulSet" && owner.Name == name
		},
	},
	{
		"DeploymentConfig",
		schema.GroupVersionResource{Group: "apps.openshift.io", Version: "v1", Resource: "deploymentconfigs"},
		func(name string, owner *metav1.OwnerReference, pod *corev1.Pod) bool {
			return owner.Kind == "ReplicationController" && pod.Labels["deploymentconfig"] == name
		},
	},
}

// scaling is what one ScaleWorkload does.
type scaling struct {
	scalable
	namespace, name string
	replicas        int32
	wait            bool
}

func (s *scaling) String() string { return fmt.Sprintf("%s %s/%s", s.kind, s.namespace, s.name) }

// scalingOf reads the args. The annotated workload is the default.
func scalingOf(task *render.Task) (*scaling, error) {
	r := task.Args.Reader()
	text, kind, name := r.String("replicas"), r.String("kind"), r.String("name")
	if r.Err != nil {
		return nil, r.Err
	}
	replicas, err := strconv.ParseInt(strings.TrimSpace(text), 10, 32)
	if err != nil || replicas < 0 {
		return nil, fmt.Errorf("args.replicas is %q, must be a number from 0 to %d", text, math.MaxInt32)
	}
	s := &scaling{name: cmp.Or(name, task.Name), replicas: int32(replicas), wait: true}
	if s.namespace, err = task.TargetNamespace(); err != nil {
		return nil, err
	}
	if kind = cmp.Or(kind, task.Kind); kind == "" || s.name == "" {
		return nil, errors.New("args.kind and args.name must be given, as the annotated object is no workload that can be scaled")
	}
	if wrong := pathvalidation.IsValidPathSegmentName(s.name); len(wrong) > 0 {
		return nil, fmt.Errorf("args.name %q: %s", s.name, strings.Join(wrong, ", "))
	}
	i := slices.IndexFunc(scalables, func(candidate scalable) bool { return strings.EqualFold(candidate.kind, kind) })
	if i < 0 {
		return nil, fmt.Errorf("args.kind is %q; the kinds are: Deployment, DeploymentConfig, StatefulSet", kind)
	}
	s.scalable = scalables[i]
	if value, ok := task.Args["waitForReady"]; ok {
		if s.wait, err = truth(value); err != nil {
			return nil, fmt.Errorf("args.waitForReady: %w", err)
		}
	}
	return s, nil
}

// truth reads a boolean as Kanister's decoder does.
func truth(value any) (bool, error) {
	switch v := value.(type) {
	case bool:
		return v, nil
	case int64:
		return v != 0, nil
	case string:
		if parsed, err := strconv.ParseBool(cmp.Or(v, "false")); err == nil {
			return parsed, nil
		}
	}
	return false, fmt.Errorf("is %v, must be true or false", value)
}

func (t *Tasks) prepareScaling(ctx context.Context, d *render.Draft) error {
	s, err := scalingOf(d.Task)
	if err != nil {
		return err
	}
	if err := d.AllowNamespace(); err != nil {
		return err
	}
	if err := t.exists(ctx, d, s.namespace); err != nil || !d.Pre || t.clients == nil || t.scaledBefore(s) != nil {
		return err
	}
	object, err := s.objects(t.clients.Dynamic).Get(ctx, s.name, metav1.GetOptions{})
	if err != nil {
		return nil //nolint:nilerr // the task reads it again before it scales
	}
	return s.refused(object, d.Owner)
}

// refused returns why a prehook must not scale a workload as it is now.
func (s *scaling) refused(object *unstructured.Unstructured, session string) error {
	for _, entry := range object.GetManagedFields() {
		other, ours := strings.CutPrefix(entry.Manager, quiesceManager)
		if ours && other != session && entry.FieldsV1 != nil && strings.Contains(string(entry.FieldsV1.Raw), `"f:replicas"`) {
			return fmt.Errorf("%s is scaled by another backup, or by another installation of Stillpoint, since %s: back up again when it is scaled back; `stillpoint thaw` of that installation shows it, and scales it back",
				s, entry.Time.UTC().Format(time.RFC3339))
		}
	}
	now, found, err := unstructured.NestedInt64(object.Object, "spec", "replicas")
	policy, _, _ := unstructured.NestedString(object.Object, "spec", "persistentVolumeClaimRetentionPolicy", "whenScaled")
	if err == nil && policy == "Delete" && (!found || int64(s.replicas) < now) {
		return fmt.Errorf("%s has spec.persistentVolumeClaimRetentionPolicy.whenScaled: Delete, so scaling it to %d replicas deletes claims and their data before they are backed up; set it to Retain",
			s, s.replicas)
	}
	return nil
}

// Held returns an error if what a task of a prehook did has not lasted until now: an
// autoscaler, a GitOps tool or a person may have scaled a workload up again.
func (t *Tasks) Held(ctx context.Context, task *render.Task) error {
	if task.Func != scaleWorkload {
		return nil
	}
	s, err := scalingOf(task)
	if err != nil {
		return err
	}
	scaled := t.scaledBefore(s)
	if scaled == nil || scaled.replicas != s.replicas { // a later phase has scaled it again
		return nil
	}
	access, err := t.access(task)
	if err != nil {
		return err
	}
	object, state, err := s.look(ctx, access, scaled.selector)
	switch {
	case err != nil:
		return fmt.Errorf("whether %s is still scaled to %d replicas is not known: %w", s, s.replicas, err)
	case object.GetGeneration() != scaled.generation:
		replicas, _, _ := unstructured.NestedInt64(object.Object, "spec", "replicas")
		return fmt.Errorf("%s was changed while it was scaled to %d replicas for the snapshots: spec.replicas is %d now; keep autoscalers and GitOps tools from it during backups", s, s.replicas, replicas)
	case s.wait && state != "":
		return fmt.Errorf("%s did not stay scaled to %d replicas: %s", s, s.replicas, state)
	}
	return nil
}

// scaled is a workload that a prehook has scaled.
type scaled struct {
	replicas   int32
	selector   string
	generation int64
}

func (t *Tasks) scaledBefore(s *scaling) *scaled {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.scaled[s.String()]
}

// look reads a workload and then its pods; state is what unready returns.
func (s *scaling) look(ctx context.Context, access *access, selector string) (object *unstructured.Unstructured, state string, err error) {
	if object, err = s.objects(access.dynamic).Get(ctx, s.name, metav1.GetOptions{}); err != nil {
		return nil, "", err
	}
	pods, err := access.kube.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, "", err
	}
	return object, s.unready(object, pods.Items), nil
}

func describeScaling(task *render.Task) string {
	s, err := scalingOf(task)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s to %d replicas", s, s.replicas)
}

// foretellScaling returns the number of replicas that an earlier phase leaves, or else
// the present one.
func (t *Tasks) foretellScaling(ctx context.Context, task *render.Task, before []*render.Task) (map[string]any, error) {
	s, err := scalingOf(task)
	if err != nil {
		return nil, err
	}
	for _, earlier := range slices.Backward(before) {
		if earlier.Func != task.Func {
			continue
		}
		if e, err := scalingOf(earlier); err == nil && e.String() == s.String() {
			return map[string]any{replicaCount: e.replicas}, nil
		}
	}
	if t.clients == nil {
		return nil, errors.New("workloads cannot be read here")
	}
	// Velero's own rights suffice: the result is a number, of the blueprint's own
	// namespace if it is confined.
	scale, err := s.read(ctx, t.clients.Dynamic)
	if err != nil {
		return nil, err
	}
	return map[string]any{replicaCount: scale.Spec.Replicas}, nil
}

func (s *scaling) objects(client dynamic.Interface) dynamic.ResourceInterface {
	return client.Resource(s.resource).Namespace(s.namespace)
}

// read returns how many replicas the workload should have, and which pods count.
func (s *scaling) read(ctx context.Context, client dynamic.Interface) (*autoscalingv1.Scale, error) {
	object, err := s.objects(client).Get(ctx, s.name, metav1.GetOptions{}, "scale")
	if err != nil {
		return nil, fmt.Errorf("get the scale of %s: %w", s, err)
	}
	scale := &autoscalingv1.Scale{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, scale); err != nil {
		return nil, fmt.Errorf("decode the scale of %s: %w", s, err)
	}
	return scale, nil
}

func (t *Tasks) scale(ctx context.Context, task *render.Task, access *access) (map[string]any, error) {
	s, err := scalingOf(task)
	if err != nil {
		return nil, err
	}
	if err := task.Within(s.namespace); err != nil {
		return nil, err
	}
	before, err := s.read(ctx, access.dynamic)
	if err != nil {
		return nil, err
	}
	selector := before.Status.Selector
	if selector == "" {
		return nil, fmt.Errorf("the scale of %s has no selector", s)
	}
	manager := fieldManager
	if task.Pre {
		object, err := s.objects(access.dynamic).Get(ctx, s.name, metav1.GetOptions{})
		if err == nil {
			err = s.refused(object, task.Owner)
		}
		if err != nil {
			return nil, err
		}
		manager = quiesceManager + task.Owner
	}
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, s.replicas)
	if _, err := s.objects(access.dynamic).Patch(ctx, s.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: manager}, "scale"); err != nil {
		return nil, fmt.Errorf("scale %s: %w", s, err)
	}
	outputs := map[string]any{replicaCount: before.Spec.Replicas}
	if !s.wait && !task.Pre {
		return outputs, nil
	}
	err = poll(ctx, func(ctx context.Context) (bool, string, error) {
		object, state, err := s.look(ctx, access, selector)
		if err != nil {
			return retry(err)
		}
		if task.Pre {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.scaled[s.String()] = &scaled{s.replicas, selector, object.GetGeneration()}
		}
		return state == "" || !s.wait, state, nil
	})
	if err != nil {
		return nil, fmt.Errorf("wait for %d replicas: %w", s.replicas, err)
	}
	return outputs, nil
}

// unready returns what a workload lacks, "" if it is scaled: all its pods exist and
// are ready, and all others are gone, not only terminating.
func (s *scaling) unready(object *unstructured.Unstructured, pods []corev1.Pod) string {
	status := func(field string) int64 {
		value, _, _ := unstructured.NestedInt64(object.Object, "status", field)
		return value
	}
	if status("observedGeneration") < object.GetGeneration() {
		return "its controller has not seen the change yet"
	}
	if wanted, found, err := unstructured.NestedInt64(object.Object, "spec", "replicas"); found && err == nil && wanted != int64(s.replicas) {
		return fmt.Sprintf("spec.replicas is %d", wanted)
	}
	var there, ready int32
	var others []string
	for i := range pods {
		pod := &pods[i]
		owner := metav1.GetControllerOf(pod)
		if owner == nil || !s.owns(s.name, owner, pod) {
			continue
		}
		// A pod that has ended and stays, such as an evicted one, does not count. One
		// that is being deleted may still have its volumes mounted.
		finished := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
		if finished && pod.DeletionTimestamp == nil {
			continue
		}
		there++
		switch {
		case pod.DeletionTimestamp != nil:
			others = append(others, pod.Name+" (terminating)")
		case slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}):
			ready++
		default:
			others = append(others, pod.Name+" (not ready)")
		}
	}
	if there == s.replicas && ready == s.replicas && status("replicas") == int64(s.replicas) {
		return ""
	}
	return fmt.Sprintf("there are %d pods, %d of them ready; others: %s", there, ready, blueprint.List(others))
}
