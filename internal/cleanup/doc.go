// Package cleanup deletes the snapshots that backups and restores leave in the
// cluster: what is left after a process was killed, a backup was deleted, or an
// upload was lost. It deletes what certainly belongs to this installation, and
// lists the rest for a user to decide.
//
// What a deleted backup restores from is Velero's own to delete.
package cleanup
