package loopcsi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ListSnapshots lists the snapshots of the store and of the bucket in the order
// of their handles. A token is the last handle of the page before.
func (d *Driver) ListSnapshots(ctx context.Context, r *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	after := r.GetStartingToken()
	if id, _ := parseHandle(after); after != "" && !idForm.MatchString(id) {
		return nil, status.Errorf(codes.Aborted, "%q is no token of this driver", after)
	}
	if r.GetMaxEntries() < 0 {
		return nil, status.Errorf(codes.InvalidArgument, "at most %d entries", r.GetMaxEntries())
	}
	var found []Snapshot
	var err error
	if handle := r.GetSnapshotId(); handle != "" {
		found, err = d.oneSnapshot(ctx, handle)
	} else {
		found, err = d.snapshots(ctx)
	}
	if err != nil {
		return nil, asStatus(err)
	}
	response := &csi.ListSnapshotsResponse{}
	for _, s := range found {
		if s.handle() <= after || (r.GetSourceVolumeId() != "" && s.Volume != r.GetSourceVolumeId()) {
			continue
		}
		if most := int(r.GetMaxEntries()); most > 0 && len(response.Entries) == most {
			response.NextToken = response.Entries[most-1].GetSnapshot().GetSnapshotId()
			break
		}
		response.Entries = append(response.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: s.message()})
	}
	return response, nil
}

func (d *Driver) oneSnapshot(ctx context.Context, handle string) ([]Snapshot, error) {
	s, err := d.snapshot(ctx, handle)
	if isMissing(err) {
		return nil, nil
	}
	return []Snapshot{s}, err
}

// snapshots lists all snapshots in the order of their handles, those of the
// bucket included.
func (d *Driver) snapshots(ctx context.Context) ([]Snapshot, error) {
	all, err := d.store.Snapshots()
	if err != nil {
		return nil, err
	}
	if d.bucket != nil {
		ctx, cancel := context.WithTimeout(ctx, bucketLimit)
		defer cancel()
		keys, err := d.bucket.List(ctx)
		if err != nil {
			return nil, fmt.Errorf("list the snapshots of the bucket: %w", bucketError(err))
		}
		here := map[string]bool{}
		for _, s := range all {
			here[s.ID] = true
		}
		for _, key := range keys {
			id, isAbout := strings.CutSuffix(key, aboutKey)
			if !isAbout || here[id] {
				continue
			}
			s, err := d.exported(ctx, id)
			if isMissing(err) {
				continue // it has just gone
			}
			if err != nil {
				return nil, err
			}
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b Snapshot) int { return cmp.Compare(a.handle(), b.handle()) })
	return all, nil
}

// Stored is a snapshot as the storage has it.
type Stored struct {
	// ID is its handle.
	ID     string `json:"id"`
	Volume string `json:"volume"`
	// Size is how many bytes it takes locally; 0 when nothing of it is there.
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
	// Ready says whether a volume can be made from it.
	Ready bool `json:"ready"`
	// Remote says that it is a copy in the bucket, there or on its way.
	Remote bool `json:"remote"`
}

// Stored lists all snapshots in the order of their handles.
func (d *Driver) Stored(ctx context.Context) ([]Stored, error) {
	all, err := d.snapshots(ctx)
	if err != nil {
		return nil, err
	}
	stored := make([]Stored, 0, len(all))
	for _, s := range all {
		size, err := d.store.SizeOf(s.ID)
		if err != nil {
			return nil, err
		}
		stored = append(stored, Stored{
			ID: s.handle(), Volume: s.Volume, Size: size, Created: s.Created, Ready: s.ready(time.Now()), Remote: s.Export != nil,
		})
	}
	return stored, nil
}
