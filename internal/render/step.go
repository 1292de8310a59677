package render

import (
	"context"
	"errors"
	"fmt"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// Call is one command in one container. Its command can hold secrets: mask it
// before it is shown.
type Call struct {
	Namespace string
	Pod       string
	Container string
	Command   []string
	// Env is set for the command alone. Its values never stand in a list of
	// processes. Only functions of this program's own set it.
	Env map[string]string `json:",omitempty"`
	// Hold is set when the command is a client that stays open.
	Hold *Hold `json:",omitempty"`
}

// Hold is what a client that stays open is told on its standard input: Begin
// when it is opened, End when it may go.
type Hold struct{ Begin, End string }

// Step is a phase of a hook. Its calls run at the same time, steps one after
// another.
type Step struct {
	Phase string
	Func  string
	// Calls are commands in containers; nil where the function has a Task.
	Calls []Call
	// Task is what the function does through the API server.
	Task *Task
	// Needs says what has to happen before the step can be rendered, such as
	// "the output of phase dump"; "" when it is rendered.
	Needs string
	// Last marks the action's deferPhase, which runs whatever happened before
	// it.
	Last bool
}

// ServiceAccountOption is the option that names the ServiceAccount with whose
// rights a confined blueprint acts.
const ServiceAccountOption = "service-account"

// Task is a call of a function that acts through the API server. It holds all
// that the call needs, so that it can be written down and run by another
// process. Args can hold secrets.
type Task struct {
	Func string `json:"func"`
	Args Args   `json:"args"`
	// Namespace is the annotated object's.
	Namespace string `json:"namespace"`
	// ConfinedTo is the only namespace that the task may act in, and it acts
	// there as a ServiceAccount of that namespace: Velero can do what a tenant
	// who writes a blueprint must not. "" is no limit.
	ConfinedTo string `json:"confinedTo,omitempty"`
	// ServiceAccount is the one of ConfinedTo; "" is "default".
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// Kind and Name are the workload that ScaleWorkload takes when its args
	// name none.
	Kind string `json:"kind,omitempty"`
	Name string `json:"name,omitempty"`
	// Owner names the session that the task belongs to, and marks what the task
	// creates. The caller that runs the task sets it.
	Owner string `json:"owner,omitempty"`
	// Show returns what an error may show of what the task printed, see
	// Masker.Tail. nil shows the end of it as it is.
	Show func(said string, cut bool) string `json:"-"`
	// Pre is set for a task of a prehook.
	Pre bool `json:"pre,omitempty"`
}

// Within is what a task that is run must obey once more, wherever it was kept
// in the meantime. "" is no namespace.
func (t *Task) Within(namespace string) error {
	if t.ConfinedTo != "" && namespace != t.ConfinedTo {
		if namespace == "" {
			return fmt.Errorf("what is of no namespace is out of reach: a blueprint of namespace %s acts there only", t.ConfinedTo)
		}
		return fmt.Errorf("namespace %q is out of reach: a blueprint of namespace %s acts there only", namespace, t.ConfinedTo)
	}
	return nil
}

// TargetNamespace is the argument of that name, or the annotated object's.
func (t *Task) TargetNamespace() (string, error) {
	namespace, err := t.Args.String("namespace")
	if err != nil || namespace != "" {
		return namespace, err
	}
	if t.Namespace == "" {
		return "", errors.New("args.namespace is empty, and the annotated object is in no namespace")
	}
	return t.Namespace, nil
}

// Function turns the rendered args of a phase into its calls, or into a task.
// A function that looks at a namespace which its args choose takes it from the
// argument "namespace": that is the one which is held against the blueprint's
// confinement before Calls runs. The namespaces of its calls are checked
// after.
type Function struct {
	Required []string
	Optional []string
	Calls    func(ctx context.Context, args Args) ([]Call, error)

	// Prepare, instead of Calls, makes a task of args that Raw leaves as they
	// stand in the blueprint. Foretell gives its outputs before it has run,
	// when those of before will have.
	Prepare  func(ctx context.Context, draft *Draft) error
	Raw      bool
	Foretell func(ctx context.Context, task *Task, before []*Task) (map[string]any, error)
	// MakesPods reports that there can be other pods after the function than before.
	MakesPods bool
}

// Absent is the error that nothing can be run in a pod, or in a container of
// it, as things are. What an earlier phase does can change that.
type Absent struct {
	// Pod is its namespace and name with a slash between them.
	Pod    string
	Reason string
}

func (a *Absent) Error() string { return a.Reason }

// Draft is a task that is being made.
type Draft struct {
	*Task
	// Source are the args as the blueprint has them.
	Source    map[string]any
	rendering *rendering
	phase     *phase
}

// Action is the name of the action that the task is part of.
func (d *Draft) Action() string { return d.rendering.name }

// Incomplete reports that something was rendered that asks for what is not known yet.
func (d *Draft) Incomplete() bool { return d.rendering.needs != "" }

// Mask hides secret values.
func (d *Draft) Mask(text string) string { return d.rendering.masker.Mask(text) }

// Value renders every string in a value, through slices and maps.
func (d *Draft) Value(ctx context.Context, path string, value any) (any, error) {
	return d.rendering.value(ctx, path, value)
}

// Reference renders the strings of a reference.
func (d *Draft) Reference(ctx context.Context, path string, ref blueprint.ObjectReference) (blueprint.ObjectReference, error) {
	return d.rendering.reference(ctx, path, ref)
}

// Document renders a template and reads the object that it is in YAML.
func (d *Draft) Document(ctx context.Context, path, source string) (map[string]any, error) {
	return d.rendering.document(ctx, path, source)
}

// Allow decides whether the blueprint may reach into a namespace, which it has as
// plain text if literal.
func (d *Draft) Allow(namespace string, literal bool) error {
	return d.rendering.allow(namespace, literal)
}

// Maker is an earlier phase that has not run yet and that may bring a pod into being.
func (d *Draft) Maker() string { return d.rendering.maker(d.phase) }

// AllowNamespace holds the namespace that the args give against the blueprint's
// confinement.
func (d *Draft) AllowNamespace() error {
	namespace, err := d.TargetNamespace()
	if err != nil {
		return err
	}
	if err := d.Allow(namespace, d.Source["namespace"] == namespace); err != nil {
		return fmt.Errorf("args.namespace: %w", err)
	}
	return nil
}
