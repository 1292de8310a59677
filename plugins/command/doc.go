// Package command is what Stillpoint's commands have in common on top of cobra:
// the root command, the help text, what is printed where, and the exit codes. The
// commands are in packages check, sweep and thaw.
package command
