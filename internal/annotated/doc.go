// Package annotated finds the objects of a namespace, of any kind, that carry quiesce
// annotations, and their owner references. It reads metadata only, and lists each kind
// once for the whole cluster where it can. What the annotations mean is decided in
// package unit, which is its only caller.
package annotated
