// Package cluster makes the clients of the API server that all other packages work
// with, pages through lists, and remembers answers for a minute (Remembered). It
// decides nothing. Streams into containers are in package podexec.
package cluster
