// Package selection decides which path takes the snapshot of a volume in a backup, by the
// backup's filters, Velero's volume policies and VolumeSnapshotLocations. It returns the
// reason if no path does. It uses Velero's own code where possible. Package decision and
// the VolumeSnapshotLocation call it.
package selection
