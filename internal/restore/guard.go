package restore

import (
	"fmt"

	"k8s.io/apimachinery/pkg/types"
)

// unsaved is a claim in a backup that has group.NoSnapshotAnnotation.
type unsaved struct {
	claim  types.NamespacedName // as backed up
	backup string
	reason string
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
	return fmt.Errorf("claim %s is not restored: backup %s has no snapshot of its volume (%s), so that it would come back empty; "+
		"restore it from another backup, or bring it back empty on purpose with --restore-volumes=false (RestorePVs), which then holds for every claim of that restore",
		u.claim, u.backup, reason)
}
