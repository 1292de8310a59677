// Package restore decides how the volumes of a backup come back: with which driver,
// class and deletion policy a snapshot does, and which claims are refused because
// they would come back empty or with other data. It changes what Velero's own actions
// made of an item only where the configuration or an annotation in the backup asks
// for it. When a claim is bound it removes the VolumeSnapshot that the claim was
// filled from, and when all objects are restored it sets their owner references.
//
// It does not restore data itself: Velero, the CSI driver and the data mover do.
// plugins/restore calls it for each item of a restore, and plugins/backup calls
// Warner for each claim that is backed up.
package restore
