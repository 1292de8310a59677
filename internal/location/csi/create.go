package csi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/label"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/location"
	"stillpoint.io/stillpoint/internal/location/csi/spec"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// removalLimit limits the deletion of an unusable snapshot.
const removalLimit = time.Minute

// Create takes a snapshot of a volume, quiesced as its workload asks for, and
// returns the id that Velero keeps. It returns when the snapshot is cut: whether
// the storage can use it shows later, by the operation of its claim.
func (s *Snapshotter) Create(ctx context.Context, id string, tags map[string]string) (string, error) {
	subject, err := location.Find(ctx, s.clients, tags)
	if err != nil {
		return "", err
	}
	if subject.Volume.Spec.CSI == nil || idOf(subject.Volume) != id {
		return "", fmt.Errorf("PersistentVolume %s is not the volume %s any more", subject.Volume.Name, id)
	}
	taken, err := s.prepare(ctx, subject, tags)
	if err != nil {
		return "", s.quiescer.Around(ctx, location.Request{Claim: subject.Claim, Backup: subject.Backup, Failed: err})
	}
	request := location.Request{Claim: subject.Claim, Backup: subject.Backup, Take: taken.take, Taken: taken.earlier}
	if err := s.quiescer.Around(ctx, request); err != nil {
		if !taken.begun {
			return "", err
		}
		return "", discarded(err, taken.discard(ctx))
	}
	return taken.identify(ctx)
}

// taking is one snapshot in progress.
type taking struct {
	*Snapshotter
	*location.Subject

	follower     *snapshot.Follower
	installation string
	snapshot     *snapshotv1.VolumeSnapshot
	timeout      time.Duration
	exported     bool

	begun bool
}

// prepare does the work that is possible before a freeze.
func (s *Snapshotter) prepare(ctx context.Context, subject *location.Subject, tags map[string]string) (*taking, error) {
	installation, err := s.clients.Installation(ctx)
	if err != nil {
		return nil, err
	}
	options := s.settings()
	d, err := s.decisions.For(subject.Backup).Requested(ctx, subject.Claim, options.Classes)
	if err != nil {
		return nil, err
	}
	if d.Refusal != nil {
		return nil, d.Refusal
	}
	claim := subject.Claim
	s.log.Infof("Chose the VolumeSnapshotClass for a location: claim %s/%s: VolumeSnapshotClass %s: %s", claim.Namespace, claim.Name, d.Class, d.ClassReason)
	t := &taking{
		Snapshotter: s, Subject: subject, follower: s.follower(subject.Backup), installation: installation,
		snapshot: snapshot.New(installation, subject.Backup, claim, d.Class, d.ClassReason, d.ExcludesLabel),
		timeout:  options.CutLimit(subject.Backup), exported: d.Exported,
	}
	maps.Copy(t.snapshot.Annotations, tags)
	t.snapshot.Annotations[api.AnnotationExported] = fmt.Sprint(t.exported)
	return t, t.follower.Watch(ctx)
}

// follower returns the follower of a backup. A process usually serves one backup.
func (s *Snapshotter) follower(backup *velerov1.Backup) *snapshot.Follower {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.followers[backup.UID] == nil {
		s.followers[backup.UID] = snapshot.NewFollower(s.clients.Snapshots, backup)
	}
	return s.followers[backup.UID]
}

// take creates the VolumeSnapshot, and returns when it is cut.
func (t *taking) take(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	t.begun = true
	if err := snapshot.Create(ctx, t.clients.Snapshots, t.snapshot); err != nil {
		return err
	}
	key := types.NamespacedName{Namespace: t.snapshot.Namespace, Name: t.snapshot.Name}
	created, reaction := time.Now(), snapshot.Reaction(t.timeout)
	var grace <-chan time.Time
	for {
		state, changed := t.follower.State(key)
		if !state.Begun {
			if err := t.follower.Silent(created, reaction); err != nil {
				return fmt.Errorf("VolumeSnapshot %s: %w", key, err)
			}
		}
		switch {
		case state.Cut:
			return nil
		case state.Failure == nil:
			grace = nil
		case grace == nil && patience > 0:
			grace = time.After(patience)
		case grace == nil && !state.Refused.IsZero():
			grace = time.After(snapshot.RefusalGrace)
		}
		select {
		case <-changed:
		case <-time.After(reaction / 4):
		case <-grace:
			return fmt.Errorf("VolumeSnapshot %s: the driver says: %w", key, state.Failure)
		case <-ctx.Done():
			if state.Failure != nil {
				return fmt.Errorf("VolumeSnapshot %s was not cut within %s: the driver says: %w", key, t.timeout, state.Failure)
			}
			return fmt.Errorf("VolumeSnapshot %s was not cut within %s; is the snapshot controller running, and the CSI sidecar csi-snapshotter of driver %s?", key, t.timeout, t.Volume.Spec.CSI.Driver)
		}
	}
}

// earlier returns the name of a VolumeSnapshot that this backup has of one of the
// claims, "" if none.
func (t *taking) earlier(ctx context.Context, claims []corev1.PersistentVolumeClaim) (string, error) {
	list, err := snapshot.List(ctx, t.clients.Snapshots, t.Claim.Namespace, snapshot.OwnedBy(t.Backup).String())
	if err != nil {
		return "", err
	}
	for _, vs := range list {
		for i := range claims {
			if ptr.Deref(vs.Spec.Source.PersistentVolumeClaimName, "") == claims[i].Name {
				return vs.Namespace + "/" + vs.Name, nil
			}
		}
	}
	return "", nil
}

// discard deletes an unusable snapshot.
func (t *taking) discard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removalLimit)
	defer cancel()
	return snapshot.Delete(ctx, t.clients.Snapshots, t.snapshot.Namespace, snapshot.OwnedBy(t.Backup), t.Claim.Name)
}

// identify returns the ID of a snapshot that is cut. From then on the storage's snapshot
// outlives its objects, also when their namespace is deleted.
func (t *taking) identify(ctx context.Context) (string, error) {
	id, err := t.identity(ctx)
	if err != nil {
		return "", discarded(err, t.discard(ctx))
	}
	return id, nil
}

func (t *taking) identity(ctx context.Context) (string, error) {
	vs, err := t.clients.Snapshots.SnapshotV1().VolumeSnapshots(t.snapshot.Namespace).Get(ctx, t.snapshot.Name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("get VolumeSnapshot %s/%s: %w", t.snapshot.Namespace, t.snapshot.Name, err)
	}
	content, err := t.secure(ctx, vs)
	if err != nil {
		return "", err
	}
	volume, claim := t.Volume, t.Claim
	i := identity{
		Driver: content.Spec.Driver, Handle: ptr.Deref(content.Status.SnapshotHandle, ""), Class: ptr.Deref(content.Spec.VolumeSnapshotClassName, ""),
		Exported: t.exported, Size: volume.Spec.Capacity.Storage().Value(), StorageClass: ptr.Deref(claim.Spec.StorageClassName, volume.Spec.StorageClassName),
		Mode: ptr.Deref(volume.Spec.VolumeMode, corev1.PersistentVolumeFilesystem), AccessModes: volume.Spec.AccessModes,
		Volume: volume.Name, Namespace: claim.Namespace, Claim: claim.Name,
	}
	if size := ptr.Deref(content.Status.RestoreSize, 0); size > i.Size {
		i.Size = size
	}
	if secret := content.Annotations[secretName]; secret != "" {
		i.Secret = content.Annotations[secretNamespace] + "/" + secret
	}
	if err := i.validate(); err != nil {
		return "", err
	}
	return location.EncodeID(spec.Provider, i)
}

// secure keeps the storage's snapshot when its objects are deleted, and marks them as
// part of the backup, so that a sweep keeps the snapshot.
func (t *taking) secure(ctx context.Context, vs *snapshotv1.VolumeSnapshot) (*snapshotv1.VolumeSnapshotContent, error) {
	client := t.clients.Snapshots.SnapshotV1()
	marks := metav1.ObjectMeta{Labels: map[string]string{velerov1.BackupNameLabel: label.GetValidName(t.Backup.Name)}, Annotations: map[string]string{
		velerov1.DriverNameAnnotation: t.Volume.Spec.CSI.Driver, api.AnnotationExported: fmt.Sprint(t.exported),
	}}
	snapshot.Origin{Installation: t.installation, Backup: t.Backup.Name, BackupUID: string(t.Backup.UID)}.Mark(&marks)
	content, err := client.VolumeSnapshotContents().Patch(ctx, snapshot.TargetOf(vs).Content, types.MergePatchType, location.Merge(map[string]any{
		"metadata": map[string]any{"labels": marks.Labels, "annotations": marks.Annotations},
		"spec":     map[string]any{"deletionPolicy": snapshotv1.VolumeSnapshotContentRetain},
	}), metav1.PatchOptions{})
	if err != nil {
		return nil, fmt.Errorf("have the snapshot of VolumeSnapshot %s/%s outlive it: %w", vs.Namespace, vs.Name, err)
	}
	if content.Status == nil || ptr.Deref(content.Status.SnapshotHandle, "") == "" {
		return nil, errors.New("VolumeSnapshotContent " + content.Name + " has lost its handle")
	}
	_, err = client.VolumeSnapshots(vs.Namespace).Patch(ctx, vs.Name, types.MergePatchType, location.Merge(map[string]any{
		"metadata": map[string]any{"annotations": map[string]string{
			velerov1.VolumeSnapshotHandleAnnotation: *content.Status.SnapshotHandle, velerov1.DriverNameAnnotation: content.Spec.Driver,
		}},
	}), metav1.PatchOptions{})
	if err != nil {
		return nil, fmt.Errorf("note on VolumeSnapshot %s/%s that the backup has it: %w", vs.Namespace, vs.Name, err)
	}
	return content, nil
}
