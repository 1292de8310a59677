package around

import (
	"context"
	"errors"
	"fmt"

	"stillpoint.io/stillpoint/internal/decision"
	"stillpoint.io/stillpoint/internal/location"
	"stillpoint.io/stillpoint/internal/unit"
)

// Around freezes the unit of the shot's volume, unless an earlier shot has, and thaws
// it when the last of its volumes is snapshotted: Velero calls VolumeSnapshotters for
// one after another.
func (b *Freezes) Around(ctx context.Context, shot location.Request) error {
	decisions := b.decisions.For(shot.Backup)
	d, err := decisions.Requested(ctx, shot.Claim, nil)
	var unit *decision.Unit
	if err == nil {
		unit, err = decisions.Unit(ctx, d)
	}
	if err != nil {
		return errors.Join(shot.Failed, err)
	}
	f := b.known(shot.Claim, shot.Backup)
	switch {
	case shot.Failed != nil && f != nil && f.session != nil:
		f.session.Abandon(ctx, fmt.Errorf("the snapshot of volume %s cannot be taken: %w", shot.Claim.Name, shot.Failed))
		<-f.over
		return shot.Failed
	case shot.Failed != nil:
		return shot.Failed
	case unit.Quiesced():
		if f, err = b.freezeOf(ctx, d, shot.Backup); err != nil {
			return err
		}
		return f.shoot(ctx, shot)
	}
	return take(ctx, unit, shot)
}

// take takes a snapshot without a freeze, unless it were unusable.
func take(ctx context.Context, unit *decision.Unit, shot location.Request) error {
	if err := unit.Unquiesced(shot.Claim.Name); err != nil {
		return err
	}
	return shot.Take(ctx, 0)
}

// shoot freezes on the first shot and lets the others join.
func (f *freeze) shoot(ctx context.Context, shot location.Request) error {
	claim := shot.Claim.Name
	f.once(ctx, func() error { return f.beginShots(ctx, shot) })
	if f.failed != nil {
		if f.group.OnError == unit.Continue && f.unit.Unquiesced(claim) == nil {
			return shot.Take(ctx, 0)
		}
		return fmt.Errorf("quiesce failed, so claim %s/%s is not snapshotted: %w", f.group.Claims[0].Namespace, claim, f.failed)
	}
	if f.session == nil { // the plan is empty
		return take(ctx, f.unit, shot)
	}
	f.move(claim, created)
	if broken := f.broken(); broken != nil { // thawed before this volume's turn
		if f.group.OnError != unit.Continue {
			return fmt.Errorf("claim %s/%s is not snapshotted: %w", f.group.Claims[0].Namespace, claim, broken)
		}
		return shot.Take(ctx, 0)
	}
	if err := shot.Take(ctx, retryGrace); err != nil {
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

// broken is why a freeze that is over did not last, nil while it does.
func (f *freeze) broken() error {
	select {
	case <-f.over:
		return f.session.Report().Broken
	default:
		return nil
	}
}

// beginShots is begin for shots: there is no poll of Velero's to outlast.
func (f *freeze) beginShots(ctx context.Context, shot location.Request) error {
	planner, plan, err := f.plan(ctx)
	if err != nil || plan.Empty() {
		return err
	}
	if shot.Taken != nil {
		earlier, err := shot.Taken(ctx, f.group.Claims)
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
	go f.hold(context.WithoutCancel(ctx), nil)
	return nil
}
