package cleanup

import (
	"slices"
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	snapshotfake "github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned/fake"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	crfake "sigs.k8s.io/controller-runtime/pkg/client/fake"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/snapshot"
)

var origin = snapshot.Origin{Installation: "here", Backup: "monday", BackupUID: "b1"}

// deletedPlace is a cluster with snapshots, each with its content.
type deletedPlace struct {
	t         *testing.T
	snapshots *snapshotfake.Clientset
	kube      *fake.Clientset
}

func (p *deletedPlace) add(namespace, name string, change func(metav1.Object)) {
	p.t.Helper()
	vs := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name)},
		Status:     &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: ptr.To("content-" + name)},
	}
	change(vs)
	require.NoError(p.t, p.snapshots.Tracker().Add(vs))
	p.content(namespace, name, change)
}

func (p *deletedPlace) content(namespace, name string, change func(metav1.Object)) {
	p.t.Helper()
	content := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "content-" + name},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			DeletionPolicy:    snapshotv1.VolumeSnapshotContentRetain,
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: namespace, Name: name, UID: types.UID(name)},
		},
	}
	change(content)
	require.NoError(p.t, p.snapshots.Tracker().Add(content))
}

func markedBy(origin snapshot.Origin) func(metav1.Object) {
	return func(o metav1.Object) { origin.Mark(o) }
}

func annotated(key, value string) func(metav1.Object) {
	return func(o metav1.Object) {
		origin.Mark(o)
		annotations := o.GetAnnotations()
		annotations[key] = value
		o.SetAnnotations(annotations)
	}
}

func TestBackup(t *testing.T) {
	p := &deletedPlace{t: t, snapshots: snapshotfake.NewSimpleClientset(), kube: fake.NewClientset()}
	p.add("shop", "left", markedBy(origin))
	p.add("shop", "kept", func(o metav1.Object) {
		origin.Mark(o)
		labels := o.GetLabels()
		labels[api.LabelKept] = "claim"
		o.SetLabels(labels)
	})
	p.add("velero", "copy", func(o metav1.Object) { // of a data mover
		origin.Mark(o)
		o.SetLabels(nil)
	})
	p.add("shop", "another-backup", markedBy(snapshot.Origin{Installation: "here", Backup: "sunday", BackupUID: "b0"}))
	p.add("shop", "another-velero", markedBy(snapshot.Origin{Installation: "there", Backup: "monday", BackupUID: "b1"}))
	p.add("shop", "users", func(metav1.Object) {})
	p.add("shop", "restored", func(o metav1.Object) {
		origin.Mark(o)
		snapshot.Unmark(o)
		o.SetLabels(snapshot.Restored("here", "r1"))
	})
	p.add("shop", "vetoed", annotated(api.AnnotationKeepSnapshot, "true"))
	p.add("shop", "needed", markedBy(origin))
	p.content("shop", "alone", markedBy(origin))
	require.NoError(t, p.kube.Tracker().Add(&corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "new"},
		Spec:       corev1.PersistentVolumeClaimSpec{DataSource: &corev1.TypedLocalObjectReference{APIGroup: ptr.To("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: "needed"}},
		Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}))
	log, said := logtest.NewNullLogger()
	objects := crfake.NewClientBuilder().WithScheme(scheme.Scheme).WithObjects(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "velero", UID: "here"}}).Build()
	e := New(&cluster.Clients{Kube: p.kube, Snapshots: p.snapshots, Objects: objects, Remembered: objects, VeleroNamespace: "velero"}, clock.RealClock{})
	backup := &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "monday", UID: "b1"}}
	require.NoError(t, e.DeletedBackup(t.Context(), backup, log))

	left, err := p.snapshots.SnapshotV1().VolumeSnapshots("").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	var names []string
	for _, vs := range left.Items {
		names = append(names, vs.Name)
	}
	assert.ElementsMatch(t, []string{"another-backup", "another-velero", "users", "restored", "vetoed", "needed"}, names)
	contents, err := p.snapshots.SnapshotV1().VolumeSnapshotContents().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, content := range contents.Items {
		if content.Name == "content-alone" {
			t.Error("the content without a VolumeSnapshot is left")
		}
	}
	// A deletion includes the storage's snapshot.
	var deleting []string
	for _, action := range p.snapshots.Actions() {
		patch, ok := action.(interface {
			GetName() string
			GetPatch() []byte
		})
		if ok && strings.Contains(string(patch.GetPatch()), `"deletionPolicy":"Delete"`) {
			deleting = append(deleting, patch.GetName())
		}
	}
	slices.Sort(deleting)
	assert.Equal(t, []string{"content-alone", "content-copy", "content-kept", "content-left"}, slices.Compact(deleting))
	var warnings []string
	for _, entry := range said.AllEntries() {
		if entry.Level.String() == "warning" {
			warnings = append(warnings, entry.Message)
		}
	}
	assert.ElementsMatch(t, []string{
		`Not deleted with backup monday: VolumeSnapshot shop/vetoed: annotation stillpoint.io/keep-snapshot: "true"; else: backup monday is Deleting`,
		"Not deleted with backup monday: VolumeSnapshot shop/needed: claim shop/new is Pending and needs it; else: backup monday is Deleting",
	}, warnings)

	// Velero calls for each item.
	before := len(p.snapshots.Actions())
	require.NoError(t, e.DeletedBackup(t.Context(), backup, log))
	assert.Len(t, p.snapshots.Actions(), before)
}
