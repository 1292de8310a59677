// Package command is the common part of Stillpoint's commands on top of cobra: the root
// command, the help text, the output streams, and the exit codes. Packages check, sweep
// and thaw hold the commands.
package command
