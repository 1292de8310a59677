// Package group executes the decisions of the path Group. It freezes a unit, takes the
// snapshots of all its volumes at once, and thaws the unit when the storage has cut the
// last one. Velero finds the results that its own action would have left. plugins/backup
// calls it.
package group
