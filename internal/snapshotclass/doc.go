// Package snapshotclass chooses the VolumeSnapshotClass of a snapshot and returns the
// reason. It is an ordered chain of pure rules: the first rule that applies decides, and
// an invalid value is an error that ends the chain. It sends no request. Packages decision
// and restore call it.
package snapshotclass
