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

// Unit is the volumes that one freeze covers, and what their annotations ask
// for.
type Unit struct {
	// Unit is all workloads that share volumes with these.
	Component workload.Component
	// Claims are the volumes of the freeze, sorted by name.
	Claims []corev1.PersistentVolumeClaim
	// OnError is valid even when the rest is not.
	OnError OnError

	Namespace *corev1.Namespace // of the claims
	Parts     []Part
	foundBy   string // the claim that the group was found by
}

// Part is the share that one workload has in a group, or one object that is none
// but stands for volumes.
type Part struct {
	Workload workload.Workload
	Settings Settings
	// source is the object that named the blueprints.
	Source map[string]any
	Claim  *corev1.PersistentVolumeClaim // when source is a claim
	// object is nil for a workload, and claims what it stands for otherwise.
	Object *Object
	claims map[string]bool
	// said are the annotations of the layer that named the blueprints.
	annotations map[string]string
	// ofNamespace reports that it was the namespace.
	ofNamespace bool
	// repeats is the object at which these annotations count.
	repeatsOwner *Object
}

// Covers reports whether the part's hooks are for a claim.
func (p Part) Covers(claim string) bool {
	if p.Object != nil {
		return p.claims[claim]
	}
	return uses(p.Workload, claim)
}

// Quiesced reports whether anything is to be quiesced.
func (g *Unit) Quiesced() bool {
	return slices.ContainsFunc(g.Parts, func(p Part) bool { return len(p.Settings.Blueprints) > 0 })
}

// quiescedParts are the parts that are to be quiesced; all of them when annotations
// are not valid and it is not known which.
func (g *Unit) quiescedParts() []Part {
	asked := slices.DeleteFunc(slices.Clone(g.Parts), func(p Part) bool { return len(p.Settings.Blueprints) == 0 })
	if len(asked) == 0 {
		return g.Parts
	}
	return asked
}

// Name is what messages call the group: its workloads, or the claims where no
// workload stands for them.
func (g *Unit) Name() string {
	var names []string
	for _, part := range g.quiescedParts() {
		if part.Claim != nil {
			return claimName(part.Claim)
		}
		if name := part.Workload.String(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		for i := range g.Claims {
			names = append(names, claimName(&g.Claims[i]))
		}
	}
	return strings.Join(names, " and ")
}

// MixedPaths is the error of a group whose volumes take different ways to a snapshot:
// two claims, and what the way of each is called in package selection.
func (g *Unit) MixedPaths(claim, way, other, otherWay string) error {
	return fmt.Errorf("the volumes of %s cannot be of one moment: %s, and %s; treat them alike, or give one of the claims an annotation %s of its own",
		g.Name(), taken(claim, way), taken(other, otherWay), api.AnnotationQuiesce)
}

func taken(claim, way string) string {
	switch way {
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

// Refs are the workloads and other objects that are quiesced, for events.
func (g *Unit) Refs() []workload.Ref {
	var refs []workload.Ref
	for _, part := range g.quiescedParts() {
		if !slices.Contains(refs, part.Workload.Ref) {
			refs = append(refs, part.Workload.Ref)
		}
	}
	return refs
}

// Unit finds out what is frozen together with a claim: the volumes of its
// unit, and of those that an annotated object joins with it, except those whose
// claims have quiesce annotations of their own; each of these is a group by
// itself. Where nothing is to be quiesced, a group is what is snapshotted
// together. It is returned even with an error, as far as it is known.
func (f *Facts) Unit(claim *corev1.PersistentVolumeClaim) (*Unit, error) {
	group := &Unit{OnError: Fail, Claims: []corev1.PersistentVolumeClaim{*claim}, Namespace: f.namespace, foundBy: claim.Name}
	own, err := f.hasOwnAnnotations(claim)
	if err != nil {
		return group, err
	}
	var invalid error // the first; the others still have a say in OnError
	take := func(part Part, err error) {
		if asks := len(part.Settings.Blueprints) > 0; asks || err != nil {
			group.OnError = strictest(invalid != nil || group.Quiesced(), part.Settings.OnError, group.OnError)
		}
		group.Parts = append(group.Parts, part)
		if invalid == nil {
			invalid = err
		}
	}
	if own {
		group.Component = f.inventory.ComponentOf(claim.Name)
	} else {
		var objects []*Object
		group.Component, objects = f.joined(claim.Name)
		for _, o := range objects {
			take(o.part(), o.invalid)
		}
	}
	for _, w := range individuals(group.Component.Workloads) {
		if own && !uses(w, claim.Name) {
			continue
		}
		take(f.part(w, claim, own))
		if own { // one claim, one plan: the first workload stands for all that mount it
			break
		}
	}
	if invalid != nil || own {
		return group, invalid
	}

	quiesced := func(name string) bool {
		return slices.ContainsFunc(group.Parts, func(p Part) bool {
			return len(p.Settings.Blueprints) > 0 && p.Covers(name)
		})
	}
	asked := quiesced(claim.Name)
	for _, other := range f.claims {
		if other.Name == claim.Name || !slices.Contains(group.Component.Claims, other.Name) || quiesced(other.Name) != asked {
			continue
		}
		if own, err := f.hasOwnAnnotations(&other); err != nil || own {
			continue // its own group, or its own error
		}
		group.Claims = append(group.Claims, other)
	}
	if !asked && group.Quiesced() { // others of the unit are quiesced, without it
		group.Parts = nil
	}
	slices.SortFunc(group.Claims, func(a, b corev1.PersistentVolumeClaim) int { return cmp.Compare(a.Name, b.Name) })
	return group, nil
}

// KeepClaims leaves in the group the claim that it was found by, and those others for
// which included says yes.
func (g *Unit) KeepClaims(included func(corev1.PersistentVolumeClaim) (bool, error)) error {
	var kept []corev1.PersistentVolumeClaim
	for _, claim := range g.Claims {
		in := claim.Name == g.foundBy
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
	g.Claims = kept
	return nil
}

// QuiescedWith reports whether anything of a pod's unit is to be quiesced, and returns
// what is frozen together with it. Annotations that are not valid count as yes:
// they come to light where the plan is made.
func (f *Facts) QuiescedWith(pod *corev1.Pod) (workload.Component, bool) {
	unit := f.inventory.ComponentOfPod(pod)
	for _, claim := range unit.Claims {
		if !slices.Contains(workload.Claims(pod), claim) {
			continue
		}
		if whole, objects := f.joined(claim); len(objects) > 0 {
			return whole, true
		}
	}
	for _, w := range individuals(unit.Workloads) {
		part, err := f.part(w, nil, false)
		if err != nil || len(part.Settings.Blueprints) > 0 {
			return unit, true
		}
	}
	return unit, false
}

// JoinedByObjects is what is frozen together with a claim when annotated objects join
// it with others; false when there are none.
func (f *Facts) JoinedByObjects(claim string) (workload.Component, bool) {
	if c := f.Claim(claim); c == nil || !f.canBeAssigned(claim) {
		return workload.Component{}, false
	}
	unit, objects := f.joined(claim)
	return unit, len(objects) > 0
}

// strictest joins the setting of one more workload to that of those before. One
// that is not to be quiesced has no say.
func strictest(before bool, next, so OnError) OnError {
	if !before || next == Fail {
		return next
	}
	return so
}

// InUse reports whether a pod writes to a claim, or may at any moment.
func (g *Unit) InUse(claim string) bool {
	return slices.ContainsFunc(g.Component.Workloads, func(w workload.Workload) bool { return uses(w, claim) })
}

func uses(w workload.Workload, claim string) bool {
	return slices.ContainsFunc(w.Pods, func(pod corev1.Pod) bool { return workload.Uses(&pod, claim) })
}

// individuals replaces a workload by one for each of its pods where pods of one
// revision have different annotations: no rollout changes these, but an operator
// that annotates the one pod of its cluster which is to be quiesced.
func individuals(workloads []workload.Workload) []workload.Workload {
	var all []workload.Workload
	for _, w := range workloads {
		first := slices.IndexFunc(w.Pods, func(pod corev1.Pod) bool { return !maps.Equal(domain(pod.Annotations), domain(w.Pods[0].Annotations)) })
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

// revisionOf is what tells pods of one controller apart by the template they are of.
func revisionOf(pod *corev1.Pod) string {
	revision := pod.Labels["controller-revision-hash"]
	if owner := metav1.GetControllerOf(pod); owner != nil {
		revision += "/" + owner.Name
	}
	return revision
}

// hasOwn reports whether a claim itself says what to do for it. Other settings on
// a claim that says nothing of the kind would have no effect, so they are an
// error.
func hasOwn(claim *corev1.PersistentVolumeClaim) (bool, error) {
	_, quiesce := claim.Annotations[api.AnnotationQuiesce]
	_, kanister := claim.Annotations[api.AnnotationKanister]
	if quiesce || kanister {
		return true, nil
	}
	layer := Layer{Object: claimName(claim), Annotations: claim.Annotations, Claim: true}
	if err := unknown(layer); err != nil {
		return false, err
	}
	for _, key := range slices.Sorted(maps.Keys(claim.Annotations)) {
		if slices.Contains(known, key) || strings.HasPrefix(key, api.AnnotationOptionPrefix) {
			return false, fmt.Errorf("%s: annotation %s has no effect without %s beside it; to set it for all volumes of the workload, annotate the workload",
				layer.Object, key, api.AnnotationQuiesce)
		}
	}
	return false, nil
}

// part is a workload's, without what counts at an object that stands for its
// volumes.
func (f *Facts) part(w workload.Workload, claim *corev1.PersistentVolumeClaim, own bool) (Part, error) {
	p, err := newPart(w, f.namespace, claim, own)
	if err != nil || p.Claim != nil || len(p.Settings.Blueprints) == 0 || len(f.objects) == 0 {
		return p, err
	}
	owners := []metav1.OwnerReference{{UID: w.UID}}
	if w.Object != nil {
		owners = w.Object.GetOwnerReferences()
	}
	controller := slices.ContainsFunc(f.objects, func(o *Object) bool { return o.UID == w.UID && decides(o.Annotations) })
	if !p.ofNamespace {
		p.repeatsOwner = f.ownerRepeatedBy(p.annotations, owners...)
	}
	if p.ofNamespace && controller || p.repeatsOwner != nil {
		p.Settings.Blueprints = nil
	}
	return p, nil
}

// newPart resolves the annotations of one workload: the claim's own where it has
// some, those of the pod template, the controller and the namespace.
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

// templateAnnotations are ours among the annotations of a controller's pods,
// which carry what its template says. Pods that disagree, as in the middle of a
// rollout, are an error: neither can be taken for what the user means now.
func templateAnnotations(w workload.Workload) (map[string]string, error) {
	pods := slices.DeleteFunc(slices.Clone(w.Pods), func(pod corev1.Pod) bool { return pod.DeletionTimestamp != nil })
	if len(pods) == 0 {
		pods = w.Pods
	}
	first := domain(pods[0].Annotations)
	for _, pod := range pods {
		if !maps.Equal(first, domain(pod.Annotations)) {
			return nil, fmt.Errorf("%s: pods %s and %s, which are of different revisions, have different quiesce annotations; wait for the rollout to end",
				w, pods[0].Name, pod.Name)
		}
	}
	return first, nil
}

// domain are the annotations that are ours, or look so.
func domain(annotations map[string]string) map[string]string {
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
