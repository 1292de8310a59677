// Package recovery completes the pending undo of processes that died: the journal's
// entries which no process holds any more. The plugin calls it at the start of a backup,
// `stillpoint thaw` on demand. It repeats the commands of the post hooks, thaws file
// systems from any container that mounts them or on the node, and leaves in the journal
// what fails. A session that lives undoes its freeze by itself, in package quiesce.
package recovery
