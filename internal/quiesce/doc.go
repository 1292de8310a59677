// Package quiesce freezes a unit and thaws it again.
//
// A Planner renders the blueprints that the unit's annotations name into a Plan: all
// decisions, made before anything is touched. A Session carries a plan out: it arms a
// guard in a container for every command that thaws, freezes, holds and thaws. If the
// process dies, the guards thaw, and the journal has what no guard can do; package
// recovery completes that.
package quiesce
