// Package render makes steps of a blueprint's hooks: it evaluates the templates of
// each phase, as Kanister does, and gives the result to the phase's function, which
// returns commands in containers or a task.
//
// Templates run in a child process (the subcommand render-templates), because
// nothing inside a process can limit their memory and time. The package holds
// namespaces and objects against the blueprint's confinement, keeps secret values
// for masking, and postpones a phase that uses an output that is not known yet.
// It reads Secrets and ConfigMaps and changes nothing in the cluster.
//
// Package function supplies Kanister's functions and package quiesce its own. Package
// quiesce renders a script when it plans, and its later phases while it runs.
package render
