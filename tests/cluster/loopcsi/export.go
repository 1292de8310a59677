package loopcsi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Bucket keeps the exported snapshots.
type Bucket interface {
	// Put stores size bytes under a key, all of them or none.
	Put(ctx context.Context, key string, content io.Reader, size int64) error
	// Get reads what is stored under a key; ErrNotFound when nothing is.
	Get(ctx context.Context, key string) (io.ReadCloser, error)
	// Delete removes a key; one that is not there is no error.
	Delete(ctx context.Context, key string) error
	// List lists the keys.
	List(ctx context.Context) ([]string, error)
}

const (
	// toS3 is the value of the parameter export, and with a colon the beginning
	// of the handle of what is exported.
	toS3 = "s3"

	// A snapshot is two objects: its content, and then what is known about it.
	contentKey = ".tar.zst"
	aboutKey   = ".json"
)

// Times of the upload: between attempts, growing, and for one.
const (
	firstRetry  = 100 * time.Millisecond
	longestWait = 3 * time.Second
	bucketLimit = 30 * time.Second
)

// errBucket says that the bucket did not do what it was asked to.
var errBucket = errors.New("the bucket does not answer as it should")

func (s Snapshot) handle() string {
	if s.Export != nil {
		return toS3 + ":" + s.ID
	}
	return s.ID
}

func parseHandle(handle string) (id string, exported bool) {
	return strings.CutPrefix(handle, toS3+":")
}

// snapshot finds a snapshot by its handle, an exported one also when nothing of
// it is left in the store.
func (d *Driver) snapshot(ctx context.Context, handle string) (Snapshot, error) {
	id, exported := parseHandle(handle)
	s, err := d.store.Snapshot(id)
	switch {
	case err == nil && exported != (s.Export != nil):
		return Snapshot{}, fmt.Errorf("snapshot %s: %w: its handle is %s", handle, ErrNotFound, s.handle())
	case errors.Is(err, ErrNotFound) && exported && d.bucket != nil:
		return d.exported(ctx, id)
	default:
		return s, err
	}
}

// exported reads from the bucket what it knows about a snapshot.
func (d *Driver) exported(ctx context.Context, id string) (Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, bucketLimit)
	defer cancel()
	var s Snapshot
	content, err := d.bucket.Get(ctx, id+aboutKey)
	if err != nil {
		return s, fmt.Errorf("look for snapshot %s in the bucket: %w", id, bucketError(err))
	}
	defer func() { _ = content.Close() }()
	if err := json.NewDecoder(content).Decode(&s); err != nil {
		return s, fmt.Errorf("look at snapshot %s in the bucket: %w", id, bucketError(err))
	}
	return s, nil
}

func bucketError(err error) error {
	if errors.Is(err, ErrNotFound) {
		return err
	}
	return fmt.Errorf("%w: %w", errBucket, err)
}

// download puts the content of an exported snapshot into dir.
func (d *Driver) download(ctx context.Context, s Snapshot, dir string) error {
	content, err := d.bucket.Get(ctx, s.ID+contentKey)
	if err != nil {
		return fmt.Errorf("download snapshot %s: %w", s.ID, bucketError(err))
	}
	defer func() { _ = content.Close() }()
	if err := unpack(content, dir); err != nil {
		return fmt.Errorf("download snapshot %s: %w", s.ID, err)
	}
	return nil
}

func (d *Driver) deleteExport(ctx context.Context, id string) error {
	if d.bucket == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, bucketLimit)
	defer cancel()
	// What is known about it goes last: as long as it is there it can be deleted.
	for _, key := range []string{id + contentKey, id + aboutKey} {
		if err := d.bucket.Delete(ctx, key); err != nil {
			return fmt.Errorf("delete snapshot %s from the bucket: %w", id, bucketError(err))
		}
	}
	return nil
}

// upload puts one snapshot into the bucket.
func (d *Driver) upload(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, bucketLimit)
	defer cancel()
	s, err := d.store.Snapshot(id)
	if err != nil {
		return err
	}
	if err := d.uploadContent(ctx, s); err != nil {
		return err
	}

	unlock, err := d.locks.acquire(ctx, snapshots+id)
	if err != nil {
		return err
	}
	defer unlock()
	if s, err = d.store.Snapshot(id); err != nil { // what is known of its deletion may have changed
		return err
	}
	s.Export.Uploaded = time.Now()
	if err := d.writeExport(ctx, s); err != nil {
		return err
	}
	if err := d.store.UpdateSnapshot(s); err != nil || !s.Export.DeleteLocal {
		return err
	}
	return d.store.DropContent(id)
}

// writeExport writes into the bucket what is known about a snapshot.
func (d *Driver) writeExport(ctx context.Context, s Snapshot) error {
	known, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return d.bucket.Put(ctx, s.ID+aboutKey, bytes.NewReader(known), int64(len(known)))
}

func (d *Driver) uploadContent(ctx context.Context, s Snapshot) error {
	packed, err := os.CreateTemp(filepath.Join(d.store.dir, snapshots), unsettled)
	if err != nil {
		return err
	}
	defer func() {
		_ = packed.Close()
		_ = os.Remove(packed.Name())
	}()
	if err := pack(filepath.Join(d.store.dir, snapshots, s.ID), packed); err != nil {
		return err
	}
	size, err := packed.Seek(0, io.SeekCurrent)
	if err == nil {
		_, err = packed.Seek(0, io.SeekStart)
	}
	if err != nil {
		return err
	}
	return d.bucket.Put(ctx, s.ID+contentKey, packed, size)
}

// uploads are the uploads at work, by the snapshots' ids.
type uploads struct {
	mu     sync.Mutex
	atWork map[string]*running
	closed bool
}

type running struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// start has work done until it returns, or is stopped; the same work is not
// started twice.
func (u *uploads) start(id string, work func(context.Context)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed || u.atWork[id] != nil {
		return
	}
	if u.atWork == nil {
		u.atWork = map[string]*running{}
	}
	ctx, cancel := context.WithCancel(context.Background()) // it outlives the call that starts it
	r := &running{cancel: cancel, done: make(chan struct{})}
	u.atWork[id] = r
	go func() {
		defer close(r.done)
		work(ctx)
		cancel()
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.atWork, id)
	}()
}

// stop ends the upload of a snapshot and waits for that.
func (u *uploads) stop(id string) {
	u.mu.Lock()
	r := u.atWork[id]
	u.mu.Unlock()
	if r != nil {
		r.cancel()
		<-r.done
	}
}

// Close ends all uploads. Another start of the driver goes on with them.
func (d *Driver) Close() {
	d.uploads.mu.Lock()
	d.uploads.closed = true
	var ids []string
	for id := range d.uploads.atWork {
		ids = append(ids, id)
	}
	d.uploads.mu.Unlock()
	for _, id := range ids {
		d.uploads.stop(id)
	}
}

// ResumeUploads goes on with what an earlier run of this driver has not uploaded.
func (d *Driver) ResumeUploads() error {
	all, err := d.store.Snapshots()
	if err != nil {
		return fmt.Errorf("resume uploads: %w", err)
	}
	for _, s := range all {
		switch {
		case s.Export == nil || s.Export.Driver != d.name:
		case s.Export.DeleteLocal && !s.Export.Uploaded.IsZero():
			if err := d.store.DropContent(s.ID); err != nil { // it was cut off before
				return fmt.Errorf("resume uploads: %w", err)
			}
		case !s.Export.Uploaded.IsZero():
		case d.bucket == nil:
			d.log.Warn("a snapshot cannot be uploaded: there is no bucket", "snapshot", s.ID)
		default:
			d.startUpload(s.ID)
		}
	}
	return nil
}

// startUpload uploads a snapshot in the background, however often it must be
// tried, from the moment on that its class set.
func (d *Driver) startUpload(id string) {
	d.uploads.start(id, func(ctx context.Context) {
		s, err := d.store.Snapshot(id)
		if err != nil {
			d.log.Error("upload", "snapshot", id, "error", err)
			return
		}
		began := time.Now()
		for wait, pause := time.Until(s.Ready), firstRetry; pauseFor(ctx, wait); wait, pause = pause, min(2*pause, longestWait) {
			err := d.upload(ctx, id)
			if err == nil || errors.Is(err, ErrNotFound) {
				d.log.Info("upload ended", "snapshot", id, "took", time.Since(began), "error", err)
				return
			}
			d.log.Warn("upload", "snapshot", id, "error", err)
		}
	})
}

// pauseFor is false when the context ended before the pause was over.
func pauseFor(ctx context.Context, pause time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(pause):
		return true
	}
}
