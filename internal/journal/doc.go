// Package journal records every pending undo in the cluster: what is quiesced, by which
// backup, and which commands undo it. An entry is a Secret in Velero's namespace. It
// outlives the process that froze, so that another process, or a user, can complete the
// undo. The quiesce session opens and closes entries, package recovery completes those of
// dead processes, and `stillpoint thaw` lists them.
package journal
