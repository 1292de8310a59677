package blueprint

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"stillpoint.io/stillpoint/internal/api"
)

func object(namespace, name string) runtime.Object {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": APIVersion, "kind": Kind,
		"metadata": map[string]any{"namespace": namespace, "name": name},
		"actions":  map[string]any{"backupPrehook": map[string]any{"phases": []any{}}},
	}}
}

func configMap(name string, data map[string]string) runtime.Object {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: name, Labels: map[string]string{api.LabelBlueprint: ""}},
		Data:       data,
	}
}

func finder(configMaps []runtime.Object, namespaces []string, objects ...runtime.Object) *Finder {
	return NewFinder(fake.NewClientset(configMaps...), dynamicClient(objects...), "velero", namespaces)
}

func dynamicClient(objects ...runtime.Object) *dynamicfake.FakeDynamicClient {
	kinds := map[schema.GroupVersionResource]string{Resource: "BlueprintList"}
	return dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds, objects...)
}

func TestFindInOrder(t *testing.T) {
	files := []runtime.Object{
		configMap("files", map[string]string{
			"a.yaml": "metadata: {name: mongo}\n---\nmetadata: {name: fsfreeze}\nx: 1",
			"b.yml":  "actions: {}",
			"My_Own": "actions: {}",
		}),
		// Not Velero's namespace, and not labelled.
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "x", Labels: map[string]string{api.LabelBlueprint: ""}}, Data: map[string]string{"redis": "{}"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "y"}, Data: map[string]string{"redis": "{}"}},
	}
	shared := []runtime.Object{object("velero", "mongo"), object("payments", "mongo"), object("payments", "ledger")}
	for name, test := range map[string]struct {
		configMaps []runtime.Object
		objects    []runtime.Object
		blueprint  string
		workload   string
		source     Source
		confinedTo string
		warnings   []string
	}{
		"own namespace":                     {files, append(shared, object("shop", "mongo")), "mongo", "shop", "Blueprint shop/mongo", "shop", nil},
		"a configured one":                  {files, shared, "mongo", "shop", "Blueprint velero/mongo", "", nil},
		"own is a configured one":           {files, shared, "mongo", "velero", "Blueprint velero/mongo", "", nil},
		"never another tenant's":            {files, shared[1:], "mongo", "shop", "ConfigMap velero/files (key a.yaml)", "", nil},
		"ConfigMap":                         {files, nil, "mongo", "shop", "ConfigMap velero/files (key a.yaml)", "", nil},
		"ConfigMap before built in":         {files, nil, "fsfreeze", "shop", "ConfigMap velero/files (key a.yaml)", "", []string{`blueprint fsfreeze (ConfigMap velero/files (key a.yaml)): unknown field "x" is ignored`}},
		"named by its key":                  {files, nil, "b", "shop", "ConfigMap velero/files (key b.yml)", "", nil},
		"named by a key that no object has": {files, nil, "My_Own", "shop", "ConfigMap velero/files (key My_Own)", "", nil},
		"built in":                          {nil, nil, "fsfreeze", "shop", "built in", "", nil},
		"cluster-wide workload":             {nil, nil, "fsfreeze", "", "built in", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			found, err := finder(test.configMaps, []string{"velero"}, test.objects...).Find(t.Context(), test.blueprint, test.workload)
			require.NoError(t, err)
			require.Equal(t, test.source, found.Source)
			require.Equal(t, test.blueprint, found.Name)
			require.Equal(t, test.confinedTo, found.ConfinedTo)
			require.Equal(t, test.warnings, found.Warnings)
		})
	}
}

func TestFindTwice(t *testing.T) {
	_, err := finder(nil, []string{"velero", "ops"}, object("velero", "mongo"), object("ops", "mongo")).Find(t.Context(), "mongo", "shop")
	require.EqualError(t, err, "blueprint mongo exists more than once: Blueprint velero/mongo and Blueprint ops/mongo; remove or rename all but one")

	_, err = finder([]runtime.Object{
		configMap("one", map[string]string{"mongo.yaml": "{}"}),
		configMap("two", map[string]string{"x": "metadata: {name: mongo}"}),
	}, nil).Find(t.Context(), "mongo", "shop")
	require.EqualError(t, err, "blueprint mongo exists more than once: ConfigMap velero/one (key mongo.yaml) and ConfigMap velero/two (key x); remove or rename all but one")
}

func TestFindBesideBrokenEntries(t *testing.T) {
	f := finder([]runtime.Object{
		configMap("files", map[string]string{"redis.yaml": "a: [", "sets": "kind: X\nmetadata: {name: mysql}\n---\nmetadata: {name: mongo}", "void": ""}),
	}, []string{"velero"})
	const (
		redis = "ConfigMap velero/files (key redis.yaml): read as YAML: yaml: line 1: did not find expected node content"
		mysql = `ConfigMap velero/files (key sets): document 1: kind is "X", a blueprint's is "Blueprint"`
		void  = "ConfigMap velero/files (key void): it is empty"
	)
	warnings := []string{"not a blueprint: " + redis, "not a blueprint: " + mysql, "not a blueprint: " + void}
	for name, source := range map[string]Source{"mongo": "ConfigMap velero/files (key sets)", "fsfreeze": builtIn} {
		for range 2 {
			found, err := f.Find(t.Context(), name, "shop")
			require.NoError(t, err)
			require.Equal(t, source, found.Source)
			require.Equal(t, warnings, found.Warnings)
		}
	}
	for name, want := range map[string]string{"redis": redis, "mysql": mysql, "void": void} {
		_, err := f.Find(t.Context(), name, "shop")
		require.EqualError(t, err, "blueprint "+name+": "+want)
	}
}

func TestNotFound(t *testing.T) {
	f := finder([]runtime.Object{
		configMap("files", map[string]string{"b": "{}", "a": "{}", "c": "kind: X"}),
	}, []string{"velero", "ops"}, object("shop", "own"), object("velero", "z"), object("velero", "y"), object("payments", "theirs"))
	_, err := f.Find(t.Context(), "mongo", "shop")
	require.EqualError(t, err, `blueprint "mongo" is not found; there are: Blueprints in namespace shop: own; Blueprints in namespace velero: y, z; Blueprints in namespace ops: none; `+
		`ConfigMaps in namespace velero with label stillpoint.io/blueprint: a, b; built in: fsfreeze, mariadb, mongodb, mysql, postgresql, redis, scale-down; `+
		`not a blueprint: ConfigMap velero/files (key c): kind is "X", a blueprint's is "Blueprint"`)

	_, err = f.Find(t.Context(), "", "shop")
	require.EqualError(t, err, "the name of the blueprint is empty")
	_, err = f.Find(t.Context(), "../payments/theirs", "shop")
	require.ErrorContains(t, err, `blueprint "../payments/theirs" is not found`)
}

func TestFindWithoutTheCRD(t *testing.T) {
	f := finder(nil, []string{"velero"})
	// What an API server answers for a resource that it does not have.
	client := dynamicClient()
	client.PrependReactor("*", "blueprints", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: 404, Reason: metav1.StatusReasonNotFound, Message: "the server could not find the requested resource",
		}}
	})
	f.objects = client.Resource(Resource)

	found, err := f.Find(t.Context(), "fsfreeze", "shop")
	require.NoError(t, err)
	require.Equal(t, builtIn, found.Source)
	_, err = f.Find(t.Context(), "mongo", "velero")
	require.EqualError(t, err, `blueprint "mongo" is not found; there are: Blueprints in namespace velero: none (Kanister's CRD is not installed); `+
		`ConfigMaps in namespace velero with label stillpoint.io/blueprint: none; built in: fsfreeze, mariadb, mongodb, mysql, postgresql, redis, scale-down`)
}

func TestFindPassesErrorsOn(t *testing.T) {
	f := finder(nil, []string{"velero"})
	client := dynamicClient()
	client.PrependReactor("get", "blueprints", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(Resource.GroupResource(), "fsfreeze", context.Canceled)
	})
	f.objects = client.Resource(Resource)
	_, err := f.Find(t.Context(), "fsfreeze", "shop")
	require.EqualError(t, err, `get Blueprint shop/fsfreeze: blueprints.cr.kanister.io "fsfreeze" is forbidden: context canceled`)
}
