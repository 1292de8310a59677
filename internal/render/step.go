package render

import (
	"context"
	"errors"
	"fmt"
)

// Call is one command in one container. The command can hold secrets: mask it before
// you show it.
type Call struct {
	Namespace string
	Pod       string
	Container string
	Command   []string
	// Env is the command's own environment. Its values never appear in a list of
	// processes. Only Stillpoint's own functions set it.
	Env map[string]string `json:",omitempty"`
	// Hold is set when the command is a client that stays open.
	Hold *Hold `json:",omitempty"`
}

// Hold is what a client that stays open reads from its standard input: Begin first,
// End when it may exit.
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
	// Needs says what the step waits for, such as "the output of phase dump"; "" if it
	// is rendered.
	Needs string
	// Last marks the action's deferPhase, which runs even if a phase before it failed.
	Last bool
}

// ServiceAccountOption is the option that names the ServiceAccount with whose
// rights a confined blueprint acts.
const ServiceAccountOption = "service-account"

// Task is a call of a function that acts through the API server. It holds everything
// that the call needs, so that another process can run it from the journal. Args can
// hold secrets.
type Task struct {
	Func string `json:"func"`
	Args Args   `json:"args"`
	// Namespace is the annotated object's.
	Namespace string `json:"namespace"`
	// ConfinedTo is the only namespace that the task may act in, as a ServiceAccount
	// of that namespace: a tenant who writes a blueprint must not get Velero's rights.
	// "" is no limit.
	ConfinedTo string `json:"confinedTo,omitempty"`
	// ServiceAccount is one of ConfinedTo; "" means "default".
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// Kind and Name are the workload that ScaleWorkload scales by default.
	Kind string `json:"kind,omitempty"`
	Name string `json:"name,omitempty"`
	// Owner is the session of the task, and marks what the task creates. The caller
	// that runs the task sets it.
	Owner string `json:"owner,omitempty"`
	// Show returns what an error may quote from the task's output, see Masker.Tail.
	// nil quotes the end unmasked.
	Show func(said string, cut bool) string `json:"-"`
	// Pre is set for a task of a prehook.
	Pre bool `json:"pre,omitempty"`
}

// Within checks the confinement again when the task runs, because it may have been
// stored in the cluster. "" stands for an object of no namespace.
func (t *Task) Within(namespace string) error { return within(t.ConfinedTo, namespace) }

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
//
// Calls must read only the namespace in the argument "namespace", which render checks
// against the confinement before. It checks the namespaces of the returned calls after.
type Function struct {
	Required []string
	Optional []string
	Calls    func(ctx context.Context, args Args) ([]Call, error)

	// Prepare, instead of Calls, completes a task. With Raw, it also renders the args.
	// Foretell returns the outputs of a task in advance, assuming that the tasks in
	// before have run.
	Prepare  func(ctx context.Context, draft *Draft) error
	Raw      bool
	Foretell func(ctx context.Context, task *Task, before []*Task) (map[string]any, error)
	// MakesPods reports that the function may create pods.
	MakesPods bool
}

// Absent is the error that a pod or container is not running. An earlier phase may
// change that.
type Absent struct {
	// Pod is its namespace and name with a slash between them.
	Pod    string
	Reason string
}

func (a *Absent) Error() string { return a.Reason }

// Draft is a task that is being made.
type Draft struct {
	*Task
	*rendering
	// Source are the args as the blueprint has them.
	Source map[string]any
	phase  *phase
}

// Action returns the name of the action that the task is part of.
func (d *Draft) Action() string { return d.name }

// Incomplete reports whether something rendered so far asks for what is not known yet.
func (d *Draft) Incomplete() bool { return d.needs != "" }

// Mask hides secret values.
func (d *Draft) Mask(text string) string { return d.masker.Mask(text) }

// Maker returns an earlier phase that has not run yet and that may create pods or
// namespaces, "" if there is none.
func (d *Draft) Maker() string { return d.maker(d.phase) }

// AllowNamespace is Allow for the namespace that the args choose.
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
