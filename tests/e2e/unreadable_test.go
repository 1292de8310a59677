package e2e

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"

	"stillpoint.io/stillpoint/tests/cluster"
)

// gadgetGroup ends like the groups of Kubernetes.
const gadgetGroup = "gadgets.k8s.io"

// gadgetKind is a kind whose conversion webhook does not answer, until the test
// ends. An object of version v1 cannot be listed: lists are of v2.
func gadgetKind(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	install(t, c, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: gadgets.`+gadgetGroup+`
  annotations: {api-approved.kubernetes.io: "unapproved, for a test"}
spec:
  group: `+gadgetGroup+`
  names: {kind: Gadget, listKind: GadgetList, plural: gadgets, singular: gadget}
  scope: Namespaced
  conversion:
    strategy: Webhook
    webhook: {conversionReviewVersions: [v1], clientConfig: {url: "https://127.0.0.1:9/convert"}}
  versions:
    - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
    - {name: v2, served: true, storage: false, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`)
	t.Cleanup(func() {
		_, err := c.Kubectl(context.Background(), nil, "delete", "crd", "gadgets."+gadgetGroup, "--timeout=30s")
		assert.NoError(t, err)
	})
	_, err := c.Kubectl(t.Context(), nil, "wait", "--for=condition=Established", "crd/gadgets."+gadgetGroup, "--timeout=30s")
	require.NoError(t, err)
}

// One object that the API server cannot read is in none of the namespaces of a
// backup, and fails every list of its kind for the whole cluster, which the survey of
// annotated objects makes from the fourth namespace on.
func testOneKindThatCannotBeRead(t *testing.T, c *cluster.Cluster) {
	elsewhere := c.Namespace(t, "e2e")
	install(t, c, "apiVersion: "+gadgetGroup+"/v1\nkind: Gadget\nmetadata: {name: g, namespace: "+elsewhere+"}\n")
	t.Cleanup(func() { // the namespace could not go with it
		_, err := c.Kubectl(context.Background(), nil, "delete", "gadgets.v1."+gadgetGroup, "g", "--namespace", elsewhere, "--timeout=30s")
		assert.NoError(t, err)
	})
	_, err := c.Kubectl(t.Context(), nil, "get", "gadgets.v2."+gadgetGroup, "--all-namespaces")
	require.ErrorContains(t, err, "conversion webhook")

	var namespaces []string
	for range 4 {
		a := &app{t: t, c: c, namespace: c.Namespace(t, "e2e")}
		a.idleClaim()
		namespaces = append(namespaces, a.namespace)
	}
	// Velero takes the snapshots. A filter policy leaves out one of the volumes that
	// are frozen together.
	last := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, volumes: 2})
	filters := policyFile(t, c, "namespacedFilterPolicies:\n- namespaces: ["+last.namespace+"]\n  resourceFilters:\n"+
		"  - kinds: [pvc]\n    excludedNames: [app-data1]\n  - kinds: ['*']\n")
	b := startBackup(t, c, last.namespace, func(spec *velerov1.BackupSpec) {
		spec.IncludedNamespaces = append(namespaces, last.namespace)
		spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: filters}
	})
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), said(b.log(), "error", "warning"))
	for _, namespace := range namespaces {
		assert.NotEmpty(t, b.claim(namespace, "idle").Labels[velerov1.VolumeSnapshotLabel], namespace)
	}
	assert.Contains(t, b.log(), "/app-data1: a filter policy of the backup leaves out its name")
	assert.Regexp(t, "Thawed Deployment "+last.namespace+"/app: frozen for .*, 1 volume cut", b.log())
	assert.Nil(t, b.claim(last.namespace, "app-data1"))
}
