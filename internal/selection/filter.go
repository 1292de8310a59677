package selection

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
	ofPods    = kuberesource.Pods.String()
	ofClaims  = kuberesource.PersistentVolumeClaims.String()
	ofVolumes = kuberesource.PersistentVolumes.String()
)

// document is what a ConfigMap of resource policies has beside volume policies.
// Velero's own types for it are internal (resource_policies.go of Velero 1.18),
// and Velero's volume helper has validated it.
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

// filters decide which objects are in a backup: its spec, and the resource
// policies that are not for volumes (backup.go, item_collector.go and
// item_backupper.go in pkg/backup of Velero 1.18).
type filters struct {
	namespaces *collections.NamespaceIncludesExcludes
	resources  collections.IncludesExcludesInterface
	// everywhere reports that Velero lists a kind once for all namespaces.
	everywhere bool
	selectors  []labels.Selector
	// clusterScoped are by kind; namespaced are in the order of the document.
	clusterScoped map[string]*filter
	namespaced    []namespaceFilter
}

// namespaceFilter replaces the selectors of the backup in some namespaces.
type namespaceFilter struct {
	pattern string
	ofKind  map[string]*filter // "*" has those that are not named
}

// filter is what a filter policy says of a kind.
type filter struct {
	selectors []labels.Selector // one must match; none select everything
	names     *collections.IncludesExcludes
}

// errOldFilters is Velero's reason to refuse a backup (prepareBackupRequest in
// backup_controller.go).
var errOldFilters = errors.New("includedResources, excludedResources and includeClusterResources cannot be used together with " +
	"includeExcludePolicy, namespacedFilterPolicies or clusterScopedFilterPolicy of the resource policies")

// included are the filters of the backup, read once.
func (s *Selection) included(ctx context.Context) (*filters, error) {
	if _, _, err := s.helpers(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.filters != nil {
		return s.filters, nil
	}
	policies := ""
	if reference := s.backup.Spec.ResourcePolicy; reference != nil && strings.EqualFold(reference.Kind, "configmap") {
		configMap := &corev1.ConfigMap{}
		if err := s.client.Get(ctx, crclient.ObjectKey{Namespace: s.backup.Namespace, Name: reference.Name}, configMap); err != nil {
			return nil, fmt.Errorf("get ConfigMap %s/%s, the resource policies of backup %s: %w", s.backup.Namespace, reference.Name, s.backup.Name, err)
		}
		policies = strings.Join(slices.Collect(maps.Values(configMap.Data)), "\n") // there is one key
	}
	read, err := newFilters(&s.backup.Spec, policies, s.log)
	if err != nil {
		return nil, fmt.Errorf("read the resource policies of backup %s: %w", s.backup.Name, err)
	}
	s.filters = read
	return read, nil
}

func newFilters(spec *velerov1.BackupSpec, policies string, log logrus.FieldLogger) (*filters, error) {
	f := &filters{
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
			parsed = labels.Nothing() // Velero cannot list by it
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
		return nil, errOldFilters
	}
	if f.clusterScoped, err = ofKind(read.ClusterScoped.Filters); err != nil {
		return nil, err
	}
	for _, policy := range read.Namespaced {
		of, err := ofKind(policy.Filters)
		if err != nil {
			return nil, err
		}
		for _, pattern := range policy.Namespaces {
			f.namespaced = append(f.namespaced, namespaceFilter{pattern, of})
		}
	}
	return f, nil
}

// combine has Velero's filter for kinds take the policies' includeExcludePolicy.
// It reports whether there is one.
func combine(resources collections.IncludesExcludesInterface, policies string) (bool, error) {
	scoped, ok := resources.(*collections.ScopeIncludesExcludes)
	if !ok {
		scoped = &collections.ScopeIncludesExcludes{}
	}
	return combineWith(scoped.CombineWithPolicy, policies, ok)
}

// combineWith is generic because the type of the policy is internal to Velero.
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

// ofKind sorts filters by kind (resolveNamespacedFilterPolicies in backup.go).
func ofKind(all []resourceFilter) (map[string]*filter, error) {
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

// parse returns nil for a selector that selects everything.
func (l *labelSelector) parse() (labels.Selector, error) {
	if l == nil || len(l.Labels)+len(l.Expressions) == 0 {
		return nil, nil //nolint:nilnil // none is a valid answer
	}
	selector := &metav1.LabelSelector{MatchLabels: l.Labels}
	for _, e := range l.Expressions {
		selector.MatchExpressions = append(selector.MatchExpressions,
			metav1.LabelSelectorRequirement{Key: e.Key, Operator: metav1.LabelSelectorOperator(e.Operator), Values: e.Values})
	}
	return metav1.LabelSelectorAsSelector(selector)
}

// of is the filter for a kind in a namespace. policied reports whether a filter
// policy is for that namespace: without a filter it then has none of the kind
// (GetNamespaceFilter in request.go: a name counts before a pattern).
func (f *filters) of(namespace, kind string) (found *filter, policied bool) {
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

// excludes says why Velero leaves an object out whatever brings it along
// (itemInclusionChecks in item_backupper.go); "" if it does not.
func (f *filters) excludes(kind string, object metav1.Object) string {
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

// collects reports whether Velero lists an object of a namespace by itself, and
// not because another one brings it along (getResourceItems in item_collector.go).
func (f *filters) collects(kind string, object metav1.Object) bool {
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

// brought are the claims of a namespace that Velero collects, and those that come
// with them: it takes along a pod's claims and, for a claim, the running pods that
// mount it, without looking at their labels.
func (s *Selection) brought(ctx context.Context, f *filters, namespace string) (map[string]bool, error) {
	pods, claims := &corev1.PodList{}, &corev1.PersistentVolumeClaimList{}
	if err := s.client.List(ctx, pods, crclient.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list the pods of namespace %s: %w", namespace, err)
	}
	if err := s.client.List(ctx, claims, crclient.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list the claims of namespace %s: %w", namespace, err)
	}
	in, bound, admitted := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i := range claims.Items {
		claim := &claims.Items[i]
		admitted[claim.Name] = f.excludes(ofClaims, claim) == ""
		in[claim.Name] = admitted[claim.Name] && f.collects(ofClaims, claim)
		bound[claim.Name] = claim.Status.Phase == corev1.ClaimBound
	}
	for grown := true; grown; {
		grown = false
		pods.Items = slices.DeleteFunc(pods.Items, func(pod corev1.Pod) bool {
			related := actionhelpers.RelatedItemsForPod(&pod, s.log)
			mounts := kube.IsPodRunning(&pod) == nil && slices.ContainsFunc(related, func(of velero.ResourceIdentifier) bool { return in[of.Name] && bound[of.Name] })
			if f.excludes(ofPods, &pod) != "" || !mounts && !f.collects(ofPods, &pod) {
				return false
			}
			for _, of := range related {
				in[of.Name] = in[of.Name] || of.GroupResource == kuberesource.PersistentVolumeClaims && admitted[of.Name]
			}
			grown = true
			return true
		})
	}
	return in, nil
}

// kinds resolves the names that users may give to the kinds which decide here, as
// Velero's discovery does. Other names stay as they are.
type kinds struct{ discovery.Helper }

// ResourceFor is all that Velero's filters ask.
func (kinds) ResourceFor(of schema.GroupVersionResource) (schema.GroupVersionResource, metav1.APIResource, error) {
	name := strings.ToLower(of.Resource)
	for _, known := range []metav1.APIResource{
		{Name: ofPods, SingularName: "pod", ShortNames: []string{"po"}, Namespaced: true},
		{Name: ofClaims, SingularName: "persistentvolumeclaim", ShortNames: []string{"pvc"}, Namespaced: true},
		{Name: ofVolumes, SingularName: "persistentvolume", ShortNames: []string{"pv"}},
	} {
		if of.Group == "" && (name == known.Name || name == known.SingularName || slices.Contains(known.ShortNames, of.Resource)) {
			return corev1.SchemeGroupVersion.WithResource(known.Name), known, nil
		}
	}
	return of, metav1.APIResource{}, &meta.NoResourceMatchError{PartialResource: of}
}
