package function

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/render"
)

// condition is one of Wait or WaitV2: a template over an object that says
// "true" when it is met.
type condition struct {
	path string
	text string
	ref  blueprint.ObjectReference
}

// conditions reads args.conditions.
func conditionsOf(args render.Args) (anyOf, allOf []condition, err error) {
	groups, ok := args["conditions"].(map[string]any)
	if !ok {
		return nil, nil, errors.New("args.conditions must be a map of anyOf and allOf")
	}
	read := func(name string) ([]condition, error) {
		value, there := groups[name]
		if !there || value == nil {
			return nil, nil
		}
		entries, ok := value.([]any)
		if !ok {
			return nil, fmt.Errorf("args.conditions.%s must be a list", name)
		}
		var conditions []condition
		for i, entry := range entries {
			c := condition{path: fmt.Sprintf("args.conditions.%s[%d]", name, i)}
			fields, ok := entry.(map[string]any)
			if !ok {
				return nil, fmt.Errorf("%s must be a map of condition and objectReference", c.path)
			}
			for key := range fields {
				if key != "condition" && key != "objectReference" {
					return nil, fmt.Errorf("%s: unknown key %q; the keys are: condition, objectReference", c.path, key)
				}
			}
			if c.text, ok = fields["condition"].(string); !ok {
				return nil, fmt.Errorf("%s.condition must be a text", c.path)
			}
			var err error
			if c.ref, err = reference(c.path+".objectReference", fields["objectReference"]); err != nil {
				return nil, err
			}
			conditions = append(conditions, c)
		}
		return conditions, nil
	}
	for name := range groups {
		if name != "anyOf" && name != "allOf" {
			return nil, nil, fmt.Errorf("args.conditions: unknown key %q; the keys are: allOf, anyOf", name)
		}
	}
	if anyOf, err = read("anyOf"); err != nil {
		return nil, nil, err
	}
	if allOf, err = read("allOf"); err != nil {
		return nil, nil, err
	}
	if len(anyOf)+len(allOf) == 0 {
		return nil, nil, errors.New("args.conditions has no condition")
	}
	return anyOf, allOf, nil
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

// prepareWait renders the timeout and the references. The conditions stay
// templates: their data is the object that is waited for.
func (t *Tasks) prepareWait(ctx context.Context, d *render.Draft) error {
	timeout, err := d.Value(ctx, "args.timeout", d.Source["timeout"])
	if err != nil {
		return err
	}
	anyOf, allOf, err := conditionsOf(d.Source)
	if err != nil {
		return err
	}
	rendered := func(conditions []condition) ([]any, error) {
		var entries []any
		for _, c := range conditions {
			ref, err := d.Reference(ctx, c.path+".objectReference", c.ref)
			if err != nil {
				return nil, err
			}
			if d.Incomplete() {
				continue
			}
			if err := t.checkCondition(ctx, d, c, ref); err != nil {
				return nil, err
			}
			entries = append(entries, map[string]any{"condition": c.text, "objectReference": outputs(ref)})
		}
		return entries, nil
	}
	groups := map[string]any{}
	for name, conditions := range map[string][]condition{"anyOf": anyOf, "allOf": allOf} {
		entries, err := rendered(conditions)
		if err != nil {
			return err
		}
		if len(entries) > 0 {
			groups[name] = entries
		}
	}
	if d.Incomplete() {
		return nil
	}
	d.Args = render.Args{"timeout": timeout, "conditions": groups}
	_, err = timeoutOf(d.Args)
	return err
}

func (t *Tasks) checkCondition(ctx context.Context, d *render.Draft, c condition, ref blueprint.ObjectReference) error {
	at, err := t.waitsFor(ref)
	if err != nil {
		return fmt.Errorf("%s.objectReference: %w", c.path, err)
	}
	if err := allowTarget(d, at, literal(any(outputs(c.ref))), ""); err != nil {
		return fmt.Errorf("%s.objectReference: %w", c.path, err)
	}
	if _, err := render.Condition(ctx, d.Func, c.text, nil); err != nil {
		return fmt.Errorf("%s.condition: %w", c.path, err)
	}
	return nil
}

// waitsFor finds the object of a condition. There is no default namespace.
func (t *Tasks) waitsFor(ref blueprint.ObjectReference) (target, error) {
	for _, field := range [][2]string{{"apiVersion", ref.APIVersion}, {"resource", ref.Resource}, {"name", ref.Name}} {
		if field[1] == "" {
			return target{}, fmt.Errorf("%s is missing", field[0])
		}
	}
	if wrong := pathvalidation.IsValidPathSegmentName(ref.Name); len(wrong) > 0 {
		return target{}, fmt.Errorf("name %q: %s", ref.Name, strings.Join(wrong, ", "))
	}
	at, err := t.resourceOf(ref)
	if err != nil {
		return at, err
	}
	if at.namespaced && ref.Namespace == "" {
		return at, fmt.Errorf("namespace is missing; a %s is in one", at.kind)
	}
	return at.in(ref.Namespace), nil
}

func describeWait(task *render.Task) string {
	anyOf, allOf, err := conditionsOf(task.Args)
	if err != nil {
		return ""
	}
	timeout, _ := task.Args.String("timeout") // said when it is prepared
	var names []string
	for _, c := range slices.Concat(anyOf, allOf) {
		names = append(names, fmt.Sprintf("%s %s", c.ref.Resource, strings.TrimPrefix(c.ref.Namespace+"/"+c.ref.Name, "/")))
	}
	return fmt.Sprintf("up to %s for %s", timeout, strings.Join(names, ", "))
}

// await waits until one of anyOf or all of allOf is met.
func (t *Tasks) await(ctx context.Context, task *render.Task, access *access) (map[string]any, error) {
	timeout, err := timeoutOf(task.Args)
	if err != nil {
		return nil, err
	}
	anyOf, allOf, err := conditionsOf(task.Args)
	if err != nil {
		return nil, err
	}
	places := map[string]target{}
	for _, c := range slices.Concat(anyOf, allOf) {
		at, err := t.waitsFor(c.ref)
		if err == nil {
			err = task.Within(at.namespace)
		}
		if err != nil {
			return nil, fmt.Errorf("%s.objectReference: %w", c.path, err)
		}
		places[c.path] = at
	}
	met := func(ctx context.Context, c condition) (bool, string) {
		object, err := places[c.path].object(access.dynamic).Get(ctx, c.ref.Name, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		said, err := render.Condition(ctx, task.Func, c.text, object.Object)
		if err != nil {
			return false, fmt.Sprintf("%s: %v", places[c.path], err)
		}
		return said == "true", fmt.Sprintf("%s: the condition %s is not met", places[c.path], c.text)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not within %s", timeout))
	defer cancel()
	return nil, wait(ctx, func(ctx context.Context) (bool, string, error) {
		var states []string
		for _, c := range anyOf {
			ok, state := met(ctx, c)
			if ok {
				return true, "", nil
			}
			states = append(states, state)
		}
		all := len(allOf) > 0
		for _, c := range allOf {
			ok, state := met(ctx, c)
			if !ok {
				all, states = false, append(states, state)
			}
		}
		return all, strings.Join(states, "; "), nil
	})
}
