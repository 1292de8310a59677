// Package annotated finds the objects of a namespace, of any kind, that have quiesce
// annotations, and their owner references. It reads metadata only, and lists each kind once
// for the whole cluster if possible. Package unit, its only caller, interprets the
// annotations.
package annotated
