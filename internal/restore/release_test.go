package restore

import (
	"context"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/snapshot"
)

func TestJudge(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	const name = "vs"
	claim := func(age time.Duration, phase corev1.PersistentVolumeClaimPhase) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", CreationTimestamp: metav1.NewTime(now.Add(-age))},
			Spec:       corev1.PersistentVolumeClaimSpec{DataSource: &corev1.TypedLocalObjectReference{APIGroup: ptr.To(snapshotv1.GroupName), Kind: "VolumeSnapshot", Name: name}},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: phase},
		}
	}
	for title, test := range map[string]struct {
		change func(*facts)
		want   step
		text   string
	}{
		"bound":         {func(f *facts) { f.claim = claim(time.Minute, corev1.ClaimBound) }, stepDelete, ""},
		"no claim":      {func(*facts) {}, stepDelete, ""},
		"claim is lost": {func(f *facts) { f.claim = claim(time.Minute, corev1.ClaimLost) }, stepDelete, ""},
		"claim of another source": {func(f *facts) {
			f.claim = claim(time.Minute, corev1.ClaimPending)
			f.claim.Spec.DataSource.Name = "other"
		}, stepDelete, ""},
		"claim is going": {func(f *facts) {
			f.claim = claim(time.Minute, corev1.ClaimPending)
			f.claim.DeletionTimestamp = ptr.To(metav1.NewTime(now))
		}, stepDelete, ""},
		"all is gone":         {func(f *facts) { f.snapshot, f.content = nil, nil }, stepFinish, "VolumeSnapshot shop/vs and its content are removed"},
		"the content is left": {func(f *facts) { f.snapshot = nil }, stepDelete, ""},
		"pending":             {func(f *facts) { f.claim = claim(time.Minute, corev1.ClaimPending) }, stepRetry, "claim shop/data is Pending"},
		"not looked at yet":   {func(f *facts) { f.claim = claim(0, "") }, stepRetry, "claim shop/data is Pending"},
		"pending, by its other reference": {func(f *facts) {
			f.claim = claim(time.Minute, corev1.ClaimPending)
			f.claim.Spec.DataSource = nil
			f.claim.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: ptr.To(snapshotv1.GroupName), Kind: "VolumeSnapshot", Name: name}
		}, stepRetry, "claim shop/data is Pending"},
		"pending, and a reason": {func(f *facts) {
			f.claim, f.warning = claim(time.Minute, corev1.ClaimPending), "no space"
		}, stepRetry, "claim shop/data is Pending: no space"},
		"pending for too long": {func(f *facts) {
			f.claim, f.warning = claim(11*time.Minute, corev1.ClaimPending), "no space"
		}, stepFinish, "claim shop/data is Pending after 10m0s (no space) and needs VolumeSnapshot shop/vs; the sweep removes it later"},
		"pending for too long, and nobody knows": {func(f *facts) {
			f.claim = claim(11*time.Minute, corev1.ClaimPending)
		}, stepFinish, "(no event says why)"},
		"waits for a pod": {func(f *facts) {
			f.claim, f.awaitsPod = claim(6*time.Second, corev1.ClaimPending), true
		}, stepFinish, "needs VolumeSnapshot shop/vs until a pod uses it; the sweep removes it later"},
		"a pod may be on its way": {func(f *facts) {
			f.claim, f.awaitsPod = claim(4*time.Second, corev1.ClaimPending), true
		}, stepRetry, "Pending"},
		"its pod fits nowhere": {func(f *facts) {
			f.claim, f.awaitsNode = claim(2*time.Minute, corev1.ClaimPending), true
		}, stepFinish, "until its pod has a node, which it has not after 1m0s"},
		"its pod is being scheduled": {func(f *facts) {
			f.claim, f.awaitsNode = claim(30*time.Second, corev1.ClaimPending), true
		}, stepRetry, "Pending"},
		"another claim needs it": {func(f *facts) { f.others = []string{"copy"} }, stepFinish, "stays for the claims copy, which are Pending"},
		"of another restore":     {func(f *facts) { f.snapshot.Labels[api.LabelRestore] = "r2" }, stepFinish, "lacks the label"},
		"of another content":     {func(f *facts) { f.snapshot.Spec.Source.VolumeSnapshotContentName = ptr.To("other") }, stepFinish, "is not bound to the content"},
		"unmarked content":       {func(f *facts) { f.content.Labels = nil }, stepFinish, "lacks the label"},
		"being deleted":          {func(f *facts) { f.snapshot.DeletionTimestamp = ptr.To(metav1.NewTime(now.Add(-time.Minute))) }, stepDelete, ""},
		"stuck": {func(f *facts) {
			f.snapshot = nil
			f.content.DeletionTimestamp = ptr.To(metav1.NewTime(now.Add(-11 * time.Minute)))
		}, stepFinish, "is still there 10m0s after its deletion"},
	} {
		t.Run(title, func(t *testing.T) {
			marks := func() metav1.ObjectMeta {
				return metav1.ObjectMeta{Labels: map[string]string{api.LabelRestore: "r1"}}
			}
			f := facts{
				restoredSnapshot: restoredSnapshot{"shop", "data", name}, restoreUID: "r1", now: now, openLimit: openLimit,
				snapshot: &snapshotv1.VolumeSnapshot{ObjectMeta: marks(), Spec: snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: ptr.To(name)}}},
				content:  &snapshotv1.VolumeSnapshotContent{ObjectMeta: marks()},
			}
			test.change(&f)
			got := judge(f)
			assert.Equal(t, test.want, got.step)
			assert.Contains(t, got.text, test.text)
		})
	}
}

// volumeWithClaim restores a volume and creates its claim, as Velero does.
func volumeWithClaim(t *testing.T, settings string) (*target, *corev1.PersistentVolumeClaim) {
	t.Helper()
	w := newTarget(t, settings, class("a", sourceDriver))
	var claim *corev1.PersistentVolumeClaim
	for _, file := range volume {
		made, err := w.bring(file)
		require.NoError(t, err)
		if file == "claim" {
			claim = typed(t, made, &corev1.PersistentVolumeClaim{})
		}
	}
	claim.Namespace, claim.CreationTimestamp = "shop", metav1.NewTime(w.clock.Now())
	claim.Status.Phase = corev1.ClaimPending
	require.NoError(t, w.kube.Tracker().Add(claim))
	return w, claim
}

func (w *target) left() (snapshots, contents int) {
	w.t.Helper()
	vss, err := w.snapshots.SnapshotV1().VolumeSnapshots("shop").List(w.t.Context(), metav1.ListOptions{})
	require.NoError(w.t, err)
	vscs, err := w.snapshots.SnapshotV1().VolumeSnapshotContents().List(w.t.Context(), metav1.ListOptions{})
	require.NoError(w.t, err)
	return len(vss.Items), len(vscs.Items)
}

func (w *target) phase(claim *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase) {
	w.t.Helper()
	claim = claim.DeepCopy()
	claim.Status.Phase = phase
	_, err := w.kube.CoreV1().PersistentVolumeClaims(claim.Namespace).UpdateStatus(w.t.Context(), claim, metav1.UpdateOptions{})
	require.NoError(w.t, err)
}

// The source snapshot of a claim is deleted when the claim is bound, with policy Retain
// whatever the map says. Later processes complete what the first could not.
func TestSourceIsDeletedWhenBound(t *testing.T) {
	for name, forgetful := range map[string]bool{"in the restore's process": false, "in another": true} {
		t.Run(name, func(t *testing.T) {
			w, claim := volumeWithClaim(t, "{deletionPolicy: Delete}")
			vss, err := w.snapshots.SnapshotV1().VolumeSnapshots("shop").List(t.Context(), metav1.ListOptions{})
			require.NoError(t, err)
			assert.Equal(t, "5c0d6a3e", vss.Items[0].Labels[api.LabelRestore])
			assert.Equal(t, "here", vss.Items[0].Labels[api.LabelInstallation])

			progress, err := w.restorer.Progress(t.Context(), w.operation, w.restore)
			require.NoError(t, err)
			assert.False(t, progress.Completed)
			assert.Equal(t, "claim shop/app-data0 is Pending", progress.Description)
			snapshots, contents := w.left()
			assert.Equal(t, []int{1, 1}, []int{snapshots, contents})

			w.phase(claim, corev1.ClaimBound)
			if forgetful {
				w.newProcess()
			}
			var policies []string
			for range 3 {
				if progress, err = w.restorer.Progress(t.Context(), w.operation, w.restore); progress.Completed {
					break
				}
			}
			require.NoError(t, err)
			assert.True(t, progress.Completed, progress.Description)
			assert.Empty(t, progress.Err)
			snapshots, contents = w.left()
			assert.Equal(t, []int{0, 0}, []int{snapshots, contents})
			for _, action := range w.snapshots.Actions() {
				if patch, ok := action.(interface{ GetPatch() []byte }); ok && action.GetResource().Resource == "volumesnapshotcontents" {
					policies = append(policies, string(patch.GetPatch()))
				}
			}
			assert.Contains(t, policies, `{"spec":{"deletionPolicy":"Retain"}}`)
			require.NoError(t, w.restorer.Cancel(t.Context(), w.operation, w.restore), "it can be repeated")
		})
	}
}

// Only the first call waits for claims that are being bound.
func TestFirstCallWaits(t *testing.T) {
	w, claim := volumeWithClaim(t, "")
	w.restorer.wait = 20 * time.Second
	ctx, bound := context.WithCancel(t.Context())
	go func() {
		defer bound()
		time.Sleep(2 * pollInterval)
		w.phase(claim, corev1.ClaimBound)
	}()
	progress, err := w.restorer.Progress(t.Context(), w.operation, w.restore)
	require.NoError(t, err)
	<-ctx.Done()
	assert.True(t, progress.Completed, progress.Description)
	assert.Contains(t, messages(w.log), "Claim and its restored snapshot: shop/app-data0: VolumeSnapshot shop/")
}

// A claim that waits for its first pod does not keep the restore open.
func TestClaimWithoutAPod(t *testing.T) {
	for name, test := range map[string]struct {
		mode storagev1.VolumeBindingMode
		node string
		pod  bool
		done bool
	}{
		"no pod":             {mode: storagev1.VolumeBindingWaitForFirstConsumer, done: true},
		"a pod":              {mode: storagev1.VolumeBindingWaitForFirstConsumer, pod: true},
		"a node":             {mode: storagev1.VolumeBindingWaitForFirstConsumer, node: "n1"},
		"bound without pods": {mode: storagev1.VolumeBindingImmediate},
	} {
		t.Run(name, func(t *testing.T) {
			w, claim := volumeWithClaim(t, "")
			require.NoError(t, w.kube.Tracker().Add(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "loop"}, VolumeBindingMode: &test.mode}))
			if test.node != "" {
				metav1.SetMetaDataAnnotation(&claim.ObjectMeta, "volume.kubernetes.io/selected-node", test.node)
				_, err := w.kube.CoreV1().PersistentVolumeClaims("shop").Update(t.Context(), claim, metav1.UpdateOptions{})
				require.NoError(t, err)
			}
			if test.pod {
				require.NoError(t, w.kube.Tracker().Add(&corev1.Pod{
					ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "app"},
					Spec: corev1.PodSpec{Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{
						PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name},
					}}}},
				}))
			}
			w.clock.SetTime(w.clock.Now().Add(podGrace + time.Second))
			progress, err := w.restorer.Progress(t.Context(), w.operation, w.restore)
			require.NoError(t, err)
			assert.Equal(t, test.done, progress.Completed, progress.Description)
			assert.Empty(t, progress.Err)
			snapshots, contents := w.left()
			assert.Equal(t, []int{1, 1}, []int{snapshots, contents})
		})
	}
}

// A user's veto keeps the objects.
func TestVeto(t *testing.T) {
	w, claim := volumeWithClaim(t, "")
	vss, err := w.snapshots.SnapshotV1().VolumeSnapshots("shop").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	metav1.SetMetaDataAnnotation(&vss.Items[0].ObjectMeta, api.AnnotationKeepSnapshot, "true")
	_, err = w.snapshots.SnapshotV1().VolumeSnapshots("shop").Update(t.Context(), &vss.Items[0], metav1.UpdateOptions{})
	require.NoError(t, err)
	w.phase(claim, corev1.ClaimBound)
	progress, err := w.restorer.Progress(t.Context(), w.operation, w.restore)
	require.NoError(t, err)
	assert.True(t, progress.Completed)
	assert.Contains(t, progress.Description, api.AnnotationKeepSnapshot)
	snapshots, contents := w.left()
	assert.Equal(t, []int{1, 1}, []int{snapshots, contents})
}

func TestOperation(t *testing.T) {
	l := restoredSnapshot{"shop", "data", "vs"}
	got, err := restoredSnapshotOf(l.operation())
	require.NoError(t, err)
	assert.Equal(t, l, got)
	for _, id := range []string{"", "dd-x", "restored-snapshot/shop/data", "restored-snapshot/shop//vs", "other/shop/data/vs"} {
		_, err := restoredSnapshotOf(id)
		assert.ErrorContains(t, err, "operation ID", id)
	}
}

// A restored copy has none of the backup's marks: it is no leftover of the backup, and
// may be in another installation. It has the restore's marks if it is for a claim.
func TestMarksOfCopies(t *testing.T) {
	restored := map[string]string{api.LabelInstallation: "here", api.LabelRestore: "5c0d6a3e"}
	for name, test := range map[string]struct {
		origin  bool
		change  func(*target, *Item)
		content bool // is marked
		vs      bool
	}{
		"taken by Stillpoint": {origin: true, content: true, vs: true},
		"taken by Velero":     {vs: true},
		"a user's": {change: func(_ *target, item *Item) {
			item.BackedUp.SetLabels(nil)
		}},
		"restored before": {change: func(_ *target, item *Item) {
			unstructured.RemoveNestedField(item.BackedUp.Object, "spec", "source", "persistentVolumeClaimName")
			if item.BackedUp.GetKind() == "VolumeSnapshot" {
				require.NoError(t, set(item.BackedUp, "content", "spec", "source", "volumeSnapshotContentName"))
			}
		}},
		"without claims": {origin: true, change: func(w *target, _ *Item) { w.restore.Spec.ExcludedResources = []string{"pvc"} }},
		"snapshots only": {origin: true, change: func(w *target, _ *Item) { w.restore.Spec.IncludedResources = []string{"volumesnapshots"} }},
		"claims and pods": {origin: true, change: func(w *target, _ *Item) {
			w.restore.Spec.IncludedResources = []string{"pods", "persistentvolumeclaims"}
		}, content: true, vs: true},
		"no configuration": {origin: true, content: true, vs: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTarget(t, "", class("a", sourceDriver))
			for _, file := range []string{"content", "snapshot"} {
				item := w.item(file)
				if test.origin {
					for _, object := range []*unstructured.Unstructured{item.BackedUp, item.Object} {
						snapshot.Origin{Installation: "there", Backup: "monday", BackupUID: "b0"}.Mark(object)
						annotate(object, api.AnnotationExported, "true")
					}
				}
				if test.change != nil {
					test.change(w, item)
				}
				if file == "content" {
					require.NoError(t, w.restorer.Content(t.Context(), *item))
				} else {
					require.NoError(t, w.restorer.Snapshot(t.Context(), *item))
				}
				labels := map[string]string{}
				for key, value := range item.Object.GetLabels() {
					if strings.HasPrefix(key, "stillpoint.io/") || key == "velero.io/backup-uid" {
						labels[key] = value
					}
				}
				if (file == "content" && test.content) || (file == "snapshot" && test.vs) {
					assert.Equal(t, restored, labels, file)
				} else {
					assert.Empty(t, labels, file)
				}
				for key := range item.Object.GetAnnotations() {
					assert.NotContains(t, key, "stillpoint.io/")
				}
				_, marked := snapshot.OriginOf(item.Object)
				assert.False(t, marked)
			}
		})
	}
}

// Velero restores the VolumeSnapshot of an existing claim, and then does not change the
// claim.
func TestExistingClaim(t *testing.T) {
	w := newTarget(t, "", class("a", sourceDriver))
	there := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "app-data0"}}
	require.NoError(t, w.velero.Create(t.Context(), there.DeepCopy()))
	require.NoError(t, w.kube.Tracker().Add(there))
	for _, file := range volume {
		_, err := w.bring(file)
		require.NoError(t, err)
	}
	progress, err := w.restorer.Progress(t.Context(), w.operation, w.restore)
	require.NoError(t, err)
	assert.True(t, progress.Completed, progress.Description)
	_, err = w.snapshots.SnapshotV1().VolumeSnapshots("shop").Get(t.Context(), mustParse(t, w.operation).snapshot, metav1.GetOptions{})
	assert.True(t, apierrors.IsNotFound(err))
}

func mustParse(t *testing.T, operation string) restoredSnapshot {
	t.Helper()
	l, err := restoredSnapshotOf(operation)
	require.NoError(t, err)
	return l
}
