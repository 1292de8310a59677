package function

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/render"
)

// The lists of args.conditions.
const (
	anyOf = "anyOf"
	allOf = "allOf"
)

// condition is one of Wait or WaitV2: a template over an object, which renders to
// "true" if the condition is met.
type condition struct {
	Text      string `json:"condition"`
	Reference any    `json:"objectReference"`

	ref  blueprint.ObjectReference // decoded from Reference
	list string                    // anyOf or allOf
	path string
}

// conditionsOf reads args.conditions.
func conditionsOf(args render.Args) ([]condition, error) {
	var lists struct {
		AnyOf []condition `json:"anyOf"`
		AllOf []condition `json:"allOf"`
	}
	text, err := json.Marshal(args["conditions"])
	if err != nil {
		return nil, fmt.Errorf("args.conditions: %w", err)
	}
	unknown, err := kjson.UnmarshalStrict(text, &lists)
	if err := errors.Join(append(unknown, err)...); err != nil {
		return nil, fmt.Errorf("args.conditions: %w; it must be a map of the lists anyOf and allOf, whose entries have condition and objectReference", err)
	}
	var all []condition
	add := func(list string, conditions []condition) error {
		for i, c := range conditions {
			c.list, c.path = list, fmt.Sprintf("args.conditions.%s[%d]", list, i)
			if c.ref, err = reference(c.path+".objectReference", c.Reference); err != nil {
				return err
			}
			all = append(all, c)
		}
		return nil
	}
	if err := errors.Join(add(anyOf, lists.AnyOf), add(allOf, lists.AllOf)); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errors.New("args.conditions has no condition")
	}
	return all, nil
}

// timeoutOf reads args.timeout.
func timeoutOf(args render.Args) (time.Duration, error) {
	text, err := args.String("timeout")
	if err != nil {
		return 0, err
	}
	timeout, err := time.ParseDuration(text)
	if err != nil || timeout <= 0 {
		return 0, fmt.Errorf("args.timeout is %q, must be a duration such as 90s or 5m", text)
	}
	return timeout, nil
}

// prepareWait renders the timeout and the references. The conditions remain
// templates, because their data is the object.
func (t *Tasks) prepareWait(ctx context.Context, d *render.Draft) error {
	timeout, err := d.Value(ctx, "args.timeout", d.Source["timeout"])
	if err != nil {
		return err
	}
	conditions, err := conditionsOf(d.Source)
	if err != nil {
		return err
	}
	lists := map[string][]any{}
	for _, c := range conditions {
		path := c.path + ".objectReference"
		ref, err := d.Reference(ctx, path, c.ref)
		if err != nil {
			return err
		}
		if d.Incomplete() {
			continue
		}
		at, err := t.waitsFor(ref)
		if err == nil {
			err = allowTarget(d, at, literal(outputs(c.ref)), "")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if _, err := render.Condition(ctx, d.Func, c.Text, nil); err != nil {
			return fmt.Errorf("%s.condition: %w", c.path, err)
		}
		lists[c.list] = append(lists[c.list], map[string]any{"condition": c.Text, "objectReference": outputs(ref)})
	}
	if d.Incomplete() {
		return nil
	}
	groups := map[string]any{}
	for list, entries := range lists {
		groups[list] = entries
	}
	d.Args = render.Args{"timeout": timeout, "conditions": groups}
	_, err = timeoutOf(d.Args)
	return err
}

// waitsFor finds the object of a condition. It has no default namespace.
func (t *Tasks) waitsFor(ref blueprint.ObjectReference) (target, error) {
	at, err := t.resourceOf(ref)
	if err == nil && at.namespaced && ref.Namespace == "" {
		err = fmt.Errorf("namespace is missing; a %s is in one", at.kind)
	}
	return at.in(ref.Namespace), err
}

func describeWait(task *render.Task) string {
	conditions, err := conditionsOf(task.Args)
	if err != nil {
		return ""
	}
	timeout, _ := task.Args.String("timeout") // prepareWait has checked it
	var names []string
	for _, c := range conditions {
		names = append(names, fmt.Sprintf("%s %s", c.ref.Resource, strings.TrimPrefix(c.ref.Namespace+"/"+c.ref.Name, "/")))
	}
	return fmt.Sprintf("up to %s for %s", timeout, strings.Join(names, ", "))
}

// await waits until one condition of anyOf or all of allOf are met.
func (t *Tasks) await(ctx context.Context, task *render.Task, access *access) (map[string]any, error) {
	timeout, err := timeoutOf(task.Args)
	if err != nil {
		return nil, err
	}
	conditions, err := conditionsOf(task.Args)
	if err != nil {
		return nil, err
	}
	targets := make([]target, len(conditions))
	for i, c := range conditions {
		if targets[i], err = t.waitsFor(c.ref); err == nil {
			err = task.Within(targets[i].namespace)
		}
		if err != nil {
			return nil, fmt.Errorf("%s.objectReference: %w", c.path, err)
		}
	}
	// unmet returns why a condition is not met, "" if it is.
	unmet := func(ctx context.Context, c condition, at target) string {
		object, err := at.object(access.dynamic).Get(ctx, at.name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		switch said, err := render.Condition(ctx, task.Func, c.Text, object.Object); {
		case err != nil:
			return fmt.Sprintf("%s: %v", at, err)
		case said != "true":
			return fmt.Sprintf("%s: the condition %s is not met", at, c.Text)
		}
		return ""
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not within %s", timeout))
	defer cancel()
	return nil, poll(ctx, func(ctx context.Context) (bool, string, error) {
		var states []string
		all := conditions[len(conditions)-1].list == allOf // unless allOf is empty
		for i, c := range conditions {
			switch state := unmet(ctx, c, targets[i]); {
			case state == "" && c.list == anyOf:
				return true, "", nil
			case state != "":
				states, all = append(states, state), all && c.list == anyOf
			}
		}
		return all, strings.Join(states, "; "), nil
	})
}
