// Package podexec runs commands in containers through the API server's exec streams, limits
// their output and parses the outputs of Kanister phases in it. It does not depend on
// hooks: the quiesce session, recovery and the blueprint functions call it.
package podexec
