package blueprint

import (
	"context"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	tree "text/template/parse"
	"unicode"
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
	// maxElements is how many elements all values together may have that a
	// function takes, or gives, counted as often as printing them would print
	// them; maxBytes is the length of their texts, and maxDepth how deep they
	// may nest.
	maxElements = 100_000
	maxBytes    = 4 * maxRendered
	maxDepth    = 100
	// maxSource is how long a template may be: what it nests is parsed and run
	// on the stack.
	maxSource = 256 << 10
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
func newTemplate(ctx context.Context, source, missingKey string, functions template.FuncMap, show shower) (*template.Template, error) {
	if len(source) > maxSource {
		return nil, refusal(fmt.Sprintf("1: the template is %d bytes long, and may be %d", len(source), maxSource))
	}
	turns := 0
	parsed, err := template.New(templateName).Option("missingkey=" + missingKey).Funcs(functions).Funcs(template.FuncMap{
		tickFunc: func() (string, error) {
			if turns++; turns > maxTurns {
				return "", refusal(fmt.Sprintf("the template goes through loops more than %d times", maxTurns))
			}
			return "", ctx.Err()
		},
		showFunc: func(isJSON bool, value any) (any, error) {
			var size size
			if !size.add(reflect.ValueOf(value), maxDepth) {
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
	if _, ok := sizeOf(values); !ok {
		panic(tooLarge(name))
	}
}

func tooLarge(name string) error {
	return refusal(fmt.Sprintf("%s: too large: texts go up to %d bytes, lists and maps up to %d elements", name, maxRendered, maxElements))
}

// size is how much values are that would be printed.
type size struct{ elements, bytes int }

// sizeOf gives the size of all values together; ok tells whether they are small
// enough.
func sizeOf(values []reflect.Value) (total size, ok bool) {
	for _, value := range values {
		if !total.add(value, maxDepth) {
			return total, false
		}
	}
	return total, true
}

// add counts a value, and tells whether all is still small enough to be
// printed. What contains itself is not.
func (s *size) add(value reflect.Value, depth int) bool {
	if s.elements++; s.elements > maxElements || depth < 0 {
		return false
	}
	text := func(length int) bool {
		s.bytes += length
		return length <= maxRendered && s.bytes <= maxBytes
	}
	switch value.Kind() {
	case reflect.Invalid:
		return true
	case reflect.String:
		return text(value.Len())
	case reflect.Interface, reflect.Pointer:
		return value.IsNil() || s.add(value.Elem(), depth-1)
	case reflect.Slice, reflect.Array:
		if value.Type().Elem().Kind() == reflect.Uint8 {
			return text(value.Len())
		}
		for i := range value.Len() {
			if !s.add(value.Index(i), depth-1) {
				return false
			}
		}
	case reflect.Map:
		for entries := value.MapRange(); entries.Next(); {
			if key := entries.Key(); key.Kind() == reflect.String && !text(key.Len()) {
				return false
			}
			if !s.add(entries.Value(), depth-1) {
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
	"printf": formatted,
	"wrapWith": func(in []reflect.Value) int {
		width := max(1, in[0].Int())
		breaks := strings.Count(in[2].String(), " ") + in[2].Len()/int(min(width, maxRendered))
		return breaks * in[1].Len()
	},
	"split":     func(in []reflect.Value) int { return pieces(in[0], in[1]) },
	"splitList": func(in []reflect.Value) int { return pieces(in[0], in[1]) },
	"splitn":    func(in []reflect.Value) int { return pieces(in[0], in[2]) },
}

// width is a width or a precision in a verb of printf.
var width = regexp.MustCompile(`\d+|\*`)

// formatted is what printf could make of a format that shows every value in
// each verb, and fills up with blanks or zeros as it says.
func formatted(in []reflect.Value) int {
	format, filled := in[0].String(), 0
	verbs := strings.Split(format, "%")
	for _, verb := range verbs[1:] {
		flags := verb
		if end := strings.IndexFunc(verb, unicode.IsLetter); end >= 0 {
			flags = verb[:end]
		}
		for _, wide := range width.FindAllString(flags, -1) {
			n, err := strconv.Atoi(wide)
			if err != nil { // it stands among the values
				return maxRendered + 1
			}
			filled += min(n, maxRendered)
		}
		if filled > maxRendered {
			return filled
		}
	}
	values, _ := sizeOf(in[1:])
	return filled + (len(verbs)-1)*values.bytes/expected
}

// expected is by how much formatted exaggerates at most where each value has a
// verb of its own.
const expected = 4

func pieces(separator, text reflect.Value) int {
	if strings.Count(text.String(), separator.String()) > maxElements {
		return maxRendered + 1
	}
	return 0
}

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
