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

// taking is one snapshot on its way: it is taken in the application's namespace,
// where the controller wants it, and then moved to Velero's.
type taking struct {
	*Snapshotter
	subject *location.Subject
	origin  snapshot.Origin
	tags    map[string]string
	name    string
	// ready is the VolumeSnapshot once its point in time is past.
	ready *unstructured.Unstructured
	// lost says that the data went while it was moved.
	lost *Identity
}

func newTaking(s *Snapshotter, installation string, subject *location.Subject, tags map[string]string) *taking {
	return &taking{
		Snapshotter: s, subject: subject, tags: tags,
		origin: snapshot.Origin{Installation: installation, Backup: subject.Backup.Name, BackupUID: string(subject.Backup.UID)},
		name:   nameOf(installation, subject.Backup, subject.Volume.Name),
	}
}

// take has the controller take the snapshot, and waits until it is Ready. An error
// of the storage's is the last word, so there is nothing to bear with.
func (t *taking) take(ctx context.Context, _ time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, t.settings().timeout)
	defer cancel()
	namespace := t.subject.Claim.Namespace
	asked, err := t.create(ctx, request(t.name, t.subject, t.origin, t.tags))
	if err != nil {
		return err
	}
	ready, err := t.await(ctx, asked)
	if err != nil {
		return fmt.Errorf("VolumeSnapshot %s/%s of claim %s (PersistentVolume %s, %s): %w",
			namespace, t.name, t.subject.Claim.Name, t.subject.Volume.Name, sourceOf(t.subject.Volume), err)
	}
	t.ready = ready
	return nil
}

// create creates an object, or finds the one that an earlier try has made of it.
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
		return nil, fmt.Errorf("%s %s is there already and does not belong to this backup; delete it", o.GetKind(), key(o))
	}
	return found, nil
}

func key(o *unstructured.Unstructured) string {
	if o.GetNamespace() == "" {
		return o.GetName()
	}
	return o.GetNamespace() + "/" + o.GetName()
}

// await waits until a VolumeSnapshot is Ready. The controller is silent about most
// of what can go wrong, so the end of ctx says what may be missing.
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
			return false, fmt.Errorf("the snapshot controller has failed: %s", message)
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
		return nil, fmt.Errorf("not Ready after %s; it is %s, and the snapshot controller says %q: %w", after, kind, message, err)
	}
	if seen.GetLabels()[timestampLabel] != "" {
		return nil, fmt.Errorf("not Ready after %s; the snapshot controller has begun, and says nothing more: its log tells whether its plugin for this volume fails: %w", after, err)
	}
	return nil, fmt.Errorf("not Ready after %s, without a word from the snapshot controller: does it run, with a plugin for this kind of volume, "+
		"and may it get claims and PersistentVolumes and update VolumeSnapshots? Of a claim or volume that it does not find it tells in its log only: %w", after, err)
}

// taken names a snapshot that this backup has of one of the claims.
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

// rehome moves the snapshot to Velero's namespace: whoever deletes it in the
// application's, or that namespace, has the controller delete the data.
//
// The data has one owner at every moment. It passes on when the first
// VolumeSnapshotData goes: the controller deletes data only when it finds the
// VolumeSnapshotData of a VolumeSnapshot that was deleted. What a process that
// dies in between leaves behind, discard knows to take apart.
func (t *taking) rehome(ctx context.Context) (*Identity, error) {
	data, err := t.clients.Dynamic.Resource(datas).Get(ctx, dataName(t.ready), metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get VolumeSnapshotData %s of VolumeSnapshot %s: %w", dataName(t.ready), key(t.ready), err)
	}
	if err := t.own(data); err != nil {
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
	if err := t.refer(ctx, homeData, home); err != nil {
		return nil, err
	}
	if err := t.drop(ctx, datas, data); err != nil {
		return nil, err
	}
	// Had somebody deleted it before its data was dropped, the controller would have
	// deleted what is moved.
	there, err := t.clients.Dynamic.Resource(snapshots).Namespace(t.ready.GetNamespace()).Get(ctx, t.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) || err == nil && (there.GetUID() != t.ready.GetUID() || there.GetDeletionTimestamp() != nil):
		t.lost = id
		return nil, fmt.Errorf("VolumeSnapshot %s was deleted while it was moved to namespace %s: the snapshot is gone", key(t.ready), id.Namespace)
	case err != nil:
		return nil, fmt.Errorf("get VolumeSnapshot %s: %w", key(t.ready), err)
	}
	if err := t.drop(ctx, snapshots, there); err != nil {
		return nil, err
	}
	t.log.Infof("Took a snapshot of claim %s/%s (PersistentVolume %s): VolumeSnapshot %s, VolumeSnapshotData %s",
		id.ClaimNamespace, id.Claim, id.Volume, key(home), id.Data)
	return id, nil
}

// own refuses a VolumeSnapshotData that is not the snapshot's: a tenant can have a
// VolumeSnapshot name any.
func (t *taking) own(data *unstructured.Unstructured) error {
	namespace, name := snapshotOf(data)
	volume, _, _ := unstructured.NestedString(data.Object, "spec", volumeRef, "name")
	ours := namespace == t.ready.GetNamespace() && (name == t.name || name == t.name+"-"+string(t.ready.GetUID()))
	if !ours || volume != t.subject.Volume.Name {
		return fmt.Errorf("VolumeSnapshot %s names VolumeSnapshotData %s, which is of VolumeSnapshot %s/%s and PersistentVolume %s",
			key(t.ready), data.GetName(), namespace, name, volume)
	}
	return nil
}

// refer has a VolumeSnapshotData name its VolumeSnapshot as the controller does.
func (s *Snapshotter) refer(ctx context.Context, data, vs *unstructured.Unstructured) error {
	patch := fmt.Sprintf(`{"spec":{%q:{"name":%q}}}`, snapshotRef, key(vs)+"-"+string(vs.GetUID()))
	_, err := s.clients.Dynamic.Resource(datas).Patch(ctx, data.GetName(), types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("have VolumeSnapshotData %s name VolumeSnapshot %s: %w", data.GetName(), key(vs), err)
	}
	return nil
}

// undoLimit is how long it may take to take back what has failed.
const undoLimit = time.Minute

// undo takes back what there is of a snapshot that is of no use.
func (t *taking) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	if t.lost != nil {
		return t.unmake(ctx, t.lost)
	}
	left, err := t.find(ctx, t.origin.Installation, t.name)
	if err == nil {
		err = t.discard(ctx, left)
	}
	if err != nil {
		return fmt.Errorf("take back VolumeSnapshot %s/%s, which the next backup tries again: %w", t.subject.Claim.Namespace, t.name, err)
	}
	return nil
}
