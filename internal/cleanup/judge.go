package cleanup

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	"github.com/vmware-tanzu/velero/pkg/util/collections"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// facts are what the cluster has, as far as somebody has looked. What is decided
// follows from them alone.
type facts struct {
	now time.Time
	// installation is the UID of velero, Velero's namespace.
	installation, velero string
	snapshots            []snapshotv1.VolumeSnapshot
	contents             []snapshotv1.VolumeSnapshotContent
	// Those of Velero's namespace.
	backups  []velerov1.Backup
	restores []velerov1.Restore
	uploads  []velerov2alpha1.DataUpload
	records  []corev1.ConfigMap
	// claims are those that are Pending.
	claims []corev1.PersistentVolumeClaim
	// namespaces are the UIDs of all namespaces; nil where they do not matter.
	namespaces map[string]bool
	config     *config.Config
	// unusable is why config is the default.
	unusable error
	// begins is true at the start of a backup, whose own items are not listed yet.
	begins bool
	// synced is when Velero had last looked for backups in all of its locations.
	synced time.Time

	// moves are the uploads by what they move, users the findings by the storage's
	// snapshot, as judge has left them.
	moves map[string][]*velerov2alpha1.DataUpload
	users map[string][]Finding
}

// verdict is what the rules say of one object.
type verdict struct {
	action, named Action
	orphan        bool
	// missed says that the backup is gone, and may be found again.
	missed bool
	reason string
}

// The verdicts there are. A standing object is no orphan; a held one is an
// orphan that must stay.
func remove(reason string, args ...any) verdict {
	return verdict{action: Delete, orphan: true, reason: fmt.Sprintf(reason, args...)}
}

func release(reason string, args ...any) verdict {
	return verdict{action: DeleteObjectsOnly, orphan: true, reason: fmt.Sprintf(reason, args...)}
}

func hold(reason string, args ...any) verdict {
	return verdict{action: Keep, orphan: true, reason: fmt.Sprintf(reason, args...)}
}

func stand(reason string, args ...any) verdict {
	return verdict{action: Keep, reason: fmt.Sprintf(reason, args...)}
}

// onlyListed has another verdict wait until a user names the object.
func (v verdict) onlyListed(reason string, args ...any) verdict {
	if v.action == Keep {
		return v
	}
	return verdict{action: List, named: v.action, orphan: true, missed: v.missed, reason: fmt.Sprintf(reason, args...) + v.reason}
}

// subject is what is judged.
type subject struct{ snapshot.Pair }

// label of the first object that has it.
func (s subject) label(key string) string {
	for _, object := range s.Objects() {
		if value := object.GetLabels()[key]; value != "" {
			return value
		}
	}
	return ""
}

// velero is the label with the backup's name. That of a content counts only
// where the VolumeSnapshot is gone: Velero puts it on the contents of users' own
// VolumeSnapshots, too, when these are in a backup.
func (s subject) velero() string { return s.Objects()[0].GetLabels()[velerov1.BackupNameLabel] }

// static tells that it was made of a snapshot that was there, and not of a volume.
func (s subject) static() bool {
	if s.Snapshot != nil {
		return s.Snapshot.Spec.Source.VolumeSnapshotContentName != nil
	}
	return s.Content.Spec.Source.SnapshotHandle != nil
}

// restored tells that a restore made it. The labels alone do not tell: a claim
// that was restored has them, and Velero gives its labels to its snapshots.
func (s subject) restored() bool {
	return s.static() && (s.label(api.LabelRestore) != "" || s.label(velerov1.RestoreNameLabel) != "")
}

// copied tells that it is made as the data mover copies what it is to move.
func (s subject) copied(velero string) bool {
	namespace, name := s.key()
	return namespace == velero && s.static() && !s.restored() && (s.Content == nil || s.Content.Name == name)
}

// orphaned tells that it is the content of a snapshot of a volume whose
// VolumeSnapshot is gone.
func (s subject) orphaned() bool { return s.Snapshot == nil && !s.static() }

// key is that of the VolumeSnapshot, there or not.
func (s subject) key() (namespace, name string) {
	if s.Snapshot != nil {
		return s.Snapshot.Namespace, s.Snapshot.Name
	}
	return s.Content.Spec.VolumeSnapshotRef.Namespace, s.Content.Spec.VolumeSnapshotRef.Name
}

// handedOver tells that Velero has it in the backup: its action for
// VolumeSnapshots annotates the VolumeSnapshot and labels the content. It only
// does so without data movement.
func (s subject) handedOver() bool {
	if s.Snapshot != nil {
		return s.Snapshot.Annotations[velerov1.VolumeSnapshotHandleAnnotation] != ""
	}
	return s.Content.Labels[velerov1.BackupNameLabel] != ""
}

// origin reads the marks, as far as they count; velero is Velero's namespace. It is
// an error when those of the VolumeSnapshot and of the content differ. The backup's
// name may be missing in one of them, or in both.
func (s subject) origin(velero string) (origin snapshot.Origin, marked bool, err error) {
	origin, marked, err = s.Origin(velero)
	origin.Backup = cmp.Or(origin.Backup, s.label(velerov1.BackupNameLabel))
	return origin, marked, err
}

// handleOf is what the storage calls a content's snapshot.
func handleOf(content *snapshotv1.VolumeSnapshotContent) string {
	if content == nil {
		return ""
	}
	if content.Status != nil && content.Status.SnapshotHandle != nil {
		return *content.Status.SnapshotHandle
	}
	return ptr.Deref(content.Spec.Source.SnapshotHandle, "")
}

// judge says what is to become of every object. Those that a user has named,
// as Object does, are deleted where they would only be listed.
func (f *facts) judge(named func(object string) bool) []Finding {
	f.index()
	var all []Finding
	for _, s := range f.subjects() {
		all = append(all, f.find(s, named))
	}
	f.users = map[string][]Finding{}
	for i := range all {
		f.users[all[i].storage()] = append(f.users[all[i].storage()], all[i])
	}
	for i := range all {
		f.spareShared(&all[i])
	}
	for i := range f.records {
		record := &f.records[i]
		finding := Finding{Kind: Record, Namespace: record.Namespace, Name: record.Name, Created: record.CreationTimestamp.Time}
		finding.set(f.ofRecord(record, &finding))
		all = append(all, finding)
	}
	inOrder(all)
	return all
}

// find judges one object by itself.
func (f *facts) find(s subject, named func(object string) bool) Finding {
	finding := about(s, f.velero)
	finding.set(f.verdict(s))
	if finding.Action == List && named(finding.Object()) {
		finding.Action = finding.WhenNamed
	}
	return finding
}

// storage is the storage's snapshot, "" where it is not known.
func (f *Finding) storage() string {
	if f.Handle == "" {
		return ""
	}
	return f.Driver + " " + f.Handle
}

// index sorts the uploads by what they move.
func (f *facts) index() {
	f.moves = map[string][]*velerov2alpha1.DataUpload{}
	for i := range f.uploads {
		u := &f.uploads[i]
		keys := []string{"copy " + u.Name, "content " + u.Annotations[api.AnnotationContent]}
		if u.Spec.CSISnapshot != nil {
			keys = append(keys, "source "+u.Spec.SourceNamespace+"/"+u.Spec.CSISnapshot.VolumeSnapshot)
		}
		for _, key := range keys {
			f.moves[key] = append(f.moves[key], u)
		}
	}
}

func (f *Finding) set(v verdict) {
	f.Action, f.WhenNamed, f.Reason, f.Orphan, f.missed = v.action, v.named, v.reason, v.orphan, v.missed
}

func about(s subject, velero string) Finding {
	f := Finding{Kind: Snapshot, restored: s.restored(), target: s}
	f.Namespace, f.Name = s.key()
	f.Created = s.Created()
	f.Backup = s.label(velerov1.BackupNameLabel)
	if origin, marked, _ := s.origin(velero); marked && !f.restored {
		f.Backup, f.backupUID = origin.Backup, origin.BackupUID
	}
	if s.Snapshot == nil {
		f.Kind = Content
	} else if status := s.Snapshot.Status; status != nil && status.RestoreSize != nil {
		f.Size = status.RestoreSize.Value()
	}
	if s.Content != nil {
		f.Content, f.Handle, f.Driver = s.Content.Name, handleOf(s.Content), s.Content.Spec.Driver
		if status := s.Content.Status; status != nil && status.RestoreSize != nil {
			f.Size = *status.RestoreSize
		}
	}
	return f
}

func (f *facts) subjects() (all []subject) {
	for _, pair := range snapshot.Pairs(f.snapshots, f.contents) {
		all = append(all, subject{pair})
	}
	return all
}

// verdict applies the rules: first whose it is and whether that is over, then
// what speaks against deleting it all the same.
func (f *facts) verdict(s subject) verdict {
	v := f.byOwner(s)
	if v.action == Keep {
		return v
	}
	for _, object := range s.Objects() {
		if snapshot.Vetoed(object) {
			return hold("annotation %s: \"true\"; else: %s", api.AnnotationKeepSnapshot, v.reason)
		}
	}
	namespace, name := s.key()
	if claim := f.needed(namespace, name); claim != "" {
		return hold("claim %s is Pending and needs it; else: %s", claim, v.reason)
	}
	if backup := f.running(namespace); s.Snapshot != nil && backup != "" {
		return hold("backup %s is running and may have it on its list, try again when it is over; else: %s", backup, v.reason)
	}
	return v
}

// byOwner judges by the backup or restore that an object was made for.
func (f *facts) byOwner(s subject) verdict {
	if s.restored() {
		return f.ofRestore(s)
	}
	origin, marked, err := s.origin(f.velero)
	switch {
	case err != nil:
		return remove("").onlyListed("%v", err)
	case marked && origin.Installation == f.installation:
		return f.ofOrigin(s, origin)
	case marked && f.namespaces[origin.Installation]:
		return stand("of another Velero of this cluster, whose namespace has the UID %s", origin.Installation)
	case marked:
		return remove("").onlyListed("of backup %s of a Velero whose namespace, with the UID %s, is gone", origin.Backup, origin.Installation)
	case s.velero() != "":
		return f.ofName(s)
	case s.copied(f.velero):
		return f.ofCopy(s)
	case s.orphaned():
		return f.ofBereft(s)
	default:
		return stand(notOurs)
	}
}

const notOurs = "not of a backup or restore of Velero's"

// ofOrigin judges what is marked as ours.
func (f *facts) ofOrigin(s subject, origin snapshot.Origin) verdict {
	created := s.Created()
	i := slices.IndexFunc(f.backups, func(b velerov1.Backup) bool { return origin.Of(&b, created) })
	// Somebody may have deleted the Backup object alone. Velero brings it back
	// from the object store within minutes, under another UID, and then it lives
	// on this very snapshot, or counts it as kept beside its export.
	again := remove("").onlyListed("backup %s is gone, but had it, and Velero may find that backup in the object store again", origin.Backup)
	switch {
	case i >= 0:
		return f.ofBackup(s, &f.backups[i])
	case origin.Backup == "" && f.young(s):
		return hold("the backup with the UID %s is in no list, but may be as young as the snapshot", origin.BackupUID)
	case origin.Backup == "":
		return remove("the backup with the UID %s is gone", origin.BackupUID)
	case s.Kept() != "" && s.Content != nil && !f.looked(s.Content):
		again.missed = true
		return again
	case s.handedOver():
		return again
	}
	return remove("backup %s is gone", origin.Backup)
}

// looked reports whether Velero has looked for the backup of a content in all
// object stores since a sweep found it gone.
func (f *facts) looked(content *snapshotv1.VolumeSnapshotContent) bool {
	since, err := time.Parse(time.RFC3339, content.Annotations[api.AnnotationBackupMissed])
	return err == nil && f.synced.After(since.Add(youth))
}

// ofBackup judges what was taken for a backup that is there.
func (f *facts) ofBackup(s subject, backup *velerov1.Backup) verdict {
	move := boolptr.IsSetToTrue(backup.Spec.SnapshotMoveData)
	switch state := LifetimeOf(backup); {
	case state == Running:
		return stand("%s", StateOf(backup))
	case state.dead():
		return remove("%s", StateOf(backup))
	case s.Kept() != "" && s.Snapshot != nil:
		return stand("kept beside the export of backup %s", backup.Name)
	case move:
		return f.ofUpload(s, backup)
	case s.handedOver():
		return release("%s and has the storage's snapshot, which stays", StateOf(backup))
	default:
		return remove("%s and does not have it", StateOf(backup))
	}
}

// ofUpload judges by the export, in a backup with data movement that is over.
func (f *facts) ofUpload(s subject, backup *velerov1.Backup) verdict {
	mover := backup.Spec.DataMover
	upload := f.uploadOf(s, string(backup.UID))
	v := remove("%s and has no DataUpload of it", StateOf(backup))
	if upload != nil {
		mover = upload.Spec.DataMover
		if !Ended(upload) {
			return hold("%s, but its DataUpload %s is %s: the export is not confirmed", StateOf(backup), upload.Name, phase(upload.Status.Phase, nil))
		}
		v = remove("DataUpload %s of backup %s is %s", upload.Name, backup.Name, upload.Status.Phase)
	}
	if why := MoverKeeps(f.config, f.unusable, mover); why != "" {
		return hold("%s", why)
	}
	return v
}

// uploadOf finds the DataUpload that moves the data of a snapshot, or whose copy
// it is. backupUID is "" where only the name is known.
func (f *facts) uploadOf(s subject, backupUID string) *velerov2alpha1.DataUpload {
	namespace, name := s.key()
	found := f.moves["source "+namespace+"/"+name]
	if s.Content != nil {
		found = slices.Concat(found, f.moves["content "+s.Content.Name])
	}
	if s.copied(f.velero) {
		found = slices.Concat(found, f.moves["copy "+name])
	}
	for _, u := range found {
		if backupUID == "" || u.Labels[velerov1.BackupUIDLabel] == backupUID {
			return u
		}
	}
	return nil
}

// ofRestore judges what a restore has made. The storage's snapshot stays the
// backup's whatever happens.
func (f *facts) ofRestore(s subject) verdict {
	uid, name := s.label(api.LabelRestore), s.label(velerov1.RestoreNameLabel)
	i := slices.IndexFunc(f.restores, func(r velerov1.Restore) bool {
		if uid != "" {
			return string(r.UID) == uid
		}
		return label.GetValidName(r.Name) == name
	})
	ours := uid != "" && (i >= 0 || s.label(api.LabelInstallation) == f.installation)
	switch {
	case i >= 0 && restoring(&f.restores[i]):
		return stand("%s", stateOfRestore(&f.restores[i]))
	case i >= 0 && ours:
		return release("%s; the storage's snapshot stays the backup's", stateOfRestore(&f.restores[i]))
	case ours:
		return release("its restore %s is gone; the storage's snapshot stays the backup's", name)
	case i >= 0:
		return release("%s", stateOfRestore(&f.restores[i])).onlyListed("only Velero's label %s: ", velerov1.RestoreNameLabel)
	default:
		return release("no such restore here, another Velero's may be under way").onlyListed("only a restore's label (%s): ", name)
	}
}

// ofName judges what has only Velero's label with the name of a backup. Another
// Velero may have a backup of that name.
func (f *facts) ofName(s subject) verdict {
	only := fmt.Sprintf("only Velero's label %s: ", velerov1.BackupNameLabel)
	i := slices.IndexFunc(f.backups, func(b velerov1.Backup) bool { return label.GetValidName(b.Name) == s.velero() })
	if i < 0 {
		return remove("no backup %s here, another Velero may have one", s.velero()).onlyListed("%s", only)
	}
	return f.ofBackup(s, &f.backups[i]).onlyListed("%s", only)
}

// ofCopy judges a data mover's copy that does not say whose it is.
func (f *facts) ofCopy(s subject) verdict {
	_, name := s.key()
	uploads := f.moves["copy "+name]
	if len(uploads) == 0 {
		return remove("there is no DataUpload %s", name).onlyListed("made as a data mover's copy, without a mark: ")
	}
	return f.ofMover(uploads[0], "copy")
}

// ofBereft judges what may be the content that a data mover was to delete: once
// it has its copy, it deletes the VolumeSnapshot, and then its content, which is
// left when the mover dies in between.
func (f *facts) ofBereft(s subject) verdict {
	if upload := f.uploadOf(s, ""); upload != nil {
		return f.ofMover(upload, "source")
	}
	return stand(notOurs)
}

// ofMover judges an unmarked object that a DataUpload speaks of: the mover may be
// quicker than the mark. The DataUpload is as good: it stands in this Velero's own
// namespace, and has the backup's UID. what the object is to it is for the reason.
func (f *facts) ofMover(upload *velerov2alpha1.DataUpload, what string) verdict {
	if !Ended(upload) {
		return stand("%s of DataUpload %s, which is %s", what, upload.Name, phase(upload.Status.Phase, nil))
	}
	if why := MoverKeeps(f.config, f.unusable, upload.Spec.DataMover); why != "" {
		return hold("%s", why)
	}
	v := remove("%s of DataUpload %s, which is %s", what, upload.Name, upload.Status.Phase)
	uid := upload.Labels[velerov1.BackupUIDLabel]
	if uid == "" {
		return v.onlyListed("without a mark: ")
	}
	b := slices.IndexFunc(f.backups, func(b velerov1.Backup) bool { return string(b.UID) == uid })
	if b >= 0 && LifetimeOf(&f.backups[b]) == Running {
		return stand("%s", StateOf(&f.backups[b]))
	}
	return v
}

// ofRecord judges the record of a freeze. The Backup owns it, so that the
// cluster deletes it when that is gone.
func (f *facts) ofRecord(record *corev1.ConfigMap, finding *Finding) verdict {
	uid := record.Labels[api.LabelBackupUID]
	i := slices.IndexFunc(f.backups, func(b velerov1.Backup) bool { return string(b.UID) == uid })
	if i < 0 {
		return stand("its Backup is gone, and the cluster deletes it")
	}
	finding.Backup = f.backups[i].Name
	if LifetimeOf(&f.backups[i]).dead() {
		return remove("%s, and the record of its freeze is of no use", StateOf(&f.backups[i]))
	}
	return stand("%s", StateOf(&f.backups[i]))
}

// needed is the claim that waits for a VolumeSnapshot, "" for none.
func (f *facts) needed(namespace, name string) string {
	for i := range f.claims {
		if claim := &f.claims[i]; snapshot.Awaits(claim, namespace, name) {
			return claim.Namespace + "/" + claim.Name
		}
	}
	return ""
}

// running is a backup that goes through its items and has the namespace, ""
// for none. Velero makes its list of items first, and one that is gone by its turn
// is an error of that backup.
func (f *facts) running(namespace string) string {
	for i := range f.backups {
		backup := &f.backups[i]
		if backup.Status.Phase == velerov1.BackupPhaseInProgress && !f.beginning(backup) && collections.NewNamespaceIncludesExcludes().
			Includes(backup.Spec.IncludedNamespaces...).Excludes(backup.Spec.ExcludedNamespaces...).ShouldInclude(namespace) {
			return backup.Name
		}
	}
	return ""
}

// beginning reports whether a backup is the one that is about to list its items: of
// those that have listed none yet, the one that was started last.
func (f *facts) beginning(backup *velerov1.Backup) bool {
	return f.begins && backup.Status.Progress == nil && !slices.ContainsFunc(f.backups, func(b velerov1.Backup) bool {
		return b.Status.Phase == velerov1.BackupPhaseInProgress && b.Status.Progress == nil && backup.Status.StartTimestamp.Before(b.Status.StartTimestamp)
	})
}

// spareShared keeps what would take a storage's snapshot away that somebody else
// has an object for: a restored one that a claim waits for, a user's own.
func (f *facts) spareShared(finding *Finding) {
	if finding.Action != Delete || finding.Handle == "" {
		return
	}
	for _, other := range f.users[finding.storage()] {
		if other.Object() != finding.Object() && (!other.goes() || (other.Action == DeleteObjectsOnly && !other.restored)) {
			finding.set(hold("%s has the same snapshot of the storage; else: %s", other.Object(), finding.Reason))
			return
		}
	}
}

// youth is how old a snapshot is at the most whose backup may have been created
// after a list of backups was served.
const youth = 5 * time.Minute

func (f *facts) young(s subject) bool {
	return f.now.Sub(s.Created()) < youth
}

// doubtful are the backups that are looked for once more, one by one: those that
// are not in the list although their snapshots are young.
func (f *facts) doubtful() []string {
	var names []string
	for _, s := range f.subjects() {
		origin, marked, _ := s.origin(f.velero)
		known := slices.ContainsFunc(f.backups, func(b velerov1.Backup) bool { return string(b.UID) == origin.BackupUID })
		if marked && !known && origin.Installation == f.installation && origin.Backup != "" && f.young(s) && !slices.Contains(names, origin.Backup) {
			names = append(names, origin.Backup)
		}
	}
	return names
}
