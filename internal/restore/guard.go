package restore

import (
	"cmp"
	"context"
	"fmt"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/api"
)

// guard returns an error for a claim that would come back empty, or with data of another
// time, unless the user asked for that. Velero does not change an existing claim.
func (r *Restorer) guard(ctx context.Context, item Item, claim, target types.NamespacedName) error {
	backedUp := &corev1.PersistentVolumeClaim{}
	if err := convert(item.BackedUp, backedUp); err != nil {
		return err
	}
	unannotate(item.Object, api.AnnotationNoSnapshot)
	unannotate(item.Object, api.AnnotationLevel)
	lacks, reason, err := r.lacks(ctx, item, backedUp, target)
	switch {
	case err != nil:
		return fmt.Errorf("claim %s is not restored: %w", claim, err)
	case lacks == "":
		return nil
	case boolptr.IsSetToFalse(item.Restore.Spec.RestorePVs):
		r.log.Infof("RestorePVs is false: claim %s comes back empty", claim)
		return nil
	}
	return fmt.Errorf("claim %s is not restored: backup %s has no %s of its volume (%s), so that it would come back empty; "+
		"restore it from another backup, or bring it back empty on purpose with --restore-volumes=false (RestorePVs), which then holds for every claim of that restore",
		claim, item.Restore.Spec.BackupName, lacks, cmp.Or(reason, "the backup does not say why"))
}

// lacks returns what the backup misses of a claim's volume, and why; "" for a claim that
// can be restored.
func (r *Restorer) lacks(ctx context.Context, item Item, claim *corev1.PersistentVolumeClaim, target types.NamespacedName) (what, reason string, err error) {
	if exists, err := r.exists(ctx, target); exists || err != nil {
		return "", "", err
	}
	backup, err := r.backup(ctx, item.Restore)
	if err != nil {
		return "", "", err
	}
	moves, volumes := boolptr.IsSetToTrue(backup.Spec.SnapshotMoveData), !boolptr.IsSetToFalse(item.Restore.Spec.RestorePVs)
	key := velerov1.VolumeSnapshotLabel
	if moves {
		key = velerov1.DataUploadNameAnnotation
	}
	saved := claim.Annotations[key] != "" || r.hasFilled(item.Restore, claim.Spec.VolumeName)
	copied := false
	if !saved {
		if copied, _, err = r.podVolumeBackup(ctx, backup, claim); err != nil {
			return "", "", err
		}
	}
	// On a claim with data the annotation is of an earlier backup.
	if reason, marked := claim.Annotations[api.AnnotationNoSnapshot]; marked && !saved && !copied {
		return "snapshot", reason, nil
	}
	if moves && volumes {
		if reason, err := r.missing(ctx, item, target); reason != "" || err != nil {
			return "export", reason, err
		}
	}
	switch {
	case saved:
		return "", "", r.fill(ctx, item, claim, target, volumes)
	case !copied:
		reason, err = r.withoutData(ctx, item, claim, volumes)
	}
	if reason != "" {
		what = "data"
	}
	return what, reason, err
}
