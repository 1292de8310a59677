// Package recovery completes the pending undo of processes that died: the abandoned entries
// of the journal. The plugin calls it at the start of a backup, and `stillpoint thaw` on
// demand. It repeats the commands of the post hooks and thaws file systems from any
// container that mounts them or on the node. Failed steps stay in the journal. A live
// session undoes its freeze itself, in package quiesce.
package recovery
