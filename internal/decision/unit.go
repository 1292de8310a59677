package decision

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/unit"
)

// Unit is the claims that are snapshotted together, and what is quiesced for them.
type Unit struct {
	Path Path
	// Quiesce has the claims, and what their annotations ask for.
	Quiesce *unit.Unit
	// Refusal is why the unit cannot be quiesced as its annotations ask; nil if it
	// can. A claim's own Refusal is one of its unit.
	Refusal error

	members  map[string]*Decision
	findings []Finding
	server   Server
}

// Quiesced reports whether anything is to be quiesced. Invalid annotations count.
func (u *Unit) Quiesced() bool { return u.Quiesce.Quiesced() || u.Refusal != nil }

// Of returns the decision on a claim of the unit.
func (u *Unit) Of(claim string) *Decision { return u.members[claim] }

// Findings are those of the unit itself.
func (u *Unit) Findings() []Finding { return u.findings }

// Unquiesced is why the snapshot of a claim is unusable without a freeze, nil if it
// is usable.
func (u *Unit) Unquiesced(claim string) error {
	if d := u.members[claim]; d != nil && u.Quiesce.InUse(claim) {
		return d.QuiesceRequired
	}
	return nil
}

// Poll is how often the Velero server looks whether a snapshot has been cut.
func (u *Unit) Poll() time.Duration { return u.server.Poll }

// Outlasts is an error if Velero's own snapshots take longer than a freeze may last:
// Velero takes one after another and waits for all but the last.
func (u *Unit) Outlasts(timeout time.Duration) error {
	claims := len(u.Quiesce.Claims)
	needed := time.Duration(claims-1) * u.server.Poll
	if u.Path != Around || needed < timeout {
		return nil
	}
	return fmt.Errorf("%d volumes cannot be frozen together for Velero's own snapshots: Velero takes them one after another and polls every %s, "+
		"which is %s at least, and quiesce-timeout is %s; raise %s above that, set CSI_SNAPSHOT_EARLY_FREQUENT_POLLING=true on the Velero server, "+
		"or hand the volumes to Stillpoint's group snapshots by a volume policy with action custom",
		claims, u.server.Poll, needed, timeout, api.AnnotationQuiesceTimeout)
}

// Quiesces reports whether a claim's volume is to be quiesced. Annotations that are not
// valid count. What is decided already takes no request: the unit may be frozen.
func (b *Backup) Quiesces(ctx context.Context, claim *corev1.PersistentVolumeClaim) (bool, error) {
	if known := b.Known(claim); known != nil {
		return known.Quiesced(), nil
	}
	facts, err := b.namespaces.Current(ctx, claim.Namespace)
	if err != nil {
		return false, err
	}
	group, err := facts.Unit(claim)
	return err != nil || group.Quiesced(), nil //nolint:nilerr // annotations that are not valid count
}

// Unit decides what is snapshotted together with a claim on which d decides. The
// first call for any claim of a unit decides for all of them. An error means that
// the cluster cannot be read.
func (b *Backup) Unit(ctx context.Context, d *Decision) (*Unit, error) {
	defer b.deciding.Lock(d.Claim.Namespace)()
	if known := b.Known(d.Claim); known != nil && known.Path == d.Path {
		return known, nil
	}
	unit, err := b.unit(ctx, d)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.units[keyOf(d.Claim)] = unit
	if unit.Path != Group && !unit.Quiesced() {
		return unit, nil // snapshotted one by one, and each decided on when its turn comes
	}
	for i := range unit.Quiesce.Claims {
		if key := keyOf(&unit.Quiesce.Claims[i]); b.units[key] == nil {
			b.units[key] = unit
		}
	}
	return unit, nil
}

// Known returns the unit of a claim, nil if it is not decided yet.
func (b *Backup) Known(claim *corev1.PersistentVolumeClaim) *Unit {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.units[keyOf(claim)]
}

func keyOf(claim *corev1.PersistentVolumeClaim) types.NamespacedName {
	return types.NamespacedName{Namespace: claim.Namespace, Name: claim.Name}
}

func (b *Backup) unit(ctx context.Context, d *Decision) (*Unit, error) {
	facts, err := b.namespaces.Current(ctx, d.Claim.Namespace)
	if err != nil {
		return nil, err
	}
	group, invalid := facts.Unit(d.Claim)
	if invalid != nil || group.Quiesced() { // what is frozen is decided by how things are now
		if facts, err = b.namespaces.Now(ctx, d.Claim.Namespace); err != nil {
			return nil, err
		}
		group, invalid = facts.Unit(d.Claim)
	}
	u := &Unit{Path: d.Path, Quiesce: group, Refusal: invalid, server: b.server, members: map[string]*Decision{d.Claim.Name: d}}
	if invalid != nil {
		return u, nil //nolint:nilerr // it is the unit's refusal
	}
	facts.LimitToHookBlock(group, b.backup)
	if u.Refusal, err = b.members(ctx, u, d); err != nil {
		return nil, err
	}
	return u, nil
}

// members leaves in a unit the claims that take the path of d, and decides on them.
// Its first result is why the unit cannot be quiesced.
func (b *Backup) members(ctx context.Context, u *Unit, d *Decision) (refusal, err error) {
	asked := u.Quiesce.Quiesced()
	refuse := func(err error) {
		if asked && refusal == nil {
			refusal = err
		}
	}
	refuse(d.NoMoment)
	err = u.Quiesce.KeepClaims(func(claim corev1.PersistentVolumeClaim) (bool, error) {
		other, err := b.Expected(ctx, &claim)
		if err != nil {
			return false, err
		}
		switch {
		case other.Path == u.Path && other.Obstacle == nil:
			u.members[claim.Name] = other
			refuse(other.NoMoment)
			return true, nil
		case other.Path == u.Path:
		case other.Path != None:
			refuse(u.Quiesce.MixedPaths(d.Claim.Name, string(u.Path), claim.Name, string(other.Path)))
		case asked && other.Reason != "":
			u.findings = append(u.findings, other.finding(logrus.InfoLevel, "Not quiesced with its workload", "%s", other.Reason))
		}
		return false, nil
	})
	if u.Path == Around {
		refuse(b.volumeGroup(u.Quiesce.Claims))
	}
	for _, claim := range u.Quiesce.Claims {
		refuse(u.members[claim.Name].Refusal)
	}
	return refusal, err
}

// volumeGroup is an error if Velero takes a VolumeGroupSnapshot of one of the claims.
func (b *Backup) volumeGroup(claims []corev1.PersistentVolumeClaim) error {
	key := b.backup.Spec.VolumeGroupSnapshotLabelKey
	i := slices.IndexFunc(claims, func(c corev1.PersistentVolumeClaim) bool { return key != "" && c.Labels[key] != "" })
	if i < 0 {
		return nil
	}
	return fmt.Errorf("claim %s/%s has the label %s=%s: Velero takes a VolumeGroupSnapshot of it, around which Stillpoint cannot quiesce; remove the label or the annotation %s",
		claims[i].Namespace, claims[i].Name, key, claims[i].Labels[key], api.AnnotationQuiesce)
}
