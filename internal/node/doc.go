// Package node thaws file systems on their node with a short-lived privileged pod of
// Stillpoint's own image. It is the last resort, for a frozen file system that no
// container can thaw, and only runs if the configuration allows it. Packages quiesce and
// recovery call it; the subcommand thaw-volumes runs in the pod.
package node
