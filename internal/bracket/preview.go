package bracket

import (
	"context"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"

	"stillpoint.io/stillpoint/internal/unit"
)

// Preview tells with which others the volume of a claim would be frozen in a
// backup, and freezes nothing; nil without an error is that nothing would be.
// The group comes with an error when that concerns all of it.
func (b *Bracket) Preview(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (*unit.Unit, error) {
	f, err := b.decide(ctx, claim, backup)
	if f == nil {
		return nil, err
	}
	return f.group, f.failed
}

// PreviewShot is Preview for a claim whose snapshot a VolumeSnapshotter takes.
func (b *Bracket) PreviewShot(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (*unit.Unit, error) {
	f, _, err := b.decideShot(ctx, claim, backup)
	if f == nil {
		return nil, err
	}
	return f.group, f.failed
}

// Refusal is why the claims of a group are not frozen around Velero's own
// snapshots although a plan for them can be made; nil when they are.
func Refusal(claims []corev1.PersistentVolumeClaim, backup *velerov1.Backup, poll, timeout time.Duration) error {
	if err := volumeGroup(claims, backup); err != nil {
		return err
	}
	return tooMany(len(claims), poll, timeout)
}
