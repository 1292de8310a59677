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

// IsAnnotation reports whether a key is a quiesce annotation, or a misspelled one.
func IsAnnotation(key string) bool {
	return strings.HasPrefix(key, api.Domain) && !slices.Contains(claimAnnotations, key) ||
		strings.HasPrefix(key, api.AnnotationOptionPrefix) || key == api.AnnotationKanister
}

// Object is an annotated object that is not a workload, claim or namespace, such as a
// custom resource or a ConfigMap. Its hooks run once in a freeze.
type Object struct {
	annotated.Object
	// content is the whole object if the facts are current, otherwise only its metadata.
	content  *unstructured.Unstructured
	settings Settings
	invalid  error

	// claims are the claims that the object stands for. Claims with annotations of their
	// own are excluded. all is true if it stands for all claims of the namespace, because
	// it owns nothing there.
	claims map[string]bool
	all    bool
	// pods are the pods in use that mount any of claims.
	pods []corev1.Pod
	// above are the annotated objects that own this object.
	above []*Object
}

// isQuiesced reports whether the object names blueprints. An object with invalid
// annotations counts as one that does.
func (o *Object) isQuiesced() bool { return o.invalid != nil || len(o.settings.Blueprints) > 0 }

// lineage has the UIDs of the owners of each object, by UID.
type lineage map[types.UID][]types.UID

// ancestors returns the direct and indirect owners of an object.
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

// lineage merges the owner references of the view, the pods and the claims.
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

// addObjects adds the annotated objects of a view. full has their current content; if it is
// nil, the metadata of the view is used.
func (f *Facts) addObjects(view *annotated.View, templates map[workload.Ref]workload.Template, full *annotated.Contents) {
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
			continue // deleted since
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
	// An object that repeats the annotations of its owner is ignored.
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

// newObject reads the annotations of an object. The annotations of the namespace are
// defaults for all settings except the blueprints, which apply to workloads only.
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

// complete sets the current content of the object. It reports whether the object still
// exists and has annotations.
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
	o.Annotations = quiesceAnnotations(content.GetAnnotations())
	o.resolve(namespace)
	return len(o.Annotations) > 0
}

func (o *Object) resolve(namespace *corev1.Namespace) {
	layers := []Layer{{Object: o.String(), Annotations: o.Annotations}, {Object: "Namespace " + namespace.Name, Annotations: namespace.Annotations}}
	o.settings, o.invalid = Resolve(layers)
	if o.invalid != nil || namesBlueprints(o.Annotations) {
		return
	}
	o.settings.Blueprints = nil
	o.invalid = fmt.Errorf("%s: annotation %s has no effect without %s beside it", o.Ref, slices.Sorted(maps.Keys(o.Annotations))[0], api.AnnotationQuiesce)
}

// ours returns the annotations for which IsAnnotation is true.
func quiesceAnnotations(annotations map[string]string) map[string]string {
	found := maps.Clone(annotations)
	maps.DeleteFunc(found, func(key, _ string) bool { return !IsAnnotation(key) })
	return found
}

// decides reports whether annotations name blueprints or have the value None.
func namesBlueprints(annotations map[string]string) bool {
	_, quiesce := annotations[api.AnnotationQuiesce]
	_, kanister := annotations[api.AnnotationKanister]
	return quiesce || kanister
}

// repeats reports whether an object has only annotations of its owner: operators copy
// annotations to the objects that they create.
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

// ownerRepeatedBy returns the owner whose annotations are repeated, or nil.
func (f *Facts) ownerRepeatedBy(annotations map[string]string, owners ...metav1.OwnerReference) *Object {
	if len(f.objects) == 0 {
		return nil
	}
	ours := quiesceAnnotations(annotations)
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

// assignClaims sets the claims that each object stands for: the claims that it owns, and
// those of pods and workloads that it owns. An object that owns none of these stands for
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

// canBeAssigned reports whether objects can stand for a claim: it exists and has no
// annotations of its own.
func (f *Facts) canBeAssigned(name string) bool {
	claim := f.Claim(name)
	if claim == nil {
		return false
	}
	own, err := f.hasOwnAnnotations(claim)
	return err == nil && !own
}

// hasOwnAnnotations reports whether a claim has quiesce annotations that do not repeat
// those of an owner.
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

// part returns the part of the unit that the object is.
func (o *Object) part() Part {
	return Part{
		Workload: workload.Workload{Ref: o.Ref, Object: o.content, Pods: o.pods, CurrentPods: o.current()},
		Settings: o.settings,
		Source:   o.content.Object,
		claims:   o.claims,
		Object:   o,
	}
}

// current returns the pods for templates: those of the current deployment of an OpenShift
// DeploymentConfig, otherwise all pods that hooks can reach.
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

// joined returns the component of a claim, merged with the components of all claims that
// annotated objects join with it, and these objects.
func (f *Facts) joinedComponent(claim string) (workload.Component, []*Object) {
	component := f.inventory.ComponentOf(claim)
	if len(f.objects) == 0 {
		return component, nil
	}
	claims := map[string]bool{claim: true}
	workloads := map[workload.Ref]workload.Workload{}
	add := func(component workload.Component) {
		for _, w := range component.Workloads {
			workloads[w.Ref] = w
		}
		for _, name := range component.Claims {
			claims[name] = true
		}
	}
	add(component)
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
		return component, nil
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

// AnnotatedObject is an annotated object of a unit that is not a workload.
type AnnotatedObject struct {
	workload.Ref
	// Claims are the claims that the object stands for, sorted. AllClaims is true if these
	// are all claims of the namespace, because the object owns nothing there.
	Claims    []string
	AllClaims bool
	names     []string
}

// Is reports whether a kind that a user wrote is the kind of the object. Valid are the
// kind, the resource and its short names, with or without the group.
func (s AnnotatedObject) Is(kind string) bool { return slices.Contains(s.names, strings.ToLower(kind)) }

// AnnotatedObjects returns the objects that stand for volumes of the unit, in the order of
// their hooks.
func (u *Unit) AnnotatedObjects() []AnnotatedObject {
	var all []AnnotatedObject
	for _, part := range u.Parts {
		if o := part.Object; o != nil {
			all = append(all, AnnotatedObject{Ref: o.Ref, Claims: slices.Sorted(maps.Keys(o.claims)), AllClaims: o.all, names: o.Names})
		}
	}
	return all
}

// RepeatedAnnotations returns a sentence for each workload whose annotations repeat those
// of an owner and are ignored.
func (u *Unit) RepeatedAnnotations() []string {
	var all []string
	for _, part := range u.Parts {
		if part.repeatsOwner != nil {
			all = append(all, fmt.Sprintf("The annotations of %s only repeat those of %s, and count there.", part.Workload, part.repeatsOwner.Ref))
		}
	}
	return all
}

// DuplicateBlueprints returns a sentence for each blueprint that runs both for an annotated
// object and for a workload that shares its volumes. The user may have meant only one.
// FSFreeze is excluded, because each file system is frozen once.
func (u *Unit) DuplicateBlueprints() []string {
	var all []string
	for i, part := range u.Parts {
		for _, name := range part.Settings.Blueprints {
			var others []string
			for _, other := range u.Parts[i+1:] {
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

// Idle is an annotated object without hooks to run, because it stands for no volume.
type Idle struct {
	AnnotatedObject
	// Text is the reason, as a sentence.
	Text string
	// Warning is true if the annotations are probably meant for running pods.
	Warning bool
}

// Idle returns the annotated objects and workloads of the namespace that stand for no
// volume, and annotated controllers that another controller controls.
func (f *Facts) Idle() []Idle {
	var all []Idle
	intermediates := f.inventory.Intermediates()
	for _, ref := range slices.SortedFunc(maps.Keys(intermediates), func(a, b workload.Ref) int { return cmp.Compare(a.String(), b.String()) }) {
		b := intermediates[ref]
		said := quiesceAnnotations(b.Object.GetAnnotations())
		top := f.inventory.Top(b.Top)
		repeated := top != nil && maps.Equal(said, quiesceAnnotations(top.GetAnnotations())) || f.ownerRepeatedBy(said, metav1.OwnerReference{UID: b.Top.UID}) != nil
		if len(said) > 0 && !repeated {
			all = append(all, Idle{
				AnnotatedObject: AnnotatedObject{Ref: ref},
				Text:            fmt.Sprintf("The annotations of %s are not acted on, since it belongs to %s: annotate that.", ref, b.Top),
				Warning:         b.Top.Kind != "Deployment", // a Deployment leaves old annotations on its ReplicaSets
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
		if _, counts := intermediates[w.Ref]; counts || (err == nil && len(settings.Blueprints) == 0) || f.inventory.Runs(w.UID) {
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
