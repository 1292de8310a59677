package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

// The cluster of API objects: Deployments with a pod each, spread over the
// namespaces, and the same number of claims for each.
const (
	planNamespaces, planWorkloads, planClaims = 200, 500, 2000

	// Two more namespaces with as many workloads, and few claims or many: the
	// number of requests must be the same for both.
	fewClaims, manyClaims, sizedWorkloads = 10, 500, 5
	// spareRequests is by how much it may differ.
	spareRequests = 2

	// Custom resources of operators, none of them annotated: planning has to find
	// that out. maxRequests is what it may cost with them, for all of it.
	planKinds, planCustom, maxRequests = 20, 5000, 2200
	planGroup                          = "bench-planning.example.com"

	planDriver = "planning.csi.stillpoint.io" // nobody's
	planClass  = "bench-planning"
	planImage  = cluster.Image // of containers that nobody runs

	// quiescedEach is which share of the workloads is quiesced: every fifth.
	quiescedEach = 5
	// planBlueprint and planPolicies are the names of what these are planned by.
	planBlueprint = "bench-planning"
	planPolicies  = "bench-planning-policies"

	// planWorkers is how many requests are under way at once.
	planWorkers = 32
	planLimit   = 25 * time.Minute
)

// ofPlanning marks the objects that only planning is measured with.
var ofPlanning = client.MatchingLabels{"stillpoint.io/bench-planning": "true"}

// planned is what planning a backup takes where there are only API objects and
// nothing is snapshotted.
type planned struct {
	// Claims, Workloads and Namespaces are the size of the cluster.
	Claims     *int `json:"claims"`
	Workloads  *int `json:"workloads"`
	Namespaces *int `json:"namespaces"`
	// CustomKinds and CustomObjects are those of operators.
	CustomKinds   *int `json:"customKinds"`
	CustomObjects *int `json:"customObjects"`
	// Requests to the API server; Seconds and Memory are those of the process
	// that plans, its peak.
	Requests *int     `json:"requests"`
	Seconds  *float64 `json:"seconds"`
	Memory   *float64 `json:"memoryMiB"`
	// Requests for one namespace, by how many claims it has.
	RequestsFew  *int `json:"requestsAt10Claims"`
	RequestsMany *int `json:"requestsAt500Claims"`
}

// plannedWorkload is a Deployment with claims.
type plannedWorkload struct {
	types.NamespacedName
	claims   int
	quiesced bool
	// group is whether its volumes are handed to Stillpoint.
	group bool
}

func (w plannedWorkload) claim(i int) string { return fmt.Sprintf("%s-data%d", w.Name, i) }

// planWorkloadsOf are n workloads that share claims and namespaces evenly.
func planWorkloadsOf(n, claims int, namespace func(i int) string) []plannedWorkload {
	all := make([]plannedWorkload, n)
	for i := range all {
		all[i] = plannedWorkload{
			NamespacedName: types.NamespacedName{Namespace: namespace(i), Name: fmt.Sprintf("app-%d", i)},
			claims:         claims / n, quiesced: i%quiescedEach == 0, group: i/2%2 == 0,
		}
	}
	return all
}

// planWorld is all of it.
func planWorld() []plannedWorkload {
	return slices.Concat(
		planWorkloadsOf(planWorkloads, planClaims, func(i int) string { return planNamespace(i % planNamespaces) }),
		planWorkloadsOf(sizedWorkloads, fewClaims, func(int) string { return sizedNamespace(fewClaims) }),
		planWorkloadsOf(sizedWorkloads, manyClaims, func(int) string { return sizedNamespace(manyClaims) }),
	)
}

func sizedNamespace(claims int) string { return fmt.Sprintf("bench-planning-with-%d", claims) }

// measurePlanning makes the API objects and plans backups of them with what
// `stillpoint check` plans with, which is what backs up.
func (b *bench) measurePlanning(ctx context.Context, found *results) error {
	ctx, cancel := context.WithTimeout(ctx, planLimit)
	defer cancel()
	objects, err := b.planObjects()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := objects.make(ctx); err != nil {
		return fmt.Errorf("make the objects: %w", err)
	}
	b.Say("made %d namespaces, %d workloads, %d claims and %d custom resources of %d kinds in %.0f s",
		planNamespaces, planWorkloads, planClaims, planCustom, planKinds, time.Since(began).Seconds())
	namespaces := make([]string, planNamespaces)
	for i := range namespaces {
		namespaces[i] = planNamespace(i)
	}
	requests, err := countPlanning(ctx, planWorkloads, planClaims, namespaces...)
	if err != nil {
		return err
	}
	few, err := countPlanning(ctx, sizedWorkloads, fewClaims, sizedNamespace(fewClaims))
	if err != nil {
		return err
	}
	many, err := countPlanning(ctx, sizedWorkloads, manyClaims, sizedNamespace(manyClaims))
	if err != nil {
		return err
	}
	took, memory, err := runPlanning(ctx, b.plugin, namespaces)
	if err != nil {
		return err
	}
	b.Say("planned %d claims with %d requests in %.1f s and %.0f MiB; a namespace with %d takes %d requests, one with %d %d",
		planClaims, requests, took.Seconds(), memory, fewClaims, few, manyClaims, many)
	if many > few+spareRequests {
		return fmt.Errorf("requests must not grow with the number of PVCs in a namespace: %d for %d PVCs and %d for %d", few, fewClaims, many, manyClaims)
	}
	if requests > maxRequests {
		return fmt.Errorf("%d requests for %d claims in %d namespaces; %d may be sent", requests, planClaims, planNamespaces, maxRequests)
	}
	found.planning = planned{
		CustomKinds: ptr.To(planKinds), CustomObjects: ptr.To(planCustom),
		Claims: ptr.To(planClaims), Workloads: ptr.To(planWorkloads), Namespaces: ptr.To(planNamespaces),
		Requests: &requests, Seconds: ptr.To(rounded(took.Seconds())), Memory: ptr.To(rounded(memory)),
		RequestsFew: &few, RequestsMany: &many,
	}
	return nil
}

// planObjects makes and deletes the objects, with a client in a hurry.
type planObjects struct {
	client.Client
}

func (b *bench) planObjects() (planObjects, error) {
	config := b.RESTConfig()
	config.QPS, config.Burst = 2000, 4000
	c, err := client.New(config, client.Options{Scheme: b.Objects().Scheme()})
	return planObjects{c}, err
}

func planNamespace(i int) string { return fmt.Sprintf("bench-planning-%d", i) }

func (o planObjects) make(ctx context.Context) error {
	waits := storagev1.VolumeBindingWaitForFirstConsumer // so that nothing is done for claims without a volume
	for _, class := range []client.Object{
		&storagev1.StorageClass{ObjectMeta: planMeta(types.NamespacedName{Name: planClass}), Provisioner: planDriver, VolumeBindingMode: &waits},
		&snapshotv1.VolumeSnapshotClass{ObjectMeta: planMeta(types.NamespacedName{Name: planClass}), Driver: planDriver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete},
		planConfigMap(planBlueprint, api.LabelBlueprint, planDocument),
		planConfigMap(planPolicies, "", planPolicy),
	} {
		if err := o.Create(ctx, class); err != nil {
			return err
		}
	}
	if err := o.makeKinds(ctx); err != nil {
		return err
	}
	world := planWorld()
	var claims []func(ctx context.Context) error
	for _, w := range world {
		for i := range w.claims {
			claims = append(claims, func(ctx context.Context) error { return o.makeClaim(ctx, w, i) })
		}
	}
	namespaces := []string{sizedNamespace(fewClaims), sizedNamespace(manyClaims)}
	for i := range planNamespaces {
		namespaces = append(namespaces, planNamespace(i))
	}
	for _, step := range []struct {
		n  int
		do func(ctx context.Context, i int) error
	}{
		{len(namespaces), func(ctx context.Context, i int) error {
			return o.Create(ctx, &corev1.Namespace{ObjectMeta: planMeta(types.NamespacedName{Name: namespaces[i]})})
		}},
		{len(world), func(ctx context.Context, i int) error { return o.Create(ctx, planDeployment(world[i])) }},
		{len(claims), func(ctx context.Context, i int) error { return claims[i](ctx) }},
		{planCustom, func(ctx context.Context, i int) error { return o.Create(ctx, planCustomObject(i)) }},
	} {
		if err := inParallel(ctx, step.n, step.do); err != nil {
			return err
		}
	}
	return o.awaitWorkloads(ctx, len(world), len(claims))
}

// planKind is a kind of custom resources.
func planKind(i int) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: planGroup, Version: "v1", Kind: fmt.Sprintf("Planned%d", i)}
}

// makeKinds makes the definitions of the kinds, and waits until they are served.
func (o planObjects) makeKinds(ctx context.Context) error {
	for i := range planKinds {
		kind := planKind(i)
		plural := strings.ToLower(kind.Kind) + "s"
		definition := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{
			"group": kind.Group, "scope": "Namespaced",
			"names": map[string]any{"kind": kind.Kind, "plural": plural},
			"versions": []any{map[string]any{
				"name": kind.Version, "served": true, "storage": true,
				"schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
			}},
		}}}
		definition.SetGroupVersionKind(planDefinitions.GroupVersion().WithKind("CustomResourceDefinition"))
		definition.SetName(plural + "." + kind.Group)
		definition.SetLabels(ofPlanning)
		if err := o.Create(ctx, definition); err != nil {
			return err
		}
	}
	return stage.Until(ctx, "the custom resources of planning are served", func(ctx context.Context) (bool, error) {
		for i := range planKinds {
			list := &metav1.PartialObjectMetadataList{}
			list.SetGroupVersionKind(planKind(i).GroupVersion().WithKind(planKind(i).Kind + "List"))
			if err := o.List(ctx, list); err != nil {
				return false, nil //nolint:nilerr // not yet
			}
		}
		return true, nil
	})
}

// planDefinitions are the definitions of custom resources, as a list.
var planDefinitions = schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinitionList"}

// planCustomObject is one of a namespace, as large as such objects are.
func planCustomObject(i int) *unstructured.Unstructured {
	object := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"text": strings.Repeat("x", 2000)}}}
	object.SetGroupVersionKind(planKind(i % planKinds))
	object.SetNamespace(planNamespace(i % planNamespaces))
	object.SetName(fmt.Sprintf("custom-%d", i))
	object.SetLabels(ofPlanning)
	object.SetAnnotations(map[string]string{"example.com/applied": strings.Repeat("y", 500)})
	return object
}

// clearKinds deletes the definitions, and tells how many are left: the API
// server deletes their objects first.
func (o planObjects) clearKinds(ctx context.Context) (int, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(planDefinitions)
	if err := o.List(ctx, list, ofPlanning); err != nil {
		return 0, err
	}
	for i := range list.Items {
		if list.Items[i].GetDeletionTimestamp() == nil {
			if err := client.IgnoreNotFound(o.Delete(ctx, &list.Items[i])); err != nil {
				return 0, err
			}
		}
	}
	return len(list.Items), nil
}

// planDocument is a blueprint whose commands need no probe.
const planDocument = `apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata: {name: ` + planBlueprint + `}
actions:
  backupPrehook:
    phases:
    - func: KubeExec
      name: flush
      args:
        namespace: "{{ .Deployment.Namespace }}"
        pod: "{{ index .Deployment.Pods 0 }}"
        container: app
        command: [flush, "{{ .Deployment.Name }}", "{{ .Time }}"]
  backupPosthook:
    phases:
    - func: KubeExec
      name: go-on
      args:
        namespace: "{{ .Deployment.Namespace }}"
        pod: "{{ index .Deployment.Pods 0 }}"
        container: app
        command: [go-on, "{{ .Deployment.Name }}"]
`

// planPolicy hands the volumes of half of the workloads to Stillpoint.
const planPolicy = `version: v1
volumePolicies:
- conditions: {pvcLabels: {path: group}}
  action: {type: custom, parameters: {snapshotter: stillpoint.io}}
`

func planConfigMap(name, label, document string) *corev1.ConfigMap {
	m := &corev1.ConfigMap{
		ObjectMeta: planMeta(types.NamespacedName{Namespace: cluster.VeleroNamespace, Name: name}),
		Data:       map[string]string{"document.yaml": document},
	}
	if label != "" {
		m.Labels[label] = ""
	}
	return m
}

func planMeta(name types.NamespacedName) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, Labels: maps.Clone(map[string]string(ofPlanning))}
}

// planDeployment is one whose pod no scheduler and no kubelet ever looks at.
func planDeployment(w plannedWorkload) *appsv1.Deployment {
	labels := map[string]string{"app": w.Name}
	for key, value := range ofPlanning {
		labels[key] = value
	}
	container := corev1.Container{Name: "app", Image: planImage}
	var volumes []corev1.Volume
	for i := range w.claims {
		name := w.claim(i)
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: "/data/" + name})
		volumes = append(volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}})
	}
	meta := planMeta(w.NamespacedName)
	if w.quiesced {
		// Long enough for Velero to take as many volumes one after another.
		meta.Annotations = map[string]string{api.AnnotationQuiesce: planBlueprint, api.AnnotationQuiesceTimeout: "1h"}
	}
	return &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": w.Name}},
		Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec:       corev1.PodSpec{SchedulerName: planDriver, Containers: []corev1.Container{container}, Volumes: volumes},
		},
	}}
}

// makeClaim makes a claim and its volume, bound to each other. The controller
// that binds others would take minutes for so many.
func (o planObjects) makeClaim(ctx context.Context, w plannedWorkload, i int) error {
	at := types.NamespacedName{Namespace: w.Namespace, Name: w.claim(i)}
	class, size := planClass, corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	access := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: planMeta(at), Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: access, StorageClassName: &class, Resources: corev1.VolumeResourceRequirements{Requests: size},
	}}
	if w.group {
		claim.Labels["path"] = "group"
	}
	if err := o.Create(ctx, claim); err != nil {
		return err
	}
	volume := &corev1.PersistentVolume{
		ObjectMeta: planMeta(types.NamespacedName{Name: at.Namespace + "-" + at.Name}),
		Spec: corev1.PersistentVolumeSpec{
			AccessModes: access, StorageClassName: class, Capacity: size, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef: &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: at.Namespace, Name: at.Name, UID: claim.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{Driver: planDriver, VolumeHandle: at.String()},
			},
		},
	}
	if err := o.Create(ctx, volume); err != nil {
		return err
	}
	bind := `{"metadata":{"annotations":{"pv.kubernetes.io/bind-completed":"yes"}},"spec":{"volumeName":"` + volume.Name + `"}}`
	return errors.Join(
		o.Status().Patch(ctx, volume, client.RawPatch(types.MergePatchType, []byte(`{"status":{"phase":"Bound"}}`))),
		o.Patch(ctx, claim, client.RawPatch(types.MergePatchType, []byte(bind))),
		o.Status().Patch(ctx, claim, client.RawPatch(types.MergePatchType,
			[]byte(`{"status":{"phase":"Bound","accessModes":["ReadWriteOnce"],"capacity":{"storage":"1Gi"}}}`))),
	)
}

// awaitWorkloads has each pod run as soon as there is one, by its status, and
// waits until no controller has anything left to do.
func (o planObjects) awaitWorkloads(ctx context.Context, wanted, wantedClaims int) error {
	return stage.Until(ctx, "the workloads of API objects are ready", func(ctx context.Context) (bool, error) {
		pods := &corev1.PodList{}
		if err := o.List(ctx, pods, ofPlanning); err != nil {
			return false, err
		}
		err := inParallel(ctx, len(pods.Items), func(ctx context.Context, i int) error {
			pod := &pods.Items[i]
			if pod.Status.Phase == corev1.PodRunning {
				return nil
			}
			before := pod.DeepCopy()
			now := metav1.Now()
			pod.Status.Phase = corev1.PodRunning
			pod.Status.Conditions = []corev1.PodCondition{
				{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now},
				{Type: corev1.ContainersReady, Status: corev1.ConditionTrue, LastTransitionTime: now},
			}
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
				Name: "app", Image: planImage, Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
			}}
			return o.Status().Patch(ctx, pod, client.MergeFrom(before))
		})
		if err != nil {
			return false, err
		}
		deployments := &appsv1.DeploymentList{}
		if err := o.List(ctx, deployments, ofPlanning); err != nil {
			return false, err
		}
		ready := 0
		for i := range deployments.Items {
			if deployments.Items[i].Status.ReadyReplicas == 1 {
				ready++
			}
		}
		claims := &corev1.PersistentVolumeClaimList{}
		err = o.List(ctx, claims, ofPlanning)
		bound := 0
		for i := range claims.Items {
			if claims.Items[i].Status.Phase == corev1.ClaimBound {
				bound++
			}
		}
		return ready == wanted && bound == wantedClaims, err
	})
}

// clear deletes the objects of this or an earlier run, and waits until they are
// gone.
func (o planObjects) clear(ctx context.Context) error {
	all := []client.ObjectList{&corev1.NamespaceList{}, &corev1.PersistentVolumeList{}, &corev1.ConfigMapList{}, &storagev1.StorageClassList{}, &snapshotv1.VolumeSnapshotClassList{}}
	return stage.Until(ctx, "the API objects of planning are gone", func(ctx context.Context) (bool, error) {
		left, err := o.clearKinds(ctx)
		if err != nil || left > 0 {
			return false, err
		}
		for _, list := range all {
			n, err := o.clearSome(ctx, list)
			if err != nil {
				return false, err
			}
			left += n
		}
		if left == 0 {
			return true, nil
		}
		// Those of namespaces that are being deleted.
		_, err = o.clearSome(ctx, &corev1.PersistentVolumeClaimList{})
		return false, err
	})
}

// clearSome deletes the objects of one kind and tells how many there were. The
// controllers that would release claims and volumes take minutes for so many.
func (o planObjects) clearSome(ctx context.Context, list client.ObjectList) (int, error) {
	if err := o.List(ctx, list, ofPlanning); err != nil {
		return 0, err
	}
	objects, err := itemsOf(list)
	if err != nil {
		return 0, err
	}
	return len(objects), inParallel(ctx, len(objects), func(ctx context.Context, i int) error {
		object := objects[i]
		if object.GetDeletionTimestamp() == nil {
			if err := client.IgnoreNotFound(o.Delete(ctx, object)); err != nil {
				return err
			}
		}
		if len(object.GetFinalizers()) == 0 {
			return nil
		}
		return client.IgnoreNotFound(o.Patch(ctx, object, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))))
	})
}

// inParallel calls do for 0 to n-1, some side by side. It stops at an error.
func inParallel(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var working sync.WaitGroup
	for range min(n, planWorkers) {
		working.Go(func() {
			for i := range next {
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := 0; i < n && ctx.Err() == nil; i++ {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	working.Wait()
	return context.Cause(ctx)
}

// itemsOf are the objects of a list.
func itemsOf(list client.ObjectList) ([]client.Object, error) {
	var objects []client.Object
	err := meta.EachListItem(list, func(item runtime.Object) error {
		object, ok := item.(client.Object)
		if !ok {
			return fmt.Errorf("%T is no object", item)
		}
		objects = append(objects, object)
		return nil
	})
	return objects, err
}
