package config

import (
	"bytes"
	"cmp"
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
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/kubernetes"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
	goyaml "sigs.k8s.io/yaml/goyaml.v2"

	"stillpoint.io/stillpoint/internal/api"
)

// The labels that make a ConfigMap of Velero's namespace the configuration.
// By Velero's convention for plugins (GetPluginConfig in
// pkg/plugin/framework/common) there are two: PluginConfigLabel, which is the same for
// all plugins and whose value does not matter, and one whose key is the plugin's
// name (api.LabelConfiguration) and whose value is a kind. Stillpoint has a kind of
// its own, since the configuration is for all of its actions at once.
const (
	PluginConfigLabel = "velero.io/plugin-config"
	PluginKind        = "Configuration"
)

// Key is the one key of the ConfigMap's data.
const Key = "config.yaml"

// Version is the only version of the document so far.
const Version = "v1"

// invalid is an error of a configuration that was read.
type invalid struct{ error }

func (i invalid) Unwrap() error { return i.error }

// Unusable reports whether an error of Load means that the configuration is invalid or
// must not be read, so that another try does not help. Work that must come to an end
// then continues without the configuration, and logs that.
func Unusable(err error) bool {
	return errors.As(err, new(invalid)) || apierrors.IsForbidden(err)
}

// Load reads the configuration. Without a ConfigMap, it returns the defaults.
func Load(ctx context.Context, client kubernetes.Interface, veleroNamespace string) (*Config, error) {
	// By one label only: otherwise, a ConfigMap that lacks the other one, or has the
	// wrong kind, would be ignored silently. Velero's own function takes no context.
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

// Decode reads the configuration from its ConfigMap, which is in Velero's namespace.
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
	// The line above reads the first document and ignores others.
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
	// The version first: which other keys are unknown depends on it.
	switch version, exists := versioned["version"]; {
	case !exists:
		return nil, field.Required(field.NewPath("version"), fmt.Sprintf("%q", Version))
	case version != Version:
		return nil, field.NotSupported(field.NewPath("version"), literal{version}, []string{Version})
	}
	all := shape(nil, raw, reflect.TypeFor[Config]())
	config := Default(veleroNamespace)
	// If a value is of another kind, the rest cannot be judged. all has the keys that
	// are unknown to the decoder.
	if err := kjson.UnmarshalCaseSensitivePreserveInts(asJSON, config); err != nil {
		return nil, cmp.Or(joined(all), err)
	}
	if versioned["blueprintNamespaces"] == nil {
		config.BlueprintNamespaces = []string{veleroNamespace}
	}
	if err := joined(append(all, config.validate()...)); err != nil {
		return nil, err
	}
	return config, nil
}

// joined returns one error with a line for each of all.
func joined(all field.ErrorList) error {
	var errs []error
	for _, err := range all {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
