package group

import (
	"context"
	"errors"
	"fmt"
	"sync"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/snapshot"
)

// snapshots follows all VolumeSnapshots of a backup that are Stillpoint's, with
// one pair of watches for the whole of it.
type snapshots struct {
	client versioned.Interface
	backup *velerov1.Backup

	mu      sync.Mutex
	open    bool
	known   map[types.NamespacedName]state
	changed chan struct{} // closed, and made anew, with each event
}

// state is how far the storage is with one snapshot.
type state struct {
	// cut tells that its point in time is past.
	cut bool
	// bound is the VolumeSnapshot when it tells of its content.
	bound *snapshotv1.VolumeSnapshot
	// failure is the driver's message, and may be followed by a cut.
	failure error
}

func newSnapshots(client versioned.Interface, backup *velerov1.Backup) *snapshots {
	return &snapshots{client: client, backup: backup, known: map[types.NamespacedName]state{}, changed: make(chan struct{})}
}

// watch opens the watches, once; they last as long as the process.
func (s *snapshots) watch(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open {
		return nil
	}
	events, err := snapshot.WatchAll(context.WithoutCancel(ctx), s.client, snapshot.OwnedBy(s.backup))
	if err != nil {
		return err
	}
	s.open = true
	go func() {
		for event := range events {
			s.note(event)
		}
	}()
	return nil
}

func (s *snapshots) note(event snapshot.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := types.NamespacedName{Namespace: event.Namespace, Name: event.Snapshot}
	state := s.known[key]
	switch event.Kind {
	case snapshot.Created:
	case snapshot.Failed:
		state.failure = errors.New(event.Message)
	case snapshot.Cut:
		state.cut, state.failure = true, nil
	case snapshot.Bound:
		state.bound = event.Object
	}
	s.known[key] = state
	close(s.changed)
	s.changed = make(chan struct{})
}

// state tells how far a snapshot is, and when to ask again.
func (s *snapshots) state(key types.NamespacedName) (state, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[key], s.changed
}

// bound waits until a VolumeSnapshot tells of its content. The driver's last
// error is the reason when ctx ends before.
func (s *snapshots) bound(ctx context.Context, key types.NamespacedName) (*snapshotv1.VolumeSnapshot, error) {
	for {
		state, changed := s.state(key)
		if state.bound != nil {
			return state.bound, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if state.failure != nil {
				return nil, fmt.Errorf("%w: the driver says: %w", context.Cause(ctx), state.failure)
			}
			return nil, context.Cause(ctx)
		}
	}
}
