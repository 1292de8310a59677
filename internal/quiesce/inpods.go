package quiesce

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/workload"
)

// The functions of the recipes. They find the workload's pods by themselves. User
// blueprints can use them, too.
const (
	runFunction     = "RunInPods"
	holdFunction    = "HoldSession"
	releaseFunction = "ReleaseSession"
)

// sessionVariable is the environment variable that identifies the processes of a plan.
const sessionVariable = "STILLPOINT_SESSION"

// endClientScript ends the process $1 if it is the client of session $2.
const endClientScript = `case $(tr '\0' ' ' <"/proc/$1/environ" 2>/dev/null) in
*"` + sessionVariable + `=$2 "*) kill -TERM "$1";;
esac`

// inPods implements the functions that run in one workload's pods.
//
//	RunInPods       runs command in each pod
//	HoldSession     starts command, a client that reads statements, sends it the
//	                statements begin, and keeps it open; begin ends when the client
//	                prints "stillpoint: held"
//	ReleaseSession  sends the clients of phase that phase's statements end, which end
//	                when the clients print "stillpoint: released"
//
// RunInPods and HoldSession have the args command, container (default: the first that
// mounts a claim of the workload), pods (all or first) and env (a map whose values appear
// in no argument list and no log).
type inPods struct {
	namespace string
	pods      []corev1.Pod
	session   string // the value of sessionVariable
}

func (p inPods) functions() map[string]render.Function {
	options := []string{"container", "pods", "env"}
	return map[string]render.Function{
		runFunction: {
			Required: []string{"command"},
			Optional: options,
			Calls:    func(_ context.Context, args render.Args) ([]render.Call, error) { return p.calls(args) },
		},
		holdFunction: {
			Required: []string{"command", "begin", "end"},
			Optional: options,
			Calls: func(_ context.Context, args render.Args) ([]render.Call, error) {
				begin, err := args.String("begin")
				if err != nil {
					return nil, err
				}
				end, err := args.String("end")
				if err != nil {
					return nil, err
				}
				for name, statement := range map[string][2]string{"begin": {begin, lineHeld}, "end": {end, lineReleased}} {
					if !strings.Contains(statement[0], statement[1]) {
						return nil, fmt.Errorf("args.%s has no statement that prints %q", name, statement[1])
					}
				}
				calls, err := p.calls(args)
				for i := range calls {
					calls[i].Hold = &render.Hold{Begin: begin, End: end}
				}
				return calls, err
			},
		},
		releaseFunction: {
			Required: []string{"phase"},
			// pairSessions replaces this call when both hooks are rendered.
			Calls: func(_ context.Context, args render.Args) ([]render.Call, error) {
				phase, err := args.String("phase")
				if err != nil || phase == "" {
					return nil, errors.Join(errors.New("args.phase is empty"), err)
				}
				return []render.Call{{Namespace: p.namespace, Command: []string{phase}}}, nil
			},
		},
	}
}

// calls returns one call for each pod that args select.
func (p inPods) calls(args render.Args) ([]render.Call, error) {
	command, err := args.Strings("command")
	if err != nil {
		return nil, err
	}
	if len(command) == 0 || command[0] == "" {
		return nil, errors.New("args.command is empty")
	}
	env, err := environment(args)
	if err != nil {
		return nil, err
	}
	pods := p.pods
	switch which, err := args.String("pods"); {
	case err != nil:
		return nil, err
	case which == "first" && len(pods) > 0:
		pods = pods[:1]
	case which != "" && which != "all" && which != "first":
		return nil, fmt.Errorf("args.pods: %q is not valid; valid: all, first", which)
	}
	named, err := args.String("container")
	if err != nil {
		return nil, err
	}
	var calls []render.Call
	for i := range pods {
		container, err := p.container(&pods[i], named)
		if err != nil {
			return nil, err
		}
		call := render.Call{
			Namespace: p.namespace, Pod: pods[i].Name, Container: container,
			Command: slices.Clone(command), Env: map[string]string{sessionVariable: p.session},
		}
		for name, value := range env {
			call.Env[name] = value
		}
		calls = append(calls, call)
	}
	return calls, nil
}

// container returns the named container, or the first that mounts a claim.
func (p inPods) container(pod *corev1.Pod, named string) (string, error) {
	running := workload.RunningContainers(pod)
	if named != "" {
		if !slices.Contains(running, named) {
			return "", fmt.Errorf("container %q is not running in pod %s/%s; running are: %s", named, pod.Namespace, pod.Name, strings.Join(running, ", "))
		}
		return named, nil
	}
	active := workload.Active(pod)
	for _, container := range pod.Spec.Containers {
		if state, ok := active[container.Name]; ok && workload.MountsClaim(pod, container.Name) {
			if state != "" {
				return "", fmt.Errorf("container %s of pod %s/%s, which mounts a claim, does not run: %s; name another one by args.container", container.Name, pod.Namespace, pod.Name, state)
			}
			return container.Name, nil
		}
	}
	return "", fmt.Errorf("no running container of pod %s/%s mounts a claim; name one by args.container", pod.Namespace, pod.Name)
}

func environment(args render.Args) (map[string]string, error) {
	env := map[string]string{}
	switch given := args["env"].(type) {
	case nil:
	case map[string]any:
		for name := range given {
			if len(validation.IsCIdentifier(name)) > 0 {
				return nil, fmt.Errorf("args.env: %q is not the name of a variable", name)
			}
			value, err := render.Args(given).String(name)
			if err != nil {
				return nil, fmt.Errorf("args.env: %w", err)
			}
			env[name] = value
		}
	default:
		return nil, fmt.Errorf("args.env is a %T, must be a map", given)
	}
	return env, nil
}

// pairSessions gives each phase that releases sessions the calls of the phase that holds
// them. It returns an error if a session is not released, or if a release has no session.
func pairSessions(hook *Hook) error {
	held := map[string]*render.Step{}
	var names []string
	for _, step := range hook.Pre {
		if step.Func == holdFunction {
			held[step.Phase] = step
			names = append(names, step.Phase)
		}
	}
	for _, step := range hook.Post {
		if step.Func != releaseFunction || len(step.Calls) == 0 {
			continue
		}
		phase := step.Calls[0].Command[0]
		holds, ok := held[phase]
		if !ok {
			return fmt.Errorf("phase %s: args.phase: %q is no phase of %s with func %s; there are: %s",
				step.Phase, phase, blueprint.Prehook, holdFunction, strings.Join(names, ", "))
		}
		step.Calls = holds.Calls
		delete(held, phase)
	}
	for phase := range held {
		return fmt.Errorf("phase %s holds a session, and %s does not release it: it needs a phase with func %s and args.phase %s",
			phase, blueprint.Posthook, releaseFunction, phase)
	}
	return nil
}
