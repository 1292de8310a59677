package velero

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/discovery"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"github.com/vmware-tanzu/velero/pkg/util/actionhelpers"
	"github.com/vmware-tanzu/velero/pkg/util/collections"
	"github.com/vmware-tanzu/velero/pkg/util/kube"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
	goyaml "sigs.k8s.io/yaml/goyaml.v2"
)

// The kinds whose objects decide what happens to a volume.
var (
	Pods    = kuberesource.Pods.String()
	Claims  = kuberesource.PersistentVolumeClaims.String()
	Volumes = kuberesource.PersistentVolumes.String()
)

// document is the part of a resource policies ConfigMap beside the volume policies.
// Velero's own types are internal, and its volume helper has validated the document.
type document struct {
	Namespaced []struct {
		Namespaces []string         `yaml:"namespaces"`
		Filters    []resourceFilter `yaml:"resourceFilters"`
	} `yaml:"namespacedFilterPolicies"`
	ClusterScoped struct {
		Filters []resourceFilter `yaml:"resourceFilters"`
	} `yaml:"clusterScopedFilterPolicy"`
}

type resourceFilter struct {
	Kinds         []string         `yaml:"kinds"`
	Selector      *labelSelector   `yaml:"labelSelector"`
	OrSelectors   []*labelSelector `yaml:"orLabelSelectors"`
	Names         []string         `yaml:"names"`
	ExcludedNames []string         `yaml:"excludedNames"`
}

type labelSelector struct {
	Labels      map[string]string `yaml:"matchLabels"`
	Expressions []struct {
		Key, Operator string
		Values        []string
	} `yaml:"matchExpressions"`
}

// Filters decide which objects are in a backup, by its spec and by the resource
// policies that are not about volumes.
type Filters struct {
	namespaces *collections.NamespaceIncludesExcludes
	resources  collections.IncludesExcludesInterface
	// everywhere reports whether Velero lists a kind once for all namespaces.
	everywhere bool
	selectors  []labels.Selector
	// clusterScoped is by kind; namespaced is in the order of the document.
	clusterScoped map[string]*filter
	namespaced    []namespaceFilter
}

// namespaceFilter replaces the selectors of the backup in some namespaces.
type namespaceFilter struct {
	pattern string
	ofKind  map[string]*filter // "*" has those that are not named
}

// filter is a filter policy for a kind.
type filter struct {
	selectors []labels.Selector // one must match; none select everything
	names     *collections.IncludesExcludes
}

// ErrOldFilters is a combination for which Velero rejects a backup.
var ErrOldFilters = errors.New("includedResources, excludedResources and includeClusterResources cannot be used together with " +
	"includeExcludePolicy, namespacedFilterPolicies or clusterScopedFilterPolicy of the resource policies")

// ReadFilters returns the filters of a backup.
func ReadFilters(ctx context.Context, client crclient.Client, backup *velerov1.Backup, log logrus.FieldLogger) (*Filters, error) {
	policies := ""
	if reference := backup.Spec.ResourcePolicy; reference != nil && strings.EqualFold(reference.Kind, "configmap") {
		configMap := &corev1.ConfigMap{}
		if err := client.Get(ctx, crclient.ObjectKey{Namespace: backup.Namespace, Name: reference.Name}, configMap); err != nil {
			return nil, fmt.Errorf("get ConfigMap %s/%s, the resource policies of backup %s: %w", backup.Namespace, reference.Name, backup.Name, err)
		}
		policies = strings.Join(slices.Collect(maps.Values(configMap.Data)), "\n") // Velero allows one key only
	}
	read, err := newFilters(&backup.Spec, policies, log)
	if err != nil {
		return nil, fmt.Errorf("read the resource policies of backup %s: %w", backup.Name, err)
	}
	return read, nil
}

func newFilters(spec *velerov1.BackupSpec, policies string, log logrus.FieldLogger) (*Filters, error) {
	f := &Filters{
		namespaces: collections.NewNamespaceIncludesExcludes().Includes(spec.IncludedNamespaces...).Excludes(spec.ExcludedNamespaces...),
		everywhere: len(spec.IncludedNamespaces) == 0 || slices.Contains(spec.IncludedNamespaces, "*"),
	}
	selectors := spec.OrLabelSelectors
	if spec.LabelSelector != nil {
		selectors = append(slices.Clone(selectors), spec.LabelSelector)
	}
	for _, selector := range selectors {
		parsed, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil {
			parsed = labels.Nothing() // Velero cannot list by it either
		}
		f.selectors = append(f.selectors, parsed)
	}
	var read document
	if err := goyaml.Unmarshal([]byte(policies), &read); err != nil {
		return nil, err
	}
	old := collections.UseOldResourceFilters(*spec)
	if old {
		f.resources = collections.GetGlobalResourceIncludesExcludes(kinds{}, log, spec.IncludedResources, spec.ExcludedResources, spec.IncludeClusterResources, *f.namespaces)
	} else {
		f.resources = collections.GetScopeResourceIncludesExcludes(kinds{}, log,
			spec.IncludedNamespaceScopedResources, spec.ExcludedNamespaceScopedResources,
			spec.IncludedClusterScopedResources, spec.ExcludedClusterScopedResources, *f.namespaces)
	}
	combined, err := combine(f.resources, policies)
	if err != nil {
		return nil, err
	}
	if old && (combined || len(read.Namespaced)+len(read.ClusterScoped.Filters) > 0) {
		return nil, ErrOldFilters
	}
	if f.clusterScoped, err = filtersByKind(read.ClusterScoped.Filters); err != nil {
		return nil, err
	}
	for _, policy := range read.Namespaced {
		of, err := filtersByKind(policy.Filters)
		if err != nil {
			return nil, err
		}
		for _, pattern := range policy.Namespaces {
			f.namespaced = append(f.namespaced, namespaceFilter{pattern, of})
		}
	}
	return f, nil
}

// combine adds the policies' includeExcludePolicy to Velero's filter for kinds, and
// reports whether the policies have one.
func combine(resources collections.IncludesExcludesInterface, policies string) (bool, error) {
	scoped, ok := resources.(*collections.ScopeIncludesExcludes)
	if !ok {
		scoped = &collections.ScopeIncludesExcludes{}
	}
	return combineWith(scoped.CombineWithPolicy, policies, ok)
}

// combineWith is generic because Velero does not export the type of the policy.
func combineWith[P any](take func(*P), policies string, taken bool) (bool, error) {
	var read struct {
		Policy *P `yaml:"includeExcludePolicy"`
	}
	if err := goyaml.Unmarshal([]byte(policies), &read); err != nil {
		return false, err
	}
	if taken {
		take(read.Policy)
	}
	return read.Policy != nil, nil
}

// filtersByKind returns filters by kind.
func filtersByKind(all []resourceFilter) (map[string]*filter, error) {
	sorted := map[string]*filter{}
	for _, one := range all {
		resolved := &filter{}
		for _, selector := range append(slices.Clone(one.OrSelectors), one.Selector) {
			parsed, err := selector.parse()
			if err != nil {
				return nil, err
			}
			if parsed != nil {
				resolved.selectors = append(resolved.selectors, parsed)
			}
		}
		if len(one.Names)+len(one.ExcludedNames) > 0 {
			resolved.names = collections.NewIncludesExcludes().Includes(one.Names...).Excludes(one.ExcludedNames...)
		}
		if len(one.Kinds) == 0 {
			sorted["*"] = resolved
		}
		for _, kind := range one.Kinds {
			if known, _, err := (kinds{}).ResourceFor(schema.GroupVersionResource{Resource: kind}); err == nil {
				kind = known.Resource
			}
			sorted[kind] = resolved
		}
	}
	return sorted, nil
}

// parse returns nil without an error for a selector that selects everything.
func (l *labelSelector) parse() (labels.Selector, error) {
	if l == nil || len(l.Labels)+len(l.Expressions) == 0 {
		return nil, nil //nolint:nilnil // see above
	}
	selector := &metav1.LabelSelector{MatchLabels: l.Labels}
	for _, e := range l.Expressions {
		selector.MatchExpressions = append(selector.MatchExpressions,
			metav1.LabelSelectorRequirement{Key: e.Key, Operator: metav1.LabelSelectorOperator(e.Operator), Values: e.Values})
	}
	return metav1.LabelSelectorAsSelector(selector)
}

// of returns the filter for a kind in a namespace; a policy that names the namespace
// wins over a pattern. policied reports whether a filter policy applies to the
// namespace: the backup then has no object of a kind that the policy does not list.
func (f *Filters) of(namespace, kind string) (found *filter, policied bool) {
	i := slices.IndexFunc(f.namespaced, func(n namespaceFilter) bool { return n.pattern == namespace })
	if i < 0 {
		i = slices.IndexFunc(f.namespaced, func(n namespaceFilter) bool {
			return strings.ContainsAny(n.pattern, "*?[") && collections.NewIncludesExcludes().Includes(n.pattern).ShouldInclude(namespace)
		})
	}
	if i < 0 {
		return nil, false
	}
	if found = f.namespaced[i].ofKind[kind]; found == nil {
		found = f.namespaced[i].ofKind["*"]
	}
	return found, true
}

// Policied reports whether a filter policy of the backup applies to a namespace.
func (f *Filters) Policied(namespace string) bool {
	_, policied := f.of(namespace, Claims)
	return policied
}

// Excludes returns why Velero excludes an object even if another object or a plugin
// asks for it; "" if it does not.
func (f *Filters) Excludes(kind string, object metav1.Object) string {
	named := f.clusterScoped[kind]
	if namespace := object.GetNamespace(); namespace != "" {
		if !f.namespaces.ShouldInclude(namespace) {
			return fmt.Sprintf("namespace %s is not in the backup", namespace)
		}
		if !f.resources.ShouldInclude(kind) {
			return "the backup leaves out " + kind
		}
		named, _ = f.of(namespace, kind)
	} else if f.resources.ShouldExclude(kind) {
		return "the backup leaves out " + kind
	}
	switch {
	case object.GetLabels()[velerov1.ExcludeFromBackupLabel] == "true":
		return "the claim has the label " + velerov1.ExcludeFromBackupLabel
	case named != nil && named.names != nil && !named.names.ShouldInclude(object.GetName()):
		return "a filter policy of the backup leaves out its name"
	case object.GetDeletionTimestamp() != nil:
		return "it is being deleted"
	}
	return ""
}

// Collects reports whether Velero collects an object for its own sake, and not only
// because another object needs it.
func (f *Filters) Collects(kind string, object metav1.Object) bool {
	listed := object.GetNamespace()
	if f.everywhere {
		listed = ""
	}
	matches := func(namespace string, otherwise *filter) bool {
		found, policied := f.of(namespace, kind)
		if !policied {
			found = otherwise
		}
		return found != nil && (len(found.selectors) == 0 || slices.ContainsFunc(found.selectors, func(selector labels.Selector) bool {
			return selector.Matches(labels.Set(object.GetLabels()))
		}))
	}
	return matches(listed, &filter{selectors: f.selectors}) && matches(object.GetNamespace(), &filter{})
}

// Needed returns the claims of a namespace that Velero collects or that a collected
// object needs: a pod needs its claims, and a claim the running pods that mount it,
// whatever their labels are.
func (f *Filters) Needed(pods []corev1.Pod, claims []corev1.PersistentVolumeClaim, log logrus.FieldLogger) map[string]bool {
	in, bound, admitted := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i := range claims {
		claim := &claims[i]
		admitted[claim.Name] = f.Excludes(Claims, claim) == ""
		in[claim.Name] = admitted[claim.Name] && f.Collects(Claims, claim)
		bound[claim.Name] = claim.Status.Phase == corev1.ClaimBound
	}
	for grown := true; grown; {
		grown = false
		pods = slices.DeleteFunc(pods, func(pod corev1.Pod) bool {
			related := actionhelpers.RelatedItemsForPod(&pod, log)
			mounts := kube.IsPodRunning(&pod) == nil && slices.ContainsFunc(related, func(of velero.ResourceIdentifier) bool { return in[of.Name] && bound[of.Name] })
			if f.Excludes(Pods, &pod) != "" || !mounts && !f.Collects(Pods, &pod) {
				return false
			}
			for _, of := range related {
				in[of.Name] = in[of.Name] || of.GroupResource == kuberesource.PersistentVolumeClaims && admitted[of.Name]
			}
			grown = true
			return true
		})
	}
	return in
}

// kinds resolves the names of the kinds above, as Velero's discovery does. Other
// names stay as they are.
type kinds struct{ discovery.Helper }

// ResourceFor is the only method that Velero's filters call.
func (kinds) ResourceFor(of schema.GroupVersionResource) (schema.GroupVersionResource, metav1.APIResource, error) {
	name := strings.ToLower(of.Resource)
	for _, known := range []metav1.APIResource{
		{Name: Pods, SingularName: "pod", ShortNames: []string{"po"}, Namespaced: true},
		{Name: Claims, SingularName: "persistentvolumeclaim", ShortNames: []string{"pvc"}, Namespaced: true},
		{Name: Volumes, SingularName: "persistentvolume", ShortNames: []string{"pv"}},
	} {
		if of.Group == "" && (name == known.Name || name == known.SingularName || slices.Contains(known.ShortNames, of.Resource)) {
			return corev1.SchemeGroupVersion.WithResource(known.Name), known, nil
		}
	}
	return of, metav1.APIResource{}, &meta.NoResourceMatchError{PartialResource: of}
}
