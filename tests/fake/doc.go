// Package fake is a cluster in memory for tests that take milliseconds: an API
// server that all clients of the plugin connect to over HTTP, exec included, a CSI
// driver with the snapshot controller and its sidecar, containers that are real
// shells on this machine, and a Velero that calls the plugin's actions in its order.
// Everything keeps state and behaves as the sources of Kubernetes 1.34,
// external-snapshotter 8.2 and Velero 1.18 do. Tests speak of plugin interfaces, API
// objects and file systems, never of the plugin's packages.
//
//	bed := fake.New(t)
//	app := bed.Deploy(fake.App{Annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, Volumes: 2})
//	backup := bed.Backup(fake.WithPolicy)
//	result := bed.Velero().Backup(backup, app)
package fake
