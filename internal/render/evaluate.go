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
	"strconv"
	"strings"
	"text/template"
	tree "text/template/parse"

	"k8s.io/client-go/util/jsonpath"
	kjson "sigs.k8s.io/json"
)

const (
	// maxRendered is the longest text, in bytes, that a template may give. A command
	// line of more could not be run anyway.
	maxRendered = 1 << 20
	// maxStack bounds recursion, in bytes.
	maxStack = 64 << 20
)

// question is a template to be rendered.
type question struct {
	Source string
	// Data is what the template sees.
	Data *data
	// Nonce is given where marks stand for values in the text.
	Nonce string
	// Condition is a function, Wait or WaitV2, whose condition the template is, over
	// Object. Where that is nil the template is only parsed.
	Condition string
	Object    map[string]any
}

// answer is what a template gave.
type answer struct {
	Text   []byte // JSON would change a string that is not valid UTF-8
	Values []marked
	// Needs is what the template asked for that is not known yet.
	Needs string
	Error string
}

// Serve is the subcommand Command: it renders what it reads, and ends
// with its input. It returns the exit code.
//
// Nothing can interrupt a template, and nothing within it bounds its memory, so this
// process is the bound: the other end kills it. Where the kernel runs out of memory
// it takes this process first.
func Serve(in io.Reader, out io.Writer) int {
	debug.SetMaxStack(maxStack)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0) // best effort
	questions := make(chan json.RawMessage)
	go func() {
		for decoder := json.NewDecoder(in); ; {
			var body json.RawMessage
			if decoder.Decode(&body) != nil {
				os.Exit(0) // even during a template: the plugin no longer waits for it
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
	// wants is what the template has asked for in vain.
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
		if err := e.certain(parsed.Root); err != nil {
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

// parse parses the source, such that a mark stands for each value in the text where
// marks are wanted.
func (e *evaluation) parse(missingKey string, functions template.FuncMap) (*template.Template, error) {
	parsed := template.New(templateName).Option("missingkey=" + missingKey).Funcs(functions)
	if e.marks != nil {
		parsed.Funcs(template.FuncMap{showFunc: e.marks.show})
	}
	parsed, err := parsed.Parse(e.Source)
	if err != nil {
		// Nothing has been evaluated, so there is no value in it.
		return nil, fmt.Errorf("template line %s", strings.TrimPrefix(err.Error(), "template: "+templateName+":"))
	}
	if e.marks != nil {
		visit(parsed, showValues)
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

// visit calls do for each node of all templates that were parsed.
func visit(parsed *template.Template, do func(tree.Node)) {
	var nodes func(...tree.Node)
	nodes = func(all ...tree.Node) {
		for _, at := range all {
			if reflect.ValueOf(at).IsNil() { // as of a branch without else
				continue
			}
			do(at)
			switch n := at.(type) {
			case *tree.ListNode:
				nodes(n.Nodes...)
			case *tree.PipeNode:
				for _, command := range n.Cmds {
					nodes(command.Args...)
				}
			case *tree.ActionNode:
				nodes(n.Pipe)
			case *tree.ChainNode:
				nodes(n.Node)
			case *tree.TemplateNode:
				nodes(n.Pipe)
			case *tree.IfNode:
				nodes(n.Pipe, n.List, n.ElseList)
			case *tree.WithNode:
				nodes(n.Pipe, n.List, n.ElseList)
			case *tree.RangeNode:
				nodes(n.Pipe, n.List, n.ElseList)
			}
		}
	}
	for _, each := range parsed.Templates() {
		if each.Tree != nil {
			nodes(each.Root)
		}
	}
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
	visit(parsed, func(node tree.Node) {
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

// paths puts a name in the place of each jsonpath of a condition. In a text it is
// replaced when the condition has been parsed; elsewhere it is a function that
// returns what the path finds. So a field of the object is data wherever it stands.
// (With Kanister it becomes source of the template.)
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
			err = fmt.Errorf("%s is not there", found)
		}
		name := fmt.Sprintf("path%s%dx", nonce, len(functions))
		pairs = append(pairs, name, value.String())
		functions[name] = func() any { return constant(value.String()) }
		return name
	})
	return functions, pairs, err
}

// constant is a value as a template has it that is written there: a number, a
// truth, or else a text.
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
