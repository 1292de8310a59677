// Package externalstorage takes snapshots through the snapshot API before CSI, group
// volumesnapshot.external-storage.k8s.io, which OpenEBS and others served. It moves each
// snapshot from the application's namespace to Velero's, since a backup must outlive
// the former, and deletes the storage's data with the backup.
//
// plugins/snapshotter passes Velero's calls on to it, and the sweep asks it for
// leftovers. Quiescing belongs to the Quiescer that New is given.
package externalstorage
