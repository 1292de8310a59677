package faults

import (
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"stillpoint.io/stillpoint/tests/fake"
)

// filterPolicies leaves two of three claims out: one by its name, one by its
// label. Pods are not listed. A pod whose claim is in the backup comes along, and
// would bring its other claims.
const filterPolicies = `version: v1
namespacedFilterPolicies:
- namespaces: [sh*]
  resourceFilters:
  - kinds: [persistentvolumeclaims]
    excludedNames: [data0-db-1]
    labelSelector: {matchLabels: {keep: "true"}}
`

const groupPolicies = `volumePolicies:
- conditions: {csi: {}}
  action: {type: custom, parameters: {snapshotter: stillpoint.io}}
`

// filtered has a workload with three pods with a volume each, of which resource policies leave
// data0-db-1 and data0-db-2 out. Velero calls for data0-db-0 only.
func filtered(t *testing.T, policies string) (*fake.Bed, func(*velerov1.Backup)) {
	t.Helper()
	bed := fake.New(t)
	bed.Deploy(fake.App{Kind: "StatefulSet", Annotations: fsfreeze, Replicas: 3, Claim: func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
		if claim.Name != "data0-db-2" {
			claim.Labels["keep"] = "true"
		}
	}})
	bed.API.Put(t, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "filters"}, Data: map[string]string{"policies.yaml": policies}})
	return bed, func(backup *velerov1.Backup) {
		backup.Spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: "filters"}
		backup.Spec.IncludedNamespaces = []string{"shop"}
	}
}

// onlyFirst asserts that data0-db-0 alone was frozen, snapshotted and thawed, with
// the line that says so.
func onlyFirst(t *testing.T, bed *fake.Bed, v *fake.Velero) {
	t.Helper()
	require.Len(t, bed.Storage.Snapshots(), 1)
	assert.True(t, bed.Storage.Snapshots()[0].Frozen)
	assert.Equal(t, []string{"sync", "freeze", "frozen", "thawed"}, bed.Node.FileSystem("shop", "data0-db-0").Journal())
	for _, claim := range []string{"data0-db-1", "data0-db-2"} {
		assert.Empty(t, bed.Node.FileSystem("shop", claim).Journal(), claim)
	}
	assert.True(t, v.Said(logrus.InfoLevel, "Thawed StatefulSet shop/db", "1 volume cut"), v.Lines(logrus.InfoLevel))
	assert.Empty(t, v.Errors())
}

// 35: claims that namespacedFilterPolicies leave out are neither frozen nor
// snapshotted with the others of their workload.
func TestFilterPoliciesInTheGroupPath(t *testing.T) {
	t.Parallel()
	bed, change := filtered(t, filterPolicies+groupPolicies)
	v, backup, r := bed.Velero(), bed.Backup(change), fake.NewResult()
	v.BackUpClaim(backup, "shop", "data0-db-0", r)
	require.Empty(t, r.Dropped)
	onlyFirst(t, bed, v)
	assert.Len(t, bed.API.All("volumesnapshots"), 1)
}

func TestFilterPoliciesAroundVelerosSnapshots(t *testing.T) {
	t.Parallel()
	bed, change := filtered(t, filterPolicies)
	v, backup, r := bed.Velero(), bed.Backup(change), fake.NewResult()
	v.BackUpClaim(backup, "shop", "data0-db-0", r)
	require.Empty(t, r.Dropped)
	onlyFirst(t, bed, v)
}

func TestFilterPoliciesThroughALocation(t *testing.T) {
	t.Parallel()
	bed, change := filtered(t, filterPolicies)
	location := &velerov1.VolumeSnapshotLocation{
		TypeMeta:   metav1.TypeMeta{APIVersion: velerov1.SchemeGroupVersion.String(), Kind: "VolumeSnapshotLocation"},
		ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "csi"},
		Spec:       velerov1.VolumeSnapshotLocationSpec{Provider: fake.Provider},
	}
	bed.API.Put(t, location)
	l := bed.Locating(nil)
	backup := bed.Backup(change, func(backup *velerov1.Backup) { backup.Spec.VolumeSnapshotLocations = []string{"csi"} })
	volume := volumeOf(t, bed, "data0-db-0")
	id, err := l.Snapshotter.GetVolumeID(&unstructured.Unstructured{Object: volume.Object})
	require.NoError(t, err)
	_, err = l.Snapshotter.CreateSnapshot(id, "", map[string]string{"velero.io/backup": backup.Name, "velero.io/pv": volume.GetName()})
	require.NoError(t, err)
	onlyFirst(t, bed, l.Velero)
}

func volumeOf(t *testing.T, bed *fake.Bed, claim string) *unstructured.Unstructured {
	t.Helper()
	for _, volume := range bed.API.All("persistentvolumes") {
		if name, _, _ := unstructured.NestedString(volume.Object, "spec", "claimRef", "name"); name == claim {
			return &volume
		}
	}
	t.Fatalf("claim %s has no volume", claim)
	return nil
}

// Pods that the policies leave out are not named for the item block: Velero would
// back up what is named there.
func TestFilterPoliciesOfItemBlocks(t *testing.T) {
	t.Parallel()
	for kinds, want := range map[string][]string{"persistentvolumeclaims": {"persistentvolumeclaims data0-db-1"}, "pods": {"pods db-1"}, "secrets": nil} {
		bed := fake.New(t)
		app := bed.Deploy(fake.App{Kind: "StatefulSet", Annotations: fsfreeze, Replicas: 2})
		bed.API.Put(t, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "filters"}, Data: map[string]string{
			"policies.yaml": "version: v1\nnamespacedFilterPolicies:\n- namespaces: [shop]\n  resourceFilters:\n  - kinds: [" + kinds + "]\n",
		}})
		backup := bed.Backup(func(backup *velerov1.Backup) {
			backup.Spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: "filters"}
		})
		related, err := bed.Velero().Pods.GetRelatedItems(podItem(t, bed, app.Pods[0].Name), backup)
		require.NoError(t, err)
		var names []string
		for _, item := range related {
			names = append(names, item.Resource+" "+item.Name)
		}
		assert.Equal(t, want, names, kinds)
	}
}

func podItem(t *testing.T, bed *fake.Bed, name string) *unstructured.Unstructured {
	t.Helper()
	for _, pod := range bed.API.All("pods") {
		if pod.GetName() == name {
			return &pod
		}
	}
	t.Fatalf("there is no pod %s", name)
	return nil
}

// The check says the same before the backup.
func TestFilterPoliciesInTheCheck(t *testing.T) {
	t.Parallel()
	for _, policies := range []string{filterPolicies + groupPolicies, filterPolicies} {
		bed, _ := filtered(t, policies)
		code, stdout, stderr := bed.Command("check", "--namespace", "shop", "--policy", "filters")
		assert.Zero(t, code, stdout+stderr)
		assert.Contains(t, stdout, "a filter policy of the backup leaves out its name")
		assert.Contains(t, stdout, "namespacedFilterPolicies of the backup's resource policies do not match it")
	}
}

// clusterScopedFilterPolicy can leave a volume out, and Velero snapshots its claim
// all the same. There is no moment to freeze at: that is told before the freeze,
// and by the check.
func TestClusterScopedFilterPolicy(t *testing.T) {
	t.Parallel()
	bed, change := filtered(t, "version: v1\nclusterScopedFilterPolicy:\n  resourceFilters:\n  - {kinds: [persistentvolumes], excludedNames: ['pvc-*']}\n")
	v, backup := bed.Velero(), bed.Backup(change)
	after, _, _, _, err := v.Own.Execute(claimItem(t, bed, "data0-db-0"), backup)
	require.NoError(t, err)
	_, _, _, _, err = v.Claim.Execute(after, backup)
	require.ErrorContains(t, err, "the backup leaves out persistentvolumes/pvc-")
	assert.Empty(t, bed.API.All("volumesnapshots"), "it is not consistent")
	code, stdout, _ := bed.Command("check", "--namespace", "shop", "--policy", "filters")
	assert.Equal(t, 1, code)
	assert.Contains(t, stdout, "the backup leaves out persistentvolumes/pvc-")
}

func claimItem(t *testing.T, bed *fake.Bed, name string) *unstructured.Unstructured {
	t.Helper()
	for _, claim := range bed.API.All("persistentvolumeclaims") {
		if claim.GetName() == name {
			return &claim
		}
	}
	t.Fatalf("there is no claim %s", name)
	return nil
}
