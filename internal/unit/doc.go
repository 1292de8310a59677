// Package unit decides which claims and pods of a namespace are frozen together, and what
// the annotations of workloads, claims, namespaces and other objects request.
//
// Namespaces gathers the Facts of a namespace. All decisions are computed from them without
// further requests. The package renders no blueprint and runs no command: package quiesce
// plans the freeze of a Unit. The backup, the VolumeSnapshotLocation and `stillpoint check`
// use units.
package unit
