package bracket

import (
	"context"
	"errors"
	"fmt"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/location"
	"stillpoint.io/stillpoint/internal/selection"
	"stillpoint.io/stillpoint/internal/unit"
)

// Around freezes the workload of the shot's volume, unless an earlier shot has,
// and thaws it when the last of its volumes is snapshotted: Velero calls
// VolumeSnapshotters for one after another.
func (b *Bracket) Around(ctx context.Context, shot location.Request) error {
	f, inUse, err := b.freezeForShot(ctx, shot)
	switch {
	case err != nil:
		return errors.Join(shot.Failed, err)
	case shot.Failed != nil && f != nil && f.session != nil:
		f.session.Abandon(ctx, fmt.Errorf("the snapshot of volume %s cannot be taken: %w", shot.Volume.Spec.ClaimRef.Name, shot.Failed))
		<-f.over
		return shot.Failed
	case shot.Failed != nil:
		return shot.Failed
	case f == nil:
		if inUse && shot.Unquiesced != nil {
			return shot.Unquiesced
		}
		return shot.Take(ctx, 0)
	}
	return f.shoot(ctx, shot)
}

// freezeForShot returns the freeze that a shot is part of, nil when there is
// nothing to quiesce. The first shot of a group decides for all of them.
func (b *Bracket) freezeForShot(ctx context.Context, shot location.Request) (f *freeze, inUse bool, err error) {
	ref := shot.Volume.Spec.ClaimRef
	if ref == nil {
		return nil, false, fmt.Errorf("PersistentVolume %s is bound to no claim", shot.Volume.Name)
	}
	defer b.deciding.Lock(ref.Namespace)()
	claim, err := b.clients.Kube.CoreV1().PersistentVolumeClaims(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil {
		return nil, false, fmt.Errorf("get claim %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	key := keyOf(shot.Backup, claim)
	if f, decided := b.known(b.shots, key); decided {
		return f, true, nil
	}
	f, inUse, err = b.decideShot(ctx, claim, shot.Backup)
	if f == nil || err != nil {
		return nil, inUse, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	f.join(b.shots)
	return f, true, nil
}

// decideShot finds what is frozen for the snapshot of a claim's volume; nil is
// nothing. inUse tells whether a pod has the volume.
func (b *Bracket) decideShot(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (f *freeze, inUse bool, err error) {
	facts, err := b.namespaces.Current(ctx, claim.Namespace)
	if err != nil {
		return nil, false, err
	}
	group, err := facts.Unit(claim)
	if err == nil && !group.Quiesced() {
		return nil, group.InUse(claim.Name), nil
	}
	if f, group, err = b.freezeNow(ctx, claim, selection.Snapshotter, backup); f != nil || err != nil {
		return f, true, err
	}
	return nil, group.InUse(claim.Name), nil
}

// shoot freezes on the first shot and lets the others join.
func (f *freeze) shoot(ctx context.Context, shot location.Request) error {
	claim := shot.Volume.Spec.ClaimRef.Name
	f.once(ctx, func() error { return f.beginShots(ctx, shot) })
	if f.failed != nil {
		if f.group.OnError == unit.Continue && shot.Unquiesced == nil {
			return shot.Take(ctx, 0)
		}
		return fmt.Errorf("quiesce failed, so claim %s/%s is not snapshotted: %w", f.group.Claims[0].Namespace, claim, f.failed)
	}
	if f.session == nil { // the plan is empty
		if shot.Unquiesced != nil {
			return shot.Unquiesced
		}
		return shot.Take(ctx, 0)
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

// sameDoor keeps in a group the claims whose snapshots are taken as that of one
// of them is. Claims that are snapshotted in another way are an error: the volumes
// would be of two moments.
func (b *Bracket) sameDoor(ctx context.Context, group *unit.Unit, claim string, path selection.Path, backup *velerov1.Backup) func(corev1.PersistentVolumeClaim) (bool, error) {
	selected := b.selection(backup)
	return func(other corev1.PersistentVolumeClaim) (bool, error) {
		verdict, err := selected.Of(ctx, &other)
		switch {
		case err != nil:
			return false, err
		case verdict.Path == path:
			return true, verdict.Uncalled
		case verdict.Path == selection.None:
			if verdict.Reason != "" {
				b.log.Infof("Claim %s/%s is not quiesced with its workload: %s", other.Namespace, other.Name, verdict.Reason)
			}
			return false, nil
		}
		return false, group.MixedPaths(claim, string(path), other.Name, string(verdict.Path))
	}
}
