// Package thaw is the command `stillpoint thaw`: its flags and how it prints what is
// quiesced now. It also holds the check for abandoned freezes that the plugin makes
// when it starts. Package internal/quiesce does the undoing.
package thaw
