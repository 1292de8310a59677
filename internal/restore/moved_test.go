package restore

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// movedTarget returns a cluster to which a backup with data movement is restored.
func movedTarget(t *testing.T, change func(*velerov1.Backup)) *target {
	t.Helper()
	w := newTarget(t, "")
	backup := &velerov1.Backup{}
	require.NoError(t, w.velero.Get(t.Context(), crclient.ObjectKey{Namespace: "velero", Name: "monday"}, backup))
	backup.Spec.SnapshotMoveData = ptr.To(true)
	if change != nil {
		change(backup)
	}
	require.NoError(t, w.velero.Update(t.Context(), backup))
	return w
}

// movedClaim restores the claim of testdata, as a backup with data movement has it.
func (w *target) movedClaim(change func(*Item)) (operation string, err error) {
	w.t.Helper()
	item := w.item("claim")
	unannotate(item.BackedUp, velerov1.VolumeSnapshotLabel)
	if change != nil {
		change(item)
	}
	return w.restorer.Claim(w.t.Context(), *item)
}

// Velero restores a claim without a DataUpload empty. Stillpoint allows that only if the
// user asked for it.
func TestClaimWithoutADataUpload(t *testing.T) {
	policy := func(w *target, text string) {
		require.NoError(t, w.velero.Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "policy"}, Data: map[string]string{"policy.yaml": "version: v1\nvolumePolicies:\n" + text},
		}))
	}
	byPolicy := func(backup *velerov1.Backup) {
		backup.Spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: "policy"}
	}
	byPod := func(phase velerov1.PodVolumeBackupPhase) func(*target) {
		return func(w *target) {
			require.NoError(t, w.velero.Create(t.Context(), &velerov1.PodVolumeBackup{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: "velero", Name: "pvb", Labels: map[string]string{velerov1.BackupNameLabel: "monday"},
					Annotations: map[string]string{"velero.io/pvc-name": "app-data0"},
				},
				Spec:   velerov1.PodVolumeBackupSpec{Pod: corev1.ObjectReference{Namespace: sourceNamespace}},
				Status: velerov1.PodVolumeBackupStatus{Phase: phase, Message: "no repository"},
			}))
		}
	}
	volumeThere := func(name string, change func(*corev1.PersistentVolume)) func(*target) {
		return func(w *target) {
			volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{velerov1.RestoreNameLabel: "again"}}}
			if change != nil {
				change(volume)
			}
			require.NoError(t, w.kube.Tracker().Add(volume))
		}
	}
	const volumeName = "pvc-0fcb4387-ea77-4c25-8e3e-1c20b33fbf28"
	for name, test := range map[string]struct {
		backup  func(*velerov1.Backup)
		cluster func(*target)
		item    func(*Item)
		restore func(*velerov1.RestoreSpec)
		refused string
	}{
		"refused":           {refused: "it moves data, but has no DataUpload of the claim"},
		"to be empty":       {restore: func(spec *velerov1.RestoreSpec) { spec.RestorePVs = ptr.To(false) }},
		"no snapshots":      {backup: func(b *velerov1.Backup) { b.Spec.SnapshotVolumes = ptr.To(false) }},
		"moves no data":     {backup: func(b *velerov1.Backup) { b.Spec.SnapshotMoveData = nil }},
		"was pending":       {item: func(i *Item) { require.NoError(t, set(i.BackedUp, "Pending", "status", "phase")) }},
		"not CSI":           {item: func(i *Item) { annotate(i.BackedUp, velerov1.SkippedNoCSIPVAnnotation, "true") }},
		"through a pod":     {cluster: byPod(velerov1.PodVolumeBackupPhaseCompleted)},
		"through a pod, no": {cluster: byPod(velerov1.PodVolumeBackupPhaseFailed), refused: "its PodVolumeBackup pvb is Failed: no repository"},
		"skipped by a policy": {backup: byPolicy, cluster: func(w *target) {
			policy(w, "- conditions: {csi: {driver: loop.csi.stillpoint.io}, storageClass: [loop]}\n  action: {type: skip}\n")
		}},
		"another snapshotter's": {backup: byPolicy, cluster: func(w *target) {
			policy(w, "- conditions: {}\n  action: {type: custom, parameters: {snapshotter: other}}\n")
		}},
		"ours": {backup: byPolicy, cluster: func(w *target) {
			policy(w, "- conditions: {}\n  action: {type: custom, parameters: {snapshotter: stillpoint.io}}\n")
		}, refused: "it moves data, but has no DataUpload"},
		"fs-backup without any": {backup: byPolicy, cluster: func(w *target) {
			policy(w, "- conditions: {}\n  action: {type: fs-backup}\n")
		}, refused: "it moves data, but has no DataUpload"},
		"policy of another driver": {backup: byPolicy, cluster: func(w *target) {
			policy(w, "- conditions: {csi: {driver: x.csi}}\n  action: {type: skip}\n")
		}, refused: "it moves data, but has no DataUpload"},
		"the policy is gone": {backup: byPolicy, refused: "it moves data, but has no DataUpload of the claim, and it is not known whether it was to exclude the claim: read the volume policies of backup monday"},
		"its volume is back": {cluster: volumeThere(volumeName, nil)},
		"its volume is back, renamed": {cluster: volumeThere("velero-clone-1", func(v *corev1.PersistentVolume) {
			v.Annotations = map[string]string{"velero.io/original-pv-name": volumeName}
		})},
		"its volume is another's now": {cluster: volumeThere(volumeName, func(v *corev1.PersistentVolume) {
			v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "bank", Name: "app-data0"}
		}), refused: "it moves data, but has no DataUpload"},
		"its volume was not restored": {cluster: volumeThere(volumeName, func(v *corev1.PersistentVolume) { v.Labels = nil }), refused: "it moves data, but has no DataUpload"},
		"exists": {cluster: func(w *target) {
			require.NoError(t, w.kube.Tracker().Add(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "app-data0"}}))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := movedTarget(t, test.backup)
			if test.cluster != nil {
				test.cluster(w)
			}
			if test.restore != nil {
				test.restore(&w.restore.Spec)
			}
			operation, err := w.movedClaim(test.item)
			assert.Empty(t, operation)
			if test.refused == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, "claim e2e-gs7xq/app-data0 is not restored: backup monday has no export of its volume ("+test.refused)
			require.ErrorContains(t, err, "bring it back empty on purpose with --restore-volumes=false")
		})
	}
}

// Velero creates a DataDownload even for a DataUpload without data.
func TestDataUploadThatFailed(t *testing.T) {
	for name, test := range map[string]struct {
		result  string
		here    bool
		refused string
	}{
		"completed":           {result: `{"snapshotID": "s1"}`},
		"completed elsewhere": {result: `{"datamoverResult": {"a": "b"}}`},
		"failed":              {result: `{}`, here: true, refused: "its DataUpload velero/du is Failed: no space"},
		"failed elsewhere":    {result: `{}`, refused: "its DataUpload velero/du was not completed"},
		"no result":           {},
	} {
		t.Run(name, func(t *testing.T) {
			w := movedTarget(t, nil)
			if test.result != "" {
				require.NoError(t, w.kube.Tracker().Add(&corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "result", Labels: map[string]string{
						velerov1.RestoreUIDLabel: "5c0d6a3e", velerov1.PVCNamespaceNameLabel: sourceNamespace + ".app-data0",
						velerov1.ResourceUsageLabel: string(velerov1.VeleroResourceUsageDataUploadResult),
					}},
					Data: map[string]string{"5c0d6a3e": test.result},
				}))
			}
			if test.here {
				require.NoError(t, w.velero.Create(t.Context(), &velerov2alpha1.DataUpload{
					ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "du"},
					Status:     velerov2alpha1.DataUploadStatus{Phase: velerov2alpha1.DataUploadPhaseFailed, Message: "no space"},
				}))
			}
			download := &velerov2alpha1.DataDownload{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "dd", Labels: map[string]string{
				velerov1.AsyncOperationIDLabel: label.GetValidName("dd-5c0d6a3e.0fcb4387-ea77-4c25-8e3e-1c20b33fbf28"),
			}}}
			require.NoError(t, w.velero.Create(t.Context(), download))
			_, err := w.movedClaim(func(item *Item) {
				annotate(item.BackedUp, velerov1.DataUploadNameAnnotation, "velero/du")
				require.NoError(t, set(item.Object, "shop.app-data0.x", "spec", "selector", "matchLabels", velerov1.DynamicPVRestoreLabel))
			})
			require.NoError(t, w.velero.Get(t.Context(), crclient.ObjectKeyFromObject(download), download))
			assert.Equal(t, test.refused != "", download.Spec.Cancel)
			if test.refused == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, "has no export of its volume ("+test.refused+")")
		})
	}
}
