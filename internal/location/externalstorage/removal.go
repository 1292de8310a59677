package externalstorage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/watch"

	"stillpoint.io/stillpoint/internal/snapshot"
)

// Delete deletes a snapshot with the storage's data, and returns when the controller has
// confirmed the deletion.
func (s *Snapshotter) Delete(ctx context.Context, snapshotID string) error {
	id, err := decode(snapshotID)
	if err != nil {
		return err
	}
	home, data, err := s.homeOf(ctx, id)
	if err != nil {
		return err
	}
	installation, err := s.clients.Installation(ctx)
	if err != nil {
		return err
	}
	if home == nil && data == nil && installation == id.Installation {
		// The VolumeSnapshotData is deleted last, after the data.
		s.log.Infof("The snapshot is deleted already: %s", id)
		return nil
	}
	// The snapshot is of another cluster, or lacks an object. The controller finds the
	// data only by both objects.
	made := data == nil
	if made {
		if data, err = s.recreateData(ctx, id, home); err != nil {
			return err
		}
		home = nil
	}
	id.Data = data.GetName()
	if err := s.confirm(ctx, id, home, data); err != nil {
		if made {
			err = errors.Join(err, s.deleteRecreated(ctx, id))
		}
		return fmt.Errorf("delete %s: %w", id, err)
	}
	s.log.Infof("Deleted the snapshot with its data: %s", id)
	return nil
}

// recreateData creates the VolumeSnapshotData of a snapshot again, under a new name. A
// controller that has a pending deletion of the first one would delete a second one of
// that name. recreateData deletes a VolumeSnapshot that refers to the first.
func (s *Snapshotter) recreateData(ctx context.Context, id *Identity, home *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	if home != nil {
		if err := s.deleteObject(ctx, snapshots, home); err != nil {
			return nil, err
		}
	}
	id.Data = id.Name + "-" + utilrand.String(hashLength)
	return s.create(ctx, id.homeData(time.Now()))
}

// confirm deletes a VolumeSnapshot and waits until the controller has deleted the data
// and then the VolumeSnapshotData. A controller that did not run at the deletion of the
// VolumeSnapshot never notices it. confirm therefore tries a second time, with a
// VolumeSnapshot that the controller must process first.
func (s *Snapshotter) confirm(ctx context.Context, id *Identity, home, data *unstructured.Unstructured) error {
	limit := min(s.settings().timeout, confirmLimit)
	if home != nil {
		gone, err := s.deleted(ctx, home, data, limit)
		if gone || err != nil {
			return err
		}
		s.log.Warnf("The snapshot controller may have been down, trying the deletion once more: %s was deleted, and VolumeSnapshotData %s still exists after %s", id, data.GetName(), limit)
	}
	home, err := s.recreateSnapshot(ctx, id, limit)
	if err != nil {
		return err
	}
	gone, err := s.deleted(ctx, home, data, limit)
	if err == nil && !gone {
		err = fmt.Errorf("the snapshot controller has taken notice of it, and VolumeSnapshotData %s is there %s after its deletion: its log says why", data.GetName(), limit)
		_, again := s.recreateSnapshot(ctx, id, limit)
		err = errors.Join(err, again)
	}
	return err
}

// deleted deletes a VolumeSnapshot and reports whether its data was deleted within
// limit.
func (s *Snapshotter) deleted(ctx context.Context, vs, data *unstructured.Unstructured, limit time.Duration) (bool, error) {
	if err := s.deleteObject(ctx, snapshots, vs); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := s.follow(ctx, datas, data, func(now *unstructured.Unstructured) (bool, error) { return now == nil, nil })
	if errors.Is(err, context.DeadlineExceeded) {
		return false, nil
	}
	return err == nil, err
}

// recreateSnapshot creates the VolumeSnapshot again and waits until the controller has
// processed it: the controller asks its plugin about a Pending one, and then sets Ready.
func (s *Snapshotter) recreateSnapshot(ctx context.Context, id *Identity, limit time.Duration) (*unstructured.Unstructured, error) {
	home, err := s.create(ctx, id.home(conditionPending, nil, time.Now()))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if home, err = s.await(ctx, home); err != nil {
		return nil, fmt.Errorf("the snapshot controller does not take notice of VolumeSnapshot %s/%s, which waits for it; delete the backup again when it runs: %w", id.Namespace, id.Name, err)
	}
	return home, nil
}

// deleteRecreated deletes objects that recreateData and recreateSnapshot created without
// success. The controller did not process them, so the data stays.
func (s *Snapshotter) deleteRecreated(ctx context.Context, id *Identity) error {
	var failed []error
	for _, resource := range []schema.GroupVersionResource{datas, snapshots} {
		namespace, name := "", id.Data
		if resource == snapshots {
			namespace, name = id.Namespace, id.Name
		}
		err := s.clients.Dynamic.Resource(resource).Namespace(namespace).Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			failed = append(failed, fmt.Errorf("delete %s %s: %w", resource.Resource, name, err))
		}
	}
	return errors.Join(failed...)
}

// ensure creates the missing objects of a snapshot, so that volumes can be provisioned
// from it.
func (s *Snapshotter) ensure(ctx context.Context, id *Identity) (*unstructured.Unstructured, error) {
	home, data, err := s.homeOf(ctx, id)
	if err != nil {
		return nil, err
	}
	var made []string
	if data == nil {
		if data, err = s.recreateData(ctx, id, home); err != nil {
			return nil, err
		}
		home, made = nil, append(made, "VolumeSnapshotData "+id.Data)
	}
	if home == nil {
		id.Data = data.GetName()
		if home, err = s.create(ctx, id.home(conditionReady, nil, time.Now())); err != nil {
			return nil, err
		}
		if err := s.linkData(ctx, data, home); err != nil {
			return nil, err
		}
		made = append(made, "VolumeSnapshot "+key(home))
	}
	if len(made) > 0 {
		s.log.Infof("Made again what was gone of the snapshot of PersistentVolume %s: %s", id.Volume, strings.Join(made, ", "))
	}
	return home, nil
}

// homeOf returns the objects of a snapshot in Velero's namespace, nil if they do not
// exist. If Velero has moved to another namespace and the objects do not exist in the
// old one, homeOf sets the new namespace.
func (s *Snapshotter) homeOf(ctx context.Context, id *Identity) (home, data *unstructured.Unstructured, err error) {
	if home, err = s.get(ctx, snapshots, id.Namespace, id.Name); err != nil {
		return nil, nil, err
	}
	if home == nil && id.Namespace != s.clients.VeleroNamespace {
		id.Namespace = s.clients.VeleroNamespace
		if home, err = s.get(ctx, snapshots, id.Namespace, id.Name); err != nil {
			return nil, nil, err
		}
	}
	if home != nil {
		if !ofBackup(home, id.BackupUID) {
			return nil, nil, fmt.Errorf("VolumeSnapshot %s is not the one that backup %s took", key(home), id.Backup)
		}
		data, err = s.get(ctx, datas, "", dataName(home))
		return home, data, err
	}
	list, err := s.clients.Dynamic.Resource(datas).List(ctx, metav1.ListOptions{LabelSelector: velerov1.BackupUIDLabel + "=" + id.BackupUID})
	if err != nil {
		return nil, nil, fmt.Errorf("list the VolumeSnapshotDatas of backup %s: %w", id.Backup, err)
	}
	for i := range list.Items {
		if o := &list.Items[i]; strings.HasPrefix(o.GetName(), id.Name) && ofBackup(o, id.BackupUID) {
			return nil, o, nil
		}
	}
	return nil, nil, nil
}

func ofBackup(o *unstructured.Unstructured, uid string) bool {
	origin, marked := snapshot.OriginOf(o)
	return marked && origin.BackupUID == uid
}

func (s *Snapshotter) get(ctx context.Context, resource schema.GroupVersionResource, namespace, name string) (*unstructured.Unstructured, error) {
	o, err := s.clients.Dynamic.Resource(resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // none is a valid answer
	}
	if err != nil {
		return nil, fmt.Errorf("get %s %s: %w", resource.Resource, name, err)
	}
	return o, nil
}

// deleteObject deletes an object, but no other of its name. It returns nil if the object
// is gone.
func (s *Snapshotter) deleteObject(ctx context.Context, resource schema.GroupVersionResource, o *unstructured.Unstructured) error {
	err := s.clients.Dynamic.Resource(resource).Namespace(o.GetNamespace()).
		Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(o.GetUID()))})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete %s %s: %w", o.GetKind(), key(o), err)
	}
	return nil
}

// rewatchPause is the time between two attempts to reach the API server.
const rewatchPause = 250 * time.Millisecond

// follow watches an object until done returns true. done is called for each state of the
// object, with nil when it is gone. follow opens new watches until ctx ends.
func (s *Snapshotter) follow(ctx context.Context, resource schema.GroupVersionResource, o *unstructured.Unstructured, done func(*unstructured.Unstructured) (bool, error)) error {
	for {
		if ended, err := s.watchOnce(ctx, resource, o, done); ended || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rewatchPause):
		}
	}
}

// watchOnce watches an object until done returns true, or the watch ends. It returns
// false then. Errors of the API server are treated as transient, because ctx has an end.
func (s *Snapshotter) watchOnce(ctx context.Context, resource schema.GroupVersionResource, o *unstructured.Unstructured, done func(*unstructured.Unstructured) (bool, error)) (ended bool, err error) {
	client := s.clients.Dynamic.Resource(resource).Namespace(o.GetNamespace())
	same := func(other *unstructured.Unstructured) bool {
		return other.GetName() == o.GetName() && other.GetUID() == o.GetUID()
	}
	check := func(now *unstructured.Unstructured) (bool, error) {
		ended, err := done(now)
		return ended || now == nil, err
	}
	options := metav1.ListOptions{FieldSelector: "metadata.name=" + o.GetName()}
	list, err := client.List(ctx, options)
	if err != nil {
		return false, nil
	}
	var now *unstructured.Unstructured
	for i := range list.Items {
		if same(&list.Items[i]) {
			now = &list.Items[i]
		}
	}
	if ended, err := check(now); ended || err != nil {
		return ended, err
	}
	options.ResourceVersion = list.GetResourceVersion()
	events, err := client.Watch(ctx, options)
	if err != nil {
		return false, nil
	}
	defer events.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, nil
		case event := <-events.ResultChan():
			now, ok := event.Object.(*unstructured.Unstructured)
			if !ok || !same(now) {
				return false, nil // closed, an error, or another object of the name
			}
			if event.Type == watch.Deleted {
				now = nil
			}
			if ended, err := check(now); ended || err != nil {
				return ended, err
			}
		}
	}
}
