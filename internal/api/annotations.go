package api

// Domain is the prefix of Stillpoint's annotations and labels. On an object that
// can ask for quiescing, any other annotation with this prefix is an error.
const Domain = "stillpoint.io/"

// Annotations that users set on workloads, pod templates, claims, namespaces and
// objects of operators to ask for quiescing. Stillpoint never clears them.
const (
	// AnnotationQuiesce names the blueprints to run, separated by commas, or "none".
	AnnotationQuiesce = Domain + "quiesce"
	// AnnotationPrepareTimeout limits the time of all pre-hooks before the freeze.
	AnnotationPrepareTimeout = Domain + "prepare-timeout"
	// AnnotationQuiesceTimeout limits the time that a workload stays frozen.
	AnnotationQuiesceTimeout = Domain + "quiesce-timeout"
	// AnnotationOnQuiesceError is "fail" or "continue".
	AnnotationOnQuiesceError = Domain + "on-quiesce-error"
	// AnnotationOptionPrefix is followed by the name of an option of the blueprint.
	AnnotationOptionPrefix = "option." + Domain
	// AnnotationKanister is the annotation of Kasten K10 that names one blueprint.
	// Users of K10 have it on their workloads already; K10 may set it, too.
	AnnotationKanister = "kanister.kasten.io/blueprint"
)

// Annotations that users set to keep snapshots, or to choose a class. Stillpoint
// never clears them.
const (
	// AnnotationLocalSnapshots on a claim says which snapshots stay in the cluster
	// after their export: "delete", "retain" or "keepLast=<number>".
	AnnotationLocalSnapshots = Domain + "local-snapshots"
	// AnnotationKeepSnapshot, when "true", keeps a snapshot. On a claim, it keeps one
	// of each backup; on a VolumeSnapshot or its content, it forbids Stillpoint to
	// delete that one.
	AnnotationKeepSnapshot = Domain + "keep-snapshot"
	// AnnotationSnapshotClass on a StorageClass names the VolumeSnapshotClass of its
	// volumes. An administrator sets it.
	AnnotationSnapshotClass = Domain + "volume-snapshot-class"
)

// Annotations that Stillpoint sets on claims in a backup. The claims in the cluster
// do not have them, unless a restore without Stillpoint brought them back.
const (
	// AnnotationNoSnapshot says why the backup has no snapshot of the claim's volume.
	// Package group sets it when a snapshot fails. The next backup of the claim, and
	// the restore, clear it.
	AnnotationNoSnapshot = Domain + "no-snapshot"
	// AnnotationLevel says that the volume was to be frozen and was not: "filesystem
	// by storage", "filesystem by driver" or "crash". Package group sets it on the
	// VolumeSnapshot, and from there the backup sets it on the claim. The next
	// backup of the claim, and the restore, clear it.
	AnnotationLevel = Domain + "level"
)

// Annotations that Stillpoint sets on VolumeSnapshots and their contents. They
// stay until the object is deleted; package snapshot clears those that name the
// origin (installation, backup, claim) from copies that a restore makes.
const (
	// AnnotationClassReason on a VolumeSnapshot that Stillpoint creates says why it
	// has its class.
	AnnotationClassReason = Domain + "volume-snapshot-class-reason"
	// AnnotationInstallation repeats LabelInstallation: a data mover's copy of a
	// content has the annotations, but not the labels.
	AnnotationInstallation = LabelInstallation
	// AnnotationBackup has the name of the Backup, AnnotationBackupUID its UID and
	// AnnotationClaimUID the UID of the claim. They are set when the snapshot is
	// created, or, on a snapshot that Velero takes, when Stillpoint marks it.
	AnnotationBackup    = Domain + "backup"
	AnnotationBackupUID = Domain + "backup-uid"
	AnnotationClaimUID  = Domain + "claim-uid"
	// AnnotationExported is "true" if the driver exports the snapshot by itself, so
	// that its handle names the copy, else "false". Package group sets it on
	// creation if the driver's profile says so.
	AnnotationExported = Domain + "exported"
	// AnnotationKeepLast on a kept snapshot has the number of kept snapshots of its
	// claim; without it, all are kept. It is set on creation.
	AnnotationKeepLast = Domain + "keep-last"
	// AnnotationDeletionAwaited on a content changes whenever Stillpoint waits for
	// the CSI sidecar to delete it. The sidecar (csi-snapshotter up to 8.2) forgets a
	// content whose VolumeSnapshot is deleted while the driver cuts the snapshot, and
	// its resync skips it: only a change of the metadata reminds it. The change also
	// ends the sidecar's back-off after an error of the driver, which grows to five
	// minutes.
	AnnotationDeletionAwaited = Domain + "deletion-awaited"
	// AnnotationBackupMissed on a kept content is the time at which a sweep first
	// found its backup gone.
	AnnotationBackupMissed = Domain + "backup-missed-since"
)

// Annotations that Stillpoint sets on other objects. They stay until the object is
// deleted.
const (
	// AnnotationContent on a DataUpload names the VolumeSnapshotContent of its
	// snapshot, which can outlive the VolumeSnapshot. It is set on creation.
	AnnotationContent = Domain + "volume-snapshot-content"
	// AnnotationReplacedBy on a promoted PersistentVolume names the one that Velero
	// creates in its place. It is set when a restore hands the volume over to Velero.
	AnnotationReplacedBy = Domain + "replaced-by"
	// AnnotationCreatedBy on an object that a blueprint's KubeOps function creates
	// has the ID of the task.
	AnnotationCreatedBy = "task." + Domain + "created-by"
)
