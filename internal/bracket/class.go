package bracket

import (
	"context"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/snapshotclass"
)

// adviseClass warns when Velero has taken a snapshot with another class than
// Stillpoint's rules would have given, or passed something over in silence that
// these call an error.
func (b *Bracket) adviseClass(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) {
	volume := &corev1.PersistentVolume{}
	if err := b.clients.Remembered.Get(ctx, crclient.ObjectKey{Name: claim.Spec.VolumeName}, volume); err != nil || volume.Spec.CSI == nil {
		return
	}
	input, err := b.classes.Input(ctx, claim, volume.Spec.CSI.Driver, backup)
	if err != nil {
		b.log.Warnf("Claim %s/%s: whether Velero took the right VolumeSnapshotClass is not known: %v", claim.Namespace, claim.Name, err)
		return
	}
	taken := snapshotclass.Velero(input)
	choice, err := snapshotclass.Choose(input)
	if err != nil {
		b.log.Warnf("Claim %s/%s: Velero took VolumeSnapshotClass %s, although %v", claim.Namespace, claim.Name, taken, err)
		return
	}
	if mend := snapshotclass.Mend(input, choice); mend != "" {
		b.log.Warnf("Claim %s/%s: Velero took VolumeSnapshotClass %s and not %s, which it should have by the %s; annotate the claim with %s",
			claim.Namespace, claim.Name, taken, choice.Class.Name, choice.Reason, mend)
	}
}
