package unit

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"stillpoint.io/stillpoint/internal/api"
)

// None is the value of AnnotationQuiesce that overrides the blueprints of a more distant
// object.
const None = "none"

// FSFreeze is the built-in blueprint that freezes file systems. It always runs last,
// because an application cannot be quiesced while its file system is frozen.
const FSFreeze = "fsfreeze"

// Defaults of the settings.
const (
	DefaultPrepareTimeout = 5 * time.Minute
	DefaultQuiesceTimeout = 30 * time.Second
)

// knownAnnotations are Stillpoint's quiesce annotations. Any other key of its domain is an
// error.
var knownAnnotations = []string{
	api.AnnotationQuiesce, api.AnnotationPrepareTimeout, api.AnnotationQuiesceTimeout, api.AnnotationOnQuiesceError,
}

// claimAnnotations are the other annotations of Stillpoint's domain on claims.
var claimAnnotations = []string{api.AnnotationNoSnapshot, api.AnnotationLevel, api.AnnotationLocalSnapshots, api.AnnotationKeepSnapshot}

// OnError is what the backup does if a workload cannot be quiesced.
type OnError string

// Valid values of OnError.
const (
	Fail     OnError = "fail"
	Continue OnError = "continue"
)

// Layer is an object and its annotations.
type Layer struct {
	// Object names the object in messages: "Deployment shop/db".
	Object      string
	Annotations map[string]string
	// Claim is true for a PersistentVolumeClaim.
	Claim bool
	// Workload is true for a workload and for its pod template.
	Workload bool
}

// Settings are the values of the annotations of one workload, claim or object.
type Settings struct {
	// Blueprints are names, in the order of the pre commands. Without any, nothing is
	// quiesced.
	Blueprints []string
	// Source names the object with the blueprints, and SourceLayer is its index among the
	// layers, or -1.
	Source      string
	SourceLayer int

	PrepareTimeout, QuiesceTimeout time.Duration
	OnError                        OnError
	Options                        map[string]string
	Origins                        map[string]Layer // of Options
}

// Resolve reads the annotations of layers, from the nearest to the volume to the most
// distant. Each setting comes from the nearest layer that has it. The two annotations that
// name blueprints are one setting. The error of an invalid value names object, key, value
// and valid values. Settings.OnError is valid even if Resolve returns an error.
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
		note(unknownAnnotation(layer))
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

// InvalidValue returns the error for an invalid value of an annotation.
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

func unknownAnnotation(layer Layer) error {
	var keys []string
	for key := range layer.Annotations {
		admitted := slices.Contains(knownAnnotations, key) || layer.Claim && slices.Contains(claimAnnotations, key)
		if strings.HasPrefix(key, api.Domain) && !admitted {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	slices.Sort(keys)
	return fmt.Errorf("%s: unknown annotation %s; known: %s and %s<key>",
		layer.Object, strings.Join(keys, ", "), strings.Join(knownAnnotations, ", "), api.AnnotationOptionPrefix)
}

// blueprints reads the two annotations of an object that name blueprints. Kanister's comes
// first, FSFreeze last.
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
