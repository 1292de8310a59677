package bracket

import (
	"context"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	corev1 "k8s.io/api/core/v1"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/export"
	"stillpoint.io/stillpoint/internal/snapshotclass"
)

// advise says what is wrong with a snapshot that Velero has taken, and that
// nobody but Stillpoint would tell.
func (b *Bracket) advise(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) {
	volume := &corev1.PersistentVolume{}
	if err := b.clients.Remembered.Get(ctx, crclient.ObjectKey{Name: claim.Spec.VolumeName}, volume); err != nil || volume.Spec.CSI == nil {
		return
	}
	b.adviseClass(ctx, claim, volume, backup)
	b.adviseProfile(ctx, claim, volume, backup)
}

// adviseProfile reports a snapshot that is worth nothing by the profile of its
// driver, and wishes that Velero's path cannot grant.
func (b *Bracket) adviseProfile(ctx context.Context, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume, backup *velerov1.Backup) {
	settings, err := b.classes.Settings(ctx)
	if err != nil {
		return // which adviseClass has told
	}
	driver := settings.Driver(volume.Spec.CSI.Driver)
	quiet := true
	if driver.Quiesce == config.QuiesceRequired {
		facts, err := b.namespaces.Recent(ctx, claim.Namespace)
		if err != nil {
			b.log.Warnf("Claim %s/%s: whether its volume is in use is not known: %v", claim.Namespace, claim.Name, err)
			return
		}
		group, err := facts.Unit(claim)
		quiet = err != nil || group.Quiesced() || !group.InUse(claim.Name) // an error is told by whoever freezes
	}
	if err := export.Suits(driver, volume, quiet); err != nil {
		b.log.Errorf("The snapshot that Velero took of claim %s/%s cannot be relied on: %v", claim.Namespace, claim.Name, err)
	}
	if !boolptr.IsSetToTrue(backup.Spec.SnapshotMoveData) {
		return
	}
	policy, err := export.PolicyOf(settings.LocalSnapshots, claim, driver.Name, backup)
	switch {
	case err != nil:
		b.log.Errorf("What is to become of the local snapshot: %v", err)
	case policy.Keep:
		b.log.Warnf("Claim %s/%s: no local snapshot is kept beside the export, which the %s asks for: Velero takes the snapshot of this volume; hand it to Stillpoint by a volume policy",
			claim.Namespace, claim.Name, policy.Reason)
	}
}

// adviseClass warns when Velero has taken a snapshot with another class than
// Stillpoint's rules would have given, or passed something over in silence that
// these call an error.
func (b *Bracket) adviseClass(ctx context.Context, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume, backup *velerov1.Backup) {
	input, err := b.classes.Input(ctx, claim, volume.Spec.CSI.Driver, backup)
	if config.Unusable(err) {
		return // told once, at the start of the backup
	}
	if err != nil {
		b.log.Warnf("Claim %s/%s: whether Velero took the right VolumeSnapshotClass is not known: %v", claim.Namespace, claim.Name, err)
		return
	}
	taken, _ := input.Velero().Class()
	choice, err := snapshotclass.Choose(input)
	if err != nil {
		b.log.Warnf("Claim %s/%s: Velero took VolumeSnapshotClass %s, although %v", claim.Namespace, claim.Name, taken, err)
		return
	}
	if mend := input.Velero().Annotation(choice.Class); mend != "" {
		b.log.Warnf("Claim %s/%s: Velero took VolumeSnapshotClass %s and not %s, which it should have by the %s; annotate the claim with %s",
			claim.Namespace, claim.Name, taken, choice.Class.Name, choice.Reason, mend)
	}
}
