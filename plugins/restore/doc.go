// Package restore holds the actions that Velero calls during a restore. They convert
// Velero's types and limit the time of each call; package internal/restore decides.
package restore
