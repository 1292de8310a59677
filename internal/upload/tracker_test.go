package upload

import (
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	snapshotfake "github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned/fake"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
	crfake "sigs.k8s.io/controller-runtime/pkg/client/fake"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/snapshot"
	"stillpoint.io/stillpoint/internal/velero"
)

var (
	nightly = &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "nightly", UID: "b1"}}
	data    = &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", UID: "c1"}}
)

func noLabel(string) bool { return false }

// place is a cluster with the snapshot of one claim, and its DataUpload.
type place struct {
	first, kept *snapshotv1.VolumeSnapshot
	content     *snapshotv1.VolumeSnapshotContent
	upload      *velerov2alpha1.DataUpload
	mover       string
	document    string
}

func newPlace(phase velerov2alpha1.DataUploadPhase) *place {
	p := &place{first: snapshot.New("here", nightly, data, "fast", "because", noLabel)}
	p.first.UID = "1"
	cut := metav1.Now()
	p.kept = snapshot.Kept(p.first, nightly, data, 1)
	p.kept.UID, p.kept.Status = "2", &snapshotv1.VolumeSnapshotStatus{CreationTime: &cut}
	p.content = &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "snapcontent-1"},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			DeletionPolicy: snapshotv1.VolumeSnapshotContentRetain, VolumeSnapshotRef: corev1.ObjectReference{Namespace: "shop", Name: p.first.Name},
		},
	}
	p.upload = &velerov2alpha1.DataUpload{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "velero", Name: "nightly-x", Annotations: map[string]string{api.AnnotationContent: "snapcontent-1"},
			Labels: map[string]string{velerov1.AsyncOperationIDLabel: velero.UploadOperation(nightly, data.UID), velerov1.BackupUIDLabel: "b1", velerov1.PVCUIDLabel: "c1"},
		},
		Spec:   velerov2alpha1.DataUploadSpec{SourceNamespace: "shop", CSISnapshot: &velerov2alpha1.CSISnapshotSpec{VolumeSnapshot: p.first.Name}},
		Status: velerov2alpha1.DataUploadStatus{Phase: phase},
	}
	return p
}

func (p *place) tracker(t *testing.T) (*Tracker, *snapshotfake.Clientset, *velerov1.Backup) {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, velerov2alpha1.AddToScheme(scheme))
	require.NoError(t, corev1.AddToScheme(scheme))
	objects := crfake.NewClientBuilder().WithScheme(scheme).WithObjects(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "velero", UID: "here"}})
	if p.upload != nil {
		objects = objects.WithObjects(p.upload)
	}
	client := objects.Build()
	var configuration []runtime.Object
	if p.document != "" {
		configuration = append(configuration, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "c", Labels: map[string]string{config.PluginConfigLabel: "", api.LabelConfiguration: config.PluginKind}},
			Data:       map[string]string{config.Key: "version: v1\n" + p.document},
		})
	}
	duplicate := &snapshotv1.VolumeSnapshot{ // as the mover makes one
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "nightly-x", UID: "3", Annotations: p.first.Annotations},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: ptr.To("nightly-x")}},
	}
	snapshots := snapshotfake.NewSimpleClientset(p.first, p.kept, p.content, duplicate)
	log, _ := logtest.NewNullLogger()
	backup := nightly.DeepCopy()
	backup.Spec.DataMover = p.mover
	clients := &cluster.Clients{
		Kube: fake.NewClientset(configuration...), Objects: client, Remembered: client, Snapshots: snapshots, VeleroNamespace: "velero",
	}
	settings := config.NewSource(clients.Kube, clients.VeleroNamespace, clock.RealClock{})
	return NewTracker(clients, settings.Get, clock.RealClock{}, log), snapshots, backup
}

func left(t *testing.T, snapshots *snapshotfake.Clientset) []string {
	t.Helper()
	var names []string
	list, err := snapshots.SnapshotV1().VolumeSnapshots("").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, vs := range list.Items {
		names = append(names, string(vs.UID))
	}
	contents, err := snapshots.SnapshotV1().VolumeSnapshotContents().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, content := range contents.Items {
		names = append(names, content.Name)
	}
	return names
}

// No snapshot is deleted before the export is confirmed, or against a user's veto.
func TestProgressDeletes(t *testing.T) {
	all := []string{"1", "2", "3", "snapcontent-1"}
	for name, c := range map[string]struct {
		phase     velerov2alpha1.DataUploadPhase
		change    func(*place)
		left      []string
		completed bool
		err, says string
	}{
		"new":           {phase: "", left: all},
		"at work":       {phase: velerov2alpha1.DataUploadPhaseInProgress, left: all, says: "InProgress"},
		"being stopped": {phase: velerov2alpha1.DataUploadPhaseCanceling, left: all, says: "Canceling"},
		"exported":      {phase: velerov2alpha1.DataUploadPhaseCompleted, left: []string{"2"}, completed: true, says: "Completed; the local snapshot is deleted"},
		"failed":        {phase: velerov2alpha1.DataUploadPhaseFailed, left: []string{"2"}, completed: true, err: "the DataUpload failed without a message", says: "Failed; the local snapshot is deleted"},
		"canceled":      {phase: velerov2alpha1.DataUploadPhaseCanceled, left: []string{"2"}, completed: true, err: "the DataUpload is canceled", says: "Canceled; the local snapshot is deleted"},
		"gone":          {change: func(p *place) { p.upload = nil }, left: []string{"2"}, completed: true, err: "the DataUpload is gone", says: "The DataUpload is gone; the local snapshot is deleted"},
		"vetoed": {
			phase: velerov2alpha1.DataUploadPhaseCompleted, change: func(p *place) { p.first.Annotations[api.AnnotationKeepSnapshot] = "true" },
			left: all, completed: true, says: "stays, it has the annotation stillpoint.io/keep-snapshot",
		},
		"another mover": {
			phase: velerov2alpha1.DataUploadPhaseCompleted, change: func(p *place) { p.mover = "acme" },
			left: all, completed: true, says: "the local snapshot stays: data mover acme may keep",
		},
		"another mover, that is known": {
			phase: velerov2alpha1.DataUploadPhaseCompleted, change: func(p *place) { p.mover, p.document = "acme", "dataMovers: [{name: acme, deleteSnapshots: true}]" },
			left: []string{"2"}, completed: true,
		},
		"a configuration that is not valid": {
			phase: velerov2alpha1.DataUploadPhaseCompleted, change: func(p *place) { p.document = "dataMover: []" },
			left: []string{"2"}, completed: true,
		},
		"one that is not valid, and another mover": {
			phase: velerov2alpha1.DataUploadPhaseCompleted, change: func(p *place) { p.mover, p.document = "acme", "dataMover: []" },
			left: all, completed: true, says: "the local snapshot stays: data mover acme may keep its snapshots, and the configuration, which says so, cannot be used: ",
		},
		"a second one that was not cut": {
			phase: velerov2alpha1.DataUploadPhaseCompleted, change: func(p *place) { p.kept.Status = nil },
			completed: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(c.phase)
			if c.change != nil {
				c.change(p)
			}
			tracker, snapshots, backup := p.tracker(t)
			progress, err := tracker.Progress(t.Context(), velero.UploadOperation(nightly, data.UID), backup)
			require.NoError(t, err)
			assert.Equal(t, c.completed, progress.Completed, progress.Description)
			assert.Equal(t, c.err, progress.Err)
			assert.Contains(t, progress.Description, c.says)
			assert.ElementsMatch(t, c.left, left(t, snapshots))
		})
	}
}

func TestProgressOfUnknownOperation(t *testing.T) {
	tracker, _, backup := newPlace("").tracker(t)
	_, err := tracker.Progress(t.Context(), "group-1", backup)
	require.EqualError(t, err, "operation ID group-1 is invalid")
	progress, err := tracker.Progress(t.Context(), "snapshot-c2", backup)
	require.NoError(t, err)
	assert.True(t, progress.Completed)
	assert.Equal(t, "No snapshot is left of the claim", progress.Description)
}

// An earlier kept snapshot is deleted when a newer one exists.
func TestProgressCountsDown(t *testing.T) {
	p := newPlace(velerov2alpha1.DataUploadPhaseCompleted)
	tracker, snapshots, backup := p.tracker(t)
	add := func(uid string, days int, backup *velerov1.Backup, installation string, change func(vs *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent)) {
		vs := snapshot.Kept(snapshot.New(installation, backup, data, "fast", "because", noLabel), backup, data, 1)
		vs.UID = types.UID(uid)
		cut := metav1.NewTime(p.kept.Status.CreationTime.AddDate(0, 0, days))
		vs.Status = &snapshotv1.VolumeSnapshotStatus{CreationTime: &cut}
		content := p.content.DeepCopy()
		content.Name = "snapcontent-" + uid
		content.Spec.VolumeSnapshotRef = corev1.ObjectReference{Namespace: vs.Namespace, Name: vs.Name, UID: vs.UID}
		change(vs, content)
		if content.Name != "" {
			require.NoError(t, snapshots.Tracker().Add(content))
			require.NoError(t, snapshot.MarkContent(t.Context(), snapshots, vs))
		}
		require.NoError(t, snapshots.Tracker().Add(vs))
	}
	as := func(*snapshotv1.VolumeSnapshot, *snapshotv1.VolumeSnapshotContent) {}
	named := func(name string) *velerov1.Backup {
		return &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
	}
	add("older", -1, named("older"), "here", as)
	add("others", -1, named("others"), "there", as)
	add("elsewhere", -1, named("elsewhere"), "here", func(vs *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
		vs.Namespace, content.Spec.VolumeSnapshotRef.Namespace = "bank", "bank"
	})
	// A newer snapshot with marks whose content has none.
	add("forged", 1, named("forged"), "here", func(_ *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) { content.Name = "" })
	add("2", 0, nightly, "here", func(vs *snapshotv1.VolumeSnapshot, _ *snapshotv1.VolumeSnapshotContent) {
		require.NoError(t, snapshots.Tracker().Delete(snapshotv1.SchemeGroupVersion.WithResource("volumesnapshots"), vs.Namespace, vs.Name))
	})
	_, err := tracker.Progress(t.Context(), velero.UploadOperation(nightly, data.UID), backup)
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"2", "snapcontent-2", "others", "snapcontent-others", "elsewhere", "snapcontent-elsewhere", "forged"}, left(t, snapshots))
}

func TestCancelKeepsForeign(t *testing.T) {
	p := newPlace(velerov2alpha1.DataUploadPhaseInProgress)
	p.mover = "acme"
	tracker, snapshots, backup := p.tracker(t)
	for range 2 {
		require.NoError(t, tracker.Cancel(t.Context(), velero.UploadOperation(nightly, data.UID), backup))
	}
	upload := &velerov2alpha1.DataUpload{}
	require.NoError(t, tracker.clients.Objects.Get(t.Context(), crclient.ObjectKeyFromObject(p.upload), upload))
	assert.True(t, upload.Spec.Cancel)
	assert.Len(t, left(t, snapshots), 4)
}
