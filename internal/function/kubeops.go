package function

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/render"
)

// fieldManager stands in the managed fields of what a task changes.
const fieldManager = "stillpoint"

// target is an object that a function acts on.
type target struct {
	resource   schema.GroupVersionResource
	kind       string
	namespaced bool
	namespace  string // "" where namespaced is false
	name       string
}

func (t target) String() string {
	if t.namespaced {
		return fmt.Sprintf("%s %s/%s", t.kind, t.namespace, t.name)
	}
	return fmt.Sprintf("%s %s", t.kind, t.name)
}

func (t target) object(client dynamic.Interface) dynamic.ResourceInterface {
	if t.namespaced {
		return client.Resource(t.resource).Namespace(t.namespace)
	}
	return client.Resource(t.resource)
}

var errNoKinds = errors.New("the kinds of the API server are not known here")

// kindOf finds the resource of a kind.
func (t *Tasks) kindOf(kind schema.GroupVersionKind) (target, error) {
	if t.mapper == nil {
		return target{}, errNoKinds
	}
	mapping, err := t.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return target{}, fmt.Errorf("apiVersion %s, kind %s: %w", kind.GroupVersion(), kind.Kind, err)
	}
	return target{resource: mapping.Resource, kind: mapping.GroupVersionKind.Kind, namespaced: mapping.Scope.Name() == meta.RESTScopeNameNamespace}, nil
}

// resourceOf finds the object that a reference names. Parts of the reference become
// parts of a URL, so the API server must list the resource.
func (t *Tasks) resourceOf(ref blueprint.ObjectReference) (target, error) {
	for _, field := range []string{"apiVersion", "resource", "name"} {
		if *ref.Fields()[field] == "" {
			return target{}, fmt.Errorf("%s is missing", field)
		}
	}
	if wrong := pathvalidation.IsValidPathSegmentName(ref.Name); len(wrong) > 0 {
		return target{}, fmt.Errorf("name %q: %s", ref.Name, strings.Join(wrong, ", "))
	}
	if t.mapper == nil {
		return target{}, errNoKinds
	}
	wanted := schema.GroupVersionResource{Group: ref.Group, Version: ref.APIVersion, Resource: ref.Resource}
	found, err := t.mapper.ResourceFor(wanted)
	if err != nil {
		return target{}, fmt.Errorf("group %q, apiVersion %q, resource %q: %w", ref.Group, ref.APIVersion, ref.Resource, err)
	}
	if found.Group != wanted.Group || found.Version != wanted.Version {
		return target{}, fmt.Errorf("resource %q does not exist in group %q, apiVersion %q; it exists in group %q, apiVersion %q",
			ref.Resource, ref.Group, ref.APIVersion, found.Group, found.Version)
	}
	kind, err := t.mapper.KindFor(found)
	if err != nil {
		return target{}, err
	}
	at, err := t.kindOf(kind)
	at.name = ref.Name
	return at, err
}

// in puts a target into the first namespace that is not "".
func (t target) in(namespaces ...string) target {
	if t.namespaced {
		t.namespace = cmp.Or(namespaces...)
	}
	return t
}

// operation is what one KubeOps does.
type operation struct {
	verb string
	at   target
	spec map[string]any
	ref  blueprint.ObjectReference
}

// operation reads the args.
//
// The default namespace is Kanister's, "default", or that of a confined blueprint,
// which acts in no other. Like any namespace of a shared blueprint, "default" has to
// be its own choice and not a tenant's: the spec, or the objectReference, must have
// no template then.
func (t *Tasks) operation(task *render.Task) (*operation, error) {
	r := task.Args.Reader()
	o := &operation{verb: r.String("operation")}
	given, fallback := r.String("namespace"), cmp.Or(task.ConfinedTo, metav1.NamespaceDefault)
	if value := task.Args["spec"]; value != nil {
		var ok bool
		if o.spec, ok = value.(map[string]any); !ok {
			r.Check(errors.New("args.spec must be an object in YAML"))
		}
	}
	if value := task.Args["objectReference"]; value != nil {
		var err error
		o.ref, err = reference("args.objectReference", value)
		r.Check(err)
	}
	if r.Err != nil {
		return nil, r.Err
	}
	switch o.verb {
	case "create":
		object := unstructured.Unstructured{Object: o.spec}
		if object.GetKind() == "" || object.GetAPIVersion() == "" {
			return nil, errors.New("args.spec must be an object with apiVersion and kind")
		}
		at, err := t.kindOf(object.GroupVersionKind())
		if err != nil {
			return nil, fmt.Errorf("args.spec: %w", err)
		}
		if at.name = cmp.Or(object.GetName(), object.GetGenerateName()); at.name == "" {
			return nil, errors.New("args.spec has no metadata.name")
		}
		o.at = at.in(object.GetNamespace(), given, fallback)
	case "patch", "delete":
		if o.verb == "patch" && o.spec == nil {
			return nil, errors.New("args.spec is missing; it is what a patch changes")
		}
		if o.verb == "patch" && o.spec["kind"] == "List" {
			return nil, errors.New("args.spec has several documents, a patch has one")
		}
		at, err := t.resourceOf(o.ref)
		if err != nil {
			return nil, fmt.Errorf("args.objectReference: %w", err)
		}
		o.at = at.in(o.ref.Namespace, given, fallback)
	default:
		return nil, fmt.Errorf("args.operation is %q; the operations are: create, delete, patch", o.verb)
	}
	return o, nil
}

// prepareOperation renders the args itself: a spec is parsed as it is rendered, so
// that it checks what the task sends.
func (t *Tasks) prepareOperation(ctx context.Context, d *render.Draft) error {
	args := render.Args{}
	for _, name := range []string{"operation", "namespace", "objectReference"} {
		if value, ok := d.Source[name]; ok {
			rendered, err := d.Value(ctx, "args."+name, value)
			if err != nil {
				return err
			}
			args[name] = rendered
		}
	}
	if value := d.Source["spec"]; value != nil {
		source, ok := value.(string)
		if !ok {
			return errors.New("args.spec must be a text with an object in YAML")
		}
		object, err := d.Document(ctx, "args.spec", source)
		if err != nil {
			return err
		}
		args["spec"] = object
	}
	if d.Incomplete() {
		return nil
	}
	d.Args = args
	parts := split(d.Task)
	for _, part := range parts {
		o, err := t.operation(part)
		if err != nil {
			return err
		}
		// Without a template it is the blueprint's own choice.
		names := "objectReference"
		if o.verb == "create" {
			names = "spec"
		}
		chosen := literal(d.Source[names]) && literal(d.Source["namespace"])
		if err := allowTarget(d, o.at, chosen, "namespace"); err != nil {
			return err
		}
		if err := t.exists(ctx, d, o.at.namespace); err != nil {
			return err
		}
		if o.at.namespaced && len(parts) == 1 {
			// For Describe and Changes.
			args["namespace"] = o.at.namespace
		}
	}
	return nil
}

// split returns a task for each object that a task creates: its spec may be a List.
func split(task *render.Task) []*render.Task {
	spec, _ := task.Args["spec"].(map[string]any)
	items, ok := spec["items"].([]any)
	if !ok || spec["kind"] != "List" || task.Args["operation"] != "create" {
		return []*render.Task{task}
	}
	var tasks []*render.Task
	for _, item := range items {
		one := *task
		one.Args = maps.Clone(task.Args)
		one.Args["spec"] = item
		tasks = append(tasks, &one)
	}
	return tasks
}

// allowTarget returns an error if an object is outside the blueprint's confinement.
// chosen means that the blueprint names it without a template; argument is the one
// that can choose its namespace, "" if none can.
func allowTarget(d *render.Draft, at target, chosen bool, argument string) error {
	if !at.namespaced {
		if err := d.Within(""); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		if !chosen {
			return fmt.Errorf("%s is of no namespace, and is out of reach where a template has a part in it", at)
		}
		return nil
	}
	if argument != "" && d.Source[argument] == at.namespace {
		chosen = true
	}
	err := d.Allow(at.namespace, chosen)
	if err == nil {
		return nil
	}
	if argument != "" && d.Source[argument] == nil && at.namespace == metav1.NamespaceDefault {
		return fmt.Errorf("%s: %w (it is the one where args.namespace and the object name none)", at, err)
	}
	return fmt.Errorf("%s: %w", at, err)
}

func describeOperation(task *render.Task) string {
	var texts []string
	for _, part := range split(task) {
		texts = append(texts, describePart(part))
	}
	return strings.Join(texts, ", ")
}

func describePart(task *render.Task) string {
	verb, _ := task.Args.String("operation") // prepareOperation has checked it
	namespace, _ := task.Args.String("namespace")
	if spec, ok := task.Args["spec"].(map[string]any); ok && verb == "create" {
		object := unstructured.Unstructured{Object: spec}
		return fmt.Sprintf("%s %s %s", verb, object.GetKind(), strings.TrimPrefix(namespace+"/"+object.GetName(), "/"))
	}
	ref, err := reference("", task.Args["objectReference"])
	if err != nil {
		return verb
	}
	text := fmt.Sprintf("%s %s %s", verb, ref.Resource, strings.TrimPrefix(namespace+"/"+ref.Name, "/"))
	if patch, err := json.Marshal(task.Args["spec"]); err == nil && task.Args["spec"] != nil {
		text += " with " + string(patch)
	}
	return text
}

// operate returns, as Kanister does, the reference of the last object.
func (t *Tasks) operate(ctx context.Context, task *render.Task, access *access) (outputs map[string]any, err error) {
	for _, part := range split(task) {
		if outputs, err = t.operatePart(ctx, part, access); err != nil {
			return nil, err
		}
	}
	return outputs, nil
}

func (t *Tasks) operatePart(ctx context.Context, task *render.Task, access *access) (map[string]any, error) {
	o, err := t.operation(task)
	if err != nil {
		return nil, err
	}
	if err := task.Within(o.at.namespace); err != nil {
		return nil, err
	}
	objects := o.at.object(access.dynamic)
	switch o.verb {
	case "create":
		created, err := o.create(ctx, objects, task.Owner)
		if err != nil {
			return nil, fmt.Errorf("create %s: %w", o.at, err)
		}
		o.ref = blueprint.ObjectReference{
			APIVersion: o.at.resource.Version, Group: o.at.resource.Group, Resource: o.at.resource.Resource,
			Name: created.GetName(), Namespace: created.GetNamespace(),
		}
	case "patch":
		err = o.patch(ctx, objects)
	case "delete":
		err = o.remove(ctx, objects)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", o.verb, o.at, err)
	}
	return outputs(o.ref), nil
}

// create creates an object with the annotation of its task's owner. If the object
// exists, it must have the same annotation: then an earlier try created it, and the
// answer or the process was lost. Any other may be a leftover of another backup.
func (o *operation) create(ctx context.Context, objects dynamic.ResourceInterface, owner string) (*unstructured.Unstructured, error) {
	object := (&unstructured.Unstructured{Object: o.spec}).DeepCopy()
	object.SetResourceVersion("")
	if o.at.namespaced {
		object.SetNamespace(o.at.namespace)
	}
	if owner != "" {
		annotations := object.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[api.AnnotationCreatedBy] = owner
		object.SetAnnotations(annotations)
	}
	created, err := objects.Create(ctx, object, metav1.CreateOptions{FieldManager: fieldManager})
	if owner == "" || !apierrors.IsAlreadyExists(err) {
		return created, err
	}
	existing, failed := objects.Get(ctx, object.GetName(), metav1.GetOptions{})
	if failed != nil || existing.GetAnnotations()[api.AnnotationCreatedBy] != owner {
		return nil, err
	}
	return existing, nil
}

// patch sends a strategic merge patch, as Kanister does, or a merge patch to custom
// resources, which accept no other.
func (o *operation) patch(ctx context.Context, objects dynamic.ResourceInterface) error {
	body, err := json.Marshal(o.spec)
	if err != nil {
		return err
	}
	options := metav1.PatchOptions{FieldManager: fieldManager}
	_, err = objects.Patch(ctx, o.ref.Name, types.StrategicMergePatchType, body, options)
	if apierrors.IsUnsupportedMediaType(err) {
		_, err = objects.Patch(ctx, o.ref.Name, types.MergePatchType, body, options)
	}
	return err
}

// remove deletes an object and waits until it is gone. A missing object is no error,
// because an earlier try may have deleted it.
func (o *operation) remove(ctx context.Context, objects dynamic.ResourceInterface) error {
	object, err := objects.Get(ctx, o.ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	uid := object.GetUID()
	err = objects.Delete(ctx, o.ref.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return poll(ctx, func(ctx context.Context) (bool, string, error) {
		left, err := objects.Get(ctx, o.ref.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return true, "", nil
		case err != nil:
			return retry(err)
		}
		return left.GetUID() != uid, fmt.Sprintf("it still exists; finalizers: %s", blueprint.List(left.GetFinalizers())), nil
	})
}
