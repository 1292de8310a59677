package loopcsi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// deletionPoll is how soon a slow deletion sees that it is allowed.
const deletionPoll = 200 * time.Millisecond

// awaitDeletion takes the time that the deletion of a snapshot was ordered to
// take, and fails when it was ordered to. It holds no lock while it waits. The
// time counts from the first request: one that was given up and made again does
// not begin anew.
func (d *Driver) awaitDeletion(ctx context.Context, handle string) error {
	for {
		wait, err := d.tryDeletion(ctx, handle, time.Now())
		if err != nil || wait <= 0 {
			return err
		}
		if !pauseFor(ctx, min(wait, deletionPoll)) {
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// tryDeletion is how long a deletion must still wait. A failure that it was
// ordered is counted.
func (d *Driver) tryDeletion(ctx context.Context, handle string, now time.Time) (time.Duration, error) {
	id, _ := parseHandle(handle)
	unlock, err := d.locks.acquire(ctx, snapshots+id)
	if err != nil {
		return 0, err
	}
	defer unlock()
	s, err := d.snapshot(ctx, handle)
	if isMissing(err) || (err == nil && s.Deletion == nil) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	before := *s.Deletion
	wait, message := s.Deletion.try(now)
	if *s.Deletion != before {
		if err := d.updateSnapshot(ctx, s); err != nil {
			return 0, err
		}
	}
	if message != "" {
		return 0, status.Error(codes.Internal, message)
	}
	return wait, nil
}

// try is how long the deletion must still wait and, when it need not, with what
// message it fails, if it does. It counts both.
func (f *Deletion) try(now time.Time) (wait time.Duration, fail string) {
	if f.Asked.IsZero() && f.Delay > 0 {
		f.Asked = now
	}
	if wait = f.Asked.Add(f.Delay).Sub(now); f.Delay > 0 && wait > 0 {
		return wait, ""
	}
	fail = f.Fail
	if f.Times > 0 {
		if f.Times--; f.Times == 0 {
			f.Fail = ""
		}
	}
	return 0, fail
}

// AllowDelete takes back what was ordered for the deletion of a snapshot; one
// that is not there is no error.
func (d *Driver) AllowDelete(ctx context.Context, handle string) error {
	id, _ := parseHandle(handle)
	unlock, err := d.locks.acquire(ctx, snapshots+id)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := d.snapshot(ctx, handle)
	if isMissing(err) {
		return nil
	}
	if err == nil && s.Deletion != nil {
		s.Deletion = nil
		err = d.updateSnapshot(ctx, s)
	}
	if err != nil {
		return fmt.Errorf("allow the deletion of snapshot %s: %w", handle, err)
	}
	return nil
}

// updateSnapshot replaces what is known about a snapshot, here and, if it is
// there, in the bucket. The caller holds its lock.
func (d *Driver) updateSnapshot(ctx context.Context, s Snapshot) error {
	err := d.store.UpdateSnapshot(s)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if s.Export != nil && !s.Export.Uploaded.IsZero() {
		return d.writeExport(ctx, s)
	}
	return nil
}
