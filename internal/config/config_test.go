package config

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"stillpoint.io/stillpoint/internal/api"
)

func configMap(name, doc string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "velero",
			Name:      name,
			Labels:    map[string]string{"velero.io/plugin-config": "", "stillpoint.io/stillpoint": "Configuration"},
		},
		Data: map[string]string{"config.yaml": doc},
	}
}

func TestDecodeDocument(t *testing.T) {
	for name, test := range map[string]struct {
		doc        string
		namespaces []string
		err        string
	}{
		"version only":  {doc: "version: v1", namespaces: []string{"velero"}},
		"null list":     {doc: "version: v1\nblueprintNamespaces:", namespaces: []string{"velero"}},
		"no namespaces": {doc: "version: v1\nblueprintNamespaces: []", namespaces: []string{}},
		"namespaces":    {doc: "---\nversion: v1\nblueprintNamespaces: [velero, ops]\n", namespaces: []string{"velero", "ops"}},

		"empty":           {doc: "", err: `version: Required value: "v1"`},
		"not a map":       {doc: "[v1]", err: `the document is not a map; its keys are: blueprintNamespaces, dataMovers, drivers, excludedLabels, helperPods, localSnapshots, nodeThaw, restore, snapshotClasses, version`},
		"no version":      {doc: "blueprintNamespaces: [ops]", err: `version: Required value: "v1"`},
		"wrong version":   {doc: "version: v2\nsomethingNew: 1", err: `version: Unsupported value: "v2": supported values: "v1"`},
		"number version":  {doc: "version: 1", err: `version: Unsupported value: 1: supported values: "v1"`},
		"unknown key":     {doc: "version: v1\nblueprintNamespace: [ops]", err: "blueprintNamespace: Forbidden: unknown key; valid keys: blueprintNamespaces, dataMovers, drivers, excludedLabels, helperPods, localSnapshots, nodeThaw, restore, snapshotClasses, version"},
		"key in capital":  {doc: "version: v1\nBlueprintNamespaces: [ops]", err: "BlueprintNamespaces: Forbidden: unknown key; valid keys: blueprintNamespaces, dataMovers, drivers, excludedLabels, helperPods, localSnapshots, nodeThaw, restore, snapshotClasses, version"},
		"key twice":       {doc: "version: v1\nversion: v1", err: "read as YAML: yaml: unmarshal errors:\n  line 2: key \"version\" already set in map"},
		"two documents":   {doc: "version: v1\n---\nversion: v1", err: `2 documents, must be one`},
		"not a list":      {doc: "version: v1\nblueprintNamespaces: ops", err: `blueprintNamespaces: Invalid value: "ops": must be a list`},
		"every namespace": {doc: `{version: v1, blueprintNamespaces: [velero, "*"]}`, err: `blueprintNamespaces[1]: Invalid value: "*": must be the name of a namespace: a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')`},
		"namespace twice": {doc: "version: v1\nblueprintNamespaces: [ops, velero, ops]", err: `blueprintNamespaces[2]: Duplicate value: "ops"`},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := Decode(configMap("stillpoint", test.doc))
			if test.err != "" {
				require.EqualError(t, err, "ConfigMap velero/stillpoint: config.yaml: "+test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, &Config{Version: "v1", BlueprintNamespaces: test.namespaces}, config)
		})
	}
}

func TestDecodeConfigMap(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*corev1.ConfigMap)
		err    string
	}{
		"wrong kind": {
			func(c *corev1.ConfigMap) { c.Labels[api.LabelConfiguration] = "BackupItemAction" },
			`label stillpoint.io/stillpoint is "BackupItemAction", must be "Configuration"`,
		},
		"half of the labels": {
			func(c *corev1.ConfigMap) { delete(c.Labels, PluginConfigLabel) },
			`label velero.io/plugin-config is missing; its value is ""`,
		},
		"another key": {
			func(c *corev1.ConfigMap) { c.Data["config.yml"] = "" },
			`unknown key "config.yml"; the only key is "config.yaml"`,
		},
		"binary key": {
			func(c *corev1.ConfigMap) { c.BinaryData = map[string][]byte{"x": nil} },
			`binary key "x"; the only key is "config.yaml", and it is text`,
		},
		"no key": {
			func(c *corev1.ConfigMap) { c.Data = nil },
			`key "config.yaml" is missing`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := configMap("stillpoint", "version: v1")
			test.change(c)
			_, err := Decode(c)
			require.EqualError(t, err, "ConfigMap velero/stillpoint: "+test.err)
		})
	}
}

func TestLoad(t *testing.T) {
	elsewhere := configMap("other", "version: v9")
	elsewhere.Namespace = "shop"
	load := func(objects ...runtime.Object) (*Config, error) {
		return Load(t.Context(), fake.NewClientset(append(objects, elsewhere)...), "velero")
	}

	config, err := load()
	require.NoError(t, err)
	require.Equal(t, Default("velero"), config)

	config, err = load(configMap("a", "version: v1\nblueprintNamespaces: [ops]"))
	require.NoError(t, err)
	require.Equal(t, []string{"ops"}, config.BlueprintNamespaces)

	_, err = load(configMap("b", "version: v1"), configMap("a", "version: v1"))
	require.EqualError(t, err, "2 ConfigMaps of namespace velero have the label stillpoint.io/stillpoint: a, b; remove all but one")
}
