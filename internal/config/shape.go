package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// shape compares a value of the document with the type that is to hold it, and
// returns unknown keys and values of another kind. A null counts as an absent key.
// Strict decoding would not list the valid keys.
func shape(at *field.Path, value any, want reflect.Type) field.ErrorList {
	for want.Kind() == reflect.Pointer {
		want = want.Elem()
	}
	if value == nil {
		return nil
	}
	wrong := func(kind string) field.ErrorList {
		return field.ErrorList{field.TypeInvalid(at, literal{value}, "must be "+kind)}
	}
	if want == reflect.TypeFor[resource.Quantity]() {
		if quantity, err := resource.ParseQuantity(fmt.Sprint(value)); err != nil || quantity.Sign() < 0 {
			return wrong("a quantity such as 100m or 64Mi")
		}
		return nil
	}
	var all field.ErrorList
	switch want.Kind() {
	case reflect.Struct:
		entries, ok := value.(map[string]any)
		if !ok {
			return wrong("a map with the keys: " + keys(want))
		}
		for _, key := range slices.Sorted(maps.Keys(entries)) {
			if f, ok := fieldOf(want, key); ok {
				all = append(all, shape(child(at, key), entries[key], f.Type)...)
			} else {
				all = append(all, field.Forbidden(child(at, key), "unknown key; valid keys: "+keys(want)))
			}
		}
	case reflect.Map:
		entries, ok := value.(map[string]any)
		if !ok {
			return wrong("a map")
		}
		for _, key := range slices.Sorted(maps.Keys(entries)) {
			all = append(all, shape(child(at, key), entries[key], want.Elem())...)
		}
	case reflect.Slice:
		items, ok := value.([]any)
		if !ok {
			return wrong("a list")
		}
		for i, item := range items {
			all = append(all, shape(at.Index(i), item, want.Elem())...)
		}
	case reflect.String:
		if _, ok := value.(string); !ok {
			return wrong("a string")
		}
	case reflect.Bool:
		if _, ok := value.(bool); !ok {
			return wrong("true or false")
		}
	case reflect.Int, reflect.Int64:
		if number, ok := value.(float64); !ok || number != math.Trunc(number) {
			return wrong("a whole number")
		}
	default:
		panic("the document cannot have a " + want.String())
	}
	return all
}

// child extends a path; a key with dots in it is put in brackets, because it could be
// read as several keys.
func child(at *field.Path, key string) *field.Path {
	if strings.Contains(key, ".") {
		return at.Key(key)
	}
	return at.Child(key)
}

func fieldOf(t reflect.Type, key string) (reflect.StructField, bool) {
	for _, f := range reflect.VisibleFields(t) {
		if keyOf(f) == key {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

func keyOf(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return key
}

// keys lists the keys of a map of the document.
func keys(t reflect.Type) string {
	var names []string
	for _, f := range reflect.VisibleFields(t) {
		names = append(names, keyOf(f))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// literal prints a value as the document has it.
type literal struct{ value any }

func (l literal) String() string {
	text, err := json.Marshal(l.value)
	if err != nil {
		return fmt.Sprint(l.value)
	}
	return string(text)
}
