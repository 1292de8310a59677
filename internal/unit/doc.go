// Package unit decides which claims and pods of a namespace are frozen together, and
// what the annotations of workloads, claims, namespaces and other objects ask for.
//
// Namespaces gathers the Facts of a namespace; everything else is computed from these
// without further requests. The package renders no blueprint and runs no command: that
// is package quiesce, which plans the freeze of a Unit. The backup, the VolumeSnapshotLocation
// and `stillpoint check` ask for units.
package unit
