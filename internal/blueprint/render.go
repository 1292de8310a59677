package blueprint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template"
)

// maxRendered is the longest text, in bytes, that one template may give. A
// command line of more could not be run anyway.
const maxRendered = 1 << 20

// Renderer makes the steps of a blueprint's actions. It reads from the
// cluster through Objects and Functions, and changes nothing there.
type Renderer struct {
	Functions map[string]Function
	Objects   Objects

	// ConfineTo is the only namespace that calls and objects may name; ""
	// lets a blueprint reach further, see Steps.
	ConfineTo string
}

// Steps renders an action of a blueprint: all its phases in order, each seeing
// the objects of those before it. An action that is absent has no steps; a
// blueprint with neither hook is an error, since whoever named it expects
// something to happen.
//
// A blueprint that is not confined reaches a namespace other than the annotated
// object's only by writing that namespace (and for objects the name, too)
// without a template. Otherwise an annotation, which a tenant may write, could
// choose another tenant's pods and secrets.
//
// The Masker knows the values of every Secret that was read, also when there
// is an error. The error itself shows none.
func (r *Renderer) Steps(ctx context.Context, bp *Blueprint, action string, p Params) ([]Step, Masker, error) {
	run := &rendering{Renderer: r, params: p, scope: newScope(p)}
	steps, err := run.action(ctx, bp, action)
	if err != nil {
		return nil, run.masker, fmt.Errorf("%s: %w", bp.title(), err)
	}
	return steps, run.masker, nil
}

// rendering is the state of one call of Steps.
type rendering struct {
	*Renderer
	params Params
	scope  *scope

	// masker knows the secret values in scope; secretive tells that there are
	// Secrets, short and empty values included.
	masker    Masker
	secretive bool
}

func (r *rendering) action(ctx context.Context, bp *Blueprint, name string) ([]Step, error) {
	action := bp.Actions[name]
	if action == nil {
		if bp.Actions[Prehook] == nil && bp.Actions[Posthook] == nil {
			return nil, fmt.Errorf("neither %s nor %s is among its actions: %s", Prehook, Posthook, list(slices.Collect(maps.Keys(bp.Actions))))
		}
		return nil, nil
	}
	if action.DeferPhase != nil {
		return nil, fmt.Errorf("action %s: deferPhase is not supported yet", name)
	}
	// Before anything is fetched: what could never run.
	for i, phase := range action.Phases {
		if _, ok := r.Functions[phase.Func]; !ok {
			return nil, fmt.Errorf("action %s: %s: function %q is not supported; supported are: %s", name, phase.title(i), phase.Func, list(slices.Collect(maps.Keys(r.Functions))))
		}
	}
	var steps []Step
	for i, phase := range action.Phases {
		calls, err := r.phase(ctx, phase)
		if err != nil {
			return nil, fmt.Errorf("action %s: %s: %w", name, phase.title(i), err)
		}
		steps = append(steps, Step{Phase: phase.Name, Func: phase.Func, Calls: calls})
	}
	return steps, nil
}

// title is how errors call phase i of an action.
func (p Phase) title(i int) string {
	if p.Name == "" {
		return fmt.Sprintf("phase %d", i+1)
	}
	return "phase " + p.Name
}

func (r *rendering) phase(ctx context.Context, phase Phase) ([]Call, error) {
	if err := r.objects(ctx, phase); err != nil {
		return nil, err
	}
	args := make(Args, len(phase.Args))
	for _, key := range slices.Sorted(maps.Keys(phase.Args)) {
		name, value, err := r.entry(ctx, "args", key, phase.Args[key])
		if err != nil {
			return nil, err
		}
		if _, twice := args[name]; twice {
			return nil, fmt.Errorf("args.%s is given twice, once by a template", r.masker.Mask(name))
		}
		args[name] = value
	}
	calls, err := r.calls(ctx, phase, args)
	if err != nil {
		return nil, fmt.Errorf("function %s: %w", phase.Func, err)
	}
	return calls, nil
}

// objects fetches what the phase names and makes it visible to its args and to
// all later phases.
func (r *rendering) objects(ctx context.Context, phase Phase) error {
	fetched := r.scope.Phases[phase.Name]
	if fetched == nil {
		fetched = newPhaseScope()
	}
	for _, as := range slices.Sorted(maps.Keys(phase.ObjectRefs)) {
		if err := r.object(ctx, as, phase.ObjectRefs[as], fetched); err != nil {
			return err
		}
	}
	r.scope.Phases[phase.Name] = fetched
	return nil
}

func (r *rendering) object(ctx context.Context, as string, source ObjectReference, into *phaseScope) error {
	path := "objects." + as
	ref := source
	for _, field := range []struct {
		name string
		text *string
	}{
		{"apiVersion", &ref.APIVersion},
		{"group", &ref.Group},
		{"resource", &ref.Resource},
		{"kind", &ref.Kind},
		{"name", &ref.Name},
		{"namespace", &ref.Namespace},
	} {
		text, err := r.text(ctx, path+"."+field.name, *field.text)
		if err != nil {
			return err
		}
		*field.text = text
	}
	// From here on messages hold rendered text.
	masked := func(err error) error { return r.masked(fmt.Errorf("%s: %w", path, err)) }
	if ref.Name == "" {
		return masked(errors.New("name is empty"))
	}
	// Kanister asks for an object of no namespace then, and is told that
	// there is none.
	if ref.Namespace == "" {
		return masked(errors.New("namespace is empty"))
	}
	if err := r.allow(ref.Namespace, ref.Namespace == source.Namespace && ref.Name == source.Name); err != nil {
		return masked(err)
	}
	if r.Objects == nil {
		return masked(errors.New("objects cannot be fetched here"))
	}
	secrets, err := fetch(ctx, r.Objects, as, ref, into)
	if err != nil {
		return masked(err)
	}
	r.masker = r.masker.Merge(NewMasker(secrets...))
	r.secretive = r.secretive || len(into.Secrets) > 0
	return nil
}

// calls checks the args against the function, runs it, and checks what it
// wants to call.
func (r *rendering) calls(ctx context.Context, phase Phase, args Args) ([]Call, error) {
	function := r.Functions[phase.Func]
	valid := slices.Concat(function.Required, function.Optional)
	for _, name := range slices.Sorted(maps.Keys(args)) {
		if !slices.Contains(valid, name) {
			return nil, r.masked(fmt.Errorf("unknown argument %q; the arguments are: %s", name, list(valid)))
		}
	}
	for _, name := range function.Required {
		if value, there := args[name]; !there || value == nil {
			return nil, fmt.Errorf("argument %q is missing; required are: %s", name, list(function.Required))
		}
	}
	named, err := args.String("namespace")
	if err != nil {
		return nil, err
	}
	if named != "" {
		if err := r.allow(named, phase.Args["namespace"] == named); err != nil {
			return nil, r.masked(fmt.Errorf("args.namespace: %w", err))
		}
	}
	calls, err := function.Calls(ctx, args)
	if err != nil {
		return nil, r.masked(err)
	}
	for _, call := range calls {
		if err := r.allow(call.Namespace, call.Namespace == named); err != nil {
			return nil, r.masked(fmt.Errorf("pod %s/%s: %w", call.Namespace, call.Pod, err))
		}
	}
	return calls, nil
}

// allow decides whether the blueprint may reach into a namespace. Literal
// tells that the blueprint has the namespace as plain text, so that nothing
// which a tenant writes had a part in it.
func (r *rendering) allow(namespace string, literal bool) error {
	own := r.params.namespace()
	switch {
	case r.ConfineTo != "" && namespace != r.ConfineTo:
		return fmt.Errorf("namespace %q is out of reach: a blueprint of namespace %s acts there only", namespace, r.ConfineTo)
	case r.ConfineTo != "" || namespace == own || literal:
		return nil
	default:
		return fmt.Errorf("namespace %q is out of reach: it is not the annotated object's (%s), and another one must be named without a template, an object's name too", namespace, own)
	}
}

// value renders every string in a value, through slices and maps.
func (r *rendering) value(ctx context.Context, path string, value any) (any, error) {
	switch v := value.(type) {
	case string:
		return r.text(ctx, path, v)
	case []any:
		elements := make([]any, len(v))
		for i, element := range v {
			rendered, err := r.value(ctx, fmt.Sprintf("%s[%d]", path, i), element)
			if err != nil {
				return nil, err
			}
			elements[i] = rendered
		}
		return elements, nil
	case map[string]any:
		entries := make(map[string]any, len(v))
		for _, key := range slices.Sorted(maps.Keys(v)) {
			name, rendered, err := r.entry(ctx, path, key, v[key])
			if err != nil {
				return nil, err
			}
			if _, twice := entries[name]; twice {
				return nil, fmt.Errorf("%s.%s is given twice, once by a template", path, r.masker.Mask(name))
			}
			entries[name] = rendered
		}
		return entries, nil
	default:
		return value, nil
	}
}

// entry renders a key and its value. Errors name the key as the blueprint has
// it, which cannot hold a secret.
func (r *rendering) entry(ctx context.Context, path, key string, value any) (string, any, error) {
	name, err := r.text(ctx, fmt.Sprintf("%s, key %q", path, key), key)
	if err != nil {
		return "", nil, err
	}
	rendered, err := r.value(ctx, path+"."+key, value)
	return name, rendered, err
}

// text renders one template; path says where it stands.
func (r *rendering) text(ctx context.Context, path, source string) (string, error) {
	if !strings.Contains(source, "{{") {
		return source, nil
	}
	parsed, err := template.New(templateName).Option("missingkey=error").Funcs(textFuncs()).Parse(source)
	if err != nil {
		// Nothing has been evaluated, so there is no value in it.
		return "", fmt.Errorf("%s: template line %s", path, strings.TrimPrefix(err.Error(), "template: "+templateName+":"))
	}
	out := limited{ctx: ctx}
	if err := parsed.Execute(&out, r.scope); err != nil {
		return "", fmt.Errorf("%s: %w", path, r.explain(source, err))
	}
	return out.text.String(), nil
}

// masked hides secret values in an error that shows rendered text. The chain
// of errors ends there, since errors further in would show them again.
func (r *rendering) masked(err error) error {
	if text := r.masker.Mask(err.Error()); text != err.Error() {
		return errors.New(text)
	}
	return err
}

// limited collects what a template writes, up to maxRendered and until the
// context ends: a template can loop for as long as it likes.
type limited struct {
	ctx  context.Context
	text strings.Builder
}

func (l *limited) Write(p []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	if l.text.Len()+len(p) > maxRendered {
		return 0, refusal(fmt.Sprintf("the text is longer than %d bytes", maxRendered))
	}
	return l.text.Write(p)
}
