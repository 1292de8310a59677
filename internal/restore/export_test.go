package restore

import (
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func movedBackup(name string, at time.Time, namespaces ...string) velerov1.Backup {
	return velerov1.Backup{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: name},
		Spec:       velerov1.BackupSpec{SnapshotMoveData: ptr.To(true), IncludedNamespaces: namespaces},
		Status:     velerov1.BackupStatus{Phase: velerov1.BackupPhaseCompleted, StartTimestamp: &metav1.Time{Time: at}},
	}
}

func uploadOf(backup, namespace, claim string, phase velerov2alpha1.DataUploadPhase) velerov2alpha1.DataUpload {
	return velerov2alpha1.DataUpload{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: backup + "-" + claim, Labels: map[string]string{velerov1.BackupNameLabel: backup}},
		Spec:       velerov2alpha1.DataUploadSpec{SourceNamespace: namespace, SourcePVC: claim},
		Status:     velerov2alpha1.DataUploadStatus{Phase: phase},
	}
}

func TestExportOf(t *testing.T) {
	at := func(hour int) time.Time { return time.Date(2026, 11, 21, hour, 0, 0, 0, time.UTC) }
	done, failed := velerov2alpha1.DataUploadPhaseCompleted, velerov2alpha1.DataUploadPhaseFailed
	running := movedBackup("running", at(9), "shop")
	running.Status.Phase = velerov1.BackupPhaseInProgress
	partly := movedBackup("partly", at(5), "shop")
	partly.Status.Phase = velerov1.BackupPhasePartiallyFailed
	local := movedBackup("local", at(8), "shop")
	local.Spec.SnapshotMoveData = nil
	for name, test := range map[string]struct {
		backups []velerov1.Backup
		uploads []velerov2alpha1.DataUpload
		want    string
	}{
		"none": {want: "no backup has an export of claim shop/data"},
		"the newest": {
			[]velerov1.Backup{movedBackup("b1", at(1), "shop"), movedBackup("b3", at(3), "shop"), movedBackup("b2", at(2), "shop")},
			[]velerov2alpha1.DataUpload{uploadOf("b1", "shop", "data", done), uploadOf("b2", "shop", "data", done), uploadOf("b3", "shop", "data", done)},
			"backup b3 of 2026-11-21T03:00:00Z has an export of claim shop/data",
		},
		"the newest whose upload is complete": {
			[]velerov1.Backup{movedBackup("b1", at(1), "shop"), movedBackup("b2", at(2), "shop")},
			[]velerov2alpha1.DataUpload{uploadOf("b1", "shop", "data", done), uploadOf("b2", "shop", "data", failed)},
			"backup b1 of 2026-11-21T01:00:00Z has an export of claim shop/data",
		},
		"partially failed": {[]velerov1.Backup{partly}, []velerov2alpha1.DataUpload{uploadOf("partly", "shop", "data", done)}, "backup partly of"},
		"still running":    {[]velerov1.Backup{running}, []velerov2alpha1.DataUpload{uploadOf("running", "shop", "data", done)}, "no backup has an export"},
		"gone":             {nil, []velerov2alpha1.DataUpload{uploadOf("b1", "shop", "data", done)}, "no backup has an export"},
		"local":            {[]velerov1.Backup{local}, nil, "no backup has an export"},
		"others": {
			[]velerov1.Backup{movedBackup("b1", at(1), "shop")},
			[]velerov2alpha1.DataUpload{uploadOf("b1", "shop", "wal", done), uploadOf("b1", "bank", "data", done)},
			"no backup has an export of claim shop/data",
		},
		"of another cluster": {
			[]velerov1.Backup{movedBackup("b2", at(2)), movedBackup("b1", at(1), "shop"), movedBackup("b3", at(1), "bank")},
			nil,
			"no backup that was made here has an export of claim shop/data; one of another cluster may: b1, b2",
		},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Contains(t, exportOf(types.NamespacedName{Namespace: "shop", Name: "data"}, test.backups, test.uploads), test.want)
		})
	}
}

// A driver that restores from exports only refuses a local snapshot, at each object of
// the volume.
func TestLocalSnapshotIsRefused(t *testing.T) {
	exporting := class(sourceClass, sourceDriver)
	exporting.Parameters = map[string]string{"export": "s3"}
	const profile = "drivers: [{name: " + sourceDriver + ", restoreFrom: export, exports: {when: [{parameter: export, value: s3}]}}]"
	const always = "drivers: [{name: " + sourceDriver + ", restoreFrom: export, exports: {always: true}}]"
	for name, test := range map[string]struct {
		settings string
		classes  []snapshotv1.VolumeSnapshotClass
		marked   string // the annotation on content and VolumeSnapshot
		refused  []string
		why      string
	}{
		"another profile":        {settings: "drivers: [{name: x.csi, restoreFrom: export}]"},
		"no such rule":           {settings: "drivers: [{name: " + sourceDriver + "}]"},
		"always exported":        {settings: always},
		"marked as exported":     {settings: profile, marked: "true"},
		"class exports":          {settings: profile, classes: []snapshotv1.VolumeSnapshotClass{exporting}},
		"marked as local":        {settings: profile, marked: "false", refused: volume, why: "according to the backup it was not exported"},
		"class does not":         {settings: profile, classes: []snapshotv1.VolumeSnapshotClass{class(sourceClass, sourceDriver)}, refused: volume, why: "VolumeSnapshotClass e2e-dmfhr has no parameter by which the driver exports"},
		"class of another":       {settings: profile, classes: []snapshotv1.VolumeSnapshotClass{class(sourceClass, "new.csi")}, refused: volume[1:], why: "exists neither here nor in this restore"},
		"nobody knows":           {settings: profile, refused: volume[1:], why: "exists neither here nor in this restore"},
		"marked, not the class":  {settings: profile, marked: "false", classes: []snapshotv1.VolumeSnapshotClass{exporting}, refused: volume, why: "according to the backup"},
		"of the driver here":     {settings: "drivers: [{name: new.csi, restoreFrom: export}]\nrestore: {drivers: [{from: " + sourceDriver + ", to: new.csi}]}", marked: "false", refused: volume, why: "driver new.csi restores from exports only"},
		"not of the one there":   {settings: profile + "\nrestore: {drivers: [{from: " + sourceDriver + ", to: new.csi}]}", marked: "false"},
		"class that stands here": {settings: profile + "\nrestore: {snapshotClasses: [{from: " + sourceClass + ", to: a}]}", refused: volume, why: "has no parameter by which the driver exports"},
	} {
		for title, forgetful := range map[string]bool{"": false, ", processes that die": true} {
			t.Run(name+title, func(t *testing.T) {
				w := newTarget(t, "", append(test.classes, class("a", sourceDriver), class("n", "new.csi"))...)
				require.NoError(t, w.kube.Tracker().Add(&corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{
						Namespace: "velero", Name: "settings",
						Labels: map[string]string{"velero.io/plugin-config": "", "stillpoint.io/stillpoint": "Configuration"},
					},
					Data: map[string]string{"config.yaml": "version: v1\n" + test.settings},
				}))
				exported := movedBackup("sunday", time.Date(2026, 11, 15, 1, 0, 0, 0, time.UTC), sourceNamespace)
				upload := uploadOf("sunday", sourceNamespace, "app-data0", velerov2alpha1.DataUploadPhaseCompleted)
				require.NoError(t, w.velero.Create(t.Context(), &exported))
				require.NoError(t, w.velero.Create(t.Context(), &upload))
				w.forgetful, w.exported = forgetful, test.marked
				var refused []string
				for _, file := range volume {
					_, err := w.bring(file)
					if err == nil {
						continue
					}
					refused = append(refused, file)
					if !forgetful || file != "claim" { // which only knows that something is missing
						require.ErrorContains(t, err, test.why)
					}
					if file == "snapshot" || (file == "claim" && !forgetful) {
						require.ErrorContains(t, err, "backup sunday of 2026-11-15T01:00:00Z has an export of claim "+sourceNamespace+"/app-data0")
					}
				}
				assert.Equal(t, test.refused, refused)
				if test.refused != nil {
					snapshots, contents := w.left()
					assert.Equal(t, []int{0, 0}, []int{snapshots, contents}, "nothing is left of it")
				}
			})
		}
	}
}

// A class with only local snapshots is refused, too, unless the cluster has it.
func TestClassOfLocalSnapshots(t *testing.T) {
	const profile = "drivers: [{name: " + sourceDriver + ", restoreFrom: export}]"
	for name, test := range map[string]struct {
		settings string
		here     bool
		refused  bool
	}{
		"refused":        {profile, false, true},
		"here":           {profile, true, false},
		"left out":       {profile + "\nrestore: {snapshotClasses: [{from: " + sourceClass + ", skip: true}]}", false, false},
		"no such driver": {"drivers: [{name: x.csi, restoreFrom: export}]", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTarget(t, "", class("a", sourceDriver))
			if test.here {
				_, err := w.snapshots.SnapshotV1().VolumeSnapshotClasses().Create(t.Context(), ptr.To(class(sourceClass, sourceDriver)), metav1.CreateOptions{})
				require.NoError(t, err)
			}
			require.NoError(t, w.kube.Tracker().Add(&corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: "velero", Name: "settings",
					Labels: map[string]string{"velero.io/plugin-config": "", "stillpoint.io/stillpoint": "Configuration"},
				},
				Data: map[string]string{"config.yaml": "version: v1\n" + test.settings},
			}))
			_, err := w.bring("class")
			if test.refused {
				require.ErrorContains(t, err, "VolumeSnapshotClass e2e-dmfhr is not restored: driver loop.csi.stillpoint.io restores from exports only")
			} else {
				require.NoError(t, err)
			}
		})
	}
}
