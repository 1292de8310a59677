// Package csi takes snapshots of CSI volumes through a VolumeSnapshotLocation, for
// Velero servers without the EnableCSI feature. Velero stores the driver and the handle
// of each snapshot. VolumeSnapshots and their contents exist only while a snapshot is
// taken, restored from or deleted, so that neither the deletion of a namespace nor the
// loss of the cluster affects the backup.
//
// plugins/snapshotter passes Velero's calls on to Snapshotter. Package upload follows
// the snapshots. Quiescing belongs to the Quiescer that New is given.
package csi
