package bed

import (
	"context"
	"fmt"
	"time"
)

// pollInterval is for looking again at what cannot be watched.
const pollInterval = 100 * time.Millisecond

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// waitFor tries until there is no error. When limit is over it returns the
// last one.
func waitFor(ctx context.Context, what string, limit time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if sleep(ctx, pollInterval) != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
	}
}
