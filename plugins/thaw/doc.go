// Package thaw is the command `stillpoint thaw`, which lists the quiesced workloads and
// releases them. It also checks for abandoned freezes when the plugin starts. Package
// internal/recovery completes the pending undo operations.
package thaw
