// Package location has what Stillpoint's VolumeSnapshotters share: the config of a
// VolumeSnapshotLocation, the ID by which Velero keeps a snapshot, the snapshot request
// that a call of Velero becomes, and the promotion of a snapshot to a PersistentVolume.
// How a storage is snapshotted is up to the packages below it, csi and externalstorage.
//
// The package does not freeze anything: a Quiescer runs a request between freeze and
// thaw. plugins/snapshotter passes Velero's calls on to the packages below.
package location
