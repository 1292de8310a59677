// Package quiesce freezes a unit and thaws it again.
//
// A Planner renders the blueprints that the unit's annotations name into a Plan. Planning
// changes nothing. A Session executes the plan: it arms a guard for every post command,
// freezes, and thaws. If the process dies, the guards thaw. Clean-up that a guard cannot
// do is recorded in the journal, and package recovery completes it.
package quiesce
