package render

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// templateName names our templates in the errors of text/template, which explain
// removes.
const templateName = "text"

var (
	// executing splits an error of text/template at the first ">: ". So the message
	// may get a part of the node, which is text of the template, but the node gets
	// no part of the message.
	executing = regexp.MustCompile(`(?s)^template: ` + templateName + `:\d+:\d+: executing "[^"]*" at <(.*?)>: (.*)$`)

	noKey      = regexp.MustCompile(`^(?:map has no entry for key|nil data; no entry for key) "(.*)"$`)
	noField    = regexp.MustCompile(`^can't evaluate field (\w+) in type (.+)$`)
	nilPointer = regexp.MustCompile(`^nil pointer evaluating (.+)\.(\w+)$`)
	calling    = regexp.MustCompile(`(?s)^error calling (\w+): (.*)$`)

	// ownCalls are what showValues adds to a template.
	ownCalls = regexp.MustCompile(`( \| )?_show( (true|false))?`)

	// harmless are messages that hold names and types, but no value.
	harmless = regexp.MustCompile(`^(wrong number of args for \w+: want (at least )?\d+ got \d+|` +
		`wrong type for value; expected .+; got .+|invalid value; expected .+|` +
		`nil is not a command|exceeded maximum template depth \(\d+\)|undefined variable: \$\w*|` +
		`template "\w*" not defined|\w+ is not a method but has arguments|` +
		`\w+ has arguments but cannot be invoked as function)$`)

	// quiet are functions of text/template whose errors hold only types and
	// indexes. (The errors of eq and other comparisons print the operands.)
	quiet = []string{"index", "slice", "len"}
)

// explain says in terms of the blueprint why a template failed.
//
// Messages of text/template and of sprig can quote values. If Secrets are in scope,
// explain shows only messages that are known to quote none. The parent process masks
// the rest.
func (e *evaluation) explain(err error) error {
	var refused refusal
	match := executing.FindStringSubmatch(err.Error())
	if match == nil {
		if errors.As(err, &refused) {
			return refused
		}
		return e.withheld("", err.Error())
	}
	node, message := strings.TrimSuffix(strings.TrimPrefix(match[1], "{{"), "}}"), match[2]
	node = ownCalls.ReplaceAllString(node, "")
	at := func(format string, args ...any) error {
		return fmt.Errorf("{{%s}}: "+format, append([]any{node}, args...)...)
	}
	if errors.As(err, &refused) {
		if node == "" {
			return refused
		}
		return at("%s", refused)
	}
	if errors.Is(err, errAbsent) {
		return at("no such phase or artifact; up to here the phases are: %s; the artifacts are: %s",
			blueprint.List(slices.Collect(maps.Keys(e.scope.Phases))), blueprint.List(slices.Collect(maps.Keys(e.scope.ArtifactsIn))))
	}
	if m := noKey.FindStringSubmatch(message); m != nil {
		if keys, ok := e.keys(node, m[1]); ok {
			return at("there is no key %q; the keys are: %s", m[1], keys)
		}
		return at("there is no key %q", m[1])
	}
	if m := nilPointer.FindStringSubmatch(message); m != nil {
		return at("%s", e.absent(m[1], m[2]))
	}
	if m := noField.FindStringSubmatch(message); m != nil {
		if m[2] == reflect.TypeFor[*scope]().String() {
			return at("there is no parameter .%s; a %s has: %s", m[1], e.Data.kind(), e.Data.parameters())
		}
		return at("there is no field %q in a %s", m[1], strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(m[2], "*"), "render."), "Scope"))
	}
	if m := calling.FindStringSubmatch(message); m != nil {
		// Text that stands in the template word for word, as that of `fail`, is
		// no value.
		if slices.Contains(quiet, m[1]) || strings.Contains(e.Source, m[2]) {
			return at("%s: %s", m[1], m[2])
		}
		return e.withheld(node, message)
	}
	if harmless.MatchString(message) {
		return at("%s", message)
	}
	return e.withheld(node, message)
}

// withheld shows a message only if there are no Secrets that it could quote.
func (e *evaluation) withheld(node, message string) error {
	if e.Data.Secretive {
		what := "this"
		if m := calling.FindStringSubmatch(message); m != nil {
			what = m[1]
		}
		message = what + " fails; the reason is not shown, as it could quote a secret"
	}
	if node == "" {
		return errors.New(message)
	}
	return fmt.Errorf("{{%s}}: %s", node, message)
}

// absent says why a value is nil of which a template asked for a field.
func (e *evaluation) absent(kind, field string) string {
	switch kind {
	case "*render.Profile":
		return "there is no Kanister profile: a hook of a backup has none; pass what it needs as options"
	case "interface {}":
		return fmt.Sprintf("there is nothing to take %q from", field)
	default:
		name := strings.TrimPrefix(kind, "*render.")
		return fmt.Sprintf("a %s has no .%s; it has: %s", e.Data.kind(), name, e.Data.parameters())
	}
}

// keys lists the keys beside the missing one, if the node is a path from the top such
// as .Options.container.
func (e *evaluation) keys(node, missing string) (string, bool) {
	path := strings.Split(strings.TrimPrefix(node, "$"), ".")
	at := slices.Index(path, missing)
	if at < 1 || path[0] != "" {
		return "", false
	}
	var names []string
	err := e.evaluate("{{ keys $"+strings.Join(path[:at], ".")+" }}", template.FuncMap{"keys": func(of any) string {
		for _, key := range reflect.ValueOf(of).MapKeys() {
			names = append(names, key.String())
		}
		return ""
	}})
	return blueprint.List(names), err == nil
}
