package house_test

import (
	"fmt"
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// message is a text that a user can read, and where the code has it.
type message struct{ text, place string }

// logMethods are the methods of a logger whose first argument is the message.
var logMethods = []string{
	"Debug", "Debugf", "Info", "Infof", "Print", "Printf", "Trace", "Tracef",
	"Warn", "Warnf", "Warning", "Warningf", "Error", "Errorf",
}

// findMethods make findings of a decision, which are logged: the message is their second
// argument.
var findMethods = []string{"find", "finding"}

// TestLogMessagesLeadToOnePlace requires that a log line is found in the code by its
// beginning: what stands before the first value is no other message's beginning. A line
// that repeats an error is logged without a format, and found by the error.
func TestLogMessagesLeadToOnePlace(t *testing.T) {
	logs, _ := messages(t)
	var beginnings []message
	for _, log := range logs {
		beginning := constantBeginning(log.text)
		if beginning == "" {
			t.Errorf("%s: log message %q has no constant beginning", log.place, log.text)
			continue
		}
		beginnings = append(beginnings, message{text: beginning, place: log.place})
	}
	slices.SortFunc(beginnings, func(a, b message) int { return strings.Compare(a.text, b.text) })
	for i := 1; i < len(beginnings); i++ {
		if earlier, later := beginnings[i-1], beginnings[i]; later.text == earlier.text {
			t.Errorf("%s: log message %q starts like the one at %s", later.place, later.text, earlier.place)
		}
	}
}

// TestErrorsLeadToOnePlace requires the same of errors, in their way: an error that
// wraps another one (%w) only adds what was attempted, so "get %s: %w" may occur more
// than once; the text of one that wraps nothing is where the trouble was found, and
// occurs once, its verbs included. One of verbs alone ("%s: %s") passes a text on.
func TestErrorsLeadToOnePlace(t *testing.T) {
	_, errors := messages(t)
	slices.SortFunc(errors, func(a, b message) int { return strings.Compare(a.text, b.text) })
	for i := 1; i < len(errors); i++ {
		if errors[i].text == errors[i-1].text {
			t.Errorf("%s: error %q has the text of the one at %s", errors[i].place, errors[i].text, errors[i-1].place)
		}
	}
}

// messages returns the messages of all loggers, and the errors that wrap no other.
func messages(t *testing.T) (logs, errors []message) {
	t.Helper()
	for _, file := range sources(t) {
		ast.Inspect(file.syntax, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			argument := call.Args[0]
			if slices.Contains(findMethods, method.Sel.Name) && len(call.Args) > 2 {
				argument = call.Args[1]
			}
			text, ok := literal(argument)
			if !ok {
				return true
			}
			found := message{text: text, place: file.place(call.Pos())}
			switch receiver := fmt.Sprint(method.X); {
			case receiver == "fmt" && method.Sel.Name == "Errorf", receiver == "errors" && method.Sel.Name == "New":
				if !strings.Contains(text, "%w") && constant.MatchString(verb.ReplaceAllString(text, "")) {
					errors = append(errors, found)
				}
			case receiver != "fmt" && slices.Contains(slices.Concat(logMethods, findMethods), method.Sel.Name):
				logs = append(logs, found)
			}
			return true
		})
	}
	return logs, errors
}

var (
	verb     = regexp.MustCompile(`%[-+# 0-9.]*[a-zA-Z]`)
	constant = regexp.MustCompile(`\pL`)
)

// literal returns the constant text that an expression starts with. It reports false if
// the expression is no string that starts with one.
func literal(expression ast.Expr) (string, bool) {
	switch e := expression.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		return text, e.Kind == token.STRING && err == nil
	case *ast.BinaryExpr:
		left, ok := literal(e.X)
		if !ok || e.Op != token.ADD {
			return "", false
		}
		if right, ok := literal(e.Y); ok {
			return left + right, true
		}
		return left + "%v", true
	}
	return "", false
}

// constantBeginning returns what stands before the first verb of a format.
func constantBeginning(format string) string {
	beginning, _, _ := strings.Cut(format, "%")
	return strings.TrimSpace(beginning)
}

func (s source) place(pos token.Pos) string {
	return fmt.Sprintf("%s:%d", s.path, s.files.Position(pos).Line)
}
