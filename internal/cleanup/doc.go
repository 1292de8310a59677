// Package cleanup deletes the snapshots that backups and restores leave in the cluster
// after a process was killed, a backup was deleted, or an upload was lost. It works in
// three steps:
//
//   - gather reads snapshots, contents, backups, restores, uploads and claims once
//     (gather.go; gatherDeleted for a single backup)
//   - judge decides from these facts alone what becomes of each object, and why: Delete,
//     DeleteObjectsOnly, List for a user to decide, or Keep (judge.go, kept.go,
//     unclaimed.go, upload.go). LifetimeOf decides whether a backup is over
//   - act deletes in parallel, judges each object once more before its deletion,
//     respects a user's veto, and waits for the storage's confirmation (act.go, by Remove of
//     package snapshot)
//
// The command `stillpoint sweep`, the start of each backup and the deletion of a backup
// use all three steps. Packages upload and group use only the judgement, and delete with
// package snapshot, as operations of a backup that Velero asks about. Velero itself
// deletes the snapshots that a deleted backup restores from.
//
// Three deletions are in other packages. Package restore deletes the objects of one
// claim while its restore is open. It judges by the claim's pods, node and events, which
// no other clean-up needs. Package location/csi deletes a snapshot by the ID in a
// backup, with or without objects in this cluster. Package location/externalstorage
// deletes objects of an API that has neither a policy nor a confirmation of the driver.
// It uses LifetimeOf, too.
package cleanup
