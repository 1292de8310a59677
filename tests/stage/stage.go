// Package stage is what the demo and the bench play on: the running test bed,
// applications on it, Velero's backups of them, and a timeline of what happens.
// What it sets up it also clears away, after a crashed run too.
package stage

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"stillpoint.io/stillpoint/tests/cluster"
)

const (
	// rolloutLimit is how long an application may take to run. A pod that could
	// not be placed, since its volume was not there yet, is looked at again by
	// the scheduler after five minutes at the latest.
	rolloutLimit = 6 * time.Minute
	// execLimit is how long a command in a container may take.
	execLimit = 20 * time.Second
	// pollInterval lies between two looks at something that is waited for.
	pollInterval = 200 * time.Millisecond
)

// Stage is a connection to the test bed.
type Stage struct {
	*cluster.Cluster
	*Timeline
}

// Open connects to the test bed, from a program that runs inside its network.
func Open(ctx context.Context, timeline *Timeline) (*Stage, error) {
	s := &Stage{Timeline: timeline}
	return s, act(ctx, func(p *program) { s.Cluster = cluster.Connect(p) })
}

// Run runs kubectl or velero as a reader would, and shows the command.
func (s *Stage) Run(ctx context.Context, program string, args ...string) error {
	s.Command(append([]string{program}, args...)...)
	var err error
	if program == "velero" {
		_, err = s.Velero(ctx, args...)
	} else {
		_, err = s.Kubectl(ctx, nil, args...)
	}
	return err
}

// Container is a container of a Deployment with one pod.
type Container struct{ Namespace, Deployment, Name string }

// AwaitRollout waits until the pod of a Deployment is the wanted one and ready.
func (s *Stage) AwaitRollout(ctx context.Context, namespace, deployment string) error {
	ctx, cancel := context.WithTimeout(ctx, rolloutLimit+execLimit)
	defer cancel()
	_, err := s.Kubectl(ctx, nil, "--namespace", namespace, "rollout", "status", "deployment/"+deployment, "--timeout="+rolloutLimit.String())
	if err == nil {
		return nil
	}
	// What is seen of it disappears with the namespace.
	seen, _ := s.Kubectl(ctx, nil, "--namespace", namespace, "get", "deployments,pods,persistentvolumeclaims,events", "--output", "wide")
	return fmt.Errorf("%w\n%s", err, seen)
}

// Exec runs a command in a container and returns what it prints.
func (s *Stage) Exec(ctx context.Context, c Container, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, execLimit)
	defer cancel()
	return s.Kubectl(ctx, nil, append([]string{"--namespace", c.Namespace, "exec", "deployment/" + c.Deployment, "--container", c.Name, "--"}, command...)...)
}

// Until asks done again and again until it says so, fails, or ctx ends.
func Until(ctx context.Context, what string, done func(context.Context) (bool, error)) error {
	for {
		if ok, err := done(ctx); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}

// WriteResult writes what was measured to a file as JSON.
func WriteResult(file string, result any) error {
	b, err := json.MarshalIndent(result, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o750)
	}
	if err == nil {
		err = os.WriteFile(file, append(b, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write the result to %s: %w", file, err)
	}
	return nil
}

// indent puts the lines of text below an entry of the timeline.
func indent(text string) string {
	return strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+strings.Repeat(" ", indentation))
}
