// Package decision decides what becomes of each claim in a backup, once, and
// returns the answer as a value: which path its snapshot takes, with which
// VolumeSnapshotClass and why, what is kept beside an export, what is frozen
// together with it, and what is refused or should be known.
//
// The three executors (packages group, around and location) carry a Decision out
// and decide nothing themselves; package check prints it. The rules of a decision
// read one configuration and one view of the cluster, and change nothing.
package decision
