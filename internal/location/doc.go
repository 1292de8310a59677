// Package location is the common part of Stillpoint's VolumeSnapshotters: the config of
// a VolumeSnapshotLocation, the ID by which Velero stores a snapshot, the snapshot
// request of a call by Velero, and the promotion of a snapshot to a PersistentVolume.
// The packages below it, csi and externalstorage, take the snapshots.
//
// The package does not freeze workloads: a Quiescer runs a request between freeze and
// thaw. plugins/snapshotter passes Velero's calls on to the packages below.
package location
