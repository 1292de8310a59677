package workload

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// revisionAnnotation is set by the deployment controller, on a Deployment and
// on its ReplicaSets, and tells which of these is the current one.
const revisionAnnotation = "deployment.kubernetes.io/revision"

// controllers finds the controllers of pods, each ReplicaSet once.
type controllers struct {
	kube        kubernetes.Interface
	replicaSets map[string]replicaSet
}

type replicaSet struct {
	owner    Ref
	revision string
}

// ownerOf follows a pod's controllers to the topmost one that is known here.
func (c *controllers) ownerOf(ctx context.Context, pod *corev1.Pod) (Ref, error) {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return Ref{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}, nil
	}
	ref := Ref{APIVersion: owner.APIVersion, Kind: owner.Kind, Namespace: pod.Namespace, Name: owner.Name, UID: owner.UID}
	switch ref.groupKind() {
	case "ReplicaSet.apps":
		set, err := c.replicaSet(ctx, ref)
		if err != nil {
			return Ref{}, err
		}
		return set.owner, nil
	case "Job.batch":
		job, err := c.kube.BatchV1().Jobs(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return ref, nil
		}
		if err != nil {
			return Ref{}, fmt.Errorf("get %s: %w", ref, err)
		}
		return topmost(ref, job), nil
	}
	return ref, nil
}

func (c *controllers) replicaSet(ctx context.Context, ref Ref) (replicaSet, error) {
	if known, ok := c.replicaSets[ref.Name]; ok {
		return known, nil
	}
	set := replicaSet{owner: ref}
	object, err := c.kube.AppsV1().ReplicaSets(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err): // its pods are on their way out
	case err != nil:
		return replicaSet{}, fmt.Errorf("get %s: %w", ref, err)
	default:
		set = replicaSet{owner: topmost(ref, object), revision: object.Annotations[revisionAnnotation]}
	}
	c.replicaSets[ref.Name] = set
	return set, nil
}

func topmost(ref Ref, object metav1.Object) Ref {
	if owner := metav1.GetControllerOf(object); owner != nil {
		return Ref{APIVersion: owner.APIVersion, Kind: owner.Kind, Namespace: ref.Namespace, Name: owner.Name, UID: owner.UID}
	}
	return ref
}

// complete reads the controller of a workload, and tells the pods of its
// current revision. A controller that is gone, or of a kind that is not known
// here, leaves Object nil.
func (c *controllers) complete(ctx context.Context, w *Workload) error {
	var err error
	options := metav1.GetOptions{}
	switch w.groupKind() {
	case "Pod":
		w.Object = &w.Pods[0]
	case "Deployment.apps":
		w.Object, err = object(c.kube.AppsV1().Deployments(w.Namespace).Get(ctx, w.Name, options))
	case "StatefulSet.apps":
		w.Object, err = object(c.kube.AppsV1().StatefulSets(w.Namespace).Get(ctx, w.Name, options))
	case "DaemonSet.apps":
		w.Object, err = object(c.kube.AppsV1().DaemonSets(w.Namespace).Get(ctx, w.Name, options))
	case "ReplicaSet.apps":
		w.Object, err = object(c.kube.AppsV1().ReplicaSets(w.Namespace).Get(ctx, w.Name, options))
	case "Job.batch":
		w.Object, err = object(c.kube.BatchV1().Jobs(w.Namespace).Get(ctx, w.Name, options))
	case "CronJob.batch":
		w.Object, err = object(c.kube.BatchV1().CronJobs(w.Namespace).Get(ctx, w.Name, options))
	}
	if err != nil {
		return fmt.Errorf("get %s: %w", w.Ref, err)
	}
	if w.Kind == "Deployment" && w.Object != nil {
		revision := w.Object.GetAnnotations()[revisionAnnotation]
		w.CurrentPods = slices.DeleteFunc(slices.Clone(w.Pods), func(pod corev1.Pod) bool {
			owner := metav1.GetControllerOf(&pod)
			return owner != nil && c.replicaSets[owner.Name].revision != revision
		})
	}
	return nil
}

// object turns "not found" into nil, and a typed nil into a real one.
func object[T metav1.Object](found T, err error) (metav1.Object, error) {
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // no object is a valid answer here
	}
	if err != nil {
		return nil, err
	}
	return found, nil
}
