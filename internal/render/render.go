package render

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// Renderer makes the steps of a blueprint's hooks. It changes nothing in the cluster.
type Renderer struct {
	Functions map[string]Function
	// Kube reads the Secrets and ConfigMaps that phases name.
	Kube kubernetes.Interface

	// ConfineTo is the only namespace that calls, tasks and objects may name; ""
	// means the limits that Script documents.
	ConfineTo string
}

// rendering is the state of one action of a Script.
type rendering struct {
	*Renderer
	*secrecy
	params Params
	name   string
	action *blueprint.Action
	phases []*phase
	// data is what templates see of the action.
	data *data
	// before are the phases of the action before this one.
	before []*phase
	// builtIn allows objects without a name: recipes have them if an option is not set.
	builtIn bool

	// needs is the first thing that the current phase asks for and that is not known
	// yet.
	needs string
}

// secrecy is shared by the actions of a Script.
type secrecy struct {
	// masker knows the secret values in scope. secretive reports that there are
	// Secrets, even with short or no values, or outputs that could quote one.
	masker    Masker
	secretive bool
	// spent is how long templates have taken, of scriptLimit.
	spent time.Duration
}

// learn adds the values of a Secret, which may have none.
func (s *secrecy) learn(values [][]byte) {
	s.masker = s.masker.Merge(NewMasker(values...))
	s.secretive = true
}

// phase is one of an action, with the step that is made of it.
type phase struct {
	blueprint.Phase
	title string
	data  *phaseData
	step  *Step
	// done reports that the phase has run. (Its outputs may be known before.)
	done bool
}

func (r *Renderer) newRendering(bp *blueprint.Blueprint, name string, p Params, secrets *secrecy) *rendering {
	run := &rendering{Renderer: r, secrecy: secrets, params: p, name: name, action: bp.Actions[name], data: newData(p), builtIn: bp.BuiltIn()}
	if run.action == nil {
		run.action = &blueprint.Action{}
	}
	add := func(source blueprint.Phase, title string, last bool) {
		run.phases = append(run.phases, &phase{
			Phase: source, title: title,
			data: &phaseData{Name: source.Name},
			step: &Step{Phase: source.Name, Func: source.Func, Last: last},
		})
	}
	for i, source := range run.action.Phases {
		add(source, titleOf(source, i), false)
	}
	if source := run.action.DeferPhase; source != nil {
		title := "deferPhase"
		if source.Name != "" {
			title += " " + source.Name
		}
		add(*source, title, true)
	}
	return run
}

// check finds what could never run, before anything is fetched.
func (r *rendering) check() error {
	for _, phase := range r.phases {
		function, ok := r.Functions[phase.Func]
		if !ok {
			return fmt.Errorf("%s: function %q is not supported; supported are: %s", phase.title, phase.Func, blueprint.List(slices.Collect(maps.Keys(r.Functions))))
		}
		args, templates := Args{}, false
		for key, value := range phase.Args {
			if strings.Contains(key, "{{") {
				templates = true
			} else {
				args[key] = value
			}
		}
		if err := function.accept(args, !templates); err != nil {
			return fmt.Errorf("%s: function %s: %w", phase.title, phase.Func, err)
		}
	}
	return nil
}

// accept checks the names of arguments, and whether the required ones are
// there.
func (f Function) accept(args Args, complete bool) error {
	valid := slices.Concat(f.Required, f.Optional)
	for _, name := range slices.Sorted(maps.Keys(args)) {
		if !slices.Contains(valid, name) {
			return fmt.Errorf("unknown argument %q; the arguments are: %s", name, blueprint.List(valid))
		}
	}
	for _, name := range f.Required {
		if value, there := args[name]; complete && (!there || value == nil) {
			return fmt.Errorf("argument %q is missing; required are: %s", name, blueprint.List(f.Required))
		}
	}
	return nil
}

// named fetches the objects of secretNames and configMapNames. In Kanister an ActionSet
// says which objects these are. A hook has none: it gets the objects of that name beside
// the annotated object, or of the name in the option secret.<name> or configmap.<name>.
func (r *rendering) named(ctx context.Context) error {
	for _, names := range []struct {
		field, kind, option string
		names               []string
	}{
		{"secretNames", "Secret", "secret.", r.action.SecretNames},
		{"configMapNames", "ConfigMap", "configmap.", r.action.ConfigMapNames},
	} {
		into := &phaseData{Secrets: r.data.Secrets, ConfigMaps: r.data.ConfigMaps}
		for _, name := range names.names {
			ref := blueprint.ObjectReference{Kind: names.kind, Name: name, Namespace: r.params.namespace()}
			if other := r.params.Options[names.option+name]; other != "" {
				ref.Name = other
			}
			err := r.fetch(ctx, name, ref, blueprint.ObjectReference{}, into)
			if err != nil {
				return r.masked(fmt.Errorf("%s: %s: %w (the option %s%s can name another one)", names.field, name, err, names.option, name))
			}
		}
	}
	return nil
}

// titleOf is how errors call phase i of an action.
func titleOf(p blueprint.Phase, i int) string {
	if p.Name == "" {
		return fmt.Sprintf("phase %d", i+1)
	}
	return "phase " + p.Name
}

// enter makes data that of phase i; len(phases) is after the last phase.
func (r *rendering) enter(i int) {
	r.data.Phases, r.data.DeferPhase = map[string]*phaseData{}, &phaseData{Fetched: true, Ran: true}
	r.needs = ""
	for at, phase := range r.phases {
		phase.data.Running = at == i
		switch {
		case at > i:
		case phase.step.Last:
			r.data.DeferPhase = phase.data
		default:
			r.data.Phases[phase.Name] = phase.data
		}
	}
}

// render completes the step of phase i, or sets what it needs first.
func (r *rendering) render(ctx context.Context, i int) error {
	phase := r.phases[i]
	r.enter(i)
	if err := r.prepare(ctx, phase); err != nil {
		return fmt.Errorf("action %s: %s: %w", r.name, phase.title, r.masked(err))
	}
	if phase.step.Needs = r.needs; r.needs != "" {
		phase.step.Calls, phase.step.Task = nil, nil
	}
	return nil
}

func (r *rendering) prepare(ctx context.Context, phase *phase) error {
	if err := r.objects(ctx, phase); err != nil {
		return err
	}
	function := r.Functions[phase.Func]
	args := phase.Args
	if !function.Raw {
		var err error
		if args, err = r.entries(ctx, "args", args); err != nil {
			return err
		}
	}
	if r.needs != "" {
		return nil
	}
	err := function.accept(args, true)
	switch {
	case err != nil:
	case function.Prepare != nil:
		err = r.task(ctx, phase, function, args)
	default:
		phase.step.Calls, err = r.calls(ctx, phase, function, args)
	}
	if err != nil {
		return fmt.Errorf("function %s: %w", phase.Func, err)
	}
	return nil
}

// objects fetches the objects of a phase for its args and for all later phases.
func (r *rendering) objects(ctx context.Context, phase *phase) error {
	into := phase.data
	if into.Fetched {
		return nil
	}
	into.Secrets, into.ConfigMaps = map[string]corev1.Secret{}, map[string]corev1.ConfigMap{}
	for _, as := range slices.Sorted(maps.Keys(phase.ObjectRefs)) {
		path, source := "objects."+as, phase.ObjectRefs[as]
		ref, err := r.Reference(ctx, path, source)
		if err != nil {
			return err
		}
		if r.needs != "" {
			continue
		}
		if err := r.fetch(ctx, as, ref, source, into); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	into.Fetched = r.needs == ""
	return nil
}

// Reference renders the strings of a reference.
func (r *rendering) Reference(ctx context.Context, path string, ref blueprint.ObjectReference) (blueprint.ObjectReference, error) {
	fields := ref.Fields()
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		text, err := r.text(ctx, path+"."+name, *fields[name])
		if err != nil {
			return ref, err
		}
		*fields[name] = text
	}
	return ref, nil
}

// calls returns the calls of a function, which must be within the confinement.
func (r *rendering) calls(ctx context.Context, phase *phase, function Function, args Args) ([]Call, error) {
	named, err := args.String("namespace")
	if err != nil {
		return nil, err
	}
	if named != "" {
		if err := r.Allow(named, phase.Args["namespace"] == named); err != nil {
			return nil, fmt.Errorf("args.namespace: %w", err)
		}
	}
	calls, err := function.Calls(ctx, args)
	var absent *Absent
	if maker := r.maker(phase); maker != "" && errors.As(err, &absent) {
		r.needs = fmt.Sprintf("the pod %s of %s", r.masker.Mask(absent.Pod), maker)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, call := range calls {
		if err := r.Allow(call.Namespace, call.Namespace == named); err != nil {
			return nil, fmt.Errorf("pod %s/%s: %w", call.Namespace, call.Pod, err)
		}
	}
	return calls, nil
}

// maker returns an earlier phase that has not run yet and that may create pods, "" if
// there is none.
func (r *rendering) maker(phase *phase) string {
	for _, each := range slices.Backward(slices.Concat(r.before, r.earlier(phase))) {
		if !each.done && r.Functions[each.Func].MakesPods {
			return each.title
		}
	}
	return ""
}

// earlier returns the phases of the action that run before phase.
func (r *rendering) earlier(than *phase) []*phase {
	return r.phases[:slices.Index(r.phases, than)]
}

// task makes the task of a function, and foretells its outputs if possible. It does not
// in the posthook, which also runs after a prehook that failed half-way.
func (r *rendering) task(ctx context.Context, phase *phase, function Function, args Args) error {
	task := &Task{
		Func: phase.Func, Args: args, Namespace: r.params.namespace(),
		ConfinedTo: r.ConfineTo, ServiceAccount: r.params.Options[ServiceAccountOption],
		Pre: r.name == blueprint.Prehook,
	}
	task.Kind, task.Name = r.params.workload()
	if err := function.Prepare(ctx, &Draft{Task: task, Source: phase.Args, rendering: r, phase: phase}); err != nil {
		return err
	}
	if r.needs != "" {
		return nil
	}
	phase.step.Task = task
	if function.Foretell == nil || r.name != blueprint.Prehook || phase.data.Ran {
		return nil
	}
	var before []*Task
	for _, earlier := range r.earlier(phase) {
		if earlier.step.Task != nil {
			before = append(before, earlier.step.Task)
		}
	}
	outputs, err := function.Foretell(ctx, task, before)
	if err != nil {
		return err
	}
	phase.data.Ran, phase.data.Output = true, exact(outputs)
	return nil
}

// artifacts renders outputArtifacts, as far as can be known: an artifact is
// there when all of it is.
func (r *rendering) artifacts(ctx context.Context) (known map[string]blueprint.Artifact, needs string, err error) {
	known = map[string]blueprint.Artifact{}
	for _, name := range slices.Sorted(maps.Keys(r.action.OutputArtifacts)) {
		source := r.action.OutputArtifacts[name]
		r.enter(len(r.phases))
		path := "outputArtifacts." + name
		var artifact blueprint.Artifact
		for _, key := range slices.Sorted(maps.Keys(source.KeyValue)) {
			text, err := r.text(ctx, path+".keyValue."+key, source.KeyValue[key])
			if err != nil {
				return known, needs, fmt.Errorf("action %s: %w", r.name, err)
			}
			if artifact.KeyValue == nil {
				artifact.KeyValue = map[string]string{}
			}
			artifact.KeyValue[key] = text
		}
		artifact.KopiaSnapshot, err = r.text(ctx, path+".kopiaSnapshot", source.KopiaSnapshot)
		if err != nil {
			return known, needs, fmt.Errorf("action %s: %w", r.name, err)
		}
		if r.needs == "" {
			known[name] = artifact
		} else if needs == "" {
			needs = fmt.Sprintf("%s needs %s", path, r.needs)
		}
	}
	return known, needs, nil
}

// Allow returns an error if the blueprint must not reach into a namespace. literal
// means that the blueprint has the namespace as plain text, so that no tenant chose it.
func (r *rendering) Allow(namespace string, literal bool) error {
	own := r.params.namespace()
	switch {
	case r.ConfineTo != "":
		return within(r.ConfineTo, namespace)
	case namespace == own || literal:
		return nil
	default:
		return fmt.Errorf("namespace %q is out of reach: it is not the annotated object's (%s), and another one must be named without a template, an object's name too", namespace, own)
	}
}

// within returns an error unless confinedTo allows a namespace; "" means that an object
// has none.
func within(confinedTo, namespace string) error {
	switch {
	case confinedTo == "" || namespace == confinedTo:
		return nil
	case namespace == "":
		return fmt.Errorf("what is of no namespace is out of reach: a blueprint of namespace %s acts there only", confinedTo)
	}
	return fmt.Errorf("namespace %q is out of reach: a blueprint of namespace %s acts there only", namespace, confinedTo)
}

// Value renders every string in a value, through slices and maps.
func (r *rendering) Value(ctx context.Context, path string, value any) (any, error) {
	switch v := value.(type) {
	case string:
		return r.text(ctx, path, v)
	case []any:
		elements := make([]any, len(v))
		for i, element := range v {
			rendered, err := r.Value(ctx, fmt.Sprintf("%s[%d]", path, i), element)
			if err != nil {
				return nil, err
			}
			elements[i] = rendered
		}
		return elements, nil
	case map[string]any:
		return r.entries(ctx, path, v)
	default:
		return value, nil
	}
}

// entries renders the keys and values of a map. Errors show a key as the blueprint has
// it, which cannot hold a secret.
func (r *rendering) entries(ctx context.Context, path string, source map[string]any) (map[string]any, error) {
	entries := make(map[string]any, len(source))
	for _, key := range slices.Sorted(maps.Keys(source)) {
		name, err := r.text(ctx, fmt.Sprintf("%s, key %q", path, key), key)
		if err != nil {
			return nil, err
		}
		value, err := r.Value(ctx, path+"."+key, source[key])
		if err != nil {
			return nil, err
		}
		if _, twice := entries[name]; twice && r.needs == "" {
			return nil, fmt.Errorf("%s.%s is given twice, once by a template", path, r.masker.Mask(name))
		}
		entries[name] = value
	}
	return entries, nil
}

// text renders one template; path says where it stands. If the template asks for
// something that is not known yet, text returns "" and sets r.needs.
func (r *rendering) text(ctx context.Context, path, source string) (string, error) {
	text, _, err := r.execute(ctx, path, source, "")
	return text, err
}

// execute is text; with a nonce, marks stand for the values, which it also returns.
func (r *rendering) execute(ctx context.Context, path, source, nonce string) (string, []marked, error) {
	if !strings.Contains(source, "{{") {
		return source, nil, nil
	}
	r.data.Secretive = r.secretive
	began := time.Now()
	reply, err := templates.render(ctx, &question{Source: source, Data: r.data, Nonce: nonce}, min(renderLimit, scriptLimit-r.spent))
	r.spent += time.Since(began)
	switch {
	case err != nil:
		return "", nil, fmt.Errorf("%s: %w", path, err)
	case reply.Error != "":
		text := r.masker.Mask(reply.Error)
		return "", nil, fmt.Errorf("%s: %s", path, strings.ToValidUTF8(text[:min(len(text), maxError)], ""))
	case reply.Needs != "" && r.needs == "":
		r.needs = reply.Needs
	}
	return string(reply.Text), reply.Values, nil
}

// maxError is the longest error of a template, in bytes.
const maxError = 2048

// masked hides secret values in an error that shows rendered text. It drops the chain
// of errors, which would show them again.
func (r *rendering) masked(err error) error {
	if text := r.masker.Mask(err.Error()); text != err.Error() {
		return errors.New(text)
	}
	return err
}
