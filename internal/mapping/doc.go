// Package mapping decides with which driver and VolumeSnapshotClass a snapshot of a
// backup comes back in the cluster that it is restored to. It follows the maps
// restore.drivers and restore.snapshotClasses of the configuration, and leaves
// everything else as it is. Packages restore (for Velero's own snapshots) and
// location/csi (for those of a VolumeSnapshotLocation) call it and apply the result.
package mapping
