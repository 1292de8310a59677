// Package config reads the configuration: one versioned document in one
// ConfigMap of Velero's namespace. Anything in it that is not understood is an
// error; nothing falls through to a default.
package config

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
	goyaml "sigs.k8s.io/yaml/goyaml.v2"

	"stillpoint.io/stillpoint/internal/api"
)

// The labels that make a ConfigMap of Velero's namespace the configuration.
// By Velero's convention for plugins (GetPluginConfig in
// pkg/plugin/framework/common) there are two: one that is the same for all
// plugins and whose value does not matter, and one whose key is the plugin's
// name and whose value is a kind. A plugin's name is <domain>/<name>, and ours
// is that of the whole set, with a kind of its own: it configures all of its
// actions at once. The administrator sets both.
const (
	PluginConfigLabel = "velero.io/plugin-config"
	PluginKind        = "Configuration"
)

// Key is the one key of the ConfigMap's data.
const Key = "config.yaml"

// Version is the only version of the document so far.
const Version = "v1"

// invalid is an error about a configuration that was read.
type invalid struct{ error }

func (i invalid) Unwrap() error { return i.error }

// Unusable reports whether an error of Load is about the configuration itself, or
// the right to read it: to read it again does not help. What must come to an end
// goes on without it then, and says so.
func Unusable(err error) bool {
	return errors.As(err, new(invalid)) || apierrors.IsForbidden(err)
}

// Load reads the configuration, or gives the defaults where there is none.
func Load(ctx context.Context, client kubernetes.Interface, veleroNamespace string) (*Config, error) {
	// By one label only: a ConfigMap that lacks the other one, or has the
	// wrong kind, would else be passed over without a word. Not by Velero's
	// own function, since that takes no context.
	configMaps, err := client.CoreV1().ConfigMaps(veleroNamespace).List(ctx, metav1.ListOptions{LabelSelector: api.LabelConfiguration})
	if err != nil {
		return nil, fmt.Errorf("list ConfigMaps of namespace %s with label %s: %w", veleroNamespace, api.LabelConfiguration, err)
	}
	switch len(configMaps.Items) {
	case 0:
		return Default(veleroNamespace), nil
	case 1:
		return Decode(&configMaps.Items[0])
	default:
		var names []string
		for _, configMap := range configMaps.Items {
			names = append(names, configMap.Name)
		}
		slices.Sort(names)
		return nil, invalid{fmt.Errorf("%d ConfigMaps of namespace %s have the label %s: %s; remove all but one", len(names), veleroNamespace, api.LabelConfiguration, strings.Join(names, ", "))}
	}
}

// Decode reads the configuration out of its ConfigMap, whose namespace is
// Velero's.
func Decode(configMap *corev1.ConfigMap) (*Config, error) {
	config, err := decode(configMap)
	if err != nil {
		return nil, invalid{fmt.Errorf("ConfigMap %s/%s: %w", configMap.Namespace, configMap.Name, err)}
	}
	return config, nil
}

func decode(configMap *corev1.ConfigMap) (*Config, error) {
	if kind := configMap.Labels[api.LabelConfiguration]; kind != PluginKind {
		return nil, fmt.Errorf("label %s is %q, must be %q", api.LabelConfiguration, kind, PluginKind)
	}
	if _, ok := configMap.Labels[PluginConfigLabel]; !ok {
		return nil, fmt.Errorf("label %s is missing; its value is \"\"", PluginConfigLabel)
	}
	for _, key := range slices.Sorted(maps.Keys(configMap.Data)) {
		if key != Key {
			return nil, fmt.Errorf("unknown key %q; the only key is %q", key, Key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(configMap.BinaryData)) {
		return nil, fmt.Errorf("binary key %q; the only key is %q, and it is text", key, Key)
	}
	doc, ok := configMap.Data[Key]
	if !ok {
		return nil, fmt.Errorf("key %q is missing", Key)
	}
	config, err := document([]byte(doc), configMap.Namespace)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Key, err)
	}
	return config, nil
}

func document(doc []byte, veleroNamespace string) (*Config, error) {
	asJSON, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return nil, fmt.Errorf("read as YAML: %w", err)
	}
	// The line above reads the first document and says nothing of others.
	stream, count := goyaml.NewDecoder(bytes.NewReader(doc)), 0
	for stream.Decode(new(any)) == nil {
		count++
	}
	if count > 1 {
		return nil, fmt.Errorf("%d documents, must be one", count)
	}
	var raw any
	if err := json.Unmarshal(asJSON, &raw); err != nil {
		return nil, err
	}
	versioned, ok := raw.(map[string]any)
	if !ok && raw != nil {
		return nil, fmt.Errorf("the document is not a map; its keys are: %s", keys(reflect.TypeFor[Config]()))
	}
	// The version first: what else is unknown follows from it.
	switch version, there := versioned["version"]; {
	case !there:
		return nil, fmt.Errorf("version is missing; it is %q", Version)
	case version != Version:
		return nil, fmt.Errorf("version is %v, must be %q", show(version), Version)
	}
	faults := shape("", raw, reflect.TypeFor[Config]())
	config := Default(veleroNamespace)
	// Where a value is of another kind the rest is not known well enough to
	// judge it. What is unknown to the decoder is in faults.
	if err := kjson.UnmarshalCaseSensitivePreserveInts(asJSON, config); err != nil {
		if len(faults) == 0 {
			faults = []error{err}
		}
		return nil, errors.Join(faults...)
	}
	if versioned["blueprintNamespaces"] == nil {
		config.BlueprintNamespaces = []string{veleroNamespace}
	}
	if err := errors.Join(append(faults, config.faults()...)...); err != nil {
		return nil, err
	}
	return config, nil
}

// show writes a value of the document as the document has it.
func show(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprint(value)
	}
	return string(text)
}
