package selection

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/velero"
)

const (
	byPolicy = "namespacedFilterPolicies of the backup's resource policies do not match it"
	byName   = "a filter policy of the backup leaves out its name"
)

// filtered sets resource policies without volume policies.
func (s *scene) filtered(document string) {
	s.others = append(s.others, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "own"}, Data: map[string]string{"p.yaml": "version: v1\n" + document},
	})
	s.backup.Spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "ConfigMap", Name: "own"}
}

// namespaced returns a filter policy for namespaces.
func namespaced(namespaces string, filters ...string) string {
	document := "namespacedFilterPolicies:\n- namespaces: " + namespaces + "\n  resourceFilters:\n"
	for _, filter := range filters {
		document += "  - {" + filter + "}\n"
	}
	return document
}

// The expected results are from item_collector.go and item_backupper.go of Velero 1.18.3.
// The first selects the listed items by kind and labels, the second selects additional
// items by kind and name.
func TestFilterPolicies(t *testing.T) {
	everything := "kinds: ['*']"
	for name, test := range map[string]struct {
		document string
		change   func(s *scene)
		reason   string
	}{
		"another namespace":                   {namespaced("[office]", "kinds: [secrets]"), nil, ""},
		"a kind that is not listed":           {namespaced("[shop]", "kinds: [secrets]"), nil, byPolicy},
		"listed":                              {namespaced("[shop]", "kinds: [persistentvolumeclaims]"), nil, ""},
		"listed by a short name":              {namespaced("[shop]", "kinds: [secrets, pvc]"), nil, ""},
		"listed by its kind":                  {namespaced("[shop]", "kinds: [PersistentVolumeClaim]"), nil, ""},
		"every kind":                          {namespaced("[shop]", everything), nil, ""},
		"every kind, by no kinds":             {namespaced("[shop]", "names: []"), nil, ""},
		"every other kind":                    {namespaced("[shop]", everything, "kinds: [pvc], names: [logs]"), nil, byName},
		"its label":                           {namespaced("[shop]", "kinds: [pvc], labelSelector: {matchLabels: {app: db}}"), nil, ""},
		"another label":                       {namespaced("[shop]", "kinds: [pvc], labelSelector: {matchLabels: {app: web}}"), nil, byPolicy},
		"an empty selector":                   {namespaced("[shop]", "kinds: [pvc], labelSelector: {}"), nil, ""},
		"an expression":                       {namespaced("[shop]", "kinds: [pvc], labelSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}"), nil, byPolicy},
		"one of its labels":                   {namespaced("[shop]", "kinds: [pvc], orLabelSelectors: [{matchLabels: {app: web}}, {matchLabels: {app: db}}]"), nil, ""},
		"none of its labels":                  {namespaced("[shop]", "kinds: [pvc], orLabelSelectors: [{matchLabels: {app: web}}, {matchLabels: {app: x}}]"), nil, byPolicy},
		"empty among others":                  {namespaced("[shop]", "kinds: [pvc], orLabelSelectors: [{matchLabels: {app: web}}, {}]"), nil, byPolicy},
		"a label that YAML 1.1 has as a bool": {namespaced("[shop]", "kinds: [pvc], labelSelector: {matchLabels: {backup: yes}}"), func(s *scene) { s.claim.Labels["backup"] = "yes" }, ""},

		"its name":                            {namespaced("[shop]", "kinds: [pvc], names: [data]"), nil, ""},
		"its name by a pattern":               {namespaced("[shop]", "kinds: [pvc], names: [d*]"), nil, ""},
		"another name":                        {namespaced("[shop]", "kinds: [pvc], names: [logs]"), nil, byName},
		"its name, excluded":                  {namespaced("[shop]", "kinds: [pvc], excludedNames: ['da?a']"), nil, byName},
		"another name, though its pod brings": {namespaced("[shop]", "kinds: [pvc], names: [logs]", "kinds: [pods]"), nil, byName},

		"another label, but its pod brings it":  {namespaced("[shop]", "kinds: [pvc], labelSelector: {matchLabels: {app: web}}", "kinds: [pods]"), nil, ""},
		"not listed, but its pod brings it":     {namespaced("[shop]", "kinds: [pods]"), nil, ""},
		"its pod's label":                       {namespaced("[shop]", "kinds: [po], labelSelector: {matchLabels: {tier: back}}"), nil, ""},
		"its pod has another label":             {namespaced("[shop]", "kinds: [po], labelSelector: {matchLabels: {tier: front}}"), nil, byPolicy},
		"its pod has another name":              {namespaced("[shop]", "kinds: [po], names: [db-1]"), nil, byPolicy},
		"the name of the claim is not a pod's":  {namespaced("[shop]", everything, "kinds: [po], names: [db-1]"), nil, ""},
		"a policy's selectors replace its own":  {namespaced("[shop]", "kinds: [pvc]"), func(s *scene) { s.only("shop"); s.backup.Spec.LabelSelector = app("web") }, ""},
		"and are replaced in that namespace":    {namespaced("[office]", "kinds: [pvc]"), func(s *scene) { s.only("shop"); s.backup.Spec.LabelSelector = app("web") }, notSelected},
		"where all are listed at once, both":    {namespaced("[shop]", "kinds: [pvc]"), func(s *scene) { s.backup.Spec.LabelSelector = app("web") }, byPolicy},
		"a pattern":                             {namespaced("['sh*']", "kinds: [secrets]"), nil, byPolicy},
		"a pattern of other namespaces":         {namespaced("['of*']", "kinds: [secrets]"), nil, ""},
		"a name before a pattern":               {namespaced("['s*']", "kinds: [secrets]") + "- namespaces: [shop]\n  resourceFilters: [{kinds: [pvc]}]\n", func(s *scene) { s.only("shop") }, ""},
		"the first pattern":                     {namespaced("['s*']", "kinds: [secrets]") + "- namespaces: ['sh*']\n  resourceFilters: [{kinds: [pvc]}]\n", nil, byPolicy},
		"a pattern for all also lists for all":  {namespaced("['*']", "kinds: [secrets]") + "- namespaces: [shop]\n  resourceFilters: [{kinds: [pvc]}]\n", nil, byPolicy},
		"kinds, excluded":                       {"includeExcludePolicy:\n  excludedNamespaceScopedResources: [pvc]\n", nil, noClaims},
		"kinds, included":                       {"includeExcludePolicy:\n  includedNamespaceScopedResources: [secrets]\n", nil, noClaims},
		"kinds, but the backup's own count":     {"includeExcludePolicy:\n  excludedNamespaceScopedResources: [pvc]\n", func(s *scene) { s.backup.Spec.IncludedNamespaceScopedResources = []string{"pvc"} }, ""},
		"kinds, and a filter policy for claims": {"includeExcludePolicy:\n  excludedNamespaceScopedResources: [pvc]\n" + namespaced("[shop]", "kinds: [pvc]"), nil, noClaims},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene()
			s.filtered(test.document)
			if test.change != nil {
				test.change(s)
			}
			selection := s.selection(t)
			require.NoError(t, selection.Policies(t.Context()))
			verdict, err := selection.Of(t.Context(), s.claim)
			require.NoError(t, err)
			assert.Equal(t, test.reason, verdict.Reason)
			assert.Equal(t, test.reason == "", verdict.Path == Velero)
			require.NoError(t, verdict.Uncalled)
		})
	}
}

func (s *scene) only(namespaces ...string) { s.backup.Spec.IncludedNamespaces = namespaces }

// Velero calls actions for a volume unless the filters exclude its kind or name. Label
// selectors have no effect, because its claim adds the volume.
func TestUncalled(t *testing.T) {
	clusterScoped := func(filter string) string {
		return "clusterScopedFilterPolicy:\n  resourceFilters:\n  - {" + filter + "}\n"
	}
	for name, test := range map[string]struct {
		document string
		change   func(s *scene)
		called   bool
	}{
		"no policy":                   {"", nil, true},
		"another kind":                {clusterScoped("kinds: [nodes], names: [x]"), nil, true},
		"its name":                    {clusterScoped("kinds: [pv], names: ['pv-*']"), nil, true},
		"another name":                {clusterScoped("kinds: [persistentvolumes], names: [x]"), nil, false},
		"its name, excluded":          {clusterScoped("kinds: [persistentvolume], excludedNames: [pv-data]"), nil, false},
		"a label":                     {clusterScoped("kinds: [pv], labelSelector: {matchLabels: {a: b}}"), nil, true},
		"kinds, excluded":             {"includeExcludePolicy:\n  excludedClusterScopedResources: [pv]\n", nil, false},
		"kinds, others included":      {"includeExcludePolicy:\n  includedClusterScopedResources: [nodes]\n", nil, true},
		"no cluster-scoped resources": {"", func(s *scene) { s.backup.Spec.IncludeClusterResources = no() }, false},
		"all cluster-scoped, claims": {"", func(s *scene) {
			s.backup.Spec.IncludeClusterResources, s.backup.Spec.IncludedResources = yes(), []string{"pvc"}
		}, true},
		"its own label": {"", func(s *scene) { s.volume.Labels = map[string]string{"velero.io/exclude-from-backup": "true"} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene()
			s.filtered(test.document)
			if test.change != nil {
				test.change(s)
			}
			verdict, err := s.selection(t).Of(t.Context(), s.claim)
			require.NoError(t, err)
			assert.Equal(t, Velero, verdict.Path)
			assert.Equal(t, test.called, verdict.Uncalled == nil)
		})
	}
}

func TestFilterPoliciesThatVeleroRefuses(t *testing.T) {
	for _, document := range []string{
		namespaced("[shop]", "kinds: [pvc]"), "clusterScopedFilterPolicy:\n  resourceFilters: [{kinds: [pv]}]\n", "includeExcludePolicy: {}\n",
	} {
		s := newScene()
		s.filtered(document)
		require.NoError(t, s.selection(t).Policies(t.Context()))
		s.backup.Spec.IncludedResources = []string{"pvc"}
		require.ErrorIs(t, s.selection(t).Policies(t.Context()), velero.ErrOldFilters)
	}
	s := newScene()
	s.filtered(namespaced("[shop]", "kinds: [pvc], names: ['[']"))
	require.ErrorContains(t, s.selection(t).Policies(t.Context()), "invalid glob pattern")
}

// The pods of an item block are the pods that the filters select.
func TestPodByFilterPolicies(t *testing.T) {
	for document, in := range map[string]bool{
		namespaced("[shop]", "kinds: [pvc]"):                                             false,
		namespaced("[shop]", "kinds: [pods]"):                                            true,
		namespaced("[shop]", "kinds: [pods], excludedNames: [db-*]"):                     false,
		namespaced("[shop]", "kinds: [pods], labelSelector: {matchLabels: {tier: x}}"):   false,
		namespaced("[office]", "kinds: [pods], labelSelector: {matchLabels: {tier: x}}"): true,
	} {
		s := newScene()
		s.filtered(document)
		selected, err := s.selection(t).Pod(t.Context(), s.pod)
		require.NoError(t, err)
		assert.Equal(t, in, selected, document)
	}
}
