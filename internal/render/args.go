package render

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	kjson "sigs.k8s.io/json"
)

// Args are the rendered args of a phase. Values are converted as loosely as
// Kanister does it.
type Args map[string]any

// String gives an argument as text, "" where it is absent.
func (a Args) String(name string) (string, error) {
	value, there := a[name]
	if !there || value == nil {
		return "", nil
	}
	text, err := Scalar(value)
	if err != nil {
		return "", fmt.Errorf("args.%s: %w", name, err)
	}
	return text, nil
}

// Strings gives a list argument, nil where it is absent. A single value is a
// list of one.
func (a Args) Strings(name string) ([]string, error) {
	value, there := a[name]
	if !there || value == nil {
		return nil, nil
	}
	elements, ok := value.([]any)
	if !ok {
		text, err := Scalar(value)
		if err != nil {
			return nil, fmt.Errorf("args.%s: %w", name, err)
		}
		return []string{text}, nil
	}
	texts := make([]string, len(elements))
	for i, element := range elements {
		text, err := Scalar(element)
		if err != nil {
			return nil, fmt.Errorf("args.%s[%d]: %w", name, i, err)
		}
		texts[i] = text
	}
	return texts, nil
}

// Fields gives an argument that is a string of names with blanks between
// them. A list is taken too, each element a name.
func (a Args) Fields(name string) ([]string, error) {
	if _, ok := a[name].([]any); ok {
		return a.Strings(name)
	}
	text, err := a.String(name)
	return strings.Fields(text), err
}

// Scalar writes a value as Kanister's decoder does, true as "1" included.
func Scalar(value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case bool:
		if v {
			return "1", nil
		}
		return "0", nil
	case int:
		return strconv.Itoa(v), nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	case map[string]any:
		return "", errors.New("is a map, must be a string")
	case []any:
		return "", errors.New("is a list, must be a string")
	case nil:
		return "", errors.New("is null, must be a string")
	default:
		return "", fmt.Errorf("is of type %T, must be a string", value)
	}
}

// UnmarshalJSON keeps whole numbers whole.
func (a *Args) UnmarshalJSON(data []byte) error {
	var args map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &args); err != nil {
		return err
	}
	*a = args
	return nil
}

// Texts gives an argument that is a map of texts, an empty one where it is
// absent.
func (a Args) Texts(name string) (map[string]string, error) {
	texts := map[string]string{}
	value := a[name]
	if value == nil {
		return texts, nil
	}
	entries, ok := value.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("args.%s must be a map of texts", name)
	}
	for key, entry := range entries {
		text, err := Scalar(entry)
		if err != nil {
			return nil, fmt.Errorf("args.%s.%s: %w", name, key, err)
		}
		texts[key] = text
	}
	return texts, nil
}
