// Package config reads the configuration: one versioned document in one
// ConfigMap of Velero's namespace. Anything in it that is unknown or invalid is an
// error that names the key, the value and what is valid; nothing falls through to a
// default. The package does not act on the configuration: each of its callers reads
// the part that concerns it.
package config
