// Package around executes the decisions of the path Around: it quiesces around
// Velero's own CSI snapshots. It freezes in Velero's call for a PersistentVolume,
// which comes just before the snapshot, and thaws as soon as the storage has cut the
// last volume of the unit. The VolumeSnapshotters of package location, which Velero
// calls for one volume after another as well, freeze with it.
package around
