package loopcsi

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Parameters of a StorageClass and of a VolumeSnapshotClass.
const (
	// paramDirectory, "true" or "false", makes volumes directories of the store.
	paramDirectory = "directory"
	// paramFail makes every snapshot fail with this message.
	paramFail = "fail"
	// paramDelay is a duration that passes before a snapshot is cut.
	paramDelay = "delay"
	// paramReadyAfter is a duration for which a snapshot, cut already, is not
	// ready to use: storage that uploads its snapshots is like that.
	paramReadyAfter = "readyAfter"
	// paramExport, "s3", makes the snapshot's copy in the bucket the snapshot.
	// It is ready when it is there; its upload begins when readyAfter is over.
	paramExport = "export"
	// paramDeleteLocal, "true" or "false", removes what was cut locally once it
	// is in the bucket; otherwise it goes with the snapshot.
	paramDeleteLocal = "delete-local"
	// paramFailDelete makes the deletion of the snapshot fail with this message,
	// paramFailDeleteTimes so many times and otherwise until it is allowed.
	paramFailDelete      = "failDelete"
	paramFailDeleteTimes = "failDeleteTimes"
	// paramDelayDelete is a duration that the deletion of the snapshot takes.
	paramDelayDelete = "delayDelete"

	// paramsOfSidecars is the prefix of what the sidecars add.
	paramsOfSidecars = "csi.storage.k8s.io/"
)

// minCapacity is the smallest volume, bytes: ext4 with a journal fits.
const minCapacity = 16 << 20

// ControllerGetCapabilities lists what the controller can do.
func (d *Driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	response := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
	} {
		response.Capabilities = append(response.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return response, nil
}

// ValidateVolumeCapabilities confirms what CreateVolume would accept.
func (d *Driver) ValidateVolumeCapabilities(_ context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	v, err := d.store.Volume(r.GetVolumeId())
	if err != nil {
		return nil, asStatus(err)
	}
	if _, err := usage(r.GetVolumeCapabilities(), v.Directory); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil //nolint:nilerr // the answer is the message
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: r.GetVolumeContext(), VolumeCapabilities: r.GetVolumeCapabilities(), Parameters: r.GetParameters(),
	}}, nil
}

// CreateVolume makes a volume, empty or from a snapshot or another volume. The
// same request again finds it; another one for the same name is an error.
func (d *Driver) CreateVolume(ctx context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if r.GetName() == "" {
		return nil, status.Error(codes.InvalidArgument, "a volume needs a name")
	}
	directory, err := storageClass(r.GetParameters())
	if err != nil {
		return nil, err
	}
	block, err := usage(r.GetVolumeCapabilities(), directory)
	if err != nil {
		return nil, err
	}

	want := Volume{ID: r.GetName(), Directory: directory, Block: block, Source: Source{
		Snapshot: r.GetVolumeContentSource().GetSnapshot().GetSnapshotId(),
		Volume:   r.GetVolumeContentSource().GetVolume().GetVolumeId(),
	}}
	unlock, err := d.locks.acquire(ctx, sourcesOf(want)...)
	if err != nil {
		return nil, err
	}
	defer unlock()
	have, err := d.store.Volume(want.ID)
	if err == nil {
		if err := sameVolume(have, want, r.GetCapacityRange()); err != nil {
			return nil, err
		}
		return created(have, r), nil
	}
	if !errors.Is(err, ErrNotFound) {
		return nil, asStatus(err)
	}

	least, content, err := d.source(ctx, want)
	if err != nil {
		return nil, err
	}
	if want.Capacity, err = d.capacity(r.GetCapacityRange(), least); err != nil {
		return nil, err
	}
	fill := func(image string) error { return makeFilesystem(ctx, image) }
	grow := func(image string) error { return growFilesystem(ctx, image) }
	if block {
		fill = func(string) error { return nil }
		grow = fill
	}
	err = d.store.CreateVolume(want, content, fill, grow)
	if err != nil {
		return nil, asStatus(err)
	}
	return created(want, r), nil
}

// DeleteVolume removes a volume; one that is not there is no error.
func (d *Driver) DeleteVolume(ctx context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "no volume id")
	}
	if device, err := findLoop(d.store.Image(r.GetVolumeId())); err == nil && device != "" {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is attached as %s", r.GetVolumeId(), device)
	}
	unlock, err := d.locks.acquire(ctx, volumes+r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := d.store.DeleteVolume(r.GetVolumeId()); err != nil {
		return nil, asStatus(err)
	}
	return &csi.DeleteVolumeResponse{}, nil
}

// CreateSnapshot cuts a snapshot of what the volume's device holds now.
func (d *Driver) CreateSnapshot(ctx context.Context, r *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if r.GetName() == "" || r.GetSourceVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "a snapshot needs a name and a volume")
	}
	class, err := snapshotClass(r.GetParameters())
	if err != nil {
		return nil, err
	}
	if class.export && d.bucket == nil {
		return nil, status.Errorf(codes.InvalidArgument, "parameter %s: the driver was started without a bucket", paramExport)
	}
	if have, err := d.haveSnapshot(r); have != nil || err != nil {
		return have, err
	}
	// The faults come before the lock, so that other volumes are not delayed.
	select {
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-time.After(class.delay):
	}
	if class.fail != "" {
		return nil, status.Error(codes.Internal, class.fail)
	}

	unlock, err := d.locks.acquire(ctx, snapshots+r.GetName(), volumes+r.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if have, err := d.haveSnapshot(r); have != nil || err != nil {
		return have, err
	}
	s := Snapshot{ID: r.GetName(), Volume: r.GetSourceVolumeId(), Deletion: class.deletion}
	if class.export {
		s.Export = &Export{Driver: d.name, DeleteLocal: class.deleteLocal}
	}
	s, err = d.store.CreateSnapshot(s, class.readyAfter)
	if err != nil {
		return nil, asStatus(err)
	}
	if s.Export != nil {
		d.startUpload(s.ID)
	}
	return cut(s), nil
}

// DeleteSnapshot removes a snapshot; one that is not there is no error.
func (d *Driver) DeleteSnapshot(ctx context.Context, r *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if r.GetSnapshotId() == "" {
		return nil, status.Error(codes.InvalidArgument, "no snapshot id")
	}
	if err := d.deleteSnapshot(ctx, r.GetSnapshotId()); err != nil {
		return nil, asStatus(err)
	}
	return &csi.DeleteSnapshotResponse{}, nil
}

func (d *Driver) deleteSnapshot(ctx context.Context, handle string) error {
	s, err := d.snapshot(ctx, handle)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.awaitDeletion(ctx, handle); err != nil {
		return err
	}
	if s.Export != nil {
		d.uploads.stop(s.ID)
	}
	unlock, err := d.locks.acquire(ctx, snapshots+s.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if s.Export != nil {
		if err := d.deleteExport(ctx, s.ID); err != nil {
			return err
		}
	}
	return d.store.DeleteSnapshot(s.ID)
}

// haveSnapshot answers a request that was made before; nil when it was not.
func (d *Driver) haveSnapshot(r *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	s, err := d.store.Snapshot(r.GetName())
	if errors.Is(err, ErrNotFound) {
		return nil, nil //nolint:nilnil // nothing found is a valid answer here
	}
	if err != nil {
		return nil, asStatus(err)
	}
	if s.Volume != r.GetSourceVolumeId() {
		return nil, status.Errorf(codes.AlreadyExists, "snapshot %s exists, of volume %s and not of %s", s.ID, s.Volume, r.GetSourceVolumeId())
	}
	return cut(s), nil
}

// sourcesOf are the locks of a volume that is to be made, and of its source.
func sourcesOf(v Volume) []string {
	keys := []string{volumes + v.ID}
	switch {
	case v.Source.Snapshot != "":
		id, _ := parseHandle(v.Source.Snapshot)
		keys = append(keys, snapshots+id)
	case v.Source.Volume != "":
		keys = append(keys, volumes+v.Source.Volume)
	}
	return keys
}

// source is how large a volume must be to hold its source, bytes, and what puts
// the source into it; nil where it has none. The source must exist and be of
// the same kind.
func (d *Driver) source(ctx context.Context, v Volume) (least int64, content func(dir string) error, err error) {
	var directory, block bool
	switch {
	case v.Source.Snapshot != "":
		s, err := d.snapshot(ctx, v.Source.Snapshot)
		if err != nil {
			return 0, nil, asStatus(err)
		}
		if !s.ready(time.Now()) {
			return 0, nil, status.Errorf(codes.Unavailable, "snapshot %s is not ready: it is being uploaded, or not until %s", v.Source.Snapshot, s.Ready.Format(time.RFC3339))
		}
		least, directory, block = s.Size, s.Directory, s.Block
		content = d.store.copyOf(snapshots, s.ID)
		if s.Export != nil && !d.store.HasContent(s.ID) {
			content = func(dir string) error { return d.download(ctx, s, dir) }
		}
	case v.Source.Volume != "":
		s, err := d.store.Volume(v.Source.Volume)
		if err != nil {
			return 0, nil, asStatus(err)
		}
		least, directory, block = s.Capacity, s.Directory, s.Block
		content = d.store.copyOf(volumes, s.ID)
	default:
		return minCapacity, nil, nil
	}
	// A block volume may be made from a file system, as a data mover does, but a
	// file system is not to be found on any block device.
	if directory != v.Directory || (block && !v.Block) {
		return 0, nil, status.Errorf(codes.InvalidArgument, "volume %s cannot come from %+v, which is of another kind", v.ID, v.Source)
	}
	return least, content, nil
}

// capacity picks the size of a volume that must hold at least least bytes.
func (d *Driver) capacity(r *csi.CapacityRange, least int64) (int64, error) {
	want, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	if want < 0 || limit < 0 || (limit > 0 && limit < want) {
		return 0, status.Errorf(codes.InvalidArgument, "no size is at least %d and at most %d bytes", want, limit)
	}
	want = max(want, least)
	if limit > 0 && want > limit {
		return 0, status.Errorf(codes.OutOfRange, "the volume needs %d bytes, the limit is %d", want, limit)
	}
	size, err := d.store.Size()
	if err != nil {
		return 0, asStatus(err)
	}
	if want > size {
		return 0, status.Errorf(codes.OutOfRange, "a volume of %d bytes is larger than the whole store of %d", want, size)
	}
	return want, nil
}

func sameVolume(have, want Volume, r *csi.CapacityRange) error {
	limit := r.GetLimitBytes()
	if have.Capacity < r.GetRequiredBytes() || (limit > 0 && have.Capacity > limit) {
		return status.Errorf(codes.AlreadyExists, "volume %s exists with %d bytes, which is not the size asked for", have.ID, have.Capacity)
	}
	if want.Capacity = have.Capacity; have != want {
		return status.Errorf(codes.AlreadyExists, "volume %s exists as %+v, asked for is %+v", have.ID, have, want)
	}
	return nil
}

// usage checks how a volume is to be used and says whether as a block device.
// Any access mode is fine: there is one node.
func usage(capabilities []*csi.VolumeCapability, directory bool) (block bool, err error) {
	if len(capabilities) == 0 {
		return false, status.Error(codes.InvalidArgument, "no volume capability")
	}
	for _, c := range capabilities {
		switch {
		case c.GetBlock() != nil && directory:
			return false, status.Error(codes.InvalidArgument, "a directory-backed volume is no block device")
		case c.GetBlock() != nil:
			block = true
		case c.GetMount() == nil:
			return false, status.Error(codes.InvalidArgument, "a volume is used as a block device or as a file system")
		case c.GetMount().GetFsType() != "" && c.GetMount().GetFsType() != "ext4":
			return false, status.Errorf(codes.InvalidArgument, "file system %q: there is only ext4", c.GetMount().GetFsType())
		}
	}
	return block, nil
}

func storageClass(parameters map[string]string) (directory bool, err error) {
	for key, value := range parameters {
		switch {
		case key == paramDirectory:
			if directory, err = strconv.ParseBool(value); err != nil {
				return false, status.Errorf(codes.InvalidArgument, "parameter %s: %q is neither true nor false", key, value)
			}
		case !strings.HasPrefix(key, paramsOfSidecars):
			return false, status.Errorf(codes.InvalidArgument, "parameter %s is unknown; there is %s", key, paramDirectory)
		}
	}
	return directory, nil
}

// orders is what a VolumeSnapshotClass orders.
type orders struct {
	fail                string
	delay, readyAfter   time.Duration
	export, deleteLocal bool
	deletion            *Deletion // nil when it is to be as fast as it can
}

var snapshotParameters = []string{
	paramFail, paramDelay, paramReadyAfter, paramExport, paramDeleteLocal, paramFailDelete, paramFailDeleteTimes, paramDelayDelete,
}

func snapshotClass(parameters map[string]string) (orders, error) {
	var f orders
	var deletion Deletion
	for key, value := range parameters {
		var err error
		switch {
		case key == paramFail:
			f.fail = value
		case key == paramDelay:
			f.delay, err = time.ParseDuration(value)
		case key == paramReadyAfter:
			f.readyAfter, err = time.ParseDuration(value)
		case key == paramExport:
			if f.export = value == toS3; !f.export {
				err = fmt.Errorf("%q; there is %q", value, toS3)
			}
		case key == paramDeleteLocal:
			f.deleteLocal, err = strconv.ParseBool(value)
		case key == paramFailDelete:
			deletion.Fail = value
		case key == paramFailDeleteTimes:
			if deletion.Times, err = strconv.Atoi(value); err == nil && deletion.Times < 1 {
				err = fmt.Errorf("%d is not at least 1", deletion.Times)
			}
		case key == paramDelayDelete:
			deletion.Delay, err = time.ParseDuration(value)
		case !strings.HasPrefix(key, paramsOfSidecars):
			err = fmt.Errorf("unknown; there are %s", strings.Join(snapshotParameters, ", "))
		}
		if err != nil {
			return f, status.Errorf(codes.InvalidArgument, "parameter %s: %v", key, err)
		}
	}
	if f.deleteLocal && !f.export {
		return f, status.Errorf(codes.InvalidArgument, "parameter %s: only with %s", paramDeleteLocal, paramExport)
	}
	if deletion.Times > 0 && deletion.Fail == "" {
		return f, status.Errorf(codes.InvalidArgument, "parameter %s: only with %s", paramFailDeleteTimes, paramFailDelete)
	}
	if deletion != (Deletion{}) {
		f.deletion = &deletion
	}
	return f, nil
}

func created(v Volume, r *csi.CreateVolumeRequest) *csi.CreateVolumeResponse {
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: v.ID, CapacityBytes: v.Capacity, ContentSource: r.GetVolumeContentSource(),
	}}
}

func cut(s Snapshot) *csi.CreateSnapshotResponse {
	return &csi.CreateSnapshotResponse{Snapshot: s.message()}
}

func (s Snapshot) message() *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId: s.handle(), SourceVolumeId: s.Volume, SizeBytes: s.Size,
		CreationTime: timestamppb.New(s.Created), ReadyToUse: s.ready(time.Now()),
	}
}

// makeFilesystem writes all of an ext4 at once: what mkfs would leave for later
// would be written in the background, into somebody's measurement.
func makeFilesystem(ctx context.Context, image string) error {
	return run(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
}

// growFilesystem makes an ext4 as large as its image. It is done before any
// mount: a mounted one may be grown only with a capability that a container
// often lacks. The check replays the journal of a file system that was in use
// when its snapshot was cut, and resize2fs insists on it.
func growFilesystem(ctx context.Context, image string) error {
	const corrected = 1 // e2fsck's exit code for errors that are no longer there
	var exit *exec.ExitError
	if err := run(ctx, "e2fsck", "-f", "-p", image); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != corrected) {
		return err
	}
	return run(ctx, "resize2fs", image)
}

func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func asStatus(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	switch {
	case errors.Is(err, ErrNotFound):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, errBucket):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	case errors.Is(err, ErrBadID):
		return status.Error(codes.InvalidArgument, err.Error())
	default:
		return status.Error(codes.Internal, err.Error())
	}
}
