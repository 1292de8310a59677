package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

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
	sign    time.Time // when the snapshot controller last showed that it runs
	known   map[types.NamespacedName]State
	changed chan struct{} // closed, and made anew, with each event
}

// State is how far the storage is with one snapshot.
type State struct {
	// Begun reports that the snapshot controller has made the content.
	Begun bool
	// Cut tells that its point in time is past.
	Cut bool
	// Bound is the VolumeSnapshot when it tells of its content.
	Bound *snapshotv1.VolumeSnapshot
	// Failure is the driver's message, and may be followed by a cut.
	Failure error
	// Refused is when a failure was first seen to be final, zero while none is.
	Refused time.Time
}

// RefusalGrace is how long a final failure of the driver is waited out, at the
// most: the CSI sidecar tries again after 1 s and after 3 s.
const RefusalGrace = 5 * time.Second

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
	if event.Kind != Created {
		s.sign = time.Now()
	}
	if event.Snapshot == "" { // another's content
		return
	}
	key := types.NamespacedName{Namespace: event.Namespace, Name: event.Snapshot}
	state := s.known[key]
	switch event.Kind {
	case Created:
	case Begun:
		state.Begun = true
	case Failed:
		state.Begun, state.Failure = true, errors.New(event.Message)
	case Refused:
		state.Begun, state.Failure, state.Refused = true, errors.New(event.Message), time.Now()
	case Cut:
		state = State{Begun: true, Cut: true, Bound: state.Bound}
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

// maxReaction is how long the snapshot controller may take at the most until it
// reacts to a new VolumeSnapshot, or to a cut. It includes the change of leaders.
const maxReaction = 30 * time.Second

// Reaction is how long to wait for a sign of the snapshot controller where a cut
// may take up to a timeout.
func Reaction(timeout time.Duration) time.Duration { return min(maxReaction, timeout/4) }

// Silent is an error when the snapshot controller has shown no sign of life, at any
// VolumeSnapshotContent of the cluster, for as long as limit after a moment.
func (s *Follower) Silent(since time.Time, limit time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sign.After(since) {
		since = s.sign
	}
	if time.Since(since) < limit {
		return nil
	}
	return fmt.Errorf("the snapshot controller has not reacted for %s; is it installed and running (snapshot-controller of kubernetes-csi/external-snapshotter)?", limit.Round(100*time.Millisecond))
}

// Bound waits until a VolumeSnapshot that was created at that time tells of its
// content. It ends early when the snapshot controller is silent for limit while it
// is its turn, or when the driver has refused the snapshot for RefusalGrace, or for
// limit. The driver's last error is the reason when ctx ends before.
func (s *Follower) Bound(ctx context.Context, key types.NamespacedName, created time.Time, limit time.Duration) (*snapshotv1.VolumeSnapshot, error) {
	for {
		state, changed := s.State(key)
		if state.Bound != nil {
			return state.Bound, nil
		}
		if !state.Refused.IsZero() && time.Since(state.Refused) >= min(RefusalGrace, limit) {
			return nil, fmt.Errorf("the driver says: %w", state.Failure)
		}
		if state.Failure == nil && (!state.Begun || state.Cut) {
			if err := s.Silent(created, limit); err != nil {
				return nil, err
			}
		}
		select {
		case <-changed:
		case <-time.After(max(limit/4, time.Millisecond)):
		case <-ctx.Done():
			if state.Failure != nil {
				return nil, fmt.Errorf("%w: the driver says: %w", context.Cause(ctx), state.Failure)
			}
			return nil, context.Cause(ctx)
		}
	}
}
