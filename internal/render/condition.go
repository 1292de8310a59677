package render

import (
	"context"
	"encoding/base64"
	"errors"
	"reflect"
	"regexp"
	"text/template"
)

// The functions that wait for conditions.
const (
	WaitFunction   = "Wait"
	WaitV2Function = "WaitV2"
)

// Condition renders a condition of a function over an object; without an object it only
// checks the condition. Its errors quote nothing of the object, which may be a Secret.
func Condition(ctx context.Context, function, text string, object map[string]any) (string, error) {
	q := &question{Source: text, Condition: function}
	if object != nil {
		q.Object, _ = exact(object).(map[string]any)
	}
	reply, err := templates.render(ctx, q, renderLimit)
	if err == nil && reply.Error != "" {
		err = errors.New(reply.Error)
	}
	if err != nil {
		return "", err
	}
	return string(reply.Text), nil
}

// objectFuncs are the template functions of WaitV2: kubectl's, not sprig's.
var objectFuncs = template.FuncMap{
	"exists": exists,
	"base64decode": func(encoded string) (string, error) {
		decoded, err := base64.StdEncoding.DecodeString(encoded)
		return string(decoded), err
	},
}

// exists reports whether index would find something.
func exists(item any, indexes ...any) bool {
	at := reflect.ValueOf(item)
	for _, index := range indexes {
		for at.Kind() == reflect.Interface {
			at = at.Elem()
		}
		wanted := reflect.ValueOf(index)
		switch at.Kind() {
		case reflect.Map:
			if !wanted.IsValid() || !wanted.Type().AssignableTo(at.Type().Key()) {
				return false
			}
			if at = at.MapIndex(wanted); !at.IsValid() {
				return false
			}
		case reflect.Slice, reflect.Array, reflect.String:
			if !wanted.IsValid() || !wanted.CanInt() || wanted.Int() < 0 || wanted.Int() >= int64(at.Len()) {
				return false
			}
			at = at.Index(int(wanted.Int()))
		default:
			return false
		}
	}
	return at.IsValid()
}

// jsonPathInText matches a field of the object in a condition of Wait: one brace, a
// dollar sign, and no closing brace inside.
var jsonPathInText = regexp.MustCompile(`\{\s*\$([^}]*)\}`)
