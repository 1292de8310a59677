// Package function has the Kanister functions that hooks may call: those that run
// commands in existing containers (KubeExec, KubeExecAll), and those that act through
// the API server (KubeOps, KubeTask, MultiContainerRun, ScaleWorkload, Wait, WaitV2),
// which it also runs.
//
// Package render calls it to make steps. Package quiesce runs the commands, and calls
// Tasks to run a task. The functions that are Stillpoint's own (FreezeFileSystems,
// RunInPods and others) are in package quiesce.
package function
