package snapshot

import (
	"context"
	"errors"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned/fake"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	k8stesting "k8s.io/client-go/testing"

	"stillpoint.io/stillpoint/internal/api"
)

func leftover(change ...func(*snapshotv1.VolumeSnapshot, *snapshotv1.VolumeSnapshotContent)) (vs *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
	vs = &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s", UID: "1"}}
	content = &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "snapcontent-1"},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: "shop", Name: "s", UID: "1"}, DeletionPolicy: snapshotv1.VolumeSnapshotContentRetain,
		},
	}
	for _, c := range change {
		c(vs, content)
	}
	return vs, content
}

func TestRemove(t *testing.T) {
	vs, content := leftover()
	client := fake.NewSimpleClientset(vs, content)
	var patched string
	client.PrependReactor("patch", "volumesnapshotcontents", recordPatch(&patched))
	left, err := Remove(t.Context(), client, TargetOf(vs))
	require.NoError(t, err)
	assert.Equal(t, "VolumeSnapshot shop/s and VolumeSnapshotContent snapcontent-1 being deleted", left)
	assert.JSONEq(t, `{"metadata":{"finalizers":["snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"]},"spec":{"deletionPolicy":"Delete"}}`, patched, "nothing has to be reminded yet")
	left, err = Remove(t.Context(), client, TargetOf(vs))
	require.NoError(t, err)
	assert.Empty(t, left, "the controller may know the content with the policy Retain, so it is deleted here")

	vs, content = leftover(func(_ *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
		content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentDelete
	})
	client = fake.NewSimpleClientset(vs, content)
	client.PrependReactor("patch", "volumesnapshotcontents", recordPatch(&patched))
	for _, c := range []struct{ left, patched string }{
		{"VolumeSnapshot shop/s and VolumeSnapshotContent snapcontent-1 being deleted", `{"metadata":{"finalizers":["snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"]}}`},
		{"VolumeSnapshotContent snapcontent-1 being deleted", `{"metadata":{"annotations":{"snapshot.storage.kubernetes.io/volumesnapshot-being-deleted":"yes"}}}`}, // nobody else deletes it here
		{"", ""},
	} {
		patched = ""
		left, err := Remove(t.Context(), client, TargetOf(vs))
		require.NoError(t, err)
		assert.Equal(t, c.left, left)
		if c.patched != "" {
			assert.JSONEq(t, c.patched, patched)
		}
	}
}

func TestRemoveKeepsForeign(t *testing.T) {
	for name, change := range map[string]func(*snapshotv1.VolumeSnapshot, *snapshotv1.VolumeSnapshotContent){
		"a vetoed VolumeSnapshot": func(vs *snapshotv1.VolumeSnapshot, _ *snapshotv1.VolumeSnapshotContent) {
			vs.Annotations = map[string]string{api.AnnotationKeepSnapshot: "true"}
		},
		"a vetoed content": func(_ *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
			content.Annotations = map[string]string{api.AnnotationKeepSnapshot: "true"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			vs, content := leftover(change)
			client := fake.NewSimpleClientset(vs, content)
			_, err := Remove(t.Context(), client, TargetOf(vs))
			require.ErrorIs(t, err, ErrVetoed)
			vetoed, err := RemoveAll(t.Context(), client, TargetOf(vs))
			require.NoError(t, err)
			assert.Equal(t, []Target{TargetOf(vs)}, vetoed)
			assert.Len(t, client.Actions(), 4, "it is looked at only")
		})
	}
	t.Run("another's content", func(t *testing.T) {
		vs, content := leftover(func(vs *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
			vs.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content.Name}
			content.Spec.VolumeSnapshotRef = corev1.ObjectReference{Namespace: "bank", Name: "s", UID: "2"}
		})
		client := fake.NewSimpleClientset(vs, content)
		_, err := RemoveAll(t.Context(), client, TargetOf(vs))
		require.NoError(t, err)
		got, err := client.SnapshotV1().VolumeSnapshotContents().Get(t.Context(), content.Name, metav1.GetOptions{})
		require.NoError(t, err)
		assert.Equal(t, snapshotv1.VolumeSnapshotContentRetain, got.Spec.DeletionPolicy)
	})
	t.Run("a new one of the same name", func(t *testing.T) {
		vs, _ := leftover()
		target := TargetOf(vs)
		vs.UID = "2"
		client := fake.NewSimpleClientset(vs)
		_, err := RemoveAll(t.Context(), client, target)
		require.NoError(t, err)
		_, err = client.SnapshotV1().VolumeSnapshots("shop").Get(t.Context(), "s", metav1.GetOptions{})
		require.NoError(t, err)
	})
}

func TestRemoveRetains(t *testing.T) {
	vs, content := leftover(func(_ *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
		content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentDelete
	})
	client := fake.NewSimpleClientset(vs, content)
	target := TargetOf(vs)
	target.Policy = snapshotv1.VolumeSnapshotContentRetain
	var patched string
	client.PrependReactor("patch", "volumesnapshotcontents", recordPatch(&patched))
	_, err := RemoveAll(t.Context(), client, target)
	require.NoError(t, err)
	assert.JSONEq(t, `{"spec":{"deletionPolicy":"Retain"}}`, patched)
}

func TestRemoveTriggersSidecar(t *testing.T) {
	now := metav1.Now()
	vs, content := leftover(func(_ *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
		text := "disk on fire"
		content.DeletionTimestamp, content.Finalizers = &now, []string{"x"}
		content.Status = &snapshotv1.VolumeSnapshotContentStatus{Error: &snapshotv1.VolumeSnapshotError{Message: &text}}
	})
	client := fake.NewSimpleClientset(content)
	var before string
	for range 2 {
		left, err := Remove(t.Context(), client, TargetOf(vs))
		require.NoError(t, err)
		assert.Equal(t, "VolumeSnapshotContent snapcontent-1 being deleted: disk on fire", left)
		got, err := client.SnapshotV1().VolumeSnapshotContents().Get(t.Context(), content.Name, metav1.GetOptions{})
		require.NoError(t, err)
		assert.NotEqual(t, before, got.Annotations[api.AnnotationDeletionAwaited], "the same value would be no event")
		before = got.Annotations[api.AnnotationDeletionAwaited]
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := RemoveAll(ctx, client, TargetOf(vs))
	require.EqualError(t, err, "delete VolumeSnapshot shop/s: VolumeSnapshotContent snapcontent-1 being deleted: disk on fire")
}

func recordPatch(into *string) k8stesting.ReactionFunc {
	return func(action k8stesting.Action) (bool, runtime.Object, error) {
		if patch, ok := action.(k8stesting.PatchAction); ok {
			*into = string(patch.GetPatch())
		}
		return false, nil, nil
	}
}

func TestDelete(t *testing.T) {
	data, bound, wal, other := taken("data-1", "data"), taken("data-2", "data"), taken("wal-1", "wal"), taken("data-3", "data")
	other.Labels["velero.io/backup-name"] = "weekly"
	elsewhere := taken("data-4", "data")
	elsewhere.Namespace = "office"
	name := "given-name"
	bound.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &name}
	renamed := contentOf(bound)
	renamed.Name = name
	unbound := taken("data-5", "data") // has no content
	// A tenant's objects must not affect another tenant's snapshot.
	foreign := "snapcontent-uid-data-4"
	hijacker := taken("data-6", "data")
	hijacker.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &foreign}

	s := newStorage(t, data, bound, wal, other, elsewhere, unbound, hijacker, contentOf(data), renamed, contentOf(wal), contentOf(other), contentOf(elsewhere))
	require.NoError(t, Delete(t.Context(), s, "shop", OfBackup("nightly"), "data"))

	var left []string
	snapshots, err := s.SnapshotV1().VolumeSnapshots("").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, vs := range snapshots.Items {
		left = append(left, vs.Name)
	}
	assert.ElementsMatch(t, []string{"wal-1", "data-3", "data-4"}, left)
	policies := map[string]snapshotv1.DeletionPolicy{}
	contents, err := s.SnapshotV1().VolumeSnapshotContents().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, content := range contents.Items {
		policies[content.Name] = content.Spec.DeletionPolicy
	}
	assert.Equal(t, map[string]snapshotv1.DeletionPolicy{
		"snapcontent-uid-wal-1":  snapshotv1.VolumeSnapshotContentRetain,
		"snapcontent-uid-data-3": snapshotv1.VolumeSnapshotContentRetain,
		"snapcontent-uid-data-4": snapshotv1.VolumeSnapshotContentRetain,
	}, policies)

	require.NoError(t, Delete(t.Context(), s, "shop", OfBackup("nightly"), "data"), "again")
}

// A snapshot whose content could not be changed stays, so that the storage's snapshot is
// not orphaned. The others are deleted.
func TestDeleteKeepsUnpreparedSnapshot(t *testing.T) {
	first, second := taken("data-1", "data"), taken("data-2", "data")
	s := newStorage(t, first, second, contentOf(first), contentOf(second))
	s.PrependReactor("patch", "volumesnapshotcontents", func(action k8stesting.Action) (bool, runtime.Object, error) {
		patch, ok := action.(k8stesting.PatchAction)
		return ok && patch.GetName() == "snapcontent-uid-data-1", nil, errors.New("connection refused")
	})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err := Delete(ctx, s, "shop", OfBackup("nightly"), "data")
	require.EqualError(t, err, "delete VolumeSnapshot shop/data-1: have the storage's snapshot of VolumeSnapshotContent snapcontent-uid-data-1 go: connection refused")
	left, err := s.SnapshotV1().VolumeSnapshots("shop").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Len(t, left.Items, 1)
	assert.Equal(t, "data-1", left.Items[0].Name)
}
