package cluster

import (
	"context"
	"path"
	"strings"

	"stillpoint.io/stillpoint/tests/cluster/bed"
)

// The components that tests may kill and start again.
const (
	APIServer          = bed.APIServer
	ControllerManager  = bed.ControllerManager
	Kubelet            = bed.Kubelet
	CSIDriver          = bed.CSIDriver
	CSISnapshotter     = bed.CSISnapshotter
	SnapshotController = bed.SnapshotController
	S3                 = bed.S3

	ExternalController  = bed.ExternalController
	ExternalProvisioner = bed.ExternalProvisioner
)

// Kill ends a component with SIGKILL and returns when it is gone. The test must
// Start it again, also when it fails: others share the cluster.
func (c *Cluster) Kill(ctx context.Context, name string) error {
	return c.bed.Processes.Kill(ctx, name)
}

// Start starts a killed component as it was started before, with what depends
// on it, and waits until the API server serves, if it is that. One that runs is
// left alone.
func (c *Cluster) Start(ctx context.Context, name string) error {
	if err := c.bed.StartComponent(ctx, name); err != nil {
		return err
	}
	return c.bed.WaitReady(ctx, name)
}

// The request limits of the snapshot controller and the CSI sidecar.
const (
	DefaultLimits = bed.DefaultLimits
	RaisedLimits  = bed.RaisedLimits
)

// SetLimits starts the snapshot controller and the CSI sidecar again with other
// request limits. The caller sets RaisedLimits again, also on failure: other tests
// share the cluster.
func (c *Cluster) SetLimits(ctx context.Context, limits bed.Limits) error {
	return c.bed.SetLimits(ctx, limits)
}

// PID is a component's process on the host, 0 when it does not run.
func (c *Cluster) PID(name string) int { return c.bed.Processes.PID(name) }

// PluginPIDs are the host's ids of the processes of our plugin in Velero's
// pods. There is one for each backup, restore or deletion that Velero has at
// work, so often there is none.
func (c *Cluster) PluginPIDs() []int {
	return c.bed.ContainerProcesses(func(args []string) bool {
		return strings.HasPrefix(args[0], "/plugins/") && strings.Contains(path.Base(args[0]), "stillpoint")
	})
}

// VeleroPIDs are the host's ids of the Velero server's processes.
func (c *Cluster) VeleroPIDs() []int {
	return c.bed.ContainerProcesses(func(args []string) bool {
		return len(args) > 1 && args[0] == "/velero" && args[1] == "server"
	})
}
