package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Follower follows all VolumeSnapshots of a backup that are Stillpoint's, with
// one pair of watches for the whole of it.
type Follower struct {
	client versioned.Interface
	backup *velerov1.Backup

	mu      sync.Mutex
	open    bool
	known   map[types.NamespacedName]State
	changed chan struct{} // closed, and made anew, with each event
}

// State is how far the storage is with one snapshot.
type State struct {
	// Cut tells that its point in time is past.
	Cut bool
	// Bound is the VolumeSnapshot when it tells of its content.
	Bound *snapshotv1.VolumeSnapshot
	// Failure is the driver's message, and may be followed by a cut.
	Failure error
}

// NewFollower returns a Follower, which sees nothing before Watch.
func NewFollower(client versioned.Interface, backup *velerov1.Backup) *Follower {
	return &Follower{client: client, backup: backup, known: map[types.NamespacedName]State{}, changed: make(chan struct{})}
}

// Watch opens the watches, once; they last as long as the process.
func (s *Follower) Watch(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open {
		return nil
	}
	events, err := WatchAll(context.WithoutCancel(ctx), s.client, OwnedBy(s.backup))
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

func (s *Follower) note(event Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := types.NamespacedName{Namespace: event.Namespace, Name: event.Snapshot}
	state := s.known[key]
	switch event.Kind {
	case Created:
	case Failed:
		state.Failure = errors.New(event.Message)
	case Cut:
		state.Cut, state.Failure = true, nil
	case Bound:
		state.Bound = event.Object
	}
	s.known[key] = state
	close(s.changed)
	s.changed = make(chan struct{})
}

// State tells how far a snapshot is, and when to ask again.
func (s *Follower) State(key types.NamespacedName) (State, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[key], s.changed
}

// Bound waits until a VolumeSnapshot tells of its content. The driver's last
// error is the reason when ctx ends before.
func (s *Follower) Bound(ctx context.Context, key types.NamespacedName) (*snapshotv1.VolumeSnapshot, error) {
	for {
		state, changed := s.State(key)
		if state.Bound != nil {
			return state.Bound, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if state.Failure != nil {
				return nil, fmt.Errorf("%w: the driver says: %w", context.Cause(ctx), state.Failure)
			}
			return nil, context.Cause(ctx)
		}
	}
}
