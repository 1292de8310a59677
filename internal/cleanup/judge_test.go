package cleanup

import (
	"fmt"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/snapshot"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const driver = "csi.example.com"

// scene is a cluster with one snapshot, shop/snap of backup nightly with the
// UID b1, and its content snap-content, which tests change.
type scene struct {
	facts
	vs      *snapshotv1.VolumeSnapshot
	content *snapshotv1.VolumeSnapshotContent
	backup  *velerov1.Backup
}

func newScene(changes ...func(*scene)) *scene {
	s := &scene{
		facts: facts{now: epoch, installation: "here", velero: "velero", config: config.Default("velero"), namespaces: map[string]bool{"here": true, "there": true}},
		vs: &snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop", Name: "snap", UID: "s1", CreationTimestamp: metav1.NewTime(epoch.Add(-3 * time.Hour)),
				Labels: map[string]string{velerov1.BackupNameLabel: "nightly"}, Annotations: map[string]string{},
			},
			Spec:   snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: ptr.To("data")}},
			Status: &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: ptr.To("snap-content"), RestoreSize: ptr.To(resource.MustParse("64Mi"))},
		},
		content: &snapshotv1.VolumeSnapshotContent{
			ObjectMeta: metav1.ObjectMeta{
				Name: "snap-content", UID: "c1", CreationTimestamp: metav1.NewTime(epoch.Add(-3 * time.Hour)),
				Labels: map[string]string{}, Annotations: map[string]string{},
			},
			Spec: snapshotv1.VolumeSnapshotContentSpec{
				Driver: driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
				VolumeSnapshotRef: corev1.ObjectReference{Namespace: "shop", Name: "snap", UID: "s1"},
				Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: ptr.To("volume")},
			},
			Status: &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: ptr.To("h1"), RestoreSize: ptr.To(int64(64 << 20))},
		},
		backup: &velerov1.Backup{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "nightly", UID: "b1"},
			Status:     velerov1.BackupStatus{Phase: velerov1.BackupPhaseFailed},
		},
	}
	for _, change := range changes {
		change(s)
	}
	if s.vs != nil {
		s.snapshots = append(s.snapshots, *s.vs)
	}
	if s.content != nil {
		s.contents = append(s.contents, *s.content)
	}
	if s.backup != nil {
		s.backups = append(s.backups, *s.backup)
	}
	return s
}

// takenOf returns a snapshot of a claim in shop as the group path creates it for
// nightly.
func takenOf(claim string) *snapshotv1.VolumeSnapshot {
	return snapshot.New("here", &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Name: "nightly", UID: "b1"}},
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: claim, UID: types.UID("of-" + claim)}},
		"fast", "because", func(string) bool { return false })
}

// Changes of a scene.

func mark(installation string) func(*scene) {
	return func(s *scene) {
		origin := snapshot.Origin{Installation: installation, Backup: "nightly", BackupUID: "b1"}
		origin.Mark(s.vs)
		origin.Mark(s.content)
	}
}

var ours = mark("here")

func in(phase velerov1.BackupPhase) func(*scene) {
	return func(s *scene) { s.backup.Status.Phase = phase }
}

func noBackup(s *scene) { s.backup = nil }

func moving(mover string) func(*scene) {
	return func(s *scene) { s.backup.Spec.SnapshotMoveData, s.backup.Spec.DataMover = ptr.To(true), mover }
}

func upload(phase velerov2alpha1.DataUploadPhase) func(*scene) {
	return func(s *scene) {
		s.uploads = append(s.uploads, velerov2alpha1.DataUpload{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "nightly-x", Labels: map[string]string{velerov1.BackupUIDLabel: "b1"}, Annotations: map[string]string{api.AnnotationContent: "snap-content"}},
			Spec: velerov2alpha1.DataUploadSpec{
				CSISnapshot: &velerov2alpha1.CSISnapshotSpec{VolumeSnapshot: "snap"}, SourceNamespace: "shop", DataMover: s.backup.Spec.DataMover,
			},
			Status: velerov2alpha1.DataUploadStatus{Phase: phase},
		})
	}
}

func handedOver(s *scene) {
	s.vs.Annotations[velerov1.VolumeSnapshotHandleAnnotation] = "h1"
	s.content.Labels[velerov1.BackupNameLabel] = "nightly"
}

func kept(s *scene) {
	s.vs.Labels[api.LabelKept], s.content.Labels[api.LabelKept] = "claim", "claim"
	delete(s.vs.Labels, velerov1.BackupNameLabel)
}

// again recreates the Backup as Velero does from the object store.
func again(s *scene) {
	s.backup.UID = "b2"
	s.backup.Status.StartTimestamp = ptr.To(metav1.NewTime(epoch.Add(-4 * time.Hour)))
	s.backup.Status.CompletionTimestamp = ptr.To(metav1.NewTime(epoch.Add(-2 * time.Hour)))
}

func missed(ago time.Duration) func(*scene) {
	return func(s *scene) {
		s.content.Annotations[api.AnnotationBackupMissed] = epoch.Add(-ago).Format(time.RFC3339)
	}
}

func synced(ago time.Duration) func(*scene) {
	return func(s *scene) { s.synced = epoch.Add(-ago) }
}

func vetoed(s *scene) { s.vs.Annotations[api.AnnotationKeepSnapshot] = "true" }

func onlyContent(s *scene) { s.vs = nil }

// orphaned simulates a data mover that dies after deleting the VolumeSnapshot, before
// deleting its content.
func orphaned(s *scene) {
	onlyContent(s)
	s.content.Labels = map[string]string{}
}

// onlySnapshot leaves the VolumeSnapshot as it was created.
func onlySnapshot(s *scene) {
	s.content = nil
	s.vs = takenOf("data")
	s.vs.UID = "s1"
}

// static makes the snapshot one of an existing handle.
func static(s *scene) {
	if s.vs != nil {
		s.vs.Spec.Source = snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: ptr.To("snap-content")}
	}
	s.content.Spec.Source = snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: ptr.To("h1")}
}

// byRestore makes the snapshot a restored one, as Velero leaves it. It has marks of the
// backup, too.
func byRestore(s *scene) {
	ours(s)
	static(s)
	for _, object := range []metav1.Object{s.vs, s.content} {
		object.GetLabels()[velerov1.RestoreNameLabel] = "again"
	}
}

func byOurRestore(installation string) func(*scene) {
	return func(s *scene) {
		byRestore(s)
		for _, object := range []metav1.Object{s.vs, s.content} {
			object.GetLabels()[api.LabelRestore] = "r1"
			object.GetLabels()[api.LabelInstallation] = installation
		}
	}
}

func restore(phase velerov1.RestorePhase) func(*scene) {
	return func(s *scene) {
		s.restores = append(s.restores, velerov1.Restore{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "again", UID: "r1"}, Status: velerov1.RestoreStatus{Phase: phase},
		})
	}
}

// copied makes the snapshot a data mover's copy, which has the annotations only.
func copied(s *scene) {
	static(s)
	s.vs.Namespace, s.vs.Name = "velero", "nightly-x"
	s.content.Name = "nightly-x"
	s.vs.Spec.Source.VolumeSnapshotContentName = ptr.To("nightly-x")
	s.content.Spec.VolumeSnapshotRef.Namespace, s.content.Spec.VolumeSnapshotRef.Name = "velero", "nightly-x"
	s.vs.Labels, s.content.Labels = map[string]string{}, map[string]string{}
}

func pending(change func(*corev1.PersistentVolumeClaim)) func(*scene) {
	return func(s *scene) {
		claim := corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "waiting"}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}}
		change(&claim)
		s.claims = append(s.claims, claim)
	}
}

func dataSource(group, kind, name string) func(*corev1.PersistentVolumeClaim) {
	return func(claim *corev1.PersistentVolumeClaim) {
		claim.Spec.DataSource = &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: kind, Name: name}
	}
}

// another adds a content of the same storage snapshot.
func another(change func(*snapshotv1.VolumeSnapshotContent)) func(*scene) {
	return func(s *scene) {
		content := s.content.DeepCopy()
		content.Name, content.UID, content.Labels, content.Annotations = "other", "c2", map[string]string{}, map[string]string{}
		content.Spec.VolumeSnapshotRef = corev1.ObjectReference{Namespace: "shop", Name: "other", UID: "s2"}
		content.Spec.Source = snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: ptr.To("h1")}
		change(content)
		s.contents = append(s.contents, *content)
	}
}

func thirdParty(s *scene) {
	s.config.DataMovers = []config.DataMover{{Name: "shuttle", DeleteSnapshots: true}}
}

func TestJudge(t *testing.T) {
	const (
		completed = velerov1.BackupPhaseCompleted
		partially = velerov1.BackupPhasePartiallyFailed
	)
	all := func(changes ...func(*scene)) []func(*scene) { return changes }
	for name, c := range map[string]struct {
		changes []func(*scene)
		action  Action
		named   Action // when it is only listed
		orphan  bool
		reason  string
	}{
		// State of the backup.
		"failed":                  {all(ours), Delete, "", true, "backup nightly is Failed"},
		"failed validation":       {all(ours, in(velerov1.BackupPhaseFailedValidation)), Delete, "", true, "backup nightly is FailedValidation"},
		"failed, kept":            {all(ours, kept), Delete, "", true, "backup nightly is Failed"},
		"failed, handed over":     {all(ours, handedOver), Delete, "", true, "backup nightly is Failed"},
		"failed, third mover":     {all(ours, moving("shuttle"), upload("InProgress")), Delete, "", true, "backup nightly is Failed"},
		"deleting":                {all(ours, in(velerov1.BackupPhaseDeleting)), Delete, "", true, "backup nightly is Deleting"},
		"being deleted":           {all(ours, handedOver, in(completed), func(s *scene) { s.backup.DeletionTimestamp = ptr.To(metav1.NewTime(epoch)) }), Delete, "", true, "backup nightly is being deleted"},
		"new":                     {all(ours, in("")), Keep, "", false, "backup nightly is New"},
		"a phase of the future":   {all(ours, in("Packing")), Keep, "", false, "backup nightly is Packing"},
		"gone":                    {all(ours, noBackup), Delete, "", true, "backup nightly is gone"},
		"gone, kept":              {all(ours, kept, noBackup), List, Delete, true, "backup nightly is gone, but had it"},
		"gone, kept, missed":      {all(ours, kept, noBackup, missed(time.Hour), synced(time.Hour-youngAge)), List, Delete, true, "backup nightly is gone, but had it"},
		"gone, kept, looked for":  {all(ours, kept, noBackup, missed(time.Hour), synced(time.Hour-youngAge-time.Second)), Delete, "", true, "backup nightly is gone"},
		"gone, kept, not looked":  {all(ours, kept, noBackup, missed(time.Hour)), List, Delete, true, "backup nightly is gone, but had it"},
		"gone, kept, not cut":     {all(ours, kept, noBackup, onlySnapshot), Delete, "", true, "backup nightly is gone"},
		"found again, kept":       {all(ours, kept, in(completed), moving(""), again), Keep, "", false, "kept beside the export of backup nightly"},
		"found again, its own":    {all(ours, handedOver, in(completed), again), DeleteObjectsOnly, "", true, "backup nightly is Completed and has the storage's snapshot"},
		"found again, failed":     {all(ours, in(completed), again), Delete, "", true, "does not have it"},
		"gone, another of a name": {all(ours, in(completed), func(s *scene) { s.backup.UID = "b2" }), Delete, "", true, "backup nightly is gone"},
		"gone, a later one":       {all(ours, in(completed), again, func(s *scene) { s.backup.Status.StartTimestamp = ptr.To(metav1.NewTime(epoch.Add(-time.Hour))) }), Delete, "", true, "backup nightly is gone"},
		"gone, handed over":       {all(ours, handedOver, noBackup), List, Delete, true, "backup nightly is gone, but had it, and Velero may find that backup in the object store again"},
		"back under another UID":  {all(ours, handedOver, in(completed), func(s *scene) { s.backup.UID = "b2" }), List, Delete, true, "backup nightly is gone, but had it"},

		// Finished without data movement.
		"finished, handed over":          {all(ours, handedOver, in(completed)), DeleteObjectsOnly, "", true, "backup nightly is Completed and has the storage's snapshot, which stays"},
		"finished partially, handed":     {all(ours, handedOver, in(partially)), DeleteObjectsOnly, "", true, "backup nightly is PartiallyFailed and has"},
		"finished, never handed over":    {all(ours, in(completed)), Delete, "", true, "backup nightly is Completed and does not have it"},
		"finished, handed, content only": {all(ours, handedOver, in(completed), onlyContent), DeleteObjectsOnly, "", true, "has the storage's snapshot"},
		"finished, content only":         {all(ours, in(completed), onlyContent), Delete, "", true, "does not have it"},
		"failed, snapshot only":          {all(ours, onlySnapshot), Delete, "", true, "backup nightly is Failed"},

		// Finished, with data movement.
		"exported":                        {all(ours, in(completed), moving(""), upload("Completed")), Delete, "", true, "DataUpload nightly-x of backup nightly is Completed"},
		"upload failed":                   {all(ours, in(partially), moving("velero"), upload("Failed")), Delete, "", true, "DataUpload nightly-x of backup nightly is Failed"},
		"upload canceled":                 {all(ours, in(partially), moving(""), upload("Canceled")), Delete, "", true, "is Canceled"},
		"upload never created":            {all(ours, in(completed), moving("")), Delete, "", true, "backup nightly is Completed and has no DataUpload of it"},
		"upload of another backup":        {all(ours, in(completed), moving(""), upload("InProgress"), func(s *scene) { s.uploads[0].Labels[velerov1.BackupUIDLabel] = "b0" }), Delete, "", true, "no DataUpload"},
		"not exported yet":                {all(ours, in(completed), moving(""), upload("InProgress")), Keep, "", true, "backup nightly is Completed, but its DataUpload nightly-x is InProgress: the export is not confirmed"},
		"not exported yet, new":           {all(ours, in(completed), moving(""), upload("")), Keep, "", true, "its DataUpload nightly-x is New"},
		"canceling":                       {all(ours, in(partially), moving(""), upload("Canceling")), Keep, "", true, "is Canceling: the export is not confirmed"},
		"not exported yet, content only":  {all(ours, in(completed), moving(""), upload("Prepared"), onlyContent), Keep, "", true, "the export is not confirmed"},
		"by the upload's content":         {all(ours, in(completed), moving(""), upload("Prepared"), onlyContent, func(s *scene) { s.uploads[0].Spec.SourceNamespace = "elsewhere" }), Keep, "", true, "the export is not confirmed"},
		"exported, kept":                  {all(ours, kept, in(completed), moving(""), upload("Completed")), Keep, "", false, "kept beside the export of backup nightly"},
		"third party's":                   {all(ours, in(completed), moving("shuttle"), upload("Completed")), Keep, "", true, "data mover shuttle may keep its snapshots"},
		"third party's, never created":    {all(ours, in(completed), moving("shuttle")), Keep, "", true, "data mover shuttle may keep"},
		"third party's, allowed":          {all(ours, in(completed), moving("shuttle"), upload("Completed"), thirdParty), Delete, "", true, "is Completed"},
		"third party's, allowed, running": {all(ours, in(completed), moving("shuttle"), upload("Accepted"), thirdParty), Keep, "", true, "the export is not confirmed"},

		// The data mover's copies.
		"copy, upload done":     {all(ours, copied, in(completed), moving(""), upload("Completed")), Delete, "", true, "DataUpload nightly-x of backup nightly is Completed"},
		"copy, upload gone":     {all(ours, copied, in(completed), moving("")), Delete, "", true, "has no DataUpload of it"},
		"copy, upload running":  {all(ours, copied, in(completed), moving(""), upload("InProgress")), Keep, "", true, "the export is not confirmed"},
		"copy, backup running":  {all(ours, copied, in(velerov1.BackupPhaseWaitingForPluginOperations), moving(""), upload("Completed")), Keep, "", false, "backup nightly is WaitingForPluginOperations"},
		"copy, backup failed":   {all(ours, copied, moving(""), upload("InProgress")), Delete, "", true, "backup nightly is Failed"},
		"copy, content only":    {all(ours, copied, onlyContent, in(completed), moving(""), upload("Failed")), Delete, "", true, "is Failed"},
		"copy, no mark, done":   {all(copied, moving(""), upload("Failed")), Delete, "", true, "copy of DataUpload nightly-x, which is Failed"},
		"copy, no mark, gone":   {all(copied), List, Delete, true, "made as a data mover's copy, without a mark: there is no DataUpload nightly-x"},
		"copy, no mark, runs":   {all(copied, moving(""), upload("Accepted")), Keep, "", false, "copy of DataUpload nightly-x, which is Accepted"},
		"copy, no mark, third":  {all(copied, moving("shuttle"), upload("Completed")), Keep, "", true, "data mover shuttle may keep"},
		"source, no mark, done": {all(orphaned, in(completed), moving(""), upload("Failed")), Delete, "", true, "source of DataUpload nightly-x, which is Failed"},
		"source, no mark, runs": {all(orphaned, in(completed), moving(""), upload("Prepared")), Keep, "", false, "source of DataUpload nightly-x, which is Prepared"},
		"source, no mark, gone": {all(orphaned, in(completed), moving("")), Keep, "", false, "not of a backup or restore of Velero's"},
		"source, made new":      {all(orphaned, static, in(completed), moving(""), upload("Failed")), Keep, "", false, "not of a backup or restore of Velero's"},
		"no copy, in a new way": {all(copied, func(s *scene) { s.content.Name, *s.vs.Spec.Source.VolumeSnapshotContentName = "c", "c" }), Keep, "", false, "not of a backup or restore of Velero's"},

		// Origin.
		"another installation":         {all(mark("there"), noBackup), Keep, "", false, "of another Velero of this cluster, whose namespace has the UID there"},
		"an installation that is gone": {all(mark("away"), noBackup), List, Delete, true, "of backup nightly of a Velero whose namespace, with the UID away, is gone"},
		"marks that differ": {all(ours, func(s *scene) {
			snapshot.Origin{Installation: "here", Backup: "nightly", BackupUID: "b2"}.Mark(s.content)
		}), List, Delete, true, "the VolumeSnapshot says that it is of the backup with the UID b1, its content says b2"},
		"labels alone":          {all(ours, func(s *scene) { s.vs.Annotations, s.content.Annotations = nil, nil }), Delete, "", true, "backup nightly is Failed"},
		"labels alone, gone":    {all(ours, noBackup, func(s *scene) { s.vs.Annotations, s.content.Annotations = nil, nil }), Delete, "", true, "backup nightly is gone"},
		"no name of the backup": {all(ours, kept, noBackup, func(s *scene) { s.vs.Annotations, s.content.Annotations = nil, nil }), Delete, "", true, "the backup with the UID b1 is gone"},
		"no name, but young": {all(ours, kept, noBackup, func(s *scene) {
			s.vs.Annotations, s.content.Annotations, s.vs.CreationTimestamp = nil, nil, metav1.NewTime(epoch.Add(-time.Minute))
		}), Keep, "", true, "the backup with the UID b1 is in no list, but may be as young as the snapshot"},
		"marked content": {all(ours, func(s *scene) { s.vs.Annotations = nil }), Delete, "", true, "backup nightly is Failed"},
		"a tenant's label": {all(ours, func(s *scene) {
			s.vs.Labels[api.LabelInstallation], s.content.Labels[api.LabelInstallation] = "there", "there"
		}), List, Delete, true, "only Velero's label"},
		"Velero's, failed":              {nil, List, Delete, true, "only Velero's label velero.io/backup-name: backup nightly is Failed"},
		"Velero's, running":             {all(in(velerov1.BackupPhaseInProgress)), Keep, "", false, "backup nightly is InProgress"},
		"Velero's, no such backup":      {all(noBackup), List, Delete, true, "no backup nightly here, another Velero may have one"},
		"Velero's, finished, its own":   {all(in(completed), handedOver), List, DeleteObjectsOnly, true, "backup nightly is Completed and has the storage's snapshot"},
		"Velero's, finished, not taken": {all(in(completed)), List, Delete, true, "does not have it"},
		"Velero's, moving":              {all(in(completed), moving(""), upload("InProgress")), Keep, "", true, "the export is not confirmed"},
		"Velero's, moved":               {all(in(completed), moving(""), upload("Completed")), List, Delete, true, "only Velero's label velero.io/backup-name: DataUpload nightly-x of backup nightly is Completed"},
		"Velero's, content only":        {all(handedOver, onlyContent), List, Delete, true, "backup nightly is Failed"},
		"of a claim that was restored":  {all(func(s *scene) { s.vs.Labels[velerov1.RestoreNameLabel] = "again" }, ours, restore("InProgress")), Delete, "", true, "backup nightly is Failed"},
		"a user's":                      {all(func(s *scene) { s.vs.Labels = nil }), Keep, "", false, "not of a backup or restore of Velero's"},
		"a user's that was backed up":   {all(handedOver, func(s *scene) { s.vs.Labels = nil }), Keep, "", false, "not of a backup or restore of Velero's"},

		// Restores.
		"restored, restore done":         {all(byOurRestore("here"), restore("Completed")), DeleteObjectsOnly, "", true, "restore again is Completed; the storage's snapshot stays the backup's"},
		"restored, restore failed":       {all(byOurRestore("here"), restore("PartiallyFailed")), DeleteObjectsOnly, "", true, "restore again is PartiallyFailed"},
		"restored, running":              {all(byOurRestore("here"), restore("WaitingForPluginOperations")), Keep, "", false, "restore again is WaitingForPluginOperations"},
		"restored, new":                  {all(byOurRestore("here"), restore("")), Keep, "", false, "restore again is New"},
		"restored, restore gone":         {all(byOurRestore("here")), DeleteObjectsOnly, "", true, "its restore again is gone"},
		"restored, marks of the backup":  {all(byOurRestore("away"), restore("Completed")), DeleteObjectsOnly, "", true, "restore again is Completed"},
		"restored elsewhere, gone":       {all(byOurRestore("away")), List, DeleteObjectsOnly, true, "only a restore's label (again): no such restore here"},
		"restored, backup gone":          {all(byOurRestore("here"), restore("Completed"), noBackup), DeleteObjectsOnly, "", true, "restore again is Completed"},
		"restored, backup running":       {all(byOurRestore("here"), restore("Completed"), in("InProgress"), func(s *scene) { s.begins = true }), DeleteObjectsOnly, "", true, "restore again is Completed"},
		"restored, content only":         {all(byOurRestore("here"), restore("Completed"), onlyContent), DeleteObjectsOnly, "", true, "restore again is Completed"},
		"restored, another restore":      {all(byOurRestore("there"), restore("Completed"), func(s *scene) { s.restores[0].UID = "r2" }), List, DeleteObjectsOnly, true, "no such restore here"},
		"restored by Velero, done":       {all(byRestore, restore("Completed")), List, DeleteObjectsOnly, true, "only Velero's label velero.io/restore-name: restore again is Completed"},
		"restored by Velero, running":    {all(byRestore, restore("InProgress")), Keep, "", false, "restore again is InProgress"},
		"restored by Velero, unknown":    {all(byRestore), List, DeleteObjectsOnly, true, "only a restore's label (again): no such restore here, another Velero's may be under way"},
		"restored, needed":               {all(byOurRestore("here"), restore("Completed"), pending(dataSource("snapshot.storage.k8s.io", "VolumeSnapshot", "snap"))), Keep, "", true, "claim shop/waiting is Pending and needs it; else: restore again is Completed"},
		"restored by Velero, needed":     {all(byRestore, restore("Completed"), pending(dataSource("snapshot.storage.k8s.io", "VolumeSnapshot", "snap"))), Keep, "", true, "claim shop/waiting is Pending"},
		"restored, vetoed":               {all(byOurRestore("here"), restore("Completed"), vetoed), Keep, "", true, `annotation stillpoint.io/keep-snapshot: "true"`},
		"restored into Velero's own":     {all(byOurRestore("here"), restore("Completed"), func(s *scene) { s.vs.Namespace, s.content.Spec.VolumeSnapshotRef.Namespace = "velero", "velero" }), DeleteObjectsOnly, "", true, "restore again is Completed"},
		"restored, backup is the source": {all(byOurRestore("here"), restore("Completed"), handedOver, in(completed)), DeleteObjectsOnly, "", true, "restore again is Completed"},

		// Obstacles.
		"vetoed":                 {all(ours, vetoed), Keep, "", true, `annotation stillpoint.io/keep-snapshot: "true"; else: backup nightly is Failed`},
		"vetoed content":         {all(ours, func(s *scene) { s.content.Annotations[api.AnnotationKeepSnapshot] = "true" }), Keep, "", true, "annotation"},
		"vetoed by another word": {all(ours, func(s *scene) { s.vs.Annotations[api.AnnotationKeepSnapshot] = "yes" }), Delete, "", true, "Failed"},
		"listed, vetoed":         {all(vetoed), Keep, "", true, "annotation"},
		"needed":                 {all(ours, pending(dataSource("snapshot.storage.k8s.io", "VolumeSnapshot", "snap"))), Keep, "", true, "claim shop/waiting is Pending and needs it; else: backup nightly is Failed"},
		"needed, by the reference": {all(ours, pending(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: ptr.To("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: "snap"}
		})), Keep, "", true, "needs it"},
		"needed from elsewhere": {all(ours, pending(func(c *corev1.PersistentVolumeClaim) {
			c.Namespace = "lab"
			c.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: ptr.To("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: "snap", Namespace: ptr.To("shop")}
		})), Keep, "", true, "claim lab/waiting is Pending"},
		"another is needed":     {all(ours, pending(dataSource("snapshot.storage.k8s.io", "VolumeSnapshot", "other"))), Delete, "", true, "Failed"},
		"needed elsewhere":      {all(ours, pending(dataSource("snapshot.storage.k8s.io", "VolumeSnapshot", "snap")), func(s *scene) { s.claims[0].Namespace = "lab" }), Delete, "", true, "Failed"},
		"a claim is needed":     {all(ours, pending(dataSource("", "PersistentVolumeClaim", "snap"))), Delete, "", true, "Failed"},
		"a populator is needed": {all(ours, pending(dataSource("populator.example.com", "VolumeSnapshot", "snap"))), Delete, "", true, "Failed"},

		// The storage's snapshot has other users.
		"shared with a user":           {all(ours, another(func(*snapshotv1.VolumeSnapshotContent) {})), Keep, "", true, "content/other has the same snapshot of the storage; else: backup nightly is Failed"},
		"shared with another driver's": {all(ours, another(func(c *snapshotv1.VolumeSnapshotContent) { c.Spec.Driver = "other.csi" })), Delete, "", true, "Failed"},
		"shared, and that goes, too":   {all(ours, another(marked("nightly", "b1"))), Delete, "", true, "Failed"},
		"shared, and that is running":  {all(ours, func(s *scene) { s.begins = true; s.backups = append(s.backups, running("b3")) }, another(marked("next", "b3"))), Keep, "", true, "content/other has the same"},
		"shared with a vetoed one": {all(ours, another(func(c *snapshotv1.VolumeSnapshotContent) {
			snapshot.Origin{Installation: "here", Backup: "nightly", BackupUID: "b1"}.Mark(c)
			c.Annotations[api.AnnotationKeepSnapshot] = "true"
		})), Keep, "", true, "content/other has the same"},
		"shared with a restored one":  {all(ours, restore("Completed"), another(restoredContent)), Delete, "", true, "Failed"},
		"shared, the restore is on":   {all(ours, restore("InProgress"), another(restoredContent)), Keep, "", true, "content/other has the same"},
		"shared with a listed one":    {all(ours, another(func(c *snapshotv1.VolumeSnapshotContent) { c.Labels[velerov1.BackupNameLabel] = "nightly" })), Keep, "", true, "content/other has the same"},
		"shared, only the objects go": {all(ours, handedOver, in(completed), another(func(*snapshotv1.VolumeSnapshotContent) {})), DeleteObjectsOnly, "", true, "Completed"},
		"shared with a backup's object": {all(ours, func(s *scene) { s.backups = append(s.backups, done("b3")) }, another(func(c *snapshotv1.VolumeSnapshotContent) {
			snapshot.Origin{Installation: "here", Backup: "next", BackupUID: "b3"}.Mark(c)
			c.Labels[velerov1.BackupNameLabel] = "next"
		})), Keep, "", true, "content/other has the same"},

		// A running backup.
		"a backup runs":          {all(ours, func(s *scene) { s.backups = append(s.backups, running("b3")) }), Keep, "", true, "backup next is running and may have it on its list, try again when it is over; else: backup nightly is Failed"},
		"a backup runs, its own": {all(ours, func(s *scene) { s.begins = true; s.backups = append(s.backups, running("b3")) }), Delete, "", true, "Failed"},
		"a backup runs elsewhere": {all(ours, func(s *scene) {
			b := running("b3")
			b.Spec.IncludedNamespaces = []string{"lab"}
			s.backups = append(s.backups, b)
		}), Delete, "", true, "Failed"},
		"a backup leaves it out": {all(ours, func(s *scene) {
			b := running("b3")
			b.Spec.ExcludedNamespaces = []string{"shop"}
			s.backups = append(s.backups, b)
		}), Delete, "", true, "Failed"},
		"another backup begins": {all(ours, func(s *scene) {
			s.begins = true
			earlier, later := running("b3"), running("b4")
			earlier.Name, earlier.Status.StartTimestamp = "earlier", ptr.To(metav1.NewTime(epoch.Add(-time.Minute)))
			earlier.Status.Progress = &velerov1.BackupProgress{TotalItems: 7}
			later.Status.StartTimestamp = ptr.To(metav1.NewTime(epoch))
			s.backups = append(s.backups, earlier, later)
		}), Keep, "", true, "backup earlier is running and may have it on its list"},
		"two backups begin": {all(ours, func(s *scene) {
			s.begins = true
			earlier, later := running("b3"), running("b4")
			earlier.Name, earlier.Status.StartTimestamp = "earlier", ptr.To(metav1.NewTime(epoch.Add(-time.Minute)))
			later.Status.StartTimestamp = ptr.To(metav1.NewTime(epoch))
			s.backups = append(s.backups, later, earlier)
		}), Keep, "", true, "backup earlier is running and may have it on its list"},
		"a backup runs, content": {all(ours, onlyContent, func(s *scene) { s.backups = append(s.backups, running("b3")) }), Delete, "", true, "Failed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(c.changes...)
			findings := s.judge(noneNamed)
			require.NotEmpty(t, findings)
			var finding *Finding
			for i := range findings {
				if findings[i].Content != "other" {
					finding = &findings[i]
				}
			}
			require.NotNil(t, finding)
			assert.Equal(t, c.action, finding.Action, finding.Reason)
			assert.Equal(t, c.named, finding.WhenNamed)
			assert.Equal(t, c.orphan, finding.Orphan)
			assert.Contains(t, finding.Reason, c.reason)

			// A named object is deleted if it is only listed, and unchanged otherwise.
			for _, named := range s.judge(func(object string) bool { return object == finding.Object() }) {
				if named.Object() == finding.Object() && c.action == List {
					assert.Equal(t, c.named, named.Action)
				} else if named.Object() == finding.Object() {
					assert.Equal(t, c.action, named.Action)
				}
			}
		})
	}
}

func running(uid types.UID) velerov1.Backup {
	return velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "next", UID: uid}, Status: velerov1.BackupStatus{Phase: velerov1.BackupPhaseInProgress}}
}

func done(uid types.UID) velerov1.Backup {
	backup := running(uid)
	backup.Status.Phase = velerov1.BackupPhaseCompleted
	return backup
}

func restoredContent(c *snapshotv1.VolumeSnapshotContent) {
	c.Labels[api.LabelRestore], c.Labels[velerov1.RestoreNameLabel] = "r1", "again"
}

// Every phase of a backup and its effect on snapshots.
func TestPhases(t *testing.T) {
	for phase, want := range map[velerov1.BackupPhase]Action{
		"New": Keep, "Queued": Keep, "ReadyToStart": Keep, "InProgress": Keep, "WaitingForPluginOperations": Keep,
		"WaitingForPluginOperationsPartiallyFailed": Keep, "Finalizing": Keep, "FinalizingPartiallyFailed": Keep,
		"Completed": DeleteObjectsOnly, "PartiallyFailed": DeleteObjectsOnly,
		"FailedValidation": Delete, "Failed": Delete, "Deleting": Delete,
	} {
		finding := newScene(ours, handedOver, in(phase)).judge(noneNamed)[0]
		assert.Equal(t, want, finding.Action, phase)
		assert.True(t, strings.HasPrefix(finding.Reason, "backup nightly is "+string(phase)), finding.Reason)
	}
}

func TestPairs(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*scene)
		want   []string
	}{
		"bound":                         {func(*scene) {}, []string{"shop/snap snap-content"}},
		"of one of the same name":       {func(s *scene) { s.content.Spec.VolumeSnapshotRef.UID = "s0" }, []string{"shop/snap ", "content/snap-content snap-content"}},
		"asked for, not bound yet":      {func(s *scene) { static(s); s.content.Spec.VolumeSnapshotRef.UID = "" }, []string{"shop/snap snap-content"}},
		"waits, and is not asked for":   {func(s *scene) { s.content.Spec.VolumeSnapshotRef.UID = "" }, []string{"shop/snap ", "content/snap-content snap-content"}},
		"named by a tenant, not by it":  {func(s *scene) { static(s); s.content.Spec.VolumeSnapshotRef.Namespace = "bank" }, []string{"content/snap-content snap-content", "shop/snap "}},
		"named in the status, not back": {func(s *scene) { s.content.Spec.VolumeSnapshotRef.Name = "else" }, []string{"shop/snap ", "content/snap-content snap-content"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, f := range newScene(c.change).judge(noneNamed) {
				got = append(got, f.Object()+" "+f.Content)
			}
			assert.ElementsMatch(t, c.want, got)
		})
	}
}

func TestRecords(t *testing.T) {
	record := corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "stillpoint-group-1", Labels: map[string]string{api.LabelBackupUID: "b1"}}}
	for name, c := range map[string]struct {
		change func(*scene)
		action Action
	}{
		"failed":   {func(*scene) {}, Delete},
		"running":  {in(velerov1.BackupPhaseInProgress), Keep},
		"finished": {in(velerov1.BackupPhaseCompleted), Keep},
		"gone":     {noBackup, Keep},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(c.change, onlyContent, func(s *scene) { s.content = nil })
			s.records = append(s.records, record)
			findings := s.judge(noneNamed)
			require.Len(t, findings, 1)
			assert.Equal(t, c.action, findings[0].Action, findings[0].Reason)
			assert.Equal(t, "configmap/stillpoint-group-1", findings[0].Object())
		})
	}
}

// Only a young snapshot can be of a backup that no list has.
func TestUnlistedBackups(t *testing.T) {
	age := func(age time.Duration) func(*scene) {
		return func(s *scene) {
			s.vs.CreationTimestamp = metav1.NewTime(epoch.Add(-age))
			s.content.CreationTimestamp = s.vs.CreationTimestamp
		}
	}
	for name, c := range map[string]struct {
		changes []func(*scene)
		want    []string
	}{
		"young":             {[]func(*scene){ours, noBackup, age(time.Minute)}, []string{"nightly"}},
		"old":               {[]func(*scene){ours, noBackup, age(6 * time.Minute)}, nil},
		"known":             {[]func(*scene){ours, age(time.Minute)}, nil},
		"of another user":   {[]func(*scene){mark("there"), noBackup, age(time.Minute)}, nil},
		"with Velero's own": {[]func(*scene){noBackup, age(time.Minute)}, nil},
	} {
		assert.Equal(t, c.want, newScene(c.changes...).unlistedBackups(), name)
	}
}

func marked(backup, uid string) func(*snapshotv1.VolumeSnapshotContent) {
	return func(c *snapshotv1.VolumeSnapshotContent) {
		snapshot.Origin{Installation: "here", Backup: backup, BackupUID: uid}.Mark(c)
	}
}

// 5,000 leftovers beside 5,000 uploads are judged once, and each again before its
// deletion. The time is not quadratic.
func TestJudgeThousands(t *testing.T) {
	const many = 5000
	s := newScene(in("Completed"), moving(""))
	s.snapshots, s.contents = nil, nil
	for i := range many {
		vs, content := s.vs.DeepCopy(), s.content.DeepCopy()
		vs.Name, vs.UID = fmt.Sprintf("snap-%d", i), types.UID(fmt.Sprintf("s%d", i))
		content.Name, content.Status.SnapshotHandle = fmt.Sprintf("content-%d", i), ptr.To(fmt.Sprintf("h%d", i))
		content.Spec.VolumeSnapshotRef.Name, content.Spec.VolumeSnapshotRef.UID = vs.Name, vs.UID
		origin := snapshot.Origin{Installation: "here", Backup: "nightly", BackupUID: "b1"}
		origin.Mark(vs)
		origin.Mark(content)
		s.snapshots, s.contents = append(s.snapshots, *vs), append(s.contents, *content)
		s.uploads = append(s.uploads, velerov2alpha1.DataUpload{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: fmt.Sprintf("upload-%d", i), Labels: map[string]string{velerov1.BackupUIDLabel: "b1"}},
			Spec:       velerov2alpha1.DataUploadSpec{SourceNamespace: "shop", CSISnapshot: &velerov2alpha1.CSISnapshotSpec{VolumeSnapshot: vs.Name}},
			Status:     velerov2alpha1.DataUploadStatus{Phase: "Completed"},
		})
	}
	b := newBed(t, newScene(func(s *scene) { s.snapshots, s.contents = nil, nil }))
	started := time.Now()
	findings := s.judge(noneNamed)
	require.Len(t, findings, many)
	for _, r := range b.removals(&s.facts, findings, noneNamed) {
		finding := r.facts.findingOf(r.finding.target, noneNamed)
		r.facts.keepShared(&finding)
		require.Equal(t, Delete, finding.Action, finding.Reason)
	}
	assert.Less(t, time.Since(started), 3*time.Second)
}
