// Package snapshotter holds what Stillpoint's VolumeSnapshotters have in common,
// the door into Velero that a VolumeSnapshotLocation opens: the settings of a
// location, the identity of a snapshot, and the way from a snapshot back to a
// PersistentVolume. What storage they speak to is in the packages below it.
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

// ErrInconsistent says that a snapshot was taken which is not what was asked for:
// its workload ran again before all volumes were snapshotted. Whoever took it
// deletes it.
var ErrInconsistent = errors.New("the snapshot is not consistent")

// Request is one snapshot that Velero has asked for.
type Request struct {
	Claim  *corev1.PersistentVolumeClaim // as it is in the cluster
	Backup *velerov1.Backup
	// Take takes the snapshot, and returns when its point in time is past. patience is
	// how long it may bear with errors of the storage that may pass: an application
	// waits; 0 is until the timeout.
	Take func(ctx context.Context, patience time.Duration) error
	// Taken names a snapshot of one of these claims that this backup has already,
	// "" for none: of a plugin process that has died since.
	Taken func(ctx context.Context, claims []corev1.PersistentVolumeClaim) (string, error)
	// Failed is why the snapshot cannot even be tried: then nothing is taken, and
	// what is frozen for it is thawed.
	Failed error
}

// Quiescer quiesces around snapshots.
type Quiescer interface {
	// Around freezes the workload of the volume, unless it is frozen for an earlier
	// one of its volumes, has the snapshot taken, and thaws after the last of them.
	// Where there is nothing to quiesce, the snapshot is taken all the same. The
	// error is ErrInconsistent when there is a snapshot that must go.
	Around(ctx context.Context, shot Request) error
}

// Subject is what a call for a snapshot is about.
type Subject struct {
	Volume *corev1.PersistentVolume
	Claim  *corev1.PersistentVolumeClaim
	Backup *velerov1.Backup
}

// Find reads what the tags of a call name. It is an error when the volume is not
// bound to a claim that knows of it.
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
