package externalstorage

import (
	"context"
	"errors"
	"fmt"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/location"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// taking is one snapshot in progress. It is taken in the application's namespace, as
// the controller requires, and then moved to Velero's.
type taking struct {
	*Snapshotter
	subject *location.Subject
	origin  snapshot.Origin
	tags    map[string]string
	name    string
	// ready is the VolumeSnapshot once it is cut.
	ready *unstructured.Unstructured
	// lost is the snapshot if its data was deleted while it was moved.
	lost *Identity
}

func newTaking(s *Snapshotter, installation string, subject *location.Subject, tags map[string]string) *taking {
	return &taking{
		Snapshotter: s, subject: subject, tags: tags,
		origin: snapshot.Origin{Installation: installation, Backup: subject.Backup.Name, BackupUID: string(subject.Backup.UID)},
		name:   nameOf(installation, subject.Backup, subject.Volume.Name),
	}
}

// take requests the snapshot from the controller, and waits until it is Ready. The
// controller does not retry after an error of the storage, so patience does not apply.
func (t *taking) take(ctx context.Context, _ time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, t.settings().timeout)
	defer cancel()
	namespace := t.subject.Claim.Namespace
	requested, err := t.create(ctx, request(t.name, t.subject, t.origin, t.tags))
	if err != nil {
		return err
	}
	ready, err := t.await(ctx, requested)
	if err != nil {
		return fmt.Errorf("VolumeSnapshot %s/%s of claim %s (PersistentVolume %s, %s): %w",
			namespace, t.name, t.subject.Claim.Name, t.subject.Volume.Name, sourceOf(t.subject.Volume), err)
	}
	t.ready = ready
	return nil
}

// create creates an object, or returns the one that an earlier attempt created.
func (s *Snapshotter) create(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	resource := snapshots
	if o.GetKind() != "VolumeSnapshot" {
		resource = datas
	}
	client := s.clients.Dynamic.Resource(resource).Namespace(o.GetNamespace())
	made, err := client.Create(ctx, o, metav1.CreateOptions{})
	if err == nil {
		return made, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create %s %s: %w", o.GetKind(), key(o), err)
	}
	found, err := client.Get(ctx, o.GetName(), metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get %s %s: %w", o.GetKind(), key(o), err)
	}
	have, marked := snapshot.OriginOf(found)
	if want, _ := snapshot.OriginOf(o); !marked || have.BackupUID != want.BackupUID || found.GetDeletionTimestamp() != nil {
		return nil, fmt.Errorf("%s %s exists already and does not belong to this backup; delete it", o.GetKind(), key(o))
	}
	return found, nil
}

func key(o *unstructured.Unstructured) string {
	if o.GetNamespace() == "" {
		return o.GetName()
	}
	return o.GetNamespace() + "/" + o.GetName()
}

// await waits until a VolumeSnapshot is Ready. The controller reports few of its
// problems, so the error at the end of ctx names possible causes.
func (s *Snapshotter) await(ctx context.Context, vs *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	since := time.Now()
	seen := vs
	err := s.follow(ctx, snapshots, vs, func(now *unstructured.Unstructured) (bool, error) {
		if now == nil {
			return false, errors.New("it was deleted before it was Ready")
		}
		seen = now
		switch kind, message := stateOf(now); {
		case kind == conditionError:
			return false, fmt.Errorf("the snapshot controller failed: %s", message)
		case kind == conditionReady && dataName(now) == "":
			return false, nil
		default:
			return kind == conditionReady, nil
		}
	})
	switch {
	case err == nil:
		return seen, nil
	case ctx.Err() == nil || !errors.Is(err, ctx.Err()):
		return nil, err
	}
	after := time.Since(since).Round(time.Second)
	if kind, message := stateOf(seen); kind != "" {
		return nil, fmt.Errorf("not Ready after %s; it is %s, with the message %q of the snapshot controller: %w", after, kind, message, err)
	}
	if seen.GetLabels()[timestampLabel] != "" {
		return nil, fmt.Errorf("not Ready after %s, although the snapshot controller began; its log says whether its plugin for this volume fails: %w", after, err)
	}
	return nil, fmt.Errorf("not Ready after %s, and the snapshot controller did not react: does it run, with a plugin for this kind of volume, "+
		"and may it get claims and PersistentVolumes and update VolumeSnapshots? It reports a claim or volume that it does not find in its log only: %w", after, err)
}

// taken returns the name of a snapshot that this backup has of one of the claims.
func (t *taking) taken(ctx context.Context, claims []corev1.PersistentVolumeClaim) (string, error) {
	list, err := t.clients.Dynamic.Resource(snapshots).List(ctx, metav1.ListOptions{LabelSelector: snapshot.OwnedBy(t.subject.Backup).String()})
	if err != nil {
		return "", fmt.Errorf("list the VolumeSnapshots of backup %s: %w", t.subject.Backup.Name, err)
	}
	of := map[string]bool{}
	for i := range claims {
		of[string(claims[i].UID)] = true
	}
	for i := range list.Items {
		if list.Items[i].GetLabels()[velerov1.PVCUIDLabel] != "" && of[list.Items[i].GetLabels()[velerov1.PVCUIDLabel]] {
			return key(&list.Items[i]), nil
		}
	}
	return "", nil
}

// moveToVelero moves the snapshot to Velero's namespace. In the application's namespace
// the controller would delete the data with the VolumeSnapshot or the namespace.
//
// The data has one owner at any time. The owner changes when the first
// VolumeSnapshotData is deleted: the controller deletes data only if it finds the
// VolumeSnapshotData of a deleted VolumeSnapshot. If the process dies in between,
// discard deletes the right objects.
func (t *taking) moveToVelero(ctx context.Context) (*Identity, error) {
	data, err := t.clients.Dynamic.Resource(datas).Get(ctx, dataName(t.ready), metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get VolumeSnapshotData %s of VolumeSnapshot %s: %w", dataName(t.ready), key(t.ready), err)
	}
	if err := t.checkOwner(data); err != nil {
		return nil, err
	}
	id, err := identify(t.clients.VeleroNamespace, t.name, t.subject, t.origin, data)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	homeData, err := t.create(ctx, id.homeData(now))
	if err != nil {
		return nil, err
	}
	home, err := t.create(ctx, id.home(conditionReady, t.ready.GetLabels(), now))
	if err != nil {
		return nil, err
	}
	if err := t.linkData(ctx, homeData, home); err != nil {
		return nil, err
	}
	if err := t.deleteObject(ctx, datas, data); err != nil {
		return nil, err
	}
	// If it was deleted before its VolumeSnapshotData, the controller deleted the data.
	left, err := t.clients.Dynamic.Resource(snapshots).Namespace(t.ready.GetNamespace()).Get(ctx, t.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) || err == nil && (left.GetUID() != t.ready.GetUID() || left.GetDeletionTimestamp() != nil):
		t.lost = id
		return nil, fmt.Errorf("VolumeSnapshot %s was deleted while it was moved to namespace %s: the snapshot is gone", key(t.ready), id.Namespace)
	case err != nil:
		return nil, fmt.Errorf("get VolumeSnapshot %s: %w", key(t.ready), err)
	}
	if err := t.deleteObject(ctx, snapshots, left); err != nil {
		return nil, err
	}
	t.log.Infof("Took a snapshot of claim %s/%s (PersistentVolume %s): VolumeSnapshot %s, VolumeSnapshotData %s",
		id.ClaimNamespace, id.Claim, id.Volume, key(home), id.Data)
	return id, nil
}

// checkOwner returns an error for a VolumeSnapshotData of another snapshot: a tenant can
// make a VolumeSnapshot refer to any.
func (t *taking) checkOwner(data *unstructured.Unstructured) error {
	namespace, name := snapshotOf(data)
	volume, _, _ := unstructured.NestedString(data.Object, "spec", volumeRef, "name")
	ours := namespace == t.ready.GetNamespace() && (name == t.name || name == t.name+"-"+string(t.ready.GetUID()))
	if !ours || volume != t.subject.Volume.Name {
		return fmt.Errorf("VolumeSnapshot %s names VolumeSnapshotData %s, which is of VolumeSnapshot %s/%s and PersistentVolume %s",
			key(t.ready), data.GetName(), namespace, name, volume)
	}
	return nil
}

// linkData makes a VolumeSnapshotData refer to its VolumeSnapshot as the controller does.
func (s *Snapshotter) linkData(ctx context.Context, data, vs *unstructured.Unstructured) error {
	patch := fmt.Sprintf(`{"spec":{%q:{"name":%q}}}`, snapshotRef, key(vs)+"-"+string(vs.GetUID()))
	_, err := s.clients.Dynamic.Resource(datas).Patch(ctx, data.GetName(), types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("make VolumeSnapshotData %s refer to VolumeSnapshot %s: %w", data.GetName(), key(vs), err)
	}
	return nil
}

// undoLimit limits the clean-up after a failure.
const undoLimit = time.Minute

// undo deletes an unusable snapshot.
func (t *taking) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	if t.lost != nil {
		return t.deleteRecreated(ctx, t.lost)
	}
	left, err := t.find(ctx, t.origin.Installation, t.name)
	if err == nil {
		err = t.discard(ctx, left)
	}
	if err != nil {
		return fmt.Errorf("delete the unusable VolumeSnapshot %s/%s, which the next backup tries again: %w", t.subject.Claim.Namespace, t.name, err)
	}
	return nil
}
