package loopcsi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"stillpoint.io/stillpoint/tests/cluster/freeze"
)

// NodeGetInfo names the node.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node}, nil
}

// NodeGetCapabilities says that volumes are staged.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{Capabilities: []*csi.NodeServiceCapability{{
		Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME}},
	}}}, nil
}

// NodeStageVolume attaches a volume and, unless it is used as a block device,
// mounts it.
func (d *Driver) NodeStageVolume(ctx context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if r.GetStagingTargetPath() == "" || r.GetVolumeCapability() == nil {
		return nil, status.Error(codes.InvalidArgument, "no staging path or no volume capability")
	}
	v, err := d.store.Volume(r.GetVolumeId())
	if err != nil {
		return nil, asStatus(err)
	}
	d.mounting.Lock()
	defer d.mounting.Unlock()
	if r.GetVolumeCapability().GetBlock() != nil {
		err = d.stageBlock(v)
	} else {
		err = d.stageMount(ctx, v, r.GetStagingTargetPath(), r.GetVolumeCapability().GetMount().GetMountFlags())
	}
	if err != nil {
		return nil, asStatus(fmt.Errorf("stage volume %s: %w", v.ID, err))
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

func (d *Driver) stageBlock(v Volume) error {
	device, err := findLoop(d.store.Image(v.ID))
	if err != nil || device != "" {
		return err
	}
	f, err := attachLoop(d.store.Image(v.ID), false)
	if err != nil {
		return err
	}
	return f.Close()
}

func (d *Driver) stageMount(ctx context.Context, v Volume, at string, options []string) error {
	mounted, err := isMounted(at)
	if err != nil || mounted {
		return err
	}
	if err := os.MkdirAll(at, 0o750); err != nil {
		return err
	}
	if v.Directory {
		return bind(d.store.Tree(v.ID), at)
	}
	device, err := attachLoop(d.store.Image(v.ID), true)
	if err != nil {
		return err
	}
	defer device.Close()
	args := []string{"-t", "ext4"}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	return run(ctx, "mount", append(args, device.Name(), at)...)
}

// NodeUnstageVolume undoes NodeStageVolume.
func (d *Driver) NodeUnstageVolume(_ context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetStagingTargetPath() == "" {
		return nil, status.Error(codes.InvalidArgument, "no volume id or no staging path")
	}
	d.mounting.Lock()
	defer d.mounting.Unlock()
	if err := d.unmount(r.GetStagingTargetPath()); err != nil {
		return nil, asStatus(fmt.Errorf("unstage volume %s: %w", r.GetVolumeId(), err))
	}
	// What is left attached was a block device.
	device, err := findLoop(d.store.Image(r.GetVolumeId()))
	if err == nil && device != "" {
		err = detachLoop(device)
	}
	if err != nil {
		return nil, asStatus(fmt.Errorf("unstage volume %s: %w", r.GetVolumeId(), err))
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume shows a staged volume to one pod.
func (d *Driver) NodePublishVolume(_ context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if r.GetTargetPath() == "" || r.GetVolumeCapability() == nil {
		return nil, status.Error(codes.InvalidArgument, "no target path or no volume capability")
	}
	v, err := d.store.Volume(r.GetVolumeId())
	if err != nil {
		return nil, asStatus(err)
	}
	d.mounting.Lock()
	defer d.mounting.Unlock()
	if r.GetVolumeCapability().GetBlock() != nil {
		err = d.publishBlock(v, r.GetTargetPath())
	} else {
		err = publishMount(r.GetStagingTargetPath(), r.GetTargetPath(), r.GetReadonly())
	}
	if err != nil {
		return nil, asStatus(fmt.Errorf("publish volume %s: %w", v.ID, err))
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (d *Driver) publishBlock(v Volume, at string) error {
	mounted, err := isMounted(at)
	if err != nil || mounted {
		return err
	}
	device, err := findLoop(d.store.Image(v.ID))
	if err != nil {
		return err
	}
	if device == "" {
		return status.Errorf(codes.FailedPrecondition, "volume %s is not staged", v.ID)
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o750); err != nil {
		return err
	}
	if err := os.WriteFile(at, nil, 0o600); err != nil { // a device node is bound to a file
		return err
	}
	return bind(device, at)
}

func publishMount(staged, at string, readOnly bool) error {
	mounted, err := isMounted(at)
	if err != nil || mounted {
		return err
	}
	if staged, err := isMounted(staged); err != nil || !staged {
		return errors.Join(err, status.Error(codes.FailedPrecondition, "it is not staged"))
	}
	if err := os.MkdirAll(at, 0o750); err != nil {
		return err
	}
	if err := bind(staged, at); err != nil {
		return err
	}
	if !readOnly {
		return nil
	}
	if err := unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return errors.Join(fmt.Errorf("make %s read-only: %w", at, err), unix.Unmount(at, 0))
	}
	return nil
}

// NodeUnpublishVolume undoes NodePublishVolume.
func (d *Driver) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetTargetPath() == "" {
		return nil, status.Error(codes.InvalidArgument, "no volume id or no target path")
	}
	d.mounting.Lock()
	defer d.mounting.Unlock()
	mounted, err := isMounted(r.GetTargetPath())
	if err == nil && mounted {
		err = unix.Unmount(r.GetTargetPath(), 0)
	}
	if err == nil {
		if err = os.Remove(r.GetTargetPath()); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return nil, asStatus(fmt.Errorf("unpublish volume %s at %s: %w", r.GetVolumeId(), r.GetTargetPath(), err))
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// unmount takes a staged file system down. A frozen one would live on without
// a mount through which it could be thawed, so it is thawed before.
func (d *Driver) unmount(at string) error {
	mounted, err := isMounted(at)
	if err != nil || !mounted {
		return err
	}
	own, err := ownFilesystem(at)
	if err != nil {
		return err
	}
	if own {
		frozen, err := freeze.Thaw(at)
		if err != nil {
			return err
		}
		if frozen {
			d.log.Warn("thawed a volume that was to be unmounted", "path", at)
		}
	}
	if err := unix.Unmount(at, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", at, err)
	}
	return nil
}

// ownFilesystem is false for a directory of the store that is bound to at.
func ownFilesystem(at string) (bool, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(at))
	if err != nil || len(mounts) == 0 {
		return false, err
	}
	return mounts[0].Root == "/", nil
}

func isMounted(at string) (bool, error) {
	mounted, err := mountinfo.Mounted(at)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return mounted, err
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}
