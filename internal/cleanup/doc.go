// Package cleanup deletes the snapshots that backups and restores leave in the
// cluster: what is left after a process was killed, a backup was deleted, or an
// upload was lost. It works in three steps:
//
//   - gather reads snapshots, contents, backups, restores, uploads and claims once
//     (gather.go; ofDeleted for a single backup)
//   - judge decides from these facts alone what becomes of each object, with a
//     reason: Delete, DeleteObjectsOnly, List for a user to decide, or Keep (judge.go,
//     kept.go, unclaimed.go, upload.go). LifetimeOf decides whether a backup is over
//   - act deletes side by side, judges each object once more before, respects a
//     user's veto and waits for the storage's confirmation (act.go, by Remove of
//     package snapshot)
//
// The command `stillpoint sweep`, the begin of each backup and the deletion of backups
// call all three. Packages upload and group ask for a judgement only, and delete with
// package snapshot, as the operations of one backup that Velero asks about. What a
// deleted backup restores from is Velero's own to delete.
//
// Three deletions stay elsewhere. Package restore deletes the objects of one claim
// while its restore is open: it judges by the claim's pods, node and events, which
// nothing else needs. Package location/csi deletes a snapshot by the id in a backup,
// with or without objects in this cluster. Package location/externalstorage deletes
// objects of an API that has neither a policy nor a confirmation of the driver; it
// asks LifetimeOf as all others do.
package cleanup
