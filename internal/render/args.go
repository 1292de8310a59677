package render

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	kjson "sigs.k8s.io/json"
)

// Args are the rendered arguments of a phase. Their values are converted as loosely
// as Kanister does it.
type Args map[string]any

// UnmarshalJSON keeps whole numbers whole.
func (a *Args) UnmarshalJSON(data []byte) error {
	return kjson.UnmarshalCaseSensitivePreserveInts(data, (*map[string]any)(a))
}

// String returns an argument as text, "" if it is absent.
func (a Args) String(name string) (string, error) {
	if a[name] == nil {
		return "", nil
	}
	return Scalar("args."+name, a[name])
}

// Strings returns an argument that is a list, nil if it is absent. A single value is
// a list of one.
func (a Args) Strings(name string) ([]string, error) {
	elements, ok := a[name].([]any)
	if !ok {
		text, err := a.String(name)
		if a[name] == nil || err != nil {
			return nil, err
		}
		return []string{text}, nil
	}
	texts := make([]string, len(elements))
	for i, element := range elements {
		var err error
		if texts[i], err = Scalar(fmt.Sprintf("args.%s[%d]", name, i), element); err != nil {
			return nil, err
		}
	}
	return texts, nil
}

// Texts returns an argument that is a map of texts, an empty one if it is absent.
func (a Args) Texts(name string) (map[string]string, error) {
	texts := map[string]string{}
	entries, ok := a[name].(map[string]any)
	if !ok && a[name] != nil {
		return nil, fmt.Errorf("args.%s must be a map of texts", name)
	}
	for key, entry := range entries {
		var err error
		if texts[key], err = Scalar("args."+name+"."+key, entry); err != nil {
			return nil, err
		}
	}
	return texts, nil
}

// Scalar writes a value as Kanister's decoder does, true as "1" included. path says
// in the error where the value stands.
func Scalar(path string, value any) (string, error) {
	what := ""
	switch v := value.(type) {
	case string:
		return v, nil
	case bool:
		if v {
			return "1", nil
		}
		return "0", nil
	case int, int64:
		return fmt.Sprint(v), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	case map[string]any:
		what = "a map"
	case []any:
		what = "a list"
	case nil:
		what = "null"
	default:
		what = fmt.Sprintf("of type %T", value)
	}
	return "", fmt.Errorf("%s: is %s, must be a string", path, what)
}

// Reader reads arguments one after another; Err is the first error.
type Reader struct {
	Args Args
	Err  error
}

// Reader reads a.
func (a Args) Reader() *Reader { return &Reader{Args: a} }

// Check keeps an error unless there is an earlier one.
func (r *Reader) Check(err error) {
	if r.Err == nil {
		r.Err = err
	}
}

// String is Args.String.
func (r *Reader) String(name string) string {
	text, err := r.Args.String(name)
	r.Check(err)
	return text
}

// Texts is Args.Texts.
func (r *Reader) Texts(name string) map[string]string {
	texts, err := r.Args.Texts(name)
	r.Check(err)
	return texts
}

// Required is String of an argument that must not be empty.
func (r *Reader) Required(name string) string {
	text := r.String(name)
	if text == "" {
		r.Check(errors.New("args." + name + " is empty"))
	}
	return text
}

// Command is Strings of an argument that must name a program.
func (r *Reader) Command(name string) []string {
	command, err := r.Args.Strings(name)
	r.Check(err)
	if len(command) == 0 || command[0] == "" {
		r.Check(errors.New("args." + name + " names no program"))
	}
	return command
}

// Fields returns an argument that is a string of names with blanks between them, or
// a list of names. It must not be empty.
func (r *Reader) Fields(name string) []string {
	names, err := r.Args.Strings(name)
	if _, list := r.Args[name].([]any); !list {
		names = strings.Fields(strings.Join(names, " "))
	}
	r.Check(err)
	if len(names) == 0 {
		r.Check(errors.New("args." + name + " names nothing"))
	}
	return names
}
