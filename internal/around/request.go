package around

import (
	"context"
	"errors"
	"fmt"

	"stillpoint.io/stillpoint/internal/decision"
	"stillpoint.io/stillpoint/internal/location"
	"stillpoint.io/stillpoint/internal/unit"
)

// Around freezes the unit of the request's volume, unless an earlier request has, and
// thaws it when its last volume is snapshotted. Velero calls VolumeSnapshotters for one
// volume after another.
func (b *Freezes) Around(ctx context.Context, request location.Request) error {
	decisions := b.decisions.For(request.Backup)
	d, err := decisions.Requested(ctx, request.Claim, nil)
	var unit *decision.Unit
	if err == nil {
		unit, err = decisions.Unit(ctx, d)
	}
	if err != nil {
		return errors.Join(request.Failed, err)
	}
	f := b.known(request.Claim, request.Backup)
	switch {
	case request.Failed != nil && f != nil && f.session != nil:
		f.session.Abandon(ctx, fmt.Errorf("the snapshot of volume %s cannot be taken: %w", request.Claim.Name, request.Failed))
		<-f.over
		return request.Failed
	case request.Failed != nil:
		return request.Failed
	case unit.Quiesced():
		if f, err = b.freezeOf(ctx, d, request.Backup); err != nil {
			return err
		}
		return f.takeRequested(ctx, request)
	}
	return take(ctx, unit, request)
}

// take takes a snapshot without a freeze. It returns an error if such a snapshot would
// be unusable.
func take(ctx context.Context, unit *decision.Unit, request location.Request) error {
	if err := unit.Unquiesced(request.Claim.Name); err != nil {
		return err
	}
	return request.Take(ctx, 0)
}

// takeRequested freezes on the first request. Later requests join the freeze.
func (f *freeze) takeRequested(ctx context.Context, request location.Request) error {
	claim := request.Claim.Name
	f.once(ctx, func() error { return f.beginRequested(ctx, request) })
	if f.failed != nil {
		if f.group.OnError == unit.Continue && f.unit.Unquiesced(claim) == nil {
			return request.Take(ctx, 0)
		}
		return fmt.Errorf("quiesce failed, so claim %s/%s is not snapshotted: %w", f.group.Claims[0].Namespace, claim, f.failed)
	}
	if f.session == nil { // the plan is empty
		return take(ctx, f.unit, request)
	}
	f.move(claim, created)
	if broken := f.broken(); broken != nil { // thawed before this volume's turn
		if f.group.OnError != unit.Continue {
			return fmt.Errorf("claim %s/%s is not snapshotted: %w", f.group.Claims[0].Namespace, claim, broken)
		}
		return request.Take(ctx, 0)
	}
	if err := request.Take(ctx, retryGrace); err != nil {
		f.session.Abandon(ctx, fmt.Errorf("the snapshot of volume %s failed: %w", claim, err))
		<-f.over
		return err
	}
	f.move(claim, cut)
	f.await(claim)
	if broken := f.broken(); broken != nil && f.group.OnError != unit.Continue {
		return fmt.Errorf("claim %s/%s: %w: %s: %w", f.group.Claims[0].Namespace, claim, location.ErrInconsistent, f.group.Name(), broken)
	}
	return nil
}

// broken returns why a freeze that has ended did not last. It returns nil while the
// freeze lasts.
func (f *freeze) broken() error {
	select {
	case <-f.over:
		return f.session.Report().Broken
	default:
		return nil
	}
}

// beginRequested is begin for a request. There is no poll of Velero to outlast.
func (f *freeze) beginRequested(ctx context.Context, request location.Request) error {
	planner, plan, err := f.plan(ctx)
	if err != nil || plan.Empty() {
		return err
	}
	if request.Taken != nil {
		earlier, err := request.Taken(ctx, f.group.Claims)
		if err != nil {
			return err
		}
		if earlier != "" {
			return fmt.Errorf("the plugin process ended while the workload was quiesced: %s was taken, the other volumes would be of another moment", earlier)
		}
	}
	if err := f.freeze(ctx, planner, plan); err != nil {
		return err
	}
	go f.keepFrozen(context.WithoutCancel(ctx), nil)
	return nil
}
