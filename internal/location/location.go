package location

import (
	"context"
	"errors"
	"fmt"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/velero"
)

// ErrInconsistent is the error of a snapshot whose workload ran again before all of
// its volumes were snapshotted. The provider deletes it.
var ErrInconsistent = errors.New("the snapshot is not consistent")

// Request is one snapshot that Velero asked for.
type Request struct {
	Claim  *corev1.PersistentVolumeClaim // as it is in the cluster
	Backup *velerov1.Backup
	// Take takes the snapshot, and returns when it is cut. patience limits how long
	// it tolerates transient errors of the storage while an application is frozen; 0
	// is the timeout of the snapshot.
	Take func(ctx context.Context, patience time.Duration) error
	// Taken names a snapshot that an earlier process of this backup took of one of
	// these claims, "" for none.
	Taken func(ctx context.Context, claims []corev1.PersistentVolumeClaim) (string, error)
	// Failed is non-nil if the snapshot cannot be tried. No snapshot is taken then, and
	// the workload that is frozen for it is thawed.
	Failed error
}

// Quiescer quiesces around snapshots.
type Quiescer interface {
	// Around freezes the workload of the volume, unless it is already frozen for
	// another of its volumes, takes the snapshot, and thaws the workload after the
	// last of them. With nothing to quiesce it only takes the snapshot. The error is
	// ErrInconsistent if the snapshot must be deleted.
	Around(ctx context.Context, request Request) error
}

// Subject is the source of a snapshot.
type Subject struct {
	Volume *corev1.PersistentVolume
	Claim  *corev1.PersistentVolumeClaim
	Backup *velerov1.Backup
}

// Find returns the subject that the tags of a call name. It returns an error if the
// volume is not bound to its claim.
func Find(ctx context.Context, clients *cluster.Clients, tags map[string]string) (*Subject, error) {
	for _, tag := range []string{velero.TagBackup, velero.TagVolume} {
		if tags[tag] == "" {
			return nil, fmt.Errorf("the tag %s, which Velero 1.18 sets, is missing", tag)
		}
	}
	s := &Subject{Volume: &corev1.PersistentVolume{}, Claim: &corev1.PersistentVolumeClaim{}, Backup: &velerov1.Backup{}}
	if err := clients.Objects.Get(ctx, crclient.ObjectKey{Name: tags[velero.TagVolume]}, s.Volume); err != nil {
		return nil, fmt.Errorf("get PersistentVolume %s: %w", tags[velero.TagVolume], err)
	}
	if err := clients.Remembered.Get(ctx, crclient.ObjectKey{Namespace: clients.VeleroNamespace, Name: tags[velero.TagBackup]}, s.Backup); err != nil {
		return nil, fmt.Errorf("get Backup %s/%s: %w", clients.VeleroNamespace, tags[velero.TagBackup], err)
	}
	ref := s.Volume.Spec.ClaimRef
	if ref == nil {
		return nil, fmt.Errorf("PersistentVolume %s is bound to no claim, and snapshots are taken of claims", s.Volume.Name)
	}
	if err := clients.Objects.Get(ctx, crclient.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, s.Claim); err != nil {
		return nil, fmt.Errorf("get claim %s/%s of PersistentVolume %s: %w", ref.Namespace, ref.Name, s.Volume.Name, err)
	}
	if s.Claim.Status.Phase != corev1.ClaimBound || s.Claim.Spec.VolumeName != s.Volume.Name {
		return nil, fmt.Errorf("claim %s/%s is %s to PersistentVolume %q, and not Bound to %s; snapshots are taken of bound claims",
			ref.Namespace, ref.Name, s.Claim.Status.Phase, s.Claim.Spec.VolumeName, s.Volume.Name)
	}
	return s, nil
}
