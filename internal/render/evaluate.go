package render

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"text/template"
	tree "text/template/parse"

	"k8s.io/client-go/util/jsonpath"
	kjson "sigs.k8s.io/json"

	"stillpoint.io/stillpoint/internal/blueprint"
)

const (
	// maxRendered is the longest text, in bytes, that a template may give. A command
	// line of more could not be run anyway.
	maxRendered = 1 << 20
	// maxStack bounds recursion, in bytes.
	maxStack = 64 << 20
)

// question is a template to render.
type question struct {
	Source string
	// Data is what the template sees.
	Data *data
	// Nonce, if set, asks for marks in place of the values in the text.
	Nonce string
	// Condition is WaitFunction or WaitV2Function if the template is a condition over
	// Object. Without Object it is only parsed.
	Condition string
	Object    map[string]any
}

// answer is what a template was rendered to.
type answer struct {
	Text   []byte // JSON would change a string that is not valid UTF-8
	Values []marked
	// Needs is what the template asks for and what is not known yet.
	Needs string
	Error string
}

// Serve is the subcommand Command: it answers the questions that it reads until its
// input ends, and returns the exit code.
//
// Nothing can interrupt a template or limit its memory from within the process, so the
// parent kills this process. If the kernel runs out of memory it kills this one first.
func Serve(in io.Reader, out io.Writer) int {
	debug.SetMaxStack(maxStack)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0) // best effort
	questions := make(chan json.RawMessage)
	go func() {
		for decoder := json.NewDecoder(in); ; {
			var body json.RawMessage
			if decoder.Decode(&body) != nil {
				os.Exit(0) // even during a template: the parent no longer waits for it
			}
			questions <- body
		}
	}()
	encoder := json.NewEncoder(out)
	for body := range questions {
		e := &evaluation{}
		reply, err := answer{}, kjson.UnmarshalCaseSensitivePreserveInts(body, &e.question)
		if err == nil {
			reply, err = e.reply()
		}
		if err != nil {
			reply = answer{Error: err.Error()}
		}
		if encoder.Encode(reply) != nil {
			break
		}
	}
	return 1
}

// evaluation is one template that is rendered.
type evaluation struct {
	question
	scope *scope
	// wants is what the template asked for and what is not known yet.
	wants wants
	marks *marks
}

func (e *evaluation) reply() (answer, error) {
	if e.Condition != "" {
		text, err := e.condition()
		return answer{Text: []byte(text)}, err
	}
	e.scope = newScope(e.Data, &e.wants)
	if e.Nonce != "" {
		e.marks = &marks{nonce: e.Nonce}
	}
	parsed, err := e.parse("error", textFuncs())
	if err != nil {
		return answer{}, err
	}
	var out limited
	err = parsed.Execute(&out, e.scope)
	if missing := e.wants.first; missing != "" {
		if err := e.lookAhead(parsed.Root); err != nil {
			return answer{}, e.explain(err)
		}
		return answer{Needs: missing}, nil
	}
	if err != nil {
		return answer{}, e.explain(err)
	}
	reply := answer{Text: []byte(out.String())}
	if e.marks != nil {
		reply.Values = e.marks.values
	}
	return reply, nil
}

// parse parses the source. If marks are set, they replace the values in the text.
func (e *evaluation) parse(missingKey string, functions template.FuncMap) (*template.Template, error) {
	parsed := template.New(templateName).Option("missingkey=" + missingKey).Funcs(functions)
	if e.marks != nil {
		parsed.Funcs(template.FuncMap{showFunc: e.marks.show})
	}
	parsed, err := parsed.Parse(e.Source)
	if err != nil {
		// Nothing has been evaluated, so the error holds no value.
		return nil, fmt.Errorf("template line %s", strings.TrimPrefix(err.Error(), "template: "+templateName+":"))
	}
	if e.marks != nil {
		change(parsed, showValues)
	}
	return parsed, nil
}

// limited collects what a template writes, up to maxRendered.
type limited struct{ strings.Builder }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxRendered {
		return 0, refusal(fmt.Sprintf("the text is longer than %d bytes", maxRendered))
	}
	return l.Builder.Write(p)
}

// walk calls do for nodes and for what they contain, unless do returns false.
func walk(do func(tree.Node) bool, nodes ...tree.Node) {
	for _, node := range nodes {
		if reflect.ValueOf(node).IsNil() || !do(node) { // a branch without else is nil
			continue
		}
		switch n := node.(type) {
		case *tree.ListNode:
			walk(do, n.Nodes...)
		case *tree.PipeNode:
			for _, command := range n.Cmds {
				walk(do, command)
			}
		case *tree.CommandNode:
			walk(do, n.Args...)
		case *tree.ActionNode:
			walk(do, n.Pipe)
		case *tree.ChainNode:
			walk(do, n.Node)
		case *tree.TemplateNode:
			walk(do, n.Pipe)
		case *tree.IfNode:
			walk(do, n.Pipe, n.List, n.ElseList)
		case *tree.WithNode:
			walk(do, n.Pipe, n.List, n.ElseList)
		case *tree.RangeNode:
			walk(do, n.Pipe, n.List, n.ElseList)
		}
	}
}

// change calls do for each node of all templates that were parsed.
func change(parsed *template.Template, do func(tree.Node)) {
	for _, each := range parsed.Templates() {
		if each.Tree != nil {
			walk(func(node tree.Node) bool { do(node); return true }, each.Root)
		}
	}
}

// lookAhead finds mistakes behind the place where a template stopped because it asked
// for something that is not known yet: it evaluates each parameter alone that the
// template asks for in any case. Mistakes inside a branch, or where the dot is another
// one, appear when the template is rendered.
func (e *evaluation) lookAhead(root *tree.ListNode) (err error) {
	walk(func(node tree.Node) bool {
		var path []string
		switch n := node.(type) {
		case *tree.ListNode:
			return n == root
		case *tree.CommandNode:
			// These stop at the first argument that decides.
			if name, ok := n.Args[0].(*tree.IdentifierNode); ok && (name.Ident == "and" || name.Ident == "or") {
				n.Args = n.Args[:min(len(n.Args), 2)]
			}
		case *tree.FieldNode:
			path = n.Ident
		case *tree.VariableNode:
			if n.Ident[0] == "$" {
				path = n.Ident[1:]
			}
		}
		if err == nil && len(path) > 0 {
			err = e.lookUp(path)
		}
		return err == nil
	}, root)
	return err
}

// lookUp returns an error if a path from the top can never be evaluated.
func (e *evaluation) lookUp(path []string) error {
	if len(path) > 3 && path[0] == "ArtifactsIn" && path[2] == "KeyValue" {
		name, key := path[1], path[3]
		keys := e.Data.Declared[name].KeyValue
		if _, ok := keys[key]; !ok && keys != nil {
			return refusal(fmt.Sprintf("artifact %s has no key %q; the keys are: %s", name, key, blueprint.List(slices.Collect(maps.Keys(keys)))))
		}
	}
	e.wants = wants{}
	err := e.evaluate("{{ with ."+strings.Join(path, ".")+" }}{{ end }}", nil)
	var later pending
	if e.wants.first != "" || errors.As(err, &later) {
		return nil
	}
	return err
}

// evaluate runs a template of our own over the same data.
func (e *evaluation) evaluate(source string, functions template.FuncMap) error {
	parsed, err := template.New(templateName).Option("missingkey=error").Funcs(functions).Parse(source)
	if err != nil {
		return err
	}
	return parsed.Execute(io.Discard, e.scope)
}

// condition renders a condition over an object. Its errors hold nothing of the
// object, which may be a Secret.
func (e *evaluation) condition() (string, error) {
	functions, pairs := objectFuncs, []string(nil)
	if e.Condition == WaitFunction {
		var err error
		if functions, pairs, err = e.paths(); err != nil {
			return "", err
		}
	}
	parsed, err := e.parse("zero", functions)
	if err != nil || e.Object == nil {
		return "", err
	}
	// Paths in texts give texts.
	fill := strings.NewReplacer(pairs...)
	change(parsed, func(node tree.Node) {
		switch n := node.(type) {
		case *tree.TextNode:
			n.Text = []byte(fill.Replace(string(n.Text)))
		case *tree.StringNode:
			n.Text = fill.Replace(n.Text)
		}
	})
	var out limited
	var over any // only the paths of Wait see the object
	if e.Condition == WaitV2Function {
		over = e.Object
	}
	if err := parsed.Execute(&out, over); err != nil {
		return "", errors.New("the condition fails on the object as it is now")
	}
	return strings.TrimSpace(out.String()), nil
}

// paths replaces each jsonpath of a condition by a name. In a text, the value replaces
// the name after the condition is parsed; elsewhere the name is a function that returns
// the value. So a field of the object is always data. (In Kanister it becomes source of
// the template.)
func (e *evaluation) paths() (_ template.FuncMap, pairs []string, err error) {
	functions, nonce := maps.Clone(textFuncs()), rand.Text()
	e.Source = jsonPathInText.ReplaceAllStringFunc(e.Source, func(found string) string {
		path := jsonpath.New(templateName)
		inner := strings.TrimPrefix(strings.TrimSpace(found[1:len(found)-1]), "$")
		if wrong := path.Parse("{" + strings.TrimSpace(inner) + "}"); wrong != nil {
			err = fmt.Errorf("%s: %w", found, wrong)
		}
		var value bytes.Buffer
		if err == nil && e.Object != nil && path.Execute(&value, e.Object) != nil {
			err = fmt.Errorf("%s does not exist", found)
		}
		name := fmt.Sprintf("path%s%dx", nonce, len(functions))
		pairs = append(pairs, name, value.String())
		functions[name] = func() any { return constant(value.String()) }
		return name
	})
	return functions, pairs, err
}

// constant converts a value as if it stood in the template: to a number, a boolean, or
// else a text.
func constant(text string) any {
	whole, notWhole := strconv.Atoi(text)
	number, notNumber := strconv.ParseFloat(text, 64)
	switch {
	case notWhole == nil:
		return whole
	case notNumber == nil && strings.ContainsAny(text, "0123456789"): // not NaN
		return number
	case text == "true", text == "false":
		return text == "true"
	}
	return text
}
