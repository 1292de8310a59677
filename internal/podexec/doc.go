// Package podexec runs commands in containers through the API server's exec streams,
// limits the output that is kept of them, and parses the outputs of Kanister phases in
// it. It knows nothing of hooks: the quiesce session, recovery and the blueprint
// functions call it.
package podexec
