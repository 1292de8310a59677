// Package upload follows the snapshots of a backup for the operations that Velero asks
// about. It reports the progress of a DataUpload and whether a storage snapshot is
// ready, and then deletes the snapshots that are no longer needed. It does not create
// DataUploads; package group does.
package upload
