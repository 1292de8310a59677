package annotated

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
)

// kind is a kind of namespaced objects that can be listed.
type kind struct {
	schema.GroupVersionResource
	name string
	// aliases are the names that users can use for the kind, in lower case: singular,
	// plural and short names, with and without the group.
	aliases []string

	// listed is true if the kind could be listed in some namespace.
	listed bool
	// perNamespace is true if the kind can be listed in single namespaces only.
	perNamespace bool
	// skipped is true if the kind is not listed any more.
	skipped bool
	// unreadable is true if the kind is skipped because the API server cannot read it.
	unreadable bool
}

func (k *kind) apiVersion() string { return k.GroupVersion().String() }

// excluded are the groups and resources without objects that users annotate for a quiesce:
// objects that Kubernetes creates for each pod or event, objects that other packages read,
// and those of Velero, Kanister and K10.
var excluded = []schema.GroupResource{
	{Group: "", Resource: "events"},
	{Group: "events.k8s.io", Resource: "*"},
	{Group: "", Resource: "endpoints"},
	{Group: "discovery.k8s.io", Resource: "*"},
	{Group: "coordination.k8s.io", Resource: "*"},
	{Group: "", Resource: "pods"},
	{Group: "", Resource: "persistentvolumeclaims"},
	// Each has a copy of the annotations of its owner.
	{Group: "apps", Resource: "controllerrevisions"},
	{Group: "storage.k8s.io", Resource: "csistoragecapacities"},
	{Group: "authorization.k8s.io", Resource: "*"},
	{Group: "metrics.k8s.io", Resource: "*"},
	{Group: "custom.metrics.k8s.io", Resource: "*"},
	{Group: "external.metrics.k8s.io", Resource: "*"},
	{Group: "packages.operators.coreos.com", Resource: "*"},
	{Group: "cilium.io", Resource: "ciliumendpoints"},
	{Group: "velero.io", Resource: "*"},
	{Group: "snapshot.storage.k8s.io", Resource: "*"},
	{Group: "groupsnapshot.storage.k8s.io", Resource: "*"},
	{Group: "cr.kanister.io", Resource: "*"},
	{Group: "actions.kio.kasten.io", Resource: "*"},
	{Group: "apps.kio.kasten.io", Resource: "*"},
	{Group: "config.kio.kasten.io", Resource: "*"},
}

func isExcluded(resource schema.GroupResource) bool {
	return slices.ContainsFunc(excluded, func(out schema.GroupResource) bool {
		return out.Group == resource.Group && (out.Resource == "*" || out.Resource == resource.Resource)
	})
}

// discover returns the kinds of the API server, each in its preferred version, and the
// groups that it cannot discover because their service is down.
func discover(from discovery.DiscoveryInterface) (kinds []*kind, broken map[string]error, err error) {
	lists, err := discovery.ServerPreferredResources(from)
	groups, partly := discovery.GroupDiscoveryFailedErrorGroups(err)
	if err != nil && !partly {
		return nil, nil, fmt.Errorf("ask the API server for its kinds: %w", err)
	}
	broken = map[string]error{}
	for version, err := range groups {
		if !isExcluded(schema.GroupResource{Group: version.Group, Resource: "*"}) {
			broken[version.String()] = err
		}
	}
	for _, list := range lists {
		of, err := kindsOf(list)
		if err != nil {
			return nil, nil, err
		}
		kinds = append(kinds, of...)
	}
	slices.SortFunc(kinds, func(a, b *kind) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Resource, b.Resource))
	})
	return kinds, broken, nil
}

// kindsOf returns the relevant kinds of one group and version.
func kindsOf(list *metav1.APIResourceList) ([]*kind, error) {
	version, err := schema.ParseGroupVersion(list.GroupVersion)
	if err != nil {
		return nil, fmt.Errorf("ask the API server for its kinds: %w", err)
	}
	var kinds []*kind
	for _, r := range list.APIResources {
		usable := r.Namespaced && slices.Contains(r.Verbs, "list") && slices.Contains(r.Verbs, "get")
		if !usable || strings.Contains(r.Name, "/") || isExcluded(schema.GroupResource{Group: version.Group, Resource: r.Name}) {
			continue
		}
		k := &kind{GroupVersionResource: version.WithResource(r.Name), name: r.Kind}
		for _, name := range append([]string{r.Kind, r.Name, r.SingularName}, r.ShortNames...) {
			if name = strings.ToLower(name); name != "" {
				k.aliases = append(k.aliases, name, name+"."+version.Group)
			}
		}
		kinds = append(kinds, k)
	}
	return kinds, nil
}
