package stage

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// contentFinalizer keeps a content until the CSI sidecar has deleted what it
// stands for. The snapshot controller sets it on those that are bound only.
const contentFinalizer = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"

// ForgetBackups does what DeleteBackups does, for backups with nothing but CSI
// snapshots, in seconds: Velero takes two for each snapshot.
func (s *Stage) ForgetBackups(ctx context.Context, labels client.MatchingLabels) error {
	backups, err := s.Backups(ctx, labels)
	if err != nil {
		return err
	}
	for i := range backups {
		backup := &backups[i]
		// One that nobody works on any more: a Velero that was restarted fails it.
		if _, err := s.AwaitBackup(ctx, backup.Name, nil); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if err := s.forget(ctx, backup); err != nil {
			return fmt.Errorf("delete backup %s: %w", backup.Name, err)
		}
	}
	return nil
}

func (s *Stage) forget(ctx context.Context, backup *velerov1.Backup) error {
	dir := s.BackupDir(backup.Name)
	handles, err := s.KeptSnapshots(backup.Name)
	if err != nil {
		return err
	}
	contents := make([]client.Object, len(handles))
	for i, handle := range handles {
		name := fmt.Sprintf("%s-%d", backup.Name, i)
		contents[i] = &snapshotv1.VolumeSnapshotContent{
			ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: []string{contentFinalizer}},
			Spec: snapshotv1.VolumeSnapshotContentSpec{
				DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete, Driver: handle.Driver,
				Source:            snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: &handles[i].SnapshotHandle},
				VolumeSnapshotRef: corev1.ObjectReference{Namespace: backup.Namespace, Name: name},
			},
		}
		if err := s.Objects().Create(ctx, contents[i]); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	// The controllers must have seen a content before it goes.
	for _, content := range contents {
		err := Until(ctx, "content "+content.GetName()+" is ready", func(ctx context.Context) (bool, error) {
			c := &snapshotv1.VolumeSnapshotContent{}
			err := s.Objects().Get(ctx, client.ObjectKeyFromObject(content), c)
			if apierrors.IsNotFound(err) {
				return true, nil // an earlier run has deleted it
			}
			return err == nil && c.Status != nil && c.Status.ReadyToUse != nil && *c.Status.ReadyToUse, err
		})
		if err != nil {
			return err
		}
	}
	if err := s.DeleteAll(ctx, contents); err != nil {
		return err
	}
	// First from the store: from there Velero would take the object again.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return s.DeleteAll(ctx, []client.Object{backup})
}

// DeleteAll deletes objects and waits until they are gone. They need not exist.
func (s *Stage) DeleteAll(ctx context.Context, objects []client.Object) error {
	for _, object := range objects {
		if err := client.IgnoreNotFound(s.Objects().Delete(ctx, object)); err != nil {
			return err
		}
	}
	for _, object := range objects {
		err := Until(ctx, object.GetName()+" is gone", func(ctx context.Context) (bool, error) {
			now, _ := object.DeepCopyObject().(client.Object)
			err := s.Objects().Get(ctx, client.ObjectKeyFromObject(object), now)
			return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Kept is a snapshot that a backup keeps, as Velero's volume information names it.
type Kept struct {
	SnapshotHandle string `json:"snapshotHandle"`
	Driver         string `json:"driver"`
}

// KeptSnapshots lists the snapshots that a backup keeps in the storage.
func (s *Stage) KeptSnapshots(backup string) ([]Kept, error) {
	return handlesIn(filepath.Join(s.BackupDir(backup), backup+"-volumeinfo.json.gz"))
}

// handlesIn lists the snapshots in a file of volume information, without those
// whose data was moved: they are gone. A backup that failed has none.
func handlesIn(file string) ([]Kept, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	plain, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	var volumes []struct {
		Moved bool  `json:"snapshotDataMoved"`
		CSI   *Kept `json:"csiSnapshotInfo"`
	}
	if err := json.NewDecoder(plain).Decode(&volumes); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	var found []Kept
	for _, volume := range volumes {
		if !volume.Moved && volume.CSI != nil && volume.CSI.SnapshotHandle != "" {
			found = append(found, *volume.CSI)
		}
	}
	return found, nil
}
