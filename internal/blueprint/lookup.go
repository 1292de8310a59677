package blueprint

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"stillpoint.io/stillpoint/internal/api"
)

// Resource is the resource of Kanister's CRD.
var Resource = schema.GroupVersionResource{Group: "cr.kanister.io", Version: "v1alpha1", Resource: "blueprints"}

// Source says where a blueprint comes from, such as "Blueprint
// velero/fsfreeze", "ConfigMap velero/blueprints (key mongo.yaml)" or
// "built in".
type Source string

const builtIn Source = "built in"

// Found is the blueprint that Find returns for a name.
type Found struct {
	*Blueprint
	// ConfinedTo is the only namespace that the blueprint may act in; "" is no limit.
	// The caller passes it to render.Renderer.ConfineTo.
	ConfinedTo string
	// Warnings are what the user should see in the backup's log.
	Warnings []string
}

// BuiltIn reports whether the blueprint is one of Stillpoint's recipes.
func (b *Blueprint) BuiltIn() bool { return b.Source == builtIn }

// Finder looks blueprints up by name.
type Finder struct {
	client     kubernetes.Interface
	objects    dynamic.NamespaceableResourceInterface
	velero     string
	namespaces []string
}

// NewFinder makes a Finder. Blueprint objects in the given namespaces serve
// all workloads; ConfigMaps are read in Velero's namespace only.
func NewFinder(client kubernetes.Interface, objects dynamic.Interface, veleroNamespace string, blueprintNamespaces []string) *Finder {
	return &Finder{
		client:     client,
		objects:    objects.Resource(Resource),
		velero:     veleroNamespace,
		namespaces: blueprintNamespaces,
	}
}

// Find returns the blueprint of that name for a workload in a namespace. It searches the
// Blueprint objects of that namespace, those of the configured namespaces, the
// ConfigMaps, and the recipes, in this order; two matches at one step are an error. A
// Blueprint object of the workload's own namespace is confined to it, unless the
// namespace is a configured one.
func (f *Finder) Find(ctx context.Context, name, workloadNamespace string) (*Found, error) {
	if name == "" {
		return nil, errors.New("the name of the blueprint is empty")
	}
	if workloadNamespace != "" {
		own, err := f.object(ctx, workloadNamespace, name)
		if err != nil {
			return nil, err
		}
		if own != nil {
			if !slices.Contains(f.namespaces, workloadNamespace) {
				own.ConfinedTo = workloadNamespace
			}
			return own, nil
		}
	}
	var shared []*Found
	for _, namespace := range f.namespaces {
		found, err := f.object(ctx, namespace, name)
		if err != nil {
			return nil, err
		}
		if found != nil {
			shared = append(shared, found)
		}
	}
	if found, err := one(name, shared); found != nil || err != nil {
		return found, err
	}

	entries, err := f.configMaps(ctx)
	if err != nil {
		return nil, err
	}
	var (
		named  []*Found
		broken []string
	)
	for _, entry := range entries {
		switch {
		case entry.err == nil && entry.found.Name == name:
			named = append(named, entry.found)
		case entry.err != nil && slices.Contains(entry.names, name):
			// The next step could find a blueprint that the user has
			// replaced by this one.
			return nil, fmt.Errorf("blueprint %s: %w", name, entry.err)
		case entry.err != nil:
			broken = append(broken, entry.err.Error())
		}
	}
	found, err := one(name, named)
	if err != nil {
		return nil, err
	}
	if found == nil {
		found = BuiltIns()[name]
	}
	if found == nil {
		return nil, f.notFound(ctx, name, workloadNamespace, entries, broken)
	}
	result := *found
	for _, b := range broken {
		result.Warnings = append(slices.Clip(result.Warnings), "not a blueprint: "+b)
	}
	return &result, nil
}

// one returns the only blueprint that was found at one step.
func one(name string, found []*Found) (*Found, error) {
	switch len(found) {
	case 0:
		return nil, nil //nolint:nilnil // nothing found is a valid answer here
	case 1:
		return found[0], nil
	}
	var sources []string
	for _, f := range found {
		sources = append(sources, string(f.Source))
	}
	return nil, fmt.Errorf("blueprint %s exists more than once: %s; remove or rename all but one", name, strings.Join(sources, " and "))
}

// object reads a Blueprint object. It returns nil if the object or the CRD does not
// exist.
func (f *Finder) object(ctx context.Context, namespace, name string) (*Found, error) {
	// A key of a ConfigMap may be no valid name of an object.
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		return nil, nil //nolint:nilnil // nothing found is a valid answer here
	}
	source := Source(fmt.Sprintf("Blueprint %s/%s", namespace, name))
	object, err := f.objects.Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	// The API server returns the same error if the CRD does not exist.
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // nothing found is a valid answer here
	}
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", source, err)
	}
	return decode(object, source)
}

func decode(object *unstructured.Unstructured, source Source) (*Found, error) {
	doc, err := object.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	// Not Parse: the object is one document.
	bp, warnings, err := parse(doc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	return newFound(bp, source, warnings), nil
}

func newFound(bp *Blueprint, source Source, warnings []string) *Found {
	bp.Source = source
	found := &Found{Blueprint: bp}
	if names := bp.dropped(); len(names) > 0 && bp.hooked() {
		warnings = append(warnings, fmt.Sprintf("actions that do not run here: %s; only %s and %s do: what has to run at a restore belongs into Velero's restore hooks",
			strings.Join(names, ", "), Prehook, Posthook))
	}
	for _, w := range warnings {
		found.Warnings = append(found.Warnings, fmt.Sprintf("%s: %s", bp.Title(), w))
	}
	return found
}

// entry is one document of a ConfigMap: a blueprint, or an error and the names that the
// document was probably meant to have.
type entry struct {
	found *Found
	err   error
	names []string
}

func (f *Finder) configMaps(ctx context.Context) ([]entry, error) {
	configMaps, err := f.client.CoreV1().ConfigMaps(f.velero).List(ctx, metav1.ListOptions{LabelSelector: api.LabelBlueprint})
	if err != nil {
		return nil, fmt.Errorf("list ConfigMaps of namespace %s with label %s: %w", f.velero, api.LabelBlueprint, err)
	}
	var entries []entry
	for i := range configMaps.Items {
		entries = append(entries, entriesOf(&configMaps.Items[i])...)
	}
	return entries, nil
}

func entriesOf(configMap *corev1.ConfigMap) []entry {
	var entries []entry
	for _, key := range slices.Sorted(maps.Keys(configMap.Data)) {
		source := Source(fmt.Sprintf("ConfigMap %s/%s (key %s)", configMap.Namespace, configMap.Name, key))
		keyName := strings.TrimSuffix(strings.TrimSuffix(key, ".yaml"), ".yml")
		docs := flat([]byte(configMap.Data[key]))
		if len(docs) == 0 {
			entries = append(entries, entry{err: fmt.Errorf("%s: it is empty", source), names: []string{keyName}})
		}
		for n, doc := range docs {
			bp, warnings, err := parse(doc)
			if err != nil {
				entries = append(entries, entry{
					err:   fmt.Errorf("%s: %s%w", source, position(n, len(docs)), err),
					names: []string{keyName, nameIn(doc)},
				})
				continue
			}
			if bp.Name == "" {
				bp.Name = keyName
			}
			entries = append(entries, entry{found: newFound(bp, source, warnings)})
		}
	}
	return entries
}

// nameIn returns the name in a document that is no blueprint, "" if it cannot be read.
func nameIn(doc []byte) string {
	var named struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal(doc, &named); err != nil {
		return ""
	}
	return named.Metadata.Name
}

// notFound lists the existing names of every step.
func (f *Finder) notFound(ctx context.Context, name, workloadNamespace string, entries []entry, broken []string) error {
	var there []string
	namespaces := f.namespaces
	if workloadNamespace != "" && !slices.Contains(namespaces, workloadNamespace) {
		namespaces = append([]string{workloadNamespace}, namespaces...)
	}
	for _, namespace := range namespaces {
		objects, err := f.objects.Namespace(namespace).List(ctx, metav1.ListOptions{})
		switch {
		case apierrors.IsNotFound(err):
			there = append(there, fmt.Sprintf("Blueprints in namespace %s: none (Kanister's CRD is not installed)", namespace))
			continue
		case err != nil:
			there = append(there, fmt.Sprintf("Blueprints in namespace %s: not known (%v)", namespace, err))
			continue
		}
		var names []string
		for _, object := range objects.Items {
			names = append(names, object.GetName())
		}
		there = append(there, fmt.Sprintf("Blueprints in namespace %s: %s", namespace, List(names)))
	}
	var names []string
	for _, entry := range entries {
		if entry.err == nil {
			names = append(names, entry.found.Name)
		}
	}
	there = append(there,
		fmt.Sprintf("ConfigMaps in namespace %s with label %s: %s", f.velero, api.LabelBlueprint, List(names)),
		fmt.Sprintf("built in: %s", List(slices.Collect(maps.Keys(BuiltIns())))))
	for _, b := range broken {
		there = append(there, "not a blueprint: "+b)
	}
	return fmt.Errorf("blueprint %q is not found; there are: %s", name, strings.Join(there, "; "))
}

//go:embed builtin/*.yaml
var builtInFiles embed.FS

// BuiltIns are Stillpoint's recipes by name. The tests fail if one cannot be parsed.
var BuiltIns = sync.OnceValue(func() map[string]*Found {
	byName := map[string]*Found{}
	files, err := builtInFiles.ReadDir("builtin")
	if err != nil {
		panic(err)
	}
	for _, file := range files {
		doc, err := builtInFiles.ReadFile(path.Join("builtin", file.Name()))
		if err != nil {
			panic(err)
		}
		bp, warnings, err := Parse(doc)
		if err != nil {
			panic(fmt.Sprintf("%s: %v", file.Name(), err))
		}
		byName[bp.Name] = newFound(bp, builtIn, warnings)
	}
	return byName
})
