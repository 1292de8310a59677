package velero

// Keys that Velero writes as literals.
const (
	// TagBackup and TagVolume are the tags that Velero adds to the labels of the
	// Backup when it calls a VolumeSnapshotter.
	TagBackup = "velero.io/backup"
	TagVolume = "velero.io/pv"
	// CredentialsFile is the key that Velero adds to the config of a
	// VolumeSnapshotLocation.
	CredentialsFile = "credentialsFile"
	// OriginalVolume on a PersistentVolume is its name in the backup. Velero sets it
	// when it restores the volume under another name.
	OriginalVolume = "velero.io/original-pv-name"
	// ChangeStorageClass is the action that maps StorageClasses at restore, by a
	// ConfigMap with this label.
	ChangeStorageClass = "velero.io/change-storage-class"
	// StorageProvisioner on a claim names the driver of its volume. Kubernetes sets
	// it, and Velero removes it from a claim that it restores.
	StorageProvisioner = "volume.kubernetes.io/storage-provisioner"
)
