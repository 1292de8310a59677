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

// Follower follows all VolumeSnapshots that Stillpoint creates for a backup, with one
// pair of watches.
type Follower struct {
	client versioned.Interface
	backup *velerov1.Backup

	mu           sync.Mutex
	open         bool
	lastReaction time.Time // when the snapshot controller last changed a content
	known        map[types.NamespacedName]State
	changed      chan struct{} // closed and replaced with each event
}

// State is the state of one snapshot.
type State struct {
	// Begun reports that the snapshot controller has created the content.
	Begun bool
	// Cut reports that the snapshot no longer changes.
	Cut bool
	// Bound is the VolumeSnapshot once it is bound to its content.
	Bound *snapshotv1.VolumeSnapshot
	// Failure is the driver's message. A cut may follow.
	Failure error
	// Refused is when a final failure was first seen, zero if none.
	Refused time.Time
}

// RefusalGrace is how long a final failure of the driver is tolerated. The CSI sidecar
// retries after 1 s and after 3 s.
const RefusalGrace = 5 * time.Second

// NewFollower returns a Follower. Watch starts it.
func NewFollower(client versioned.Interface, backup *velerov1.Backup) *Follower {
	return &Follower{client: client, backup: backup, known: map[types.NamespacedName]State{}, changed: make(chan struct{})}
}

// Watch opens the watches on the first call. They last as long as the process.
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
			s.record(event)
		}
	}()
	return nil
}

func (s *Follower) record(event Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if event.Kind != Created {
		s.lastReaction = time.Now()
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

// State returns the state of a snapshot, and a channel that is closed when it may
// differ.
func (s *Follower) State(key types.NamespacedName) (State, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[key], s.changed
}

// maxReaction is how long the snapshot controller may take to react to a new
// VolumeSnapshot or to a cut. It includes a change of leaders.
const maxReaction = 30 * time.Second

// Reaction returns how long to wait for a reaction of the snapshot controller if a cut
// may take up to a timeout.
func Reaction(timeout time.Duration) time.Duration { return min(maxReaction, timeout/4) }

// Silent returns an error if the snapshot controller has not changed any
// VolumeSnapshotContent of the cluster for limit since a moment.
func (s *Follower) Silent(since time.Time, limit time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastReaction.After(since) {
		since = s.lastReaction
	}
	if time.Since(since) < limit {
		return nil
	}
	return fmt.Errorf("the snapshot controller has not reacted for %s; is it installed and running (snapshot-controller of kubernetes-csi/external-snapshotter)?", limit.Round(100*time.Millisecond))
}

// Bound waits until a VolumeSnapshot, created at that time, is bound to its content. It
// ends early if the snapshot controller should react and is silent for limit, or if the
// driver has refused the snapshot for RefusalGrace or limit. If ctx ends before, the
// error has the driver's last message.
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
