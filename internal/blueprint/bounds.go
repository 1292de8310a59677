package blueprint

import (
	"context"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/template"
	tree "text/template/parse"
)

// A template runs in the process that freezes and thaws, and nothing can
// interrupt it. So it is bounded from within: in the turns of its loops and in
// the size of what its functions take and give.
const (
	// maxRendered is the longest text, in bytes, that a template or a function
	// in one may give. A command line of more could not be run anyway.
	maxRendered = 1 << 20
	// maxTurns is how often one rendering may go through the bodies of loops
	// and templates.
	maxTurns = 100_000
	// maxElements is how many elements a value may have, counted as often as
	// printing it would print them, maxDepth how deep they may nest.
	maxElements = 100_000
	maxDepth    = 100
)

// Names of the functions that are put into every template.
const (
	tickFunc = "_tick"
	showFunc = "_show"
)

// printing are text/template's own functions that make text, where they can be
// bounded.
var printing = template.FuncMap{
	"print": fmt.Sprint, "printf": fmt.Sprintf, "println": fmt.Sprintln,
	"html": template.HTMLEscaper, "js": template.JSEscaper, "urlquery": template.URLQueryEscaper,
}

// newTemplate parses a template such that its loops count their turns, and
// every value on its way into the text goes through show.
func newTemplate(ctx context.Context, source, missingKey string, show shower) (*template.Template, error) {
	turns := 0
	parsed, err := template.New(templateName).Option("missingkey=" + missingKey).Funcs(textFuncs()).Funcs(template.FuncMap{
		tickFunc: func() (string, error) {
			if turns++; turns > maxTurns {
				return "", refusal(fmt.Sprintf("the template goes through loops more than %d times", maxTurns))
			}
			return "", ctx.Err()
		},
		showFunc: func(isJSON bool, value any) (any, error) {
			budget := maxElements
			if !fits(reflect.ValueOf(value), &budget, maxDepth) {
				return nil, tooLarge("what the template prints")
			}
			return show(isJSON, value)
		},
	}).Parse(source)
	if err != nil {
		return nil, err
	}
	for _, each := range parsed.Templates() {
		if each.Tree != nil && each.Root != nil {
			instrument(each.Root, true)
		}
	}
	return parsed, nil
}

// instrument puts a tick in front of a body that can run more than once, and
// show behind every pipeline that gives text.
func instrument(list *tree.ListNode, again bool) {
	if list == nil {
		return
	}
	for _, node := range list.Nodes {
		switch n := node.(type) {
		case *tree.ActionNode:
			if len(n.Pipe.Decl) == 0 {
				n.Pipe.Cmds = append(n.Pipe.Cmds, call(showFunc, n.Pos, &tree.BoolNode{NodeType: tree.NodeBool, Pos: n.Pos, True: givesJSON(n.Pipe)}))
			}
		case *tree.IfNode:
			instrument(n.List, false)
			instrument(n.ElseList, false)
		case *tree.WithNode:
			instrument(n.List, false)
			instrument(n.ElseList, false)
		case *tree.RangeNode:
			instrument(n.List, true)
			instrument(n.ElseList, false)
		}
	}
	if again {
		tick := &tree.ActionNode{NodeType: tree.NodeAction, Pos: list.Pos, Pipe: &tree.PipeNode{
			NodeType: tree.NodePipe, Pos: list.Pos, Cmds: []*tree.CommandNode{call(tickFunc, list.Pos)},
		}}
		list.Nodes = slices.Insert(list.Nodes, 0, tree.Node(tick))
	}
}

func call(function string, pos tree.Pos, args ...tree.Node) *tree.CommandNode {
	return &tree.CommandNode{NodeType: tree.NodeCommand, Pos: pos, Args: append([]tree.Node{tree.NewIdentifier(function).SetPos(pos)}, args...)}
}

// shower is told a value that is about to become text, and whether it is JSON
// that the template's author asked for. It gives what stands in the text.
type shower func(isJSON bool, value any) (any, error)

func asItIs(_ bool, value any) (any, error) { return value, nil }

// givesJSON tells that a pipeline ends in one of the functions that write JSON,
// indented perhaps.
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

// bounded is a function that refuses what is too large, before and after.
// text/template makes an error of the panic.
func bounded(name string, function any) any {
	f := reflect.ValueOf(function)
	estimate := estimates[name]
	return reflect.MakeFunc(f.Type(), func(in []reflect.Value) []reflect.Value {
		check(name, in)
		if estimate != nil && estimate(in) > maxRendered {
			panic(tooLarge(name))
		}
		var out []reflect.Value
		if f.Type().IsVariadic() {
			out = f.CallSlice(in)
		} else {
			out = f.Call(in)
		}
		check(name, out)
		return out
	}).Interface()
}

func check(name string, values []reflect.Value) {
	budget := maxElements
	for _, value := range values {
		if !fits(value, &budget, maxDepth) {
			panic(tooLarge(name))
		}
	}
}

func tooLarge(name string) error {
	return refusal(fmt.Sprintf("%s: too large: texts go up to %d bytes, lists and maps up to %d elements", name, maxRendered, maxElements))
}

// fits tells whether a value is small enough to be printed. What contains
// itself is not.
func fits(value reflect.Value, budget *int, depth int) bool {
	if *budget--; *budget < 0 || depth < 0 {
		return false
	}
	switch value.Kind() {
	case reflect.Invalid:
		return true
	case reflect.String:
		return value.Len() <= maxRendered
	case reflect.Interface, reflect.Pointer:
		return value.IsNil() || fits(value.Elem(), budget, depth-1)
	case reflect.Slice, reflect.Array:
		if value.Type().Elem().Kind() == reflect.Uint8 {
			return value.Len() <= maxRendered
		}
		for i := range value.Len() {
			if !fits(value.Index(i), budget, depth-1) {
				return false
			}
		}
	case reflect.Map:
		for entries := value.MapRange(); entries.Next(); {
			if !fits(entries.Value(), budget, depth-1) {
				return false
			}
		}
	default:
		// Structs are the scope's own. They are as large as the API server
		// lets objects be, and no function makes or changes one.
	}
	return true
}

// estimates say how large a result will be, of functions whose result can be
// much larger than what they are given.
var estimates = map[string]func(in []reflect.Value) int{
	"repeat":  func(in []reflect.Value) int { return times(in[0], in[1].Len()) },
	"indent":  func(in []reflect.Value) int { return times(in[0], 1+strings.Count(in[1].String(), "\n")) },
	"nindent": func(in []reflect.Value) int { return times(in[0], 1+strings.Count(in[1].String(), "\n")) },

	"until":     func(in []reflect.Value) int { return span(0, in[0].Int(), 1) },
	"untilStep": func(in []reflect.Value) int { return span(in[0].Int(), in[1].Int(), in[2].Int()) },
	"seq": func(in []reflect.Value) int {
		bounds := in[0]
		switch bounds.Len() {
		case 1:
			return span(1, bounds.Index(0).Int(), 1)
		case 2:
			return span(bounds.Index(0).Int(), bounds.Index(1).Int(), 1)
		case 3:
			return span(bounds.Index(0).Int(), bounds.Index(2).Int(), bounds.Index(1).Int())
		default:
			return 0
		}
	},

	"randAlphaNum": func(in []reflect.Value) int { return times(in[0], 1) },
	"randAlpha":    func(in []reflect.Value) int { return times(in[0], 1) },
	"randAscii":    func(in []reflect.Value) int { return times(in[0], 1) },
	"randNumeric":  func(in []reflect.Value) int { return times(in[0], 1) },
	"randBytes":    func(in []reflect.Value) int { return times(in[0], 1) },

	"replace": func(in []reflect.Value) int {
		return max(1, strings.Count(in[2].String(), in[0].String())) * in[1].Len()
	},
	"regexReplaceAll":            regexGrowth,
	"mustRegexReplaceAll":        regexGrowth,
	"regexReplaceAllLiteral":     regexGrowth,
	"mustRegexReplaceAllLiteral": regexGrowth,
	"join": func(in []reflect.Value) int {
		list := in[1]
		for list.Kind() == reflect.Interface && !list.IsNil() {
			list = list.Elem()
		}
		if list.Kind() != reflect.Slice && list.Kind() != reflect.Array {
			return 0
		}
		return list.Len() * in[0].Len()
	},
	"printf": func(in []reflect.Value) int {
		if wide.MatchString(in[0].String()) {
			return maxRendered + 1
		}
		return 0
	},
}

// wide is a verb of printf that fills up with blanks or zeros without measure.
var wide = regexp.MustCompile(`%[^%a-zA-Z]*(\d{5}|\*)`)

// regexGrowth knows nothing of the matches, so it judges by what was given.
func regexGrowth(in []reflect.Value) int {
	const mostWork = 64
	return in[1].Len() / mostWork * in[2].Len()
}

// times is count × size without overflow.
func times(count reflect.Value, size int) int {
	n := count.Int()
	if n <= 0 || size == 0 {
		return 0
	}
	if n > maxRendered {
		return maxRendered + 1
	}
	return int(n) * size
}

// span is what the numbers from start to stop weigh. Numbers that a step could
// carry past the largest one are refused.
func span(start, stop, step int64) int {
	const largest = 1 << 53
	distance := max(start-stop, stop-start)
	if max(start, -start, stop, -stop, step, -step) > largest || distance/max(step, -step, 1) > maxElements {
		return maxRendered + 1
	}
	return 0
}
