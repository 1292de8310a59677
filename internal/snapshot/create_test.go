package snapshot

import (
	"slices"
	"strings"
	"testing"
	"time"

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

func TestSurplus(t *testing.T) {
	at := func(name string, day int, last string) snapshotv1.VolumeSnapshot {
		vs := snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}}}
		if last != "" {
			vs.Annotations["stillpoint.io/keep-last"] = last
		}
		if day > 0 {
			cut := metav1.Date(2026, 11, day, 0, 0, 0, 0, time.UTC)
			vs.Status = &snapshotv1.VolumeSnapshotStatus{CreationTime: &cut}
		}
		return vs
	}
	none := func(*snapshotv1.VolumeSnapshot) bool { return false }
	named := func(names ...string) func(*snapshotv1.VolumeSnapshot) bool {
		return func(vs *snapshotv1.VolumeSnapshot) bool { return slices.Contains(names, vs.Name) }
	}
	for name, c := range map[string]struct {
		kept   []snapshotv1.VolumeSnapshot
		failed func(*snapshotv1.VolumeSnapshot) bool
		want   []string
	}{
		"the upload failed":   {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "1"), at("b", 2, "1")}, failed: named("b")},
		"an older one failed": {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "1"), at("b", 2, "1"), at("c", 3, "1")}, failed: named("b"), want: []string{"b", "a"}},
		"all uploads fail":    {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "2"), at("b", 2, "2"), at("c", 3, "2"), at("d", 4, "2")}, failed: named("b", "c", "d"), want: []string{"b"}},
		"none":                {},
		"fewer":               {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "2"), at("b", 2, "2")}},
		"more":                {kept: []snapshotv1.VolumeSnapshot{at("b", 2, "2"), at("a", 1, "2"), at("d", 4, "2"), at("c", 3, "2")}, want: []string{"b", "a"}},
		"the newest says":     {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "5"), at("b", 2, "5"), at("c", 3, "1")}, want: []string{"b", "a"}},
		"retained stay":       {kept: []snapshotv1.VolumeSnapshot{at("a", 1, ""), at("b", 2, "1"), at("c", 3, "1")}, want: []string{"b"}},
		"not cut":             {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "1"), at("b", 0, "1")}},
		"not a number":        {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "1"), at("b", 2, "x")}},
		"the number is none":  {kept: []snapshotv1.VolumeSnapshot{at("a", 1, "1"), at("b", 2, "0")}},
	} {
		if c.failed == nil {
			c.failed = none
		}
		var got []string
		for _, vs := range Surplus(c.kept, c.failed) {
			got = append(got, vs.Name)
		}
		assert.Equal(t, c.want, got, name)
	}
}
