// Package upload follows a backup's snapshots to where their data ends up, for
// the operations that Velero asks about: how far a DataUpload is, whether the
// storage's own snapshot is ready, and what becomes of the snapshots then. It
// creates no DataUpload; package group does.
package upload
