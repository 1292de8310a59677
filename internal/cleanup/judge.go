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

// facts is the state of the cluster, as far as it was read. All decisions depend on it
// alone.
type facts struct {
	now time.Time
	// installation is the UID of velero, Velero's namespace.
	installation, velero string
	snapshots            []snapshotv1.VolumeSnapshot
	contents             []snapshotv1.VolumeSnapshotContent
	// Objects of Velero's namespace.
	backups  []velerov1.Backup
	restores []velerov1.Restore
	uploads  []velerov2alpha1.DataUpload
	records  []corev1.ConfigMap
	// claims are the Pending claims.
	claims []corev1.PersistentVolumeClaim
	// namespaces are the UIDs of all namespaces; nil if they are not needed.
	namespaces map[string]bool
	config     *config.Config
	// unusable is why config is the default.
	unusable error
	// begins is true at the start of a backup that has not listed its items yet.
	begins bool
	// synced is when Velero last searched all its locations for backups.
	synced time.Time

	// moves are the uploads by what they move, users the findings by the storage's
	// snapshot. judge sets both.
	moves map[string][]*velerov2alpha1.DataUpload
	users map[string][]Finding
}

// verdict is the decision on one object.
type verdict struct {
	action, named Action
	orphan        bool
	// missed reports that the backup is gone, but may be found again.
	missed bool
	reason string
}

// Constructors of verdicts. keepInUse is for an object that is in use or foreign,
// keepOrphan for an orphan that must stay.
func toDelete(reason string, args ...any) verdict {
	return verdict{action: Delete, orphan: true, reason: fmt.Sprintf(reason, args...)}
}

func toDeleteObjects(reason string, args ...any) verdict {
	return verdict{action: DeleteObjectsOnly, orphan: true, reason: fmt.Sprintf(reason, args...)}
}

func keepOrphan(reason string, args ...any) verdict {
	return verdict{action: Keep, orphan: true, reason: fmt.Sprintf(reason, args...)}
}

func keepInUse(reason string, args ...any) verdict {
	return verdict{action: Keep, reason: fmt.Sprintf(reason, args...)}
}

// listOnly replaces a deletion by List, which waits until a user names the object.
func (v verdict) listOnly(reason string, args ...any) verdict {
	if v.action == Keep {
		return v
	}
	return verdict{action: List, named: v.action, orphan: true, missed: v.missed, reason: fmt.Sprintf(reason, args...) + v.reason}
}

// subject is an object that is judged.
type subject struct{ snapshot.Pair }

// label returns the label of the first object that has it.
func (s subject) label(key string) string {
	for _, object := range s.Objects() {
		if value := object.GetLabels()[key]; value != "" {
			return value
		}
	}
	return ""
}

// velero returns the label with the backup's name. The label of a content counts only if
// the VolumeSnapshot is gone, because Velero also labels the contents of users' own
// VolumeSnapshots in a backup.
func (s subject) velero() string { return s.Objects()[0].GetLabels()[velerov1.BackupNameLabel] }

// static reports whether the subject was created for an existing snapshot, not for a
// volume.
func (s subject) static() bool {
	if s.Snapshot != nil {
		return s.Snapshot.Spec.Source.VolumeSnapshotContentName != nil
	}
	return s.Content.Spec.Source.SnapshotHandle != nil
}

// restored reports whether a restore created the subject. The labels alone are not
// enough: a restored claim has them, and Velero copies the labels of a claim to its
// snapshots.
func (s subject) restored() bool {
	return s.static() && (s.label(api.LabelRestore) != "" || s.label(velerov1.RestoreNameLabel) != "")
}

// copied reports whether the subject looks like a data mover's copy.
func (s subject) copied(velero string) bool {
	namespace, name := s.key()
	return namespace == velero && s.static() && !s.restored() && (s.Content == nil || s.Content.Name == name)
}

// orphaned reports whether the subject is the content of a volume's snapshot whose
// VolumeSnapshot is gone.
func (s subject) orphaned() bool { return s.Snapshot == nil && !s.static() }

// key returns namespace and name of the VolumeSnapshot, which need not exist.
func (s subject) key() (namespace, name string) {
	if s.Snapshot != nil {
		return s.Snapshot.Namespace, s.Snapshot.Name
	}
	return s.Content.Spec.VolumeSnapshotRef.Namespace, s.Content.Spec.VolumeSnapshotRef.Name
}

// handedOver reports whether the backup in Velero's store has the snapshot. Velero's
// action for VolumeSnapshots then annotates the VolumeSnapshot and labels the content.
// It does so only without data movement.
func (s subject) handedOver() bool {
	if s.Snapshot != nil {
		return s.Snapshot.Annotations[velerov1.VolumeSnapshotHandleAnnotation] != ""
	}
	return s.Content.Labels[velerov1.BackupNameLabel] != ""
}

// origin reads the marks that count; velero is Velero's namespace. It returns an error
// if the marks of VolumeSnapshot and content differ. The backup's name may be missing in
// one or both.
func (s subject) origin(velero string) (origin snapshot.Origin, marked bool, err error) {
	origin, marked, err = s.Origin(velero)
	origin.Backup = cmp.Or(origin.Backup, s.label(velerov1.BackupNameLabel))
	return origin, marked, err
}

// handleOf returns the storage's handle of a content's snapshot.
func handleOf(content *snapshotv1.VolumeSnapshotContent) string {
	if content == nil {
		return ""
	}
	if content.Status != nil && content.Status.SnapshotHandle != nil {
		return *content.Status.SnapshotHandle
	}
	return ptr.Deref(content.Spec.Source.SnapshotHandle, "")
}

// judge decides what becomes of every object. Objects that a user has named, in the form
// of Object, are deleted if they would otherwise only be listed.
func (f *facts) judge(named func(object string) bool) []Finding {
	f.index()
	var all []Finding
	for _, s := range f.subjects() {
		all = append(all, f.findingOf(s, named))
	}
	f.users = map[string][]Finding{}
	for i := range all {
		f.users[all[i].storage()] = append(f.users[all[i].storage()], all[i])
	}
	for i := range all {
		f.keepShared(&all[i])
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

// findingOf judges one object by itself.
func (f *facts) findingOf(s subject, named func(object string) bool) Finding {
	finding := newFinding(s, f.velero)
	finding.set(f.verdict(s))
	if finding.Action == List && named(finding.Object()) {
		finding.Action = finding.WhenNamed
	}
	return finding
}

// storage identifies the storage's snapshot, "" if it is not known.
func (f *Finding) storage() string {
	if f.Handle == "" {
		return ""
	}
	return f.Driver + " " + f.Handle
}

// index groups the uploads by what they move.
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

func newFinding(s subject, velero string) Finding {
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

// verdict applies the rules: first by the owner and whether it is over, then by the
// reasons against a deletion.
func (f *facts) verdict(s subject) verdict {
	v := f.byOwner(s)
	if v.action == Keep {
		return v
	}
	for _, object := range s.Objects() {
		if snapshot.Vetoed(object) {
			return keepOrphan("annotation %s: \"true\"; else: %s", api.AnnotationKeepSnapshot, v.reason)
		}
	}
	namespace, name := s.key()
	if claim := f.needed(namespace, name); claim != "" {
		return keepOrphan("claim %s is Pending and needs it; else: %s", claim, v.reason)
	}
	if backup := f.running(namespace); s.Snapshot != nil && backup != "" {
		return keepOrphan("backup %s is running and may have it on its list, try again when it is over; else: %s", backup, v.reason)
	}
	return v
}

// byOwner judges by the backup or restore that an object was created for.
func (f *facts) byOwner(s subject) verdict {
	if s.restored() {
		return f.ofRestore(s)
	}
	origin, marked, err := s.origin(f.velero)
	switch {
	case err != nil:
		return toDelete("").listOnly("%v", err)
	case marked && origin.Installation == f.installation:
		return f.ofOrigin(s, origin)
	case marked && f.namespaces[origin.Installation]:
		return keepInUse("of another Velero of this cluster, whose namespace has the UID %s", origin.Installation)
	case marked:
		return toDelete("").listOnly("of backup %s of a Velero whose namespace, with the UID %s, is gone", origin.Backup, origin.Installation)
	case s.velero() != "":
		return f.ofName(s)
	case s.copied(f.velero):
		return f.ofCopy(s)
	case s.orphaned():
		return f.ofOrphanedContent(s)
	default:
		return keepInUse(notOurs)
	}
}

const notOurs = "not of a backup or restore of Velero's"

// ofOrigin judges an object with this installation's marks.
func (f *facts) ofOrigin(s subject, origin snapshot.Origin) verdict {
	created := s.Created()
	i := slices.IndexFunc(f.backups, func(b velerov1.Backup) bool { return origin.Of(&b, created) })
	// A user may have deleted only the Backup object. Velero recreates it from the
	// object store within minutes, with another UID. It then restores from this
	// snapshot, or counts it as kept beside its export.
	again := toDelete("").listOnly("backup %s is gone, but had it, and Velero may find that backup in the object store again", origin.Backup)
	switch {
	case i >= 0:
		return f.ofBackup(s, &f.backups[i])
	case origin.Backup == "" && f.young(s):
		return keepOrphan("the backup with the UID %s is in no list, but may be as young as the snapshot", origin.BackupUID)
	case origin.Backup == "":
		return toDelete("the backup with the UID %s is gone", origin.BackupUID)
	case s.Kept() != "" && s.Content != nil && !f.searched(s.Content):
		again.missed = true
		return again
	case s.handedOver():
		return again
	}
	return toDelete("backup %s is gone", origin.Backup)
}

// searched reports whether Velero has searched all object stores for the backup of a
// content since a sweep found the backup gone.
func (f *facts) searched(content *snapshotv1.VolumeSnapshotContent) bool {
	since, err := time.Parse(time.RFC3339, content.Annotations[api.AnnotationBackupMissed])
	return err == nil && f.synced.After(since.Add(youngAge))
}

// ofBackup judges an object of an existing backup.
func (f *facts) ofBackup(s subject, backup *velerov1.Backup) verdict {
	move := boolptr.IsSetToTrue(backup.Spec.SnapshotMoveData)
	switch state := LifetimeOf(backup); {
	case state == Running:
		return keepInUse("%s", StateOf(backup))
	case state.dead():
		return toDelete("%s", StateOf(backup))
	case s.Kept() != "" && s.Snapshot != nil:
		return keepInUse("kept beside the export of backup %s", backup.Name)
	case move:
		return f.ofUpload(s, backup)
	case s.handedOver():
		return toDeleteObjects("%s and has the storage's snapshot, which stays", StateOf(backup))
	default:
		return toDelete("%s and does not have it", StateOf(backup))
	}
}

// ofUpload judges by the export, in a finished backup with data movement.
func (f *facts) ofUpload(s subject, backup *velerov1.Backup) verdict {
	mover := backup.Spec.DataMover
	upload := f.uploadOf(s, string(backup.UID))
	v := toDelete("%s and has no DataUpload of it", StateOf(backup))
	if upload != nil {
		mover = upload.Spec.DataMover
		if !Ended(upload) {
			return keepOrphan("%s, but its DataUpload %s is %s: the export is not confirmed", StateOf(backup), upload.Name, phase(upload.Status.Phase, nil))
		}
		v = toDelete("DataUpload %s of backup %s is %s", upload.Name, backup.Name, upload.Status.Phase)
	}
	if why := MoverKeeps(f.config, f.unusable, mover); why != "" {
		return keepOrphan("%s", why)
	}
	return v
}

// uploadOf returns the DataUpload that moves the data of a snapshot, or whose copy the
// snapshot is. backupUID is "" if only the name is known.
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

// ofRestore judges an object that a restore created. The storage's snapshot always stays
// with the backup.
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
		return keepInUse("%s", stateOfRestore(&f.restores[i]))
	case i >= 0 && ours:
		return toDeleteObjects("%s; the storage's snapshot stays the backup's", stateOfRestore(&f.restores[i]))
	case ours:
		return toDeleteObjects("its restore %s is gone; the storage's snapshot stays the backup's", name)
	case i >= 0:
		return toDeleteObjects("%s", stateOfRestore(&f.restores[i])).listOnly("only Velero's label %s: ", velerov1.RestoreNameLabel)
	default:
		return toDeleteObjects("no such restore here, another Velero's may be under way").listOnly("only a restore's label (%s): ", name)
	}
}

// ofName judges an object that has only Velero's label with a backup's name. Another
// Velero may have a backup of that name.
func (f *facts) ofName(s subject) verdict {
	only := fmt.Sprintf("only Velero's label %s: ", velerov1.BackupNameLabel)
	i := slices.IndexFunc(f.backups, func(b velerov1.Backup) bool { return label.GetValidName(b.Name) == s.velero() })
	if i < 0 {
		return toDelete("no backup %s here, another Velero may have one", s.velero()).listOnly("%s", only)
	}
	return f.ofBackup(s, &f.backups[i]).listOnly("%s", only)
}

// ofCopy judges a data mover's copy without marks.
func (f *facts) ofCopy(s subject) verdict {
	_, name := s.key()
	uploads := f.moves["copy "+name]
	if len(uploads) == 0 {
		return toDelete("there is no DataUpload %s", name).listOnly("made as a data mover's copy, without a mark: ")
	}
	return f.ofMover(uploads[0], "copy")
}

// ofOrphanedContent judges a content that a data mover may have had to delete. When the
// mover has its copy, it deletes the VolumeSnapshot and then the content. The content
// remains if the mover dies in between.
func (f *facts) ofOrphanedContent(s subject) verdict {
	if upload := f.uploadOf(s, ""); upload != nil {
		return f.ofMover(upload, "source")
	}
	return keepInUse(notOurs)
}

// ofMover judges an unmarked object that a DataUpload names. The mover may act before
// Stillpoint marks the object. The DataUpload counts as a mark: it is in this Velero's
// namespace, and has the backup's UID. what describes the object in the reason.
func (f *facts) ofMover(upload *velerov2alpha1.DataUpload, what string) verdict {
	if !Ended(upload) {
		return keepInUse("%s of DataUpload %s, which is %s", what, upload.Name, phase(upload.Status.Phase, nil))
	}
	if why := MoverKeeps(f.config, f.unusable, upload.Spec.DataMover); why != "" {
		return keepOrphan("%s", why)
	}
	v := toDelete("%s of DataUpload %s, which is %s", what, upload.Name, upload.Status.Phase)
	uid := upload.Labels[velerov1.BackupUIDLabel]
	if uid == "" {
		return v.listOnly("without a mark: ")
	}
	b := slices.IndexFunc(f.backups, func(b velerov1.Backup) bool { return string(b.UID) == uid })
	if b >= 0 && LifetimeOf(&f.backups[b]) == Running {
		return keepInUse("%s", StateOf(&f.backups[b]))
	}
	return v
}

// ofRecord judges the record of a freeze. The Backup owns the record, so the cluster
// deletes it with the Backup.
func (f *facts) ofRecord(record *corev1.ConfigMap, finding *Finding) verdict {
	uid := record.Labels[api.LabelBackupUID]
	i := slices.IndexFunc(f.backups, func(b velerov1.Backup) bool { return string(b.UID) == uid })
	if i < 0 {
		return keepInUse("its Backup is gone, and the cluster deletes it")
	}
	finding.Backup = f.backups[i].Name
	if LifetimeOf(&f.backups[i]).dead() {
		return toDelete("%s, and the record of its freeze is of no use", StateOf(&f.backups[i]))
	}
	return keepInUse("%s", StateOf(&f.backups[i]))
}

// needed returns the claim that waits for a VolumeSnapshot, "" if none.
func (f *facts) needed(namespace, name string) string {
	for i := range f.claims {
		if claim := &f.claims[i]; snapshot.Awaits(claim, namespace, name) {
			return claim.Namespace + "/" + claim.Name
		}
	}
	return ""
}

// running returns a backup that includes the namespace and is processing its items, ""
// if none. Velero lists the items first. An item that is deleted before its turn is an
// error of that backup.
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

// beginning reports whether a backup is about to list its items: it is the last one
// started of those that have not listed any.
func (f *facts) beginning(backup *velerov1.Backup) bool {
	return f.begins && backup.Status.Progress == nil && !slices.ContainsFunc(f.backups, func(b velerov1.Backup) bool {
		return b.Status.Phase == velerov1.BackupPhaseInProgress && b.Status.Progress == nil && backup.Status.StartTimestamp.Before(b.Status.StartTimestamp)
	})
}

// keepShared keeps a storage snapshot that another object uses, such as a restored one
// that a claim waits for, or a user's own.
func (f *facts) keepShared(finding *Finding) {
	if finding.Action != Delete || finding.Handle == "" {
		return
	}
	for _, other := range f.users[finding.storage()] {
		if other.Object() != finding.Object() && (!other.toBeDeleted() || (other.Action == DeleteObjectsOnly && !other.restored)) {
			finding.set(keepOrphan("%s has the same snapshot of the storage; else: %s", other.Object(), finding.Reason))
			return
		}
	}
}

// youngAge is the maximum age of a snapshot whose backup may be newer than a list of
// backups.
const youngAge = 5 * time.Minute

func (f *facts) young(s subject) bool {
	return f.now.Sub(s.Created()) < youngAge
}

// unlistedBackups returns the backups to read one by one: they are not in the list
// although their snapshots are young.
func (f *facts) unlistedBackups() []string {
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
