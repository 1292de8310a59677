// Package velero holds everything that Stillpoint knows about the inside of
// Velero: behaviour that Velero does not export and that the plugins must match,
// such as which objects a backup includes, which defaults the server applies and
// what a DataUpload contains. Where Velero exports a function that can be called
// without a server, this package calls it.
//
// The package reads no Stillpoint configuration and makes no decision. The rooms
// above it (selection, group, around, location, check, restore) ask it what Velero
// would do.
package velero
