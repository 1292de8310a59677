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
	// others are what else users may call it, in lower case: singular, plural,
	// short names, each also with its group.
	others []string

	// listed reports that it could be listed in some namespace.
	listed bool
	// scattered reports that it is listed in namespaces only, not everywhere.
	scattered bool
	// hidden reports that it is not asked for any more.
	hidden bool
	// lost reports that it is hidden because it cannot be read.
	lost bool
}

func (k *kind) apiVersion() string { return k.GroupVersion().String() }

// leftOut are the groups and resources whose objects nobody annotates for a
// quiesce: those that Kubernetes makes by itself, one for each pod or moment;
// those that quiesce reads anyhow; Velero's, Kanister's and K10's own.
var leftOut = []schema.GroupResource{
	{Group: "", Resource: "events"},
	{Group: "events.k8s.io", Resource: "*"},
	{Group: "", Resource: "endpoints"},
	{Group: "discovery.k8s.io", Resource: "*"},
	{Group: "coordination.k8s.io", Resource: "*"},
	{Group: "", Resource: "pods"},
	{Group: "", Resource: "persistentvolumeclaims"},
	// Each holds a copy of its owner's annotations.
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

func isLeftOut(resource schema.GroupResource) bool {
	return slices.ContainsFunc(leftOut, func(out schema.GroupResource) bool {
		return out.Group == resource.Group && (out.Resource == "*" || out.Resource == resource.Resource)
	})
}

// discover asks which kinds there are, each in its preferred version. Groups
// that the API server cannot tell of, because the service behind them is down,
// are returned by their names.
func discover(from discovery.DiscoveryInterface) (kinds []*kind, broken map[string]error, err error) {
	lists, err := discovery.ServerPreferredResources(from)
	groups, partly := discovery.GroupDiscoveryFailedErrorGroups(err)
	if err != nil && !partly {
		return nil, nil, fmt.Errorf("ask the API server for its kinds: %w", err)
	}
	broken = map[string]error{}
	for version, err := range groups {
		if !isLeftOut(schema.GroupResource{Group: version.Group, Resource: "*"}) {
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

// kindsOf are the kinds of one group and version that matter.
func kindsOf(list *metav1.APIResourceList) ([]*kind, error) {
	version, err := schema.ParseGroupVersion(list.GroupVersion)
	if err != nil {
		return nil, fmt.Errorf("ask the API server for its kinds: %w", err)
	}
	var kinds []*kind
	for _, r := range list.APIResources {
		usable := r.Namespaced && slices.Contains(r.Verbs, "list") && slices.Contains(r.Verbs, "get")
		if !usable || strings.Contains(r.Name, "/") || isLeftOut(schema.GroupResource{Group: version.Group, Resource: r.Name}) {
			continue
		}
		k := &kind{GroupVersionResource: version.WithResource(r.Name), name: r.Kind}
		for _, name := range append([]string{r.Kind, r.Name, r.SingularName}, r.ShortNames...) {
			if name = strings.ToLower(name); name != "" {
				k.others = append(k.others, name, name+"."+version.Group)
			}
		}
		kinds = append(kinds, k)
	}
	return kinds, nil
}
