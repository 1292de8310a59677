package unit

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/workload"
)

// Unit has the volumes of one freeze and the settings of their workloads and objects.
type Unit struct {
	// Component has all workloads that share volumes with the claims.
	Component workload.Component
	// Claims are sorted by name.
	Claims []corev1.PersistentVolumeClaim
	// OnError is valid even if Facts.Unit returned an error.
	OnError OnError

	Namespace *corev1.Namespace // of the claims
	Parts     []Part
	foundBy   string // the claim that Facts.Unit was called for
}

// Part is one workload of a unit, or one annotated object that stands for volumes.
type Part struct {
	Workload workload.Workload
	Settings Settings
	// Source is the object that names the blueprints.
	Source map[string]any
	Claim  *corev1.PersistentVolumeClaim // set if Source is a claim
	// Object is nil for a workload. For an object, claims are the claims that it stands
	// for.
	Object *Object
	claims map[string]bool
	// annotations are those of the layer that names the blueprints.
	annotations map[string]string
	// ofNamespace is true if that layer is the namespace.
	ofNamespace bool
	// repeatsOwner is the owner whose annotations this part repeats.
	repeatsOwner *Object
}

// Covers reports whether the hooks of the part apply to a claim.
func (p Part) Covers(claim string) bool {
	if p.Object != nil {
		return p.claims[claim]
	}
	return uses(p.Workload, claim)
}

// Quiesced reports whether any part names blueprints.
func (u *Unit) Quiesced() bool {
	return slices.ContainsFunc(u.Parts, func(p Part) bool { return len(p.Settings.Blueprints) > 0 })
}

// quiescedParts returns the parts that name blueprints, or all parts if none does, which is
// also the case if annotations are invalid.
func (u *Unit) quiescedParts() []Part {
	asked := slices.DeleteFunc(slices.Clone(u.Parts), func(p Part) bool { return len(p.Settings.Blueprints) == 0 })
	if len(asked) == 0 {
		return u.Parts
	}
	return asked
}

// Name names the unit in messages: its workloads, or its claims if it has no workload.
func (u *Unit) Name() string {
	var names []string
	for _, part := range u.quiescedParts() {
		if part.Claim != nil {
			return claimName(part.Claim)
		}
		if name := part.Workload.String(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		for i := range u.Claims {
			names = append(names, claimName(&u.Claims[i]))
		}
	}
	return strings.Join(names, " and ")
}

// MixedPaths returns the error for a unit with volumes on different paths. The paths are
// those of package selection.
func (u *Unit) MixedPaths(claim, path, other, otherPath string) error {
	return fmt.Errorf("the volumes of %s cannot be of one moment: %s, and %s; treat them alike, or give one of the claims an annotation %s of its own",
		u.Name(), describePath(claim, path), describePath(other, otherPath), api.AnnotationQuiesce)
}

func describePath(claim, path string) string {
	switch path {
	case "group":
		return "a volume policy hands claim " + claim + " to Stillpoint's group snapshots"
	case "velero":
		return "claim " + claim + " is left to Velero's CSI snapshots"
	default:
		return "claim " + claim + " goes through a VolumeSnapshotLocation"
	}
}

func claimName(claim *corev1.PersistentVolumeClaim) string {
	return fmt.Sprintf("PersistentVolumeClaim %s/%s", claim.Namespace, claim.Name)
}

// Refs returns the workloads and objects that are quiesced, which get the events.
func (u *Unit) Refs() []workload.Ref {
	var refs []workload.Ref
	for _, part := range u.quiescedParts() {
		if !slices.Contains(refs, part.Workload.Ref) {
			refs = append(refs, part.Workload.Ref)
		}
	}
	return refs
}

// Unit returns the unit of a claim: the volumes of its component and of components that an
// annotated object joins with it. A claim with quiesce annotations of its own is a unit by
// itself. If nothing is quiesced, the unit has the claims that are snapshotted together. If
// Unit returns an error, the unit is incomplete but not nil.
func (f *Facts) Unit(claim *corev1.PersistentVolumeClaim) (*Unit, error) {
	unit := &Unit{OnError: Fail, Claims: []corev1.PersistentVolumeClaim{*claim}, Namespace: f.namespace, foundBy: claim.Name}
	own, err := f.hasOwnAnnotations(claim)
	if err != nil {
		return unit, err
	}
	var invalid error // the first error; all parts count for OnError
	take := func(part Part, err error) {
		if asks := len(part.Settings.Blueprints) > 0; asks || err != nil {
			unit.OnError = strictest(invalid != nil || unit.Quiesced(), part.Settings.OnError, unit.OnError)
		}
		unit.Parts = append(unit.Parts, part)
		if invalid == nil {
			invalid = err
		}
	}
	if own {
		unit.Component = f.inventory.ComponentOf(claim.Name)
	} else {
		var objects []*Object
		unit.Component, objects = f.joinedComponent(claim.Name)
		for _, o := range objects {
			take(o.part(), o.invalid)
		}
	}
	for _, w := range splitByAnnotations(unit.Component.Workloads) {
		if own && !uses(w, claim.Name) {
			continue
		}
		take(f.part(w, claim, own))
		if own { // one plan per claim: the first workload represents all that mount it
			break
		}
	}
	if invalid != nil || own {
		return unit, invalid
	}

	quiesced := func(name string) bool {
		return slices.ContainsFunc(unit.Parts, func(p Part) bool {
			return len(p.Settings.Blueprints) > 0 && p.Covers(name)
		})
	}
	asked := quiesced(claim.Name)
	for _, other := range f.claims {
		if other.Name == claim.Name || !slices.Contains(unit.Component.Claims, other.Name) || quiesced(other.Name) != asked {
			continue
		}
		if own, err := f.hasOwnAnnotations(&other); err != nil || own {
			continue // a unit by itself
		}
		unit.Claims = append(unit.Claims, other)
	}
	if !asked && unit.Quiesced() { // the blueprints apply to other claims only
		unit.Parts = nil
	}
	slices.SortFunc(unit.Claims, func(a, b corev1.PersistentVolumeClaim) int { return cmp.Compare(a.Name, b.Name) })
	return unit, nil
}

// KeepClaims removes the claims for which included returns false. It keeps the claim that
// Facts.Unit was called for.
func (u *Unit) KeepClaims(included func(corev1.PersistentVolumeClaim) (bool, error)) error {
	var kept []corev1.PersistentVolumeClaim
	for _, claim := range u.Claims {
		in := claim.Name == u.foundBy
		if !in {
			var err error
			if in, err = included(claim); err != nil {
				return err
			}
		}
		if in {
			kept = append(kept, claim)
		}
	}
	u.Claims = kept
	return nil
}

// QuiescedWith returns the component that is frozen together with a pod, and reports
// whether it is quiesced. Invalid annotations count as true: the plan returns their error.
func (f *Facts) QuiescedWith(pod *corev1.Pod) (workload.Component, bool) {
	component := f.inventory.ComponentOfPod(pod)
	for _, claim := range component.Claims {
		if !slices.Contains(workload.Claims(pod), claim) {
			continue
		}
		if whole, objects := f.joinedComponent(claim); len(objects) > 0 {
			return whole, true
		}
	}
	for _, w := range splitByAnnotations(component.Workloads) {
		part, err := f.part(w, nil, false)
		if err != nil || len(part.Settings.Blueprints) > 0 {
			return component, true
		}
	}
	return component, false
}

// JoinedByObjects returns the component that is frozen together with a claim, and reports
// whether annotated objects join it.
func (f *Facts) JoinedByObjects(claim string) (workload.Component, bool) {
	if c := f.Claim(claim); c == nil || !f.canBeAssigned(claim) {
		return workload.Component{}, false
	}
	component, objects := f.joinedComponent(claim)
	return component, len(objects) > 0
}

// strictest combines the settings of two workloads that are quiesced. If before is false,
// so is a default and next replaces it.
func strictest(before bool, next, so OnError) OnError {
	if !before || next == Fail {
		return next
	}
	return so
}

// InUse reports whether a pod writes to a claim or can start to do so.
func (u *Unit) InUse(claim string) bool {
	return slices.ContainsFunc(u.Component.Workloads, func(w workload.Workload) bool { return uses(w, claim) })
}

func uses(w workload.Workload, claim string) bool {
	return slices.ContainsFunc(w.Pods, func(pod corev1.Pod) bool { return workload.Uses(&pod, claim) })
}

// individuals splits a workload into its pods if pods of one revision have different
// annotations. A rollout does not cause this, but an operator that annotates the one pod of
// its cluster to quiesce.
func splitByAnnotations(workloads []workload.Workload) []workload.Workload {
	var all []workload.Workload
	for _, w := range workloads {
		first := slices.IndexFunc(w.Pods, func(pod corev1.Pod) bool {
			return !maps.Equal(stillpointAnnotations(pod.Annotations), stillpointAnnotations(w.Pods[0].Annotations))
		})
		rollout := slices.ContainsFunc(w.Pods, func(pod corev1.Pod) bool { return revisionOf(&pod) != revisionOf(&w.Pods[0]) })
		if first < 0 || rollout {
			all = append(all, w)
			continue
		}
		for i := range w.Pods {
			one := w
			one.Pods = w.Pods[i : i+1]
			one.CurrentPods = workload.Reachable(one.Pods)
			all = append(all, one)
		}
	}
	return all
}

// revisionOf identifies the pod template that a pod was created from.
func revisionOf(pod *corev1.Pod) string {
	revision := pod.Labels["controller-revision-hash"]
	if owner := metav1.GetControllerOf(pod); owner != nil {
		revision += "/" + owner.Name
	}
	return revision
}

// hasOwn reports whether a claim names blueprints or has the value None. Other settings
// without one of these have no effect and are an error.
func hasOwn(claim *corev1.PersistentVolumeClaim) (bool, error) {
	_, quiesce := claim.Annotations[api.AnnotationQuiesce]
	_, kanister := claim.Annotations[api.AnnotationKanister]
	if quiesce || kanister {
		return true, nil
	}
	layer := Layer{Object: claimName(claim), Annotations: claim.Annotations, Claim: true}
	if err := unknownAnnotation(layer); err != nil {
		return false, err
	}
	for _, key := range slices.Sorted(maps.Keys(claim.Annotations)) {
		if slices.Contains(knownAnnotations, key) || strings.HasPrefix(key, api.AnnotationOptionPrefix) {
			return false, fmt.Errorf("%s: annotation %s has no effect without %s beside it; to set it for all volumes of the workload, annotate the workload",
				layer.Object, key, api.AnnotationQuiesce)
		}
	}
	return false, nil
}

// part returns the part of a workload, without blueprints that it repeats from an object
// that stands for its volumes.
func (f *Facts) part(w workload.Workload, claim *corev1.PersistentVolumeClaim, own bool) (Part, error) {
	p, err := newPart(w, f.namespace, claim, own)
	if err != nil || p.Claim != nil || len(p.Settings.Blueprints) == 0 || len(f.objects) == 0 {
		return p, err
	}
	owners := []metav1.OwnerReference{{UID: w.UID}}
	if w.Object != nil {
		owners = w.Object.GetOwnerReferences()
	}
	controller := slices.ContainsFunc(f.objects, func(o *Object) bool { return o.UID == w.UID && namesBlueprints(o.Annotations) })
	if !p.ofNamespace {
		p.repeatsOwner = f.ownerRepeatedBy(p.annotations, owners...)
	}
	if p.ofNamespace && controller || p.repeatsOwner != nil {
		p.Settings.Blueprints = nil
	}
	return p, nil
}

// newPart resolves the annotations of one workload. The layers are the claim if own is
// true, the pod template, the controller and the namespace.
func newPart(w workload.Workload, namespace *corev1.Namespace, claim *corev1.PersistentVolumeClaim, own bool) (Part, error) {
	result := Part{Workload: w, Settings: Settings{OnError: Fail}}
	var (
		layers  []Layer
		sources []func() (map[string]any, error)
	)
	add := func(name string, annotations map[string]string, source func() (map[string]any, error)) {
		layers = append(layers, Layer{Object: name, Annotations: annotations, Workload: true})
		sources = append(sources, source)
	}
	if own {
		add(claimName(claim), claim.Annotations, func() (map[string]any, error) {
			return asMap("v1", "PersistentVolumeClaim", claim)
		})
		layers[0].Claim, layers[0].Workload = true, false
	}
	if w.Kind != "Pod" {
		template, err := templateAnnotations(w)
		if err != nil {
			return result, err
		}
		add("the pods of "+w.String(), template, func() (map[string]any, error) {
			if w.Object == nil {
				return asMap("v1", "Pod", &w.Pods[0])
			}
			return asMap(w.APIVersion, w.Kind, w.Object)
		})
	}
	if w.Object != nil {
		add(w.String(), w.Object.GetAnnotations(), func() (map[string]any, error) { return asMap(w.APIVersion, w.Kind, w.Object) })
	}
	add("Namespace "+namespace.Name, namespace.Annotations, func() (map[string]any, error) { return asMap("v1", "Namespace", namespace) })
	layers[len(layers)-1].Workload = false

	var err error
	if result.Settings, err = Resolve(layers); err != nil {
		return result, err
	}
	if i := result.Settings.SourceLayer; i >= 0 {
		result.annotations, result.ofNamespace = layers[i].Annotations, i == len(layers)-1
		if result.Source, err = sources[i](); err != nil {
			return result, err
		}
		if own && i == 0 {
			result.Claim = claim
		}
	}
	return result, nil
}

// templateAnnotations returns the annotations of Stillpoint on a controller's pods. Pods
// that differ, as during a rollout, are an error, because it is not known which annotations
// the user wants.
func templateAnnotations(w workload.Workload) (map[string]string, error) {
	pods := slices.DeleteFunc(slices.Clone(w.Pods), func(pod corev1.Pod) bool { return pod.DeletionTimestamp != nil })
	if len(pods) == 0 {
		pods = w.Pods
	}
	first := stillpointAnnotations(pods[0].Annotations)
	for _, pod := range pods {
		if !maps.Equal(first, stillpointAnnotations(pod.Annotations)) {
			return nil, fmt.Errorf("%s: pods %s and %s, which are of different revisions, have different quiesce annotations; wait for the rollout to end",
				w, pods[0].Name, pod.Name)
		}
	}
	return first, nil
}

// domain returns all annotations of Stillpoint, also unknown ones.
func stillpointAnnotations(annotations map[string]string) map[string]string {
	found := maps.Clone(annotations)
	maps.DeleteFunc(found, func(key, _ string) bool {
		return !strings.HasPrefix(key, api.Domain) && !strings.HasPrefix(key, api.AnnotationOptionPrefix) && key != api.AnnotationKanister
	})
	return found
}

func asMap(apiVersion, kind string, object any) (map[string]any, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return nil, fmt.Errorf("convert a %s: %w", kind, err)
	}
	content["apiVersion"], content["kind"] = apiVersion, kind
	return content, nil
}
