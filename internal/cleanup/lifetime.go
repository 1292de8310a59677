package cleanup

import (
	"fmt"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Lifetime is the state of a backup. All code uses it to decide whether a backup is
// over.
type Lifetime int

// The lifetimes of a backup.
const (
	Running  Lifetime = iota // Velero still processes it
	Finished                 // it can be restored
	Failed                   // it can never be restored
	Deleting                 // Velero, or a user, is deleting it
)

// LifetimeOf returns the lifetime of a backup.
func LifetimeOf(b *velerov1.Backup) Lifetime {
	if b.DeletionTimestamp != nil {
		return Deleting
	}
	switch b.Status.Phase {
	case velerov1.BackupPhaseCompleted, velerov1.BackupPhasePartiallyFailed:
		return Finished
	case velerov1.BackupPhaseFailed, velerov1.BackupPhaseFailedValidation:
		return Failed
	case velerov1.BackupPhaseDeleting:
		return Deleting
	default:
		return Running
	}
}

// dead reports whether the backup can never be restored.
func (l Lifetime) dead() bool { return l == Failed || l == Deleting }

// Stored reports whether the backup is in Velero's object store. Before that only the
// objects in the cluster refer to its snapshots.
func Stored(b *velerov1.Backup) bool {
	switch b.Status.Phase {
	case velerov1.BackupPhaseNew, velerov1.BackupPhaseInProgress, "":
		return false
	default:
		return true
	}
}

// StateOf describes a backup in a reason.
func StateOf(b *velerov1.Backup) string {
	return fmt.Sprintf("backup %s is %s", b.Name, phase(b.Status.Phase, b.DeletionTimestamp))
}

func restoring(r *velerov1.Restore) bool {
	switch r.Status.Phase {
	case velerov1.RestorePhaseCompleted, velerov1.RestorePhasePartiallyFailed, velerov1.RestorePhaseFailed, velerov1.RestorePhaseFailedValidation:
		return false
	default:
		return true
	}
}

func stateOfRestore(r *velerov1.Restore) string {
	return fmt.Sprintf("restore %s is %s", r.Name, phase(r.Status.Phase, r.DeletionTimestamp))
}

// phase returns the phase of a backup or restore in words.
func phase[P ~string](p P, deleted *metav1.Time) string {
	switch {
	case deleted != nil:
		return "being deleted"
	case p == "":
		return "New"
	default:
		return string(p)
	}
}
