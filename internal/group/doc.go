// Package group executes the decisions of the path Group: it takes the snapshots of
// all volumes of a unit at one moment, from before the first until the storage has
// cut the last of which the unit is frozen. Velero finds what its own action would
// have left. Package backup, which Velero calls, calls it.
package group
