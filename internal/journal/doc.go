// Package journal records every pending undo in the cluster: what is quiesced now, by
// which backup, and which commands undo it. An entry is a Secret in Velero's namespace
// and outlives the process that froze, so that the next process, or a person, can
// complete the undo in its place. The quiesce session opens and closes entries, package
// recovery completes those of dead processes, and `stillpoint thaw` lists them.
package journal
