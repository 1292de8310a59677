// Package restore holds the actions that Velero calls while it restores. They convert
// Velero's types and bound each call; package internal/restore decides.
package restore
