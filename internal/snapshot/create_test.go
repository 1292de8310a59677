package snapshot

import (
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned/fake"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"stillpoint.io/stillpoint/internal/api"
)

func nightly(uid string) *velerov1.Backup {
	return &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Name: "nightly-" + strings.Repeat("x", 80), UID: types.UID(uid)}}
}

func claimOf(name string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": "db"},
	}}
}

func noLabel(string) bool { return false }

func TestNew(t *testing.T) {
	backup, claim := nightly("b1"), claimOf("data")
	vs := New("here", backup, claim, "fast", "because", noLabel)
	// Each finalizer that the snapshot controller need not add spares requests in the freeze.
	assert.Equal(t, []string{
		"snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection", "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection",
	}, vs.Finalizers)
	assert.Equal(t, "shop", vs.Namespace)
	assert.Equal(t, "data", *vs.Spec.Source.PersistentVolumeClaimName)
	assert.Equal(t, "fast", *vs.Spec.VolumeSnapshotClassName)
	assert.Equal(t, "because", vs.Annotations[api.AnnotationClassReason])
	assert.Equal(t, "db", vs.Labels["app"])
	assert.True(t, OwnedBy(backup).Matches(labels.Set(vs.Labels)))
	assert.True(t, OfBackup(backup.Name).Matches(labels.Set(vs.Labels)))
	origin, ours := OriginOf(vs)
	assert.True(t, ours)
	assert.Equal(t, Origin{Installation: "here", Backup: backup.Name, BackupUID: "b1"}, origin)
	for key, value := range vs.Labels {
		assert.Empty(t, validation.IsValidLabelValue(value), key)
	}
	assert.Equal(t, map[string]string{"app": "db"}, claim.Labels)
	assert.Equal(t, "true", vs.Labels["velero.io/exclude-from-backup"], "of other backups")

	again := New("here", backup, claim, "fast", "because", noLabel)
	assert.Equal(t, vs.Name, again.Name)
	assert.NotEqual(t, vs.Name, New("here", nightly("b2"), claim, "fast", "because", noLabel).Name)
}

func TestName(t *testing.T) {
	for _, claim := range []string{"a", strings.Repeat("a", 45), strings.Repeat("a.b-", 63), strings.Repeat("a", 44) + ".-" + strings.Repeat("b", 100)} {
		name := name(firstPrefix, "b1", claim, "uid-"+claim)
		assert.Empty(t, validation.IsDNS1123Subdomain(name), name)
		assert.Empty(t, validation.IsValidLabelValue(name), name)
		assert.True(t, strings.HasPrefix(name, "velero-a"), name)
	}
}

func TestCreate(t *testing.T) {
	vs := New("here", nightly("b1"), claimOf("data"), "fast", "because", noLabel)
	client := fake.NewSimpleClientset()
	require.NoError(t, Create(t.Context(), client, vs))
	require.NoError(t, Create(t.Context(), client, vs), "an earlier process has created it")
	list, err := client.SnapshotV1().VolumeSnapshots("shop").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	assert.Len(t, list.Items, 1)

	for name, change := range map[string]func(*snapshotv1.VolumeSnapshot){
		"another backup": func(vs *snapshotv1.VolumeSnapshot) { vs.Labels[velerov1.BackupUIDLabel] = "b2" },
		"another claim":  func(vs *snapshotv1.VolumeSnapshot) { other := "wal"; vs.Spec.Source.PersistentVolumeClaimName = &other },
		"a content":      func(vs *snapshotv1.VolumeSnapshot) { vs.Spec.Source.PersistentVolumeClaimName = nil },
	} {
		t.Run(name, func(t *testing.T) {
			foreign := vs.DeepCopy()
			change(foreign)
			require.EqualError(t, Create(t.Context(), fake.NewSimpleClientset(foreign), vs),
				"VolumeSnapshot shop/"+vs.Name+" is there already and does not belong to this backup; delete it")
		})
	}
}

func TestKept(t *testing.T) {
	backup, claim := nightly("b1"), claimOf("data")
	first := New("here", backup, claim, "fast", "because", noLabel)
	kept := Kept(first, backup, claim, 3)
	assert.NotEqual(t, first.Name, kept.Name)
	assert.True(t, strings.HasPrefix(kept.Name, "kept-data-"), kept.Name)
	assert.NotContains(t, kept.Labels, velerov1.BackupNameLabel, "Velero would take it for the backup's own")
	assert.True(t, OwnedBy(backup).Matches(labels.Set(kept.Labels)))
	assert.Equal(t, "uid-data", kept.Labels[api.LabelKept])
	assert.Equal(t, "true", kept.Labels["velero.io/exclude-from-backup"])
	assert.Contains(t, first.Labels, velerov1.BackupNameLabel)
	assert.NotContains(t, first.Labels, api.LabelKept)
}
