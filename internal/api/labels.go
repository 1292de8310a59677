package api

// Labels that an administrator sets on ConfigMaps of Velero's namespace. Stillpoint
// never clears them.
const (
	// LabelConfiguration marks the configuration; its value is "Configuration". It
	// has the form of the label that Velero's plugin framework looks for, which is the
	// plugin's name.
	LabelConfiguration = Domain + "stillpoint"
	// LabelBlueprint marks a ConfigMap of blueprints; its value does not matter.
	LabelBlueprint = Domain + "blueprint"
)

// Labels that Stillpoint sets on VolumeSnapshots, their contents and what a restore
// makes of them. They stay until the object is deleted; package snapshot clears
// LabelInstallation and LabelKept from copies that a restore makes.
const (
	// LabelInstallation has the UID of the namespace of the Velero whose Stillpoint
	// created or marked the object: several Veleros may share a cluster, or a bucket.
	LabelInstallation = Domain + "installation"
	// LabelRestore has the UID of the Restore that the object was made for. The
	// restore sets it on creation, or when it marks the object for clean-up.
	LabelRestore = Domain + "restore-uid"
	// LabelKept on a snapshot that stays beside its export has the UID of the claim.
	// It is set on creation.
	LabelKept = Domain + "kept"
)

// Labels that Stillpoint sets on objects of its own when it creates them. They stay
// until the object is deleted.
const (
	// LabelBackupUID on the ConfigMap that records a group snapshot has the UID of the
	// Backup.
	LabelBackupUID = Domain + "backup-uid"
	// LabelJournal marks the Secrets that hold pending undo operations; its value is
	// "".
	LabelJournal = Domain + "intent"
	// LabelNodeThaw marks the pods that thaw file systems on a node; its value is "".
	LabelNodeThaw = Domain + "node-thaw"
	// LabelTask on a pod that a blueprint's function creates has the ID of the task.
	LabelTask = Domain + "task"
	// LabelPromoted on the claims and volumes that a restore makes on the way from a
	// snapshot to a PersistentVolume has the UID of Velero's namespace.
	LabelPromoted = Domain + "promoted"
)
