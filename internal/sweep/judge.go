package sweep

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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/export"
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
	// heed has snapshots stay while a running backup has their namespace: Velero
	// makes its list of items first, and one that is gone by its turn is an error
	// of that backup.
	heed bool
}

// verdict is what the rules say of one object.
type verdict struct {
	action, named Action
	orphan        bool
	reason        string
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
	return verdict{action: List, named: v.action, orphan: true, reason: fmt.Sprintf(reason, args...) + v.reason}
}

// lifetime is how far a backup or restore has come.
type lifetime int

const (
	alive    lifetime = iota
	finished          // there is something to restore from
	dead              // there is not, and never will be
)

func lifetimeOf(b *velerov1.Backup) lifetime {
	if b.DeletionTimestamp != nil {
		return dead
	}
	switch b.Status.Phase {
	case velerov1.BackupPhaseCompleted, velerov1.BackupPhasePartiallyFailed:
		return finished
	case velerov1.BackupPhaseFailed, velerov1.BackupPhaseFailedValidation, velerov1.BackupPhaseDeleting:
		return dead
	default:
		return alive
	}
}

func restoring(r *velerov1.Restore) bool {
	switch r.Status.Phase {
	case velerov1.RestorePhaseCompleted, velerov1.RestorePhasePartiallyFailed, velerov1.RestorePhaseFailed, velerov1.RestorePhaseFailedValidation:
		return false
	default:
		return true
	}
}

// phase is a backup's for a reader; a new one has none.
func phase[P ~string](p P, deleted *metav1.Time) string {
	switch {
	case deleted != nil:
		return "being deleted"
	case p == "":
		return "New"
	default:
		return string(p)
	}
}

func stateOf(b *velerov1.Backup) string {
	return fmt.Sprintf("backup %s is %s", b.Name, phase(b.Status.Phase, b.DeletionTimestamp))
}

func stateOfRestore(r *velerov1.Restore) string {
	return fmt.Sprintf("restore %s is %s", r.Name, phase(r.Status.Phase, r.DeletionTimestamp))
}

// subject is a VolumeSnapshot with the content that names it, or one of them
// where the other is not there.
type subject struct {
	snapshot *snapshotv1.VolumeSnapshot
	content  *snapshotv1.VolumeSnapshotContent
}

// objects are those that there are. The VolumeSnapshot comes first.
func (s subject) objects() (all []metav1.Object) {
	if s.snapshot != nil {
		all = append(all, s.snapshot)
	}
	if s.content != nil {
		all = append(all, s.content)
	}
	return all
}

// label of the first object that has it.
func (s subject) label(key string) string {
	for _, object := range s.objects() {
		if value := object.GetLabels()[key]; value != "" {
			return value
		}
	}
	return ""
}

// velero is the label with the backup's name. That of a content counts only
// where the VolumeSnapshot is gone: Velero puts it on the contents of users' own
// VolumeSnapshots, too, when these are in a backup.
func (s subject) velero() string { return s.objects()[0].GetLabels()[velerov1.BackupNameLabel] }

// static tells that it was made of a snapshot that was there, and not of a volume.
func (s subject) static() bool {
	if s.snapshot != nil {
		return s.snapshot.Spec.Source.VolumeSnapshotContentName != nil
	}
	return s.content.Spec.Source.SnapshotHandle != nil
}

// restored tells that a restore made it. The labels alone do not tell: a claim
// that was restored has them, and Velero gives its labels to its snapshots.
func (s subject) restored() bool {
	return s.static() && (s.label(snapshot.RestoreLabel) != "" || s.label(velerov1.RestoreNameLabel) != "")
}

// copied tells that it is made as the data mover copies what it is to move.
func (s subject) copied(velero string) bool {
	namespace, name := s.key()
	return namespace == velero && s.static() && !s.restored() && (s.content == nil || s.content.Name == name)
}

// bereft tells that it is the content of a snapshot of a volume whose
// VolumeSnapshot is gone.
func (s subject) bereft() bool { return s.snapshot == nil && !s.static() }

// key is that of the VolumeSnapshot, there or not.
func (s subject) key() (namespace, name string) {
	if s.snapshot != nil {
		return s.snapshot.Namespace, s.snapshot.Name
	}
	return s.content.Spec.VolumeSnapshotRef.Namespace, s.content.Spec.VolumeSnapshotRef.Name
}

// handedOver tells that Velero has it in the backup: its action for
// VolumeSnapshots annotates the VolumeSnapshot and labels the content. It only
// does so without data movement.
func (s subject) handedOver() bool {
	if s.snapshot != nil {
		return s.snapshot.Annotations[velerov1.VolumeSnapshotHandleAnnotation] != ""
	}
	return s.content.Labels[velerov1.BackupNameLabel] != ""
}

// origin reads the marks. It is an error when those of the VolumeSnapshot and of
// the content differ. The backup's name may be missing in one of them, or in both.
func (s subject) origin() (origin snapshot.Origin, marked bool, err error) {
	for _, object := range s.objects() {
		of, ok := snapshot.OriginOf(object)
		switch {
		case ok && marked && (of.Installation != origin.Installation || of.BackupUID != origin.BackupUID):
			return origin, true, fmt.Errorf("the VolumeSnapshot says that it is of the backup with the UID %s, its content says %s", origin.BackupUID, of.BackupUID)
		case ok:
			of.Backup = cmp.Or(origin.Backup, of.Backup)
			origin, marked = of, true
		}
	}
	origin.Backup = cmp.Or(origin.Backup, s.label(velerov1.BackupNameLabel))
	return origin, marked, nil
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
	var all []Finding
	for _, s := range f.subjects() {
		finding := about(s)
		finding.set(f.verdict(s))
		if finding.Action == List && named(finding.Object()) {
			finding.Action = finding.WhenNamed
		}
		all = append(all, finding)
	}
	f.spareShared(all)
	for i := range f.records {
		record := &f.records[i]
		finding := Finding{Kind: Record, Namespace: record.Namespace, Name: record.Name, Created: record.CreationTimestamp.Time}
		finding.set(f.ofRecord(record, &finding))
		all = append(all, finding)
	}
	inOrder(all)
	return all
}

func (f *Finding) set(v verdict) {
	f.Action, f.WhenNamed, f.Reason, f.Orphan = v.action, v.named, v.reason, v.orphan
}

func about(s subject) Finding {
	f := Finding{Kind: Snapshot, restored: s.restored(), target: target(s)}
	f.Namespace, f.Name = s.key()
	f.Created = s.objects()[0].GetCreationTimestamp().Time
	f.Backup = s.label(velerov1.BackupNameLabel)
	if origin, marked, _ := s.origin(); marked && !f.restored {
		f.Backup, f.backupUID = origin.Backup, origin.BackupUID
	}
	if s.snapshot == nil {
		f.Kind = Content
	} else if status := s.snapshot.Status; status != nil && status.RestoreSize != nil {
		f.Size = status.RestoreSize.Value()
	}
	if s.content != nil {
		f.Content, f.Handle, f.Driver = s.content.Name, handleOf(s.content), s.content.Spec.Driver
		if status := s.content.Status; status != nil && status.RestoreSize != nil {
			f.Size = *status.RestoreSize
		}
	}
	return f
}

// subjects pairs VolumeSnapshots and contents. A VolumeSnapshot may name any
// content, and be a tenant's; what counts is which VolumeSnapshot the content
// names.
func (f *facts) subjects() []subject {
	type key struct{ namespace, name string }
	byKey := map[key]*subject{}
	var all []*subject
	for i := range f.snapshots {
		vs := &f.snapshots[i]
		s := &subject{snapshot: vs}
		byKey[key{vs.Namespace, vs.Name}] = s
		all = append(all, s)
	}
	for i := range f.contents {
		content := &f.contents[i]
		of := content.Spec.VolumeSnapshotRef
		s := byKey[key{of.Namespace, of.Name}]
		switch {
		case s == nil || (of.UID != "" && of.UID != s.snapshot.UID):
			all = append(all, &subject{content: content})
		case of.UID == "" && ptr.Deref(s.snapshot.Spec.Source.VolumeSnapshotContentName, "") != content.Name:
			// Waits for a VolumeSnapshot that asks for another one.
			all = append(all, &subject{content: content})
		case s.content == nil:
			s.content = content
		}
	}
	subjects := make([]subject, len(all))
	for i, s := range all {
		subjects[i] = *s
	}
	return subjects
}

// verdict applies the rules: first whose it is and whether that is over, then
// what speaks against deleting it all the same.
func (f *facts) verdict(s subject) verdict {
	v := f.byOwner(s)
	if v.action == Keep {
		return v
	}
	for _, object := range s.objects() {
		if snapshot.Vetoed(object) {
			return hold("annotation %s: \"true\"; else: %s", snapshot.KeepAnnotation, v.reason)
		}
	}
	namespace, name := s.key()
	if claim := f.needed(namespace, name); claim != "" {
		return hold("claim %s is Pending and needs it; else: %s", claim, v.reason)
	}
	if backup := f.running(namespace); s.snapshot != nil && f.heed && backup != "" {
		return hold("backup %s is running and may have it on its list, try again when it is over; else: %s", backup, v.reason)
	}
	return v
}

// byOwner judges by the backup or restore that an object was made for.
func (f *facts) byOwner(s subject) verdict {
	if s.restored() {
		return f.ofRestore(s)
	}
	origin, marked, err := s.origin()
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
	case s.bereft():
		return f.ofBereft(s)
	default:
		return stand(notOurs)
	}
}

const notOurs = "not of a backup or restore of Velero's"

// ofOrigin judges what is marked as ours.
func (f *facts) ofOrigin(s subject, origin snapshot.Origin) verdict {
	i := slices.IndexFunc(f.backups, func(b velerov1.Backup) bool { return string(b.UID) == origin.BackupUID })
	switch {
	case i >= 0:
		return f.ofBackup(s, &f.backups[i])
	case origin.Backup == "" && f.young(s):
		return hold("the backup with the UID %s is in no list, but may be as young as the snapshot", origin.BackupUID)
	case origin.Backup == "":
		return remove("the backup with the UID %s is gone", origin.BackupUID)
	case !s.handedOver():
		return remove("backup %s is gone", origin.Backup)
	}
	// Somebody may have deleted the Backup object alone. Velero brings it back
	// from the object store within minutes, under another UID, and then it lives
	// on this very snapshot.
	return remove("").onlyListed("backup %s is gone, but had it, and Velero may find that backup in the object store again", origin.Backup)
}

// ofBackup judges what was taken for a backup that is there.
func (f *facts) ofBackup(s subject, backup *velerov1.Backup) verdict {
	move := boolptr.IsSetToTrue(backup.Spec.SnapshotMoveData)
	switch state := lifetimeOf(backup); {
	case state == alive:
		return stand("%s", stateOf(backup))
	case state == dead:
		return remove("%s", stateOf(backup))
	case s.label(snapshot.KeptLabel) != "":
		return stand("kept beside the export of backup %s", backup.Name)
	case move:
		return f.ofUpload(s, backup)
	case s.handedOver():
		return release("%s and has the storage's snapshot, which stays", stateOf(backup))
	default:
		return remove("%s and does not have it", stateOf(backup))
	}
}

// ofUpload judges by the export, in a backup with data movement that is over.
func (f *facts) ofUpload(s subject, backup *velerov1.Backup) verdict {
	mover := backup.Spec.DataMover
	upload := f.uploadOf(s, string(backup.UID))
	v := remove("%s and has no DataUpload of it", stateOf(backup))
	if upload != nil {
		mover = upload.Spec.DataMover
		if !export.Ended(upload) {
			return hold("%s, but its DataUpload %s is %s: the export is not confirmed", stateOf(backup), upload.Name, phase(upload.Status.Phase, nil))
		}
		v = remove("DataUpload %s of backup %s is %s", upload.Name, backup.Name, upload.Status.Phase)
	}
	if !f.config.DeletesSnapshotsOf(mover) {
		return hold("data mover %s may keep its snapshots: dataMovers of the configuration does not say deleteSnapshots", mover)
	}
	return v
}

// uploadOf finds the DataUpload that moves the data of a snapshot, or whose copy
// it is. backupUID is "" where only the name is known.
func (f *facts) uploadOf(s subject, backupUID string) *velerov2alpha1.DataUpload {
	namespace, name := s.key()
	for i := range f.uploads {
		u := &f.uploads[i]
		if backupUID != "" && u.Labels[velerov1.BackupUIDLabel] != backupUID {
			continue
		}
		source := u.Spec.CSISnapshot != nil && u.Spec.SourceNamespace == namespace && u.Spec.CSISnapshot.VolumeSnapshot == name
		content := s.content != nil && u.Annotations[export.ContentAnnotation] == s.content.Name
		if source || content || (s.copied(f.velero) && u.Name == name) {
			return u
		}
	}
	return nil
}

// ofRestore judges what a restore has made. The storage's snapshot stays the
// backup's whatever happens.
func (f *facts) ofRestore(s subject) verdict {
	uid, name := s.label(snapshot.RestoreLabel), s.label(velerov1.RestoreNameLabel)
	i := slices.IndexFunc(f.restores, func(r velerov1.Restore) bool {
		if uid != "" {
			return string(r.UID) == uid
		}
		return label.GetValidName(r.Name) == name
	})
	ours := uid != "" && (i >= 0 || s.label(snapshot.InstallationLabel) == f.installation)
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
	i := slices.IndexFunc(f.uploads, func(u velerov2alpha1.DataUpload) bool { return u.Name == name })
	if i < 0 {
		return remove("there is no DataUpload %s", name).onlyListed("made as a data mover's copy, without a mark: ")
	}
	return f.ofMover(&f.uploads[i], "copy")
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
	switch {
	case !export.Ended(upload):
		return stand("%s of DataUpload %s, which is %s", what, upload.Name, phase(upload.Status.Phase, nil))
	case !f.config.DeletesSnapshotsOf(upload.Spec.DataMover):
		return hold("data mover %s may keep its snapshots: dataMovers of the configuration does not say deleteSnapshots", upload.Spec.DataMover)
	}
	v := remove("%s of DataUpload %s, which is %s", what, upload.Name, upload.Status.Phase)
	uid := upload.Labels[velerov1.BackupUIDLabel]
	if uid == "" {
		return v.onlyListed("without a mark: ")
	}
	b := slices.IndexFunc(f.backups, func(b velerov1.Backup) bool { return string(b.UID) == uid })
	if b >= 0 && lifetimeOf(&f.backups[b]) == alive {
		return stand("%s", stateOf(&f.backups[b]))
	}
	return v
}

// ofRecord judges the record of a freeze. The Backup owns it, so that the
// cluster deletes it when that is gone.
func (f *facts) ofRecord(record *corev1.ConfigMap, finding *Finding) verdict {
	uid := record.Labels[snapshot.BackupUIDKey]
	i := slices.IndexFunc(f.backups, func(b velerov1.Backup) bool { return string(b.UID) == uid })
	if i < 0 {
		return stand("its Backup is gone, and the cluster deletes it")
	}
	finding.Backup = f.backups[i].Name
	if lifetimeOf(&f.backups[i]) == dead {
		return remove("%s, and the record of its freeze is of no use", stateOf(&f.backups[i]))
	}
	return stand("%s", stateOf(&f.backups[i]))
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
// for none.
func (f *facts) running(namespace string) string {
	for i := range f.backups {
		backup := &f.backups[i]
		if backup.Status.Phase == velerov1.BackupPhaseInProgress && collections.NewNamespaceIncludesExcludes().
			Includes(backup.Spec.IncludedNamespaces...).Excludes(backup.Spec.ExcludedNamespaces...).ShouldInclude(namespace) {
			return backup.Name
		}
	}
	return ""
}

// spareShared keeps what would take a storage's snapshot away that somebody else
// has an object for: a restored one that a claim waits for, a user's own.
func (f *facts) spareShared(all []Finding) {
	type storage struct{ driver, handle string }
	users := map[storage][]*Finding{}
	for i := range all {
		if all[i].Handle != "" {
			key := storage{all[i].Driver, all[i].Handle}
			users[key] = append(users[key], &all[i])
		}
	}
	var spare []func()
	for _, sharing := range users {
		for _, finding := range sharing {
			if finding.Action != Delete {
				continue
			}
			i := slices.IndexFunc(sharing, func(other *Finding) bool {
				return !other.goes() || (other.Action == DeleteObjectsOnly && !other.restored)
			})
			if i >= 0 {
				by, reason := sharing[i], finding.Reason
				spare = append(spare, func() { finding.set(hold("%s has the same snapshot of the storage; else: %s", by.Object(), reason)) })
			}
		}
	}
	for _, set := range spare { // all were judged by how they stood before
		set()
	}
}

// youth is how old a snapshot is at the most whose backup may have been created
// after a list of backups was served.
const youth = 5 * time.Minute

func (f *facts) young(s subject) bool {
	return f.now.Sub(s.objects()[0].GetCreationTimestamp().Time) < youth
}

// doubtful are the backups that are looked for once more, one by one: those that
// are not in the list although their snapshots are young.
func (f *facts) doubtful() []string {
	var names []string
	for _, s := range f.subjects() {
		origin, marked, _ := s.origin()
		known := slices.ContainsFunc(f.backups, func(b velerov1.Backup) bool { return string(b.UID) == origin.BackupUID })
		if marked && !known && origin.Installation == f.installation && origin.Backup != "" && f.young(s) && !slices.Contains(names, origin.Backup) {
			names = append(names, origin.Backup)
		}
	}
	return names
}
