package unit

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"stillpoint.io/stillpoint/internal/annotated"
	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/workload"
)

// IsAnnotation reports whether a key is one that users write for a quiesce, or
// looks like one.
func IsAnnotation(key string) bool {
	return strings.HasPrefix(key, api.Domain) && !slices.Contains(onClaims, key) ||
		strings.HasPrefix(key, api.AnnotationOptionPrefix) || key == api.AnnotationKanister
}

// Object is an annotated object that is no workload, claim or namespace: a
// custom resource, a ConfigMap, whatever there is. What it asks for is a hook
// of its own, which is run once in a freeze.
type Object struct {
	annotated.Object
	// content is the object in full; of facts that are not of now it is what
	// is known without asking.
	content  *unstructured.Unstructured
	settings Settings
	invalid  error

	// claims are those that it stands for, all reports that it is because
	// nothing of the namespace depends on it. Claims that have annotations of
	// their own are not among them.
	claims map[string]bool
	all    bool
	// pods are those that run and mount any of claims.
	pods []corev1.Pod
	// above are the annotated objects that own it.
	above []*Object
}

// isQuiesced reports whether the object has a say: nothing is to be run for one whose
// annotation is "none".
func (o *Object) isQuiesced() bool { return o.invalid != nil || len(o.settings.Blueprints) > 0 }

// lineage is who owns whom, by UID.
type lineage map[types.UID][]types.UID

// ancestors are all owners of an object, and theirs, any number of steps up.
func (l lineage) ancestors(of types.UID) map[types.UID]bool {
	found := map[types.UID]bool{}
	var climb func(uid types.UID)
	climb = func(uid types.UID) {
		for _, owner := range l[uid] {
			if !found[owner] && owner != of {
				found[owner] = true
				climb(owner)
			}
		}
	}
	climb(of)
	return found
}

// lineage joins what is known of the namespace.
func (f *Facts) lineage(view *annotated.View) lineage {
	all := lineage{}
	maps.Copy(all, view.Owners)
	maps.Copy(all, f.inventory.Owners())
	for i := range f.claims {
		for _, owner := range f.claims[i].OwnerReferences {
			all[f.claims[i].UID] = append(all[f.claims[i].UID], owner.UID)
		}
	}
	return all
}

// takeObjects makes what a survey has seen into what it means. full are the
// objects as they are now; nil is that the survey's word is good enough.
func (f *Facts) takeObjects(view *annotated.View, templates map[workload.Ref]workload.Template, full *annotated.Contents) {
	if len(view.Annotated) == 0 {
		return
	}
	f.line = f.lineage(view)
	byUID := map[types.UID]*Object{}
	var all []*Object
	for _, seen := range view.Annotated {
		if seen.Known() {
			f.annotated = append(f.annotated, seen)
			continue
		}
		o := newObject(seen, f.namespace)
		if full != nil && !o.complete(full, f.namespace) {
			continue // gone since
		}
		byUID[seen.UID] = o
		all = append(all, o)
	}
	for _, o := range all {
		for owner := range f.line.ancestors(o.UID) {
			if above := byUID[owner]; above != nil {
				o.above = append(o.above, above)
			}
		}
	}
	// What repeats its owner counts there.
	f.objects = slices.DeleteFunc(slices.Clone(all), func(o *Object) bool {
		return slices.ContainsFunc(o.above, func(above *Object) bool { return repeats(o.Annotations, above.Annotations) })
	})
	f.assignClaims(view, templates)
	slices.SortStableFunc(f.objects, func(a, b *Object) int {
		return cmp.Or(cmp.Compare(len(a.above), len(b.above)), compareBool(b.all, a.all), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// newObject reads the annotations of an object. A namespace's are the default
// of everything but the blueprints: these it names for its workloads.
func newObject(seen annotated.Object, namespace *corev1.Namespace) *Object {
	o := &Object{Object: seen, claims: map[string]bool{}}
	o.content = &unstructured.Unstructured{Object: map[string]any{}}
	o.content.SetAPIVersion(seen.APIVersion)
	o.content.SetKind(seen.Kind)
	o.content.SetNamespace(seen.Namespace)
	o.content.SetName(seen.Name)
	o.content.SetUID(seen.UID)
	o.content.SetAnnotations(maps.Clone(seen.Annotations))
	o.resolve(namespace)
	return o
}

// complete takes an object as it is now. It returns false when it is gone, or
// has no annotation any more.
func (o *Object) complete(full *annotated.Contents, namespace *corev1.Namespace) bool {
	if err := full.Failed[o.UID]; err != nil {
		o.invalid = fmt.Errorf("%s asks to be quiesced: %w", o.Ref, err)
		return true
	}
	content := full.Found[o.UID]
	if content == nil {
		return false
	}
	o.content = content
	o.Annotations = ours(content.GetAnnotations())
	o.resolve(namespace)
	return len(o.Annotations) > 0
}

func (o *Object) resolve(namespace *corev1.Namespace) {
	layers := []Layer{{Object: o.String(), Annotations: o.Annotations}, {Object: "Namespace " + namespace.Name, Annotations: namespace.Annotations}}
	o.settings, o.invalid = Resolve(layers)
	if o.invalid != nil || decides(o.Annotations) {
		return
	}
	o.settings.Blueprints = nil
	o.invalid = fmt.Errorf("%s: annotation %s has no effect without %s beside it", o.Ref, slices.Sorted(maps.Keys(o.Annotations))[0], api.AnnotationQuiesce)
}

// ours are the annotations that IsAnnotation says yes to.
func ours(annotations map[string]string) map[string]string {
	found := maps.Clone(annotations)
	maps.DeleteFunc(found, func(key, _ string) bool { return !IsAnnotation(key) })
	return found
}

// decides reports whether annotations name blueprints, or say that there are none.
func decides(annotations map[string]string) bool {
	_, quiesce := annotations[api.AnnotationQuiesce]
	_, kanister := annotations[api.AnnotationKanister]
	return quiesce || kanister
}

// repeats reports whether the annotations of an object say nothing that those of
// its owner do not say: operators hand annotations down to what they make.
func repeats(of, owner map[string]string) bool {
	if len(of) == 0 {
		return false
	}
	for key, value := range of {
		if said, ok := owner[key]; !ok || said != value {
			return false
		}
	}
	return owner[api.AnnotationQuiesce] == of[api.AnnotationQuiesce] && owner[api.AnnotationKanister] == of[api.AnnotationKanister]
}

// ownerRepeatedBy is the owner at which the annotations of what has these owners count,
// nil when it is none of them.
func (f *Facts) ownerRepeatedBy(annotations map[string]string, owners ...metav1.OwnerReference) *Object {
	if len(f.objects) == 0 {
		return nil
	}
	ours := ours(annotations)
	above := map[types.UID]bool{}
	for _, owner := range owners {
		above[owner.UID] = true
		maps.Copy(above, f.line.ancestors(owner.UID))
	}
	for _, o := range f.objects {
		if above[o.UID] && repeats(ours, o.Annotations) {
			return o
		}
	}
	return nil
}

// assignClaims finds out which claims each object stands for: those that it owns, and
// those of pods and workloads that it owns; where it owns nothing of the kind,
// all claims of the namespace.
func (f *Facts) assignClaims(view *annotated.View, templates map[workload.Ref]workload.Template) {
	byUID := map[types.UID]*Object{}
	for _, o := range f.objects {
		byUID[o.UID] = o
	}
	owns := map[*Object]bool{}
	below := func(uid types.UID, found func(o *Object)) {
		for owner := range f.line.ancestors(uid) {
			if o := byUID[owner]; o != nil {
				owns[o] = true
				found(o)
			}
		}
	}
	add := func(o *Object, claim string) {
		if f.canBeAssigned(claim) {
			o.claims[claim] = true
		}
	}
	for i := range f.claims {
		below(f.claims[i].UID, func(o *Object) { add(o, f.claims[i].Name) })
	}
	for uid := range f.inventory.Owners() {
		below(uid, func(*Object) {})
	}
	pods := f.inventory.Pods()
	for p := range pods {
		below(pods[p].UID, func(o *Object) {
			for _, claim := range workload.Claims(&pods[p]) {
				add(o, claim)
			}
		})
	}
	for _, ref := range view.Workloads {
		below(ref.UID, func(o *Object) {
			for i := range f.claims {
				if templates[ref].Mounts(f.claims[i].Name) {
					add(o, f.claims[i].Name)
				}
			}
		})
	}
	for _, o := range f.objects {
		if !owns[o] {
			o.all = true
			for i := range f.claims {
				add(o, f.claims[i].Name)
			}
		}
		for p := range pods {
			if slices.ContainsFunc(workload.Claims(&pods[p]), func(claim string) bool { return o.claims[claim] }) {
				o.pods = append(o.pods, pods[p])
			}
		}
	}
}

// canBeAssigned reports whether objects can stand for a claim: it is there, and has no
// say of its own.
func (f *Facts) canBeAssigned(name string) bool {
	claim := f.Claim(name)
	if claim == nil {
		return false
	}
	own, err := f.hasOwnAnnotations(claim)
	return err == nil && !own
}

// hasOwnAnnotations reports whether a claim itself says what to do for it.
func (f *Facts) hasOwnAnnotations(claim *corev1.PersistentVolumeClaim) (bool, error) {
	if f.ownerRepeatedBy(claim.Annotations, claim.OwnerReferences...) != nil {
		return false, nil
	}
	return hasOwn(claim)
}

// templatesOf reads the templates of the workloads that annotated objects own.
func templatesOf(ctx context.Context, kube kubernetes.Interface, namespace string, view *annotated.View) (map[workload.Ref]workload.Template, error) {
	l := lineage(view.Owners)
	var wanted []workload.Ref
	for _, ref := range view.Workloads {
		above := l.ancestors(ref.UID)
		if slices.ContainsFunc(view.Annotated, func(o annotated.Object) bool { return !o.Known() && above[o.UID] }) {
			wanted = append(wanted, ref)
		}
	}
	return workload.Templates(ctx, kube, namespace, wanted)
}

// part is the object's share of a group.
func (o *Object) part() Part {
	return Part{
		Workload: workload.Workload{Ref: o.Ref, Object: o.content, Pods: o.pods, CurrentPods: o.current()},
		Settings: o.settings,
		Source:   o.content.Object,
		claims:   o.claims,
		Object:   o,
	}
}

// current are the pods that templates see: of an OpenShift DeploymentConfig those of
// its current deployment, otherwise all that hooks can reach.
func (o *Object) current() []corev1.Pod {
	pods := workload.Reachable(o.pods)
	if o.Kind != "DeploymentConfig" {
		return pods
	}
	version, found, err := unstructured.NestedInt64(o.content.Object, "status", "latestVersion")
	return slices.DeleteFunc(pods, func(pod corev1.Pod) bool {
		other := found && err == nil && pod.Labels["deployment"] != fmt.Sprintf("%s-%d", o.Name, version)
		return pod.Labels["deploymentconfig"] != o.Name || other
	})
}

// joined is the unit of a claim, together with the units of all claims that
// objects stand for which stand for any of its own, and these objects.
func (f *Facts) joined(claim string) (workload.Component, []*Object) {
	unit := f.inventory.ComponentOf(claim)
	if len(f.objects) == 0 {
		return unit, nil
	}
	claims := map[string]bool{claim: true}
	workloads := map[workload.Ref]workload.Workload{}
	add := func(unit workload.Component) {
		for _, w := range unit.Workloads {
			workloads[w.Ref] = w
		}
		for _, name := range unit.Claims {
			claims[name] = true
		}
	}
	add(unit)
	in := map[*Object]bool{}
	for grown := true; grown; {
		grown = false
		for _, o := range f.objects {
			if in[o] || !o.isQuiesced() || !overlap(o.claims, claims) {
				continue
			}
			in[o], grown = true, true
			for name := range o.claims {
				if !claims[name] {
					claims[name] = true
					add(f.inventory.ComponentOf(name))
				}
			}
		}
	}
	if len(in) == 0 {
		return unit, nil
	}
	var objects []*Object
	for _, o := range f.objects {
		if in[o] {
			objects = append(objects, o)
		}
	}
	whole := workload.Component{Claims: slices.Sorted(maps.Keys(claims))}
	whole.Workloads = slices.SortedFunc(maps.Values(workloads), func(a, b workload.Workload) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return whole, objects
}

func overlap(a, b map[string]bool) bool {
	for name := range a {
		if b[name] {
			return true
		}
	}
	return false
}

// AnnotatedObject is an annotated object of a group that is no workload.
type AnnotatedObject struct {
	workload.Ref
	// Claims are those that it stands for, sorted; All reports that it is because
	// nothing of the namespace depends on it.
	Claims    []string
	AllClaims bool
	names     []string
}

// Is reports whether the object is of a kind that a user means: by its kind, the
// name of the resource or a short one, with or without the group.
func (s AnnotatedObject) Is(kind string) bool { return slices.Contains(s.names, strings.ToLower(kind)) }

// AnnotatedObjects are the objects that stand for volumes of the group, in the order of
// their hooks.
func (g *Unit) AnnotatedObjects() []AnnotatedObject {
	var all []AnnotatedObject
	for _, part := range g.Parts {
		if o := part.Object; o != nil {
			all = append(all, AnnotatedObject{Ref: o.Ref, Claims: slices.Sorted(maps.Keys(o.claims)), AllClaims: o.all, names: o.Names})
		}
	}
	return all
}

// RepeatedAnnotations are the workloads whose annotations count at an object that owns them,
// each in a sentence.
func (g *Unit) RepeatedAnnotations() []string {
	var all []string
	for _, part := range g.Parts {
		if part.repeatsOwner != nil {
			all = append(all, fmt.Sprintf("The annotations of %s only repeat those of %s, and count there.", part.Workload, part.repeatsOwner.Ref))
		}
	}
	return all
}

// DuplicateBlueprints are the blueprints that run for an annotated object and for what shares
// its volumes, too, each in a sentence. Both were asked for, and only one may be
// meant. File systems are frozen once whoever asks.
func (g *Unit) DuplicateBlueprints() []string {
	var all []string
	for i, part := range g.Parts {
		for _, name := range part.Settings.Blueprints {
			var others []string
			for _, other := range g.Parts[i+1:] {
				if slices.Contains(other.Settings.Blueprints, name) {
					others = append(others, other.Workload.String())
				}
			}
			if part.Object != nil && name != FSFreeze && len(others) > 0 {
				all = append(all, fmt.Sprintf("Blueprint %s runs for %s and for %s: each names it.", name, part.Workload, strings.Join(others, " and for ")))
			}
		}
	}
	return all
}

// Idle is something annotated for which nothing is run, because it stands for no
// volume.
type Idle struct {
	AnnotatedObject
	// Text says so and why, in a sentence.
	Text string
	// Warning is set where pods run that the annotations are probably meant for.
	Warning bool
}

// Idle are the annotated objects and workloads of the namespace without a volume to
// stand for, and controllers between pods and the controller whose annotations count.
func (f *Facts) Idle() []Idle {
	var all []Idle
	between := f.inventory.Between()
	for _, ref := range slices.SortedFunc(maps.Keys(between), func(a, b workload.Ref) int { return cmp.Compare(a.String(), b.String()) }) {
		b := between[ref]
		said := ours(b.Object.GetAnnotations())
		top := f.inventory.Top(b.Top)
		repeated := top != nil && maps.Equal(said, ours(top.GetAnnotations())) || f.ownerRepeatedBy(said, metav1.OwnerReference{UID: b.Top.UID}) != nil
		if len(said) > 0 && !repeated {
			all = append(all, Idle{
				AnnotatedObject: AnnotatedObject{Ref: ref},
				Text:            fmt.Sprintf("The annotations of %s are not acted on, since it belongs to %s: annotate that.", ref, b.Top),
				Warning:         b.Top.Kind != "Deployment", // which leaves copies of annotations that it has no more
			})
		}
	}
	idle := func(of annotated.Object, why string) {
		all = append(all, Idle{
			AnnotatedObject: AnnotatedObject{Ref: of.Ref, names: of.Names},
			Text:            fmt.Sprintf("Nothing is run for %s, which is annotated: %s.", of.Ref, why),
		})
	}
	for _, o := range f.objects {
		switch {
		case !o.isQuiesced() || len(o.claims) > 0:
		case o.all:
			idle(o.Object, "all claims of the namespace have annotations of their own")
		default:
			idle(o.Object, "the pods, workloads and claims that it owns leave it no volume to stand for")
		}
	}
	for _, w := range f.annotated {
		settings, err := Resolve([]Layer{{Object: w.String(), Annotations: w.Annotations}})
		if _, counts := between[w.Ref]; counts || (err == nil && len(settings.Blueprints) == 0) || f.inventory.Runs(w.UID) {
			continue
		}
		if f.ownerRepeatedBy(w.Annotations, ownersOf(f.line[w.UID])...) == nil {
			idle(w, "none of its pods runs and mounts a claim")
		}
	}
	return all
}

func ownersOf(uids []types.UID) []metav1.OwnerReference {
	var owners []metav1.OwnerReference
	for _, uid := range uids {
		owners = append(owners, metav1.OwnerReference{UID: uid})
	}
	return owners
}
