package blueprint

import (
	"context"
	"fmt"

	"stillpoint.io/stillpoint/internal/cluster"
)

// Task is a call of a function that acts through the API server. It holds all
// that the call needs, so that it can be written down and run by another
// process. Args can hold secrets.
type Task struct {
	Func string `json:"func"`
	Args Args   `json:"args"`
	// Namespace is the annotated object's.
	Namespace string `json:"namespace"`
	// ConfinedTo is the only namespace that the task may act in, with the
	// rights of a ServiceAccount of it; "" is no limit.
	ConfinedTo string `json:"confinedTo,omitempty"`
	// Kind and Name are the workload that ScaleWorkload takes when its args
	// name none.
	Kind string `json:"kind,omitempty"`
	Name string `json:"name,omitempty"`
	// Owner is the value of the label stillpoint.io/task on pods that the task
	// makes. Whoever runs the task sets it.
	Owner string `json:"owner,omitempty"`
}

// String says what the task does, for people. It can hold secrets.
func (t *Task) String() string { return t.Func }

// Tasks runs tasks.
type Tasks struct{ clients *cluster.Clients }

// NewTasks runs tasks in a cluster.
func NewTasks(clients *cluster.Clients) *Tasks { return &Tasks{clients} }

// Run runs a task until it is done or ctx ends, and gives its outputs.
func (t *Tasks) Run(_ context.Context, task *Task) (outputs map[string]any, err error) {
	return nil, fmt.Errorf("function %s is not supported yet", task.Func)
}
