package render

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// templateName is what text/template calls each of our templates in its
// errors, where it is taken out again.
const templateName = "text"

var (
	// executing splits an error of text/template. The node is cut at the
	// first ">: ": what belongs to the node but lands in the message is text
	// of the template, what belongs to the message never lands in the node.
	executing = regexp.MustCompile(`(?s)^template: ` + templateName + `:\d+:\d+: executing "[^"]*" at <(.*?)>: (.*)$`)

	noKey      = regexp.MustCompile(`^(?:map has no entry for key|nil data; no entry for key) "(.*)"$`)
	noField    = regexp.MustCompile(`^can't evaluate field (\w+) in type (.+)$`)
	nilPointer = regexp.MustCompile(`^nil pointer evaluating (.+)\.(\w+)$`)
	calling    = regexp.MustCompile(`(?s)^error calling (\w+): (.*)$`)

	// ownCalls are what showValues has put into a template.
	ownCalls = regexp.MustCompile(`( \| )?_show( (true|false))?`)

	// harmless are messages which hold names and types, and never a value.
	harmless = regexp.MustCompile(`^(wrong number of args for \w+: want (at least )?\d+ got \d+|` +
		`wrong type for value; expected .+; got .+|invalid value; expected .+|` +
		`nil is not a command|exceeded maximum template depth \(\d+\)|undefined variable: \$\w*|` +
		`template "\w*" not defined|\w+ is not a method but has arguments|` +
		`\w+ has arguments but cannot be invoked as function)$`)

	// quiet are functions of text/template whose errors hold types and
	// indexes only. (Those of eq and its kind print what they compared.)
	quiet = []string{"index", "slice", "len"}
)

// explain says in the words of a blueprint's author why a template failed.
//
// Messages of text/template and of sprig can quote the values that they failed
// on. Where Secrets are in scope, only those are shown of which it is known
// that they do not. The other process masks what is left.
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
		// What stands in the template word for word (the text of `fail`)
		// is the blueprint's and not a value.
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

// withheld shows a message only while there are no Secrets that it could hold.
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

// absent says what a nil stands for of which a template wanted a field.
func (e *evaluation) absent(kind, field string) string {
	switch kind {
	case "*render.Profile":
		return "there is no Kanister profile: a hook of a backup has none, and what it needs to know can be given as options"
	case "interface {}":
		return fmt.Sprintf("there is nothing to take %q from", field)
	default:
		name := strings.TrimPrefix(kind, "*render.")
		return fmt.Sprintf("a %s has no .%s; it has: %s", e.Data.kind(), name, e.Data.parameters())
	}
}

// keys lists the keys beside the missing one. It follows the node (such as
// .Options.container) from the top and gives up where the node starts
// elsewhere.
func (e *evaluation) keys(node, missing string) (string, bool) {
	path := strings.Split(strings.TrimPrefix(node, "$"), ".")
	if len(path) < 2 || path[0] != "" {
		return "", false
	}
	at := reflect.ValueOf(e.scope)
	for _, name := range path[1:] {
		if at.Kind() == reflect.Pointer {
			if method := at.MethodByName(name); method.IsValid() && method.Type().NumIn() == 0 {
				at = method.Call(nil)[0]
				continue
			}
		}
		for at.Kind() == reflect.Pointer || at.Kind() == reflect.Interface {
			at = at.Elem()
		}
		switch at.Kind() {
		case reflect.Struct:
			at = at.FieldByName(name)
		case reflect.Map:
			if at.Type().Key() != reflect.TypeFor[string]() {
				return "", false
			}
			next := at.MapIndex(reflect.ValueOf(name))
			if !next.IsValid() && name == missing {
				var names []string
				for _, key := range at.MapKeys() {
					names = append(names, key.String())
				}
				return blueprint.List(names), true
			}
			at = next
		default:
			return "", false
		}
	}
	return "", false
}
