package restore

import (
	"context"
	"fmt"

	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/group"
)

// unsaved is a claim whose volume is not in the backup.
type unsaved struct {
	claim  types.NamespacedName // as backed up
	backup string
	// lacks is what the backup does not have of the volume, and reason why.
	lacks, reason string
	// volumes is false for a restore that was asked to bring claims back empty.
	volumes bool
	// exists says that the target has the claim, which is not about to go:
	// Velero leaves it alone then.
	exists bool
}

// guard is an error for a claim that would come back empty without anybody's
// asking for it.
func guard(u unsaved) error {
	if !u.volumes || u.exists {
		return nil
	}
	reason := u.reason
	if reason == "" {
		reason = "the backup does not say why"
	}
	return fmt.Errorf("claim %s is not restored: backup %s has no %s of its volume (%s), so that it would come back empty; "+
		"restore it from another backup, or bring it back empty on purpose with --restore-volumes=false (RestorePVs), which then holds for every claim of that restore",
		u.claim, u.backup, u.lacks, reason)
}

// guard refuses a claim that the backup has marked, and one of a backup that
// moves data whose data was not moved.
func (r *Restorer) guard(ctx context.Context, item Item, claim, target types.NamespacedName) error {
	reason, marked := item.BackedUp.GetAnnotations()[group.NoSnapshotAnnotation]
	u := unsaved{
		claim: claim, backup: item.Restore.Spec.BackupName, lacks: "snapshot", reason: reason,
		volumes: !boolptr.IsSetToFalse(item.Restore.Spec.RestorePVs),
	}
	if !marked {
		moves, err := r.moves(ctx, item.Restore)
		if err != nil {
			return fmt.Errorf("claim %s is not restored: %w", claim, err)
		}
		if !moves || !u.volumes {
			return nil
		}
	}
	var err error
	if u.exists, err = r.exists(ctx, target); err != nil {
		return err
	}
	if !marked {
		if u.exists {
			return nil
		}
		if u.reason, err = r.missing(ctx, item, target); err != nil {
			return fmt.Errorf("claim %s is not restored: %w", claim, err)
		}
		if u.reason == "" {
			return nil
		}
		u.lacks = "export"
	}
	if err := guard(u); err != nil {
		return err
	}
	if !u.exists {
		r.log.Infof("Claim %s comes back empty, as asked: RestorePVs is false", claim)
	}
	unannotate(item.Object, group.NoSnapshotAnnotation)
	return nil
}
