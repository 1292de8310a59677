// Package loopcsi is the CSI driver of the test bed. A volume is an ext4 image
// in a store on XFS, attached through a loop device; a snapshot is a reflink
// copy of the image, which takes milliseconds and holds exactly what the block
// device held at one moment: what an application had not yet written to it is
// missing, as with any real storage system, so a test can tell a quiesced
// volume from a running one.
//
// On request a volume is a plain directory of the store instead, as drivers for
// hostPath and NFS have it. A VolumeSnapshotClass can order faults, and that its
// snapshots go to a bucket, as LINSTOR and Longhorn can have it: the copy there
// is then the snapshot, and a volume can be made from it on any cluster.
package loopcsi

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Name is the driver's name in the Kubernetes API where it is given no other.
const Name = "loop.csi.stillpoint.io"

// Driver serves the three CSI services for one node.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer

	name, node string

	store   *Store
	bucket  Bucket // nil where there is none
	log     *slog.Logger
	locks   locks
	uploads uploads
	// mounting lets one stage, publish or their reverse run at a time: each
	// looks at what is mounted and then acts on it.
	mounting sync.Mutex
}

// NewDriver serves the volumes of a store on the named node, as the driver of
// this name. Drivers of several names may serve one store.
// Without a bucket, which is nil then, it exports nothing.
func NewDriver(name, node string, store *Store, bucket Bucket, log *slog.Logger) *Driver {
	return &Driver{name: name, node: node, store: store, bucket: bucket, log: log}
}

// Register adds the driver's services to a server.
func (d *Driver) Register(s grpc.ServiceRegistrar) {
	csi.RegisterIdentityServer(s, d)
	csi.RegisterControllerServer(s, d)
	csi.RegisterNodeServer(s, d)
	s.RegisterService(&adminDescription, d)
}

// LogCalls is an interceptor that logs each call with its duration and error.
func (d *Driver) LogCalls(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	began := time.Now()
	response, err := handle(ctx, request)
	if !strings.HasSuffix(info.FullMethod, "/Probe") {
		d.log.Info(info.FullMethod, "request", request, "took", time.Since(began), "error", err)
	}
	return response, err
}

// GetPluginInfo names the driver.
func (d *Driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.name, VendorVersion: "1"}, nil
}

// GetPluginCapabilities says that there is a controller service.
func (d *Driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{{
		Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}},
	}}}, nil
}

// Probe always answers that the driver is ready.
func (d *Driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}
