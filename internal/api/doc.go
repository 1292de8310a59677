// Package api holds the annotations and labels of Stillpoint. Each says who sets
// it, when, and who clears it. Stillpoint has no finalizers of its own.
//
// The package holds names only. What an annotation means, and which values are
// valid, is decided by the package that reads it. Every other package may import
// this one; it imports none.
//
// The names are an interface that users and stored backups depend on: do not
// change them.
package api
