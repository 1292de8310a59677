package workload

import (
	"context"
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/pager"
)

// revisionAnnotation is set by the deployment controller on a Deployment and on its
// ReplicaSets. It identifies the current ReplicaSet.
const revisionAnnotation = "deployment.kubernetes.io/revision"

// listFrom is the number of controllers of one kind from which one list of the namespace is
// cheaper than a request for each.
const listFrom = 4

// directOwner returns the controller of a pod, or the pod itself if it has none.
func directOwner(pod *corev1.Pod) Ref {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return Ref{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
	}
	return Ref{APIVersion: owner.APIVersion, Kind: owner.Kind, Namespace: pod.Namespace, Name: owner.Name, UID: owner.UID}
}

// controllers reads the controllers of one namespace.
type controllers struct {
	kube      kubernetes.Interface
	namespace string
	// unread are the errors of controllers that could not be read.
	unread []error
}

// complete replaces the owners of the pods of an inventory by their topmost controllers,
// and adds these controllers. A controller that cannot be read is handled like one of an
// unknown kind.
func (c *controllers) complete(ctx context.Context, i *Inventory) {
	asked := i.owners()
	direct := c.read(ctx, asked)
	i.revisions, i.intermediates = map[string]string{}, map[Ref]Intermediate{}
	for m := range i.members {
		owner := i.members[m].owner
		object, found := direct[owner]
		if !found { // deleted, or of an unknown kind
			continue
		}
		switch owner.groupKind() {
		case "ReplicaSet.apps":
			i.revisions[owner.Name] = object.GetAnnotations()[revisionAnnotation]
			i.members[m].owner = topmost(owner, object)
		case "Job.batch", "ReplicationController":
			i.members[m].owner = topmost(owner, object)
		}
		if top := i.members[m].owner; top != owner {
			i.intermediates[owner] = Intermediate{Object: object, Top: top}
		}
	}
	topmost := i.owners()
	for ref := range asked {
		delete(topmost, ref)
	}
	i.objects = c.read(ctx, topmost)
	for ref, object := range direct {
		i.objects[ref] = object
	}
	i.unread = errors.Join(c.unread...)
}

func (i *Inventory) owners() map[Ref]bool {
	refs := map[Ref]bool{}
	for _, m := range i.members {
		refs[m.owner] = true
	}
	return refs
}

func topmost(ref Ref, object metav1.Object) Ref {
	if owner := metav1.GetControllerOf(object); owner != nil {
		return Ref{APIVersion: owner.APIVersion, Kind: owner.Kind, Namespace: ref.Namespace, Name: owner.Name, UID: owner.UID}
	}
	return ref
}

// read gets the objects of refs that exist and are of a known kind.
func (c *controllers) read(ctx context.Context, refs map[Ref]bool) map[Ref]metav1.Object {
	ofKind := map[string][]Ref{}
	for ref := range refs {
		ofKind[ref.groupKind()] = append(ofKind[ref.groupKind()], ref)
	}
	found := map[Ref]metav1.Object{}
	apps, batch := c.kube.AppsV1(), c.kube.BatchV1()
	for kind, wanted := range ofKind {
		var err error
		switch kind {
		case "ReplicationController":
			err = read[*corev1.ReplicationController, *corev1.ReplicationControllerList](ctx, c.kube.CoreV1().ReplicationControllers(c.namespace), wanted, found)
			if apierrors.IsForbidden(err) { // earlier versions did not need this permission
				err = nil
			}
		case "Deployment.apps":
			err = read[*appsv1.Deployment, *appsv1.DeploymentList](ctx, apps.Deployments(c.namespace), wanted, found)
		case "StatefulSet.apps":
			err = read[*appsv1.StatefulSet, *appsv1.StatefulSetList](ctx, apps.StatefulSets(c.namespace), wanted, found)
		case "DaemonSet.apps":
			err = read[*appsv1.DaemonSet, *appsv1.DaemonSetList](ctx, apps.DaemonSets(c.namespace), wanted, found)
		case "ReplicaSet.apps":
			err = read[*appsv1.ReplicaSet, *appsv1.ReplicaSetList](ctx, apps.ReplicaSets(c.namespace), wanted, found)
		case "Job.batch":
			err = read[*batchv1.Job, *batchv1.JobList](ctx, batch.Jobs(c.namespace), wanted, found)
		case "CronJob.batch":
			err = read[*batchv1.CronJob, *batchv1.CronJobList](ctx, batch.CronJobs(c.namespace), wanted, found)
		}
		if err != nil {
			c.unread = append(c.unread, err)
		}
	}
	return found
}

// reader is the typed client of one kind in one namespace.
type reader[T, L any] interface {
	Get(ctx context.Context, name string, options metav1.GetOptions) (T, error)
	List(ctx context.Context, options metav1.ListOptions) (L, error)
}

// read gets a few objects one by one, and many with a list.
func read[T metav1.Object, L runtime.Object](ctx context.Context, client reader[T, L], wanted []Ref, found map[Ref]metav1.Object) error {
	if len(wanted) < listFrom {
		var errs []error
		for _, ref := range wanted {
			object, err := client.Get(ctx, ref.Name, metav1.GetOptions{})
			switch {
			case err == nil:
				found[ref] = object
			case !apierrors.IsNotFound(err):
				errs = append(errs, fmt.Errorf("get %s: %w", ref, err))
			}
		}
		return errors.Join(errs...)
	}
	named := map[string]Ref{}
	for _, ref := range wanted {
		named[ref.Name] = ref
	}
	pages := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		return client.List(ctx, options)
	})
	err := pages.EachListItem(ctx, metav1.ListOptions{}, func(item runtime.Object) error {
		if object, ok := item.(T); ok {
			if ref, ok := named[object.GetName()]; ok {
				found[ref] = object
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list the %ss of namespace %s: %w", wanted[0].Kind, wanted[0].Namespace, err)
	}
	return nil
}
