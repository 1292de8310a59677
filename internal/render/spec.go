package render

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	tree "text/template/parse"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// marks stand in a rendered text for the values, so that the text can be parsed as its
// author meant it, whatever the values are.
type marks struct {
	nonce  string
	values []marked
	length int // of all values
}

type marked struct {
	Text []byte
	JSON bool
}

// showFunc is the name of marks.show in a template.
const showFunc = "_show"

// showValues passes each value that becomes text through marks.show.
func showValues(node tree.Node) {
	if n, ok := node.(*tree.ActionNode); ok && len(n.Pipe.Decl) == 0 {
		isJSON := &tree.BoolNode{NodeType: tree.NodeBool, Pos: n.Pos, True: givesJSON(n.Pipe)}
		n.Pipe.Cmds = append(n.Pipe.Cmds, &tree.CommandNode{
			NodeType: tree.NodeCommand, Pos: n.Pos, Args: []tree.Node{tree.NewIdentifier(showFunc).SetPos(n.Pos), isJSON},
		})
	}
}

// givesJSON reports whether a pipeline ends in a function that writes JSON, perhaps
// followed by one that indents.
func givesJSON(pipe *tree.PipeNode) bool {
	for _, command := range slices.Backward(pipe.Cmds) {
		name, ok := command.Args[0].(*tree.IdentifierNode)
		switch {
		case ok && slices.Contains([]string{"indent", "nindent", "trim"}, name.Ident):
		case ok:
			return strings.HasSuffix(strings.ToLower(name.Ident), "tojson") || name.Ident == "toPrettyJson" || name.Ident == "toRawJson"
		default:
			return false
		}
	}
	return false
}

// show replaces each line of a value by a mark. Blanks around a line remain, because
// they may belong to the indentation. Line breaks in JSON mean nothing.
func (m *marks) show(isJSON bool, value any) (any, error) {
	text := printed(value)
	if m.length += len(text); m.length > maxRendered {
		return nil, refusal(fmt.Sprintf("the text is longer than %d bytes", maxRendered))
	}
	lines := []string{text}
	if !isJSON {
		lines = strings.Split(text, "\n")
	}
	for i, line := range lines {
		if trimmed := strings.TrimSpace(line); trimmed != "" {
			before, after, _ := strings.Cut(line, trimmed)
			m.values = append(m.values, marked{[]byte(trimmed), isJSON})
			lines[i] = before + m.mark(len(m.values)-1) + after
		}
	}
	return strings.Join(lines, "\n"), nil
}

// mark returns a word that no value contains, because it cannot be guessed.
func (m *marks) mark(i int) string { return fmt.Sprintf("mark%sx%dx", m.nonce, i) }

// printed returns a value as a template prints it.
func printed(value any) string {
	v := reflect.ValueOf(value)
	if !v.IsValid() {
		return "<no value>"
	}
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		return fmt.Sprint(v.Elem().Interface())
	}
	return fmt.Sprint(value)
}

// fill replaces the marks by their values.
func (m *marks) fill(text string) string {
	if !strings.Contains(text, m.nonce) {
		return text
	}
	pairs := make([]string, 0, 2*len(m.values))
	for i, value := range m.values {
		pairs = append(pairs, m.mark(i), string(value.Text))
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// only returns the value whose mark is the whole text.
func (m *marks) only(text string) (marked, bool) {
	for i, value := range m.values {
		if text == m.mark(i) {
			return value, true
		}
	}
	return marked{}, false
}

// Document renders a template and reads the object that it contains as YAML.
//
// A rendered value may itself be YAML. If an annotation could add lines, it could add a
// privileged container, or turn a ConfigMap into a RoleBinding, with the rights with
// which the blueprint runs. So a value may only fill a scalar, unless it comes out of
// toJson. (Kanister checks none of that.)
func (r *rendering) Document(ctx context.Context, path, source string) (map[string]any, error) {
	m := &marks{nonce: rand.Text()}
	var text string
	var err error
	if text, m.values, err = r.execute(ctx, path, source, m.nonce); err != nil || r.needs != "" {
		return nil, err
	}
	object, err := oneObject(m.fill(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(m.values) == 0 {
		return object, nil
	}
	const advice = "a value that is rendered into it may fill one scalar only: put it in quotes ({{ … | quote }}), or write what is more by toJson"
	meant, err := oneObject(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %s", path, advice)
	}
	if at := m.differ("", meant, object); at != "" {
		return nil, fmt.Errorf("%s: at %s: %s", path, at, advice)
	}
	return object, nil
}

// oneObject reads an object in YAML. Several documents become a List, as with kubectl.
func oneObject(text string) (map[string]any, error) {
	docs := blueprint.Documents([]byte(text))
	if len(docs) == 0 {
		return nil, errors.New("0 documents where one is expected")
	}
	var items []any
	for _, doc := range docs {
		var object map[string]any
		asJSON, err := yaml.YAMLToJSONStrict(doc)
		if err != nil {
			return nil, fmt.Errorf("read as YAML: %w", err)
		}
		if err := kjson.UnmarshalCaseSensitivePreserveInts(asJSON, &object); err != nil || object == nil {
			return nil, errors.New("is no object")
		}
		items = append(items, object)
	}
	if object, ok := items[0].(map[string]any); ok && len(items) == 1 {
		return object, nil
	}
	return map[string]any{"apiVersion": "v1", "kind": "List", "items": items}, nil
}

// differ returns the place where an object differs from what was meant, "" if it does
// not.
func (m *marks) differ(path string, meant, is any) string {
	here := strings.TrimPrefix(path, ".")
	if here == "" {
		here = "the top"
	}
	switch a := meant.(type) {
	case map[string]any:
		b, ok := is.(map[string]any)
		if !ok || len(a) != len(b) {
			return here
		}
		for _, key := range slices.Sorted(maps.Keys(a)) {
			filled := m.fill(key)
			value, ok := b[filled]
			if !ok {
				return here
			}
			if at := m.differ(path+"."+filled, a[key], value); at != "" {
				return at
			}
		}
	case []any:
		b, ok := is.([]any)
		if !ok || len(a) != len(b) {
			return here
		}
		for i := range a {
			if at := m.differ(fmt.Sprintf("%s[%d]", path, i), a[i], b[i]); at != "" {
				return at
			}
		}
	case string:
		if !m.fills(a, is) {
			return here
		}
	default:
		if !reflect.DeepEqual(meant, is) {
			return here
		}
	}
	return ""
}

// fills reports whether a scalar is the intended one, with its values.
func (m *marks) fills(meant string, is any) bool {
	filled := m.fill(meant)
	if filled == is {
		return true
	}
	if filled == meant {
		return false
	}
	if value, ok := m.only(meant); ok && value.JSON {
		var parsed any
		return kjson.UnmarshalCaseSensitivePreserveInts(value.Text, &parsed) == nil && reflect.DeepEqual(parsed, is)
	}
	// The value may change the type, for example to a number, or be in quotes.
	switch is.(type) {
	case map[string]any, []any:
		return false
	}
	asJSON, err := yaml.YAMLToJSONStrict([]byte(filled))
	if err != nil {
		return false
	}
	var parsed any
	return json.Valid(asJSON) && kjson.UnmarshalCaseSensitivePreserveInts(asJSON, &parsed) == nil && reflect.DeepEqual(parsed, is)
}
