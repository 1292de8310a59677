// Command stillpoint is the plugin set. Velero starts it with the arguments of its own
// server and calls it over go-plugin. As the entrypoint of its image, it installs itself
// into Velero's plugin directory. Users call its commands, such as `stillpoint check`.
package main
