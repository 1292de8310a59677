package loopcsi

import (
	"context"
	"slices"
	"sync"

	"google.golang.org/grpc/status"
)

// locks lets one call at a time work on a volume or a snapshot. Calls for
// others go on meanwhile, however long it takes.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when it is let go
}

// acquire waits until all keys are free. They are taken in one order by
// everybody, so that nobody waits for somebody who waits for them.
func (l *locks) acquire(ctx context.Context, keys ...string) (release func(), err error) {
	slices.Sort(keys)
	keys = slices.Compact(keys)
	for i, key := range keys {
		if err := l.take(ctx, key); err != nil {
			l.release(keys[:i])
			return nil, err
		}
	}
	return func() { l.release(keys) }, nil
}

func (l *locks) take(ctx context.Context, key string) error {
	for {
		l.mu.Lock()
		busy, held := l.held[key]
		if !held {
			if l.held == nil {
				l.held = map[string]chan struct{}{}
			}
			l.held[key] = make(chan struct{})
			l.mu.Unlock()
			return nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (l *locks) release(keys []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range keys {
		close(l.held[key])
		delete(l.held, key)
	}
}
