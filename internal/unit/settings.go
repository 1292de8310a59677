package unit

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"stillpoint.io/stillpoint/internal/api"
)

// None in AnnotationQuiesce switches off what a farther object asks for.
const None = "none"

// FSFreeze is the built-in blueprint that freezes file systems. It always goes
// last: an application cannot be brought to rest on a file system that takes no
// writes.
const FSFreeze = "fsfreeze"

// Defaults of the settings.
const (
	DefaultPrepareTimeout = 5 * time.Minute
	DefaultQuiesceTimeout = 30 * time.Second
)

// known are the annotations of our domain; any other is a typing error.
var known = []string{
	api.AnnotationQuiesce, api.AnnotationPrepareTimeout, api.AnnotationQuiesceTimeout, api.AnnotationOnQuiesceError,
}

// onClaims are annotations of our domain that claims have for other reasons.
var onClaims = []string{api.AnnotationNoSnapshot, api.AnnotationLevel, api.AnnotationLocalSnapshots, api.AnnotationKeepSnapshot}

// OnError says what becomes of a volume whose workload could not be quiesced.
type OnError string

// What users may write.
const (
	Fail     OnError = "fail"
	Continue OnError = "continue"
)

// Layer is an object with the annotations it carries.
type Layer struct {
	// Object is what messages call it: "Deployment shop/db".
	Object      string
	Annotations map[string]string
	// Claim reports that the object is a PersistentVolumeClaim.
	Claim bool
	// Workload reports that the object runs the pods, or is their template.
	Workload bool
}

// Settings are what annotations ask for.
type Settings struct {
	// Blueprints are the names in the order of the pre commands; none means
	// that nothing is to be quiesced.
	Blueprints []string
	// Source is the object that named them, and its place among the layers.
	Source      string
	SourceLayer int

	PrepareTimeout, QuiesceTimeout time.Duration
	OnError                        OnError
	Options                        map[string]string
	Origins                        map[string]Layer // of Options
}

// Resolve reads the annotations of layers, nearest to the volume first. Each
// setting is taken from the nearest layer that has it; the two annotations that
// name blueprints count as one setting. A value that is not valid is an error
// that names object, key, value and what is valid; OnError is set all the same
// where it is valid itself, so that callers know what to make of the error.
func Resolve(layers []Layer) (Settings, error) {
	settings := Settings{
		PrepareTimeout: DefaultPrepareTimeout,
		QuiesceTimeout: DefaultQuiesceTimeout,
		OnError:        Fail,
		Options:        map[string]string{},
		Origins:        map[string]Layer{},
		SourceLayer:    -1,
	}
	var failed []error
	note := func(err error) {
		if err != nil {
			failed = append(failed, err)
		}
	}

	if layer, value, ok := nearest(layers, api.AnnotationOnQuiesceError); ok {
		switch OnError(value) {
		case Fail, Continue:
			settings.OnError = OnError(value)
		default:
			note(InvalidValue(layer, api.AnnotationOnQuiesceError, value, "fail, continue"))
		}
	}
	note(duration(layers, api.AnnotationPrepareTimeout, &settings.PrepareTimeout))
	note(duration(layers, api.AnnotationQuiesceTimeout, &settings.QuiesceTimeout))
	for _, layer := range slices.Backward(layers) {
		for key, value := range layer.Annotations {
			if option, ok := strings.CutPrefix(key, api.AnnotationOptionPrefix); ok {
				settings.Options[option], settings.Origins[option] = value, layer
			}
		}
	}
	for _, layer := range layers {
		note(unknown(layer))
	}
	for i, layer := range layers {
		names, named, err := blueprints(layer)
		note(err)
		if named {
			settings.Blueprints, settings.Source, settings.SourceLayer = names, layer.Object, i
			break
		}
	}
	if len(failed) > 0 {
		return settings, failed[0]
	}
	return settings, nil
}

func nearest(layers []Layer, key string) (Layer, string, bool) {
	for _, layer := range layers {
		if value, ok := layer.Annotations[key]; ok {
			return layer, value, true
		}
	}
	return Layer{}, "", false
}

// InvalidValue is the error for an annotation whose value is not valid.
func InvalidValue(layer Layer, key, value, valid string) error {
	return fmt.Errorf("%s: annotation %s: %q is not valid; valid: %s", layer.Object, key, value, valid)
}

func duration(layers []Layer, key string, into *time.Duration) error {
	layer, value, ok := nearest(layers, key)
	if !ok {
		return nil
	}
	parsed, err := time.ParseDuration(value)
	if err != nil || parsed <= 0 || parsed > 24*time.Hour {
		return InvalidValue(layer, key, value, "a duration above 0 and up to 24h, such as 30s, 5m or 1m30s")
	}
	*into = parsed
	return nil
}

func unknown(layer Layer) error {
	var keys []string
	for key := range layer.Annotations {
		admitted := slices.Contains(known, key) || layer.Claim && slices.Contains(onClaims, key)
		if strings.HasPrefix(key, api.Domain) && !admitted {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	slices.Sort(keys)
	return fmt.Errorf("%s: unknown annotation %s; known: %s and %s<key>",
		layer.Object, strings.Join(keys, ", "), strings.Join(known, ", "), api.AnnotationOptionPrefix)
}

// blueprints reads the two annotations of one object that name blueprints. The
// application's own come first, the file system's freeze last.
func blueprints(layer Layer) (names []string, named bool, err error) {
	list, quiesce := layer.Annotations[api.AnnotationQuiesce]
	kanister, k10 := layer.Annotations[api.AnnotationKanister]
	const valid = "none, or names of blueprints with commas between them, such as postgresql,fsfreeze"
	if k10 {
		if name := strings.TrimSpace(kanister); len(validation.IsDNS1123Subdomain(name)) == 0 {
			names = append(names, name)
		} else {
			return nil, true, InvalidValue(layer, api.AnnotationKanister, kanister, "the name of one blueprint")
		}
	}
	if quiesce {
		fields := strings.Split(list, ",")
		for _, field := range fields {
			name := strings.TrimSpace(field)
			switch {
			case name == None && len(fields) == 1:
				return nil, true, nil
			case name == None, len(validation.IsDNS1123Subdomain(name)) > 0:
				return nil, true, InvalidValue(layer, api.AnnotationQuiesce, list, valid)
			case !slices.Contains(names, name):
				names = append(names, name)
			}
		}
	}
	if i := slices.Index(names, FSFreeze); i >= 0 {
		names = append(slices.Delete(names, i, i+1), FSFreeze)
	}
	return names, quiesce || k10, nil
}
