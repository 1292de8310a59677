// Package externalstorage holds the VolumeSnapshotter that Velero calls for
// volumes of the snapshot API before CSI's. It converts and passes on; what is
// done stands in the package of that name of internal.
package externalstorage

import (
	"context"
	"fmt"
	"time"

	vsv1 "github.com/vmware-tanzu/velero/pkg/plugin/velero/volumesnapshotter/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"stillpoint.io/stillpoint/internal/snapshotter/externalstorage"
)

const (
	// createLimit bounds a snapshot, which may wait for a workload to be quiesced:
	// the longest prepare-timeout is 24 h.
	createLimit = 25 * time.Hour
	// callLimit bounds any other call of Velero's, which brings no context along.
	// What takes time has limits of its own.
	callLimit = time.Hour
	// askLimit bounds a call that only asks.
	askLimit = time.Minute
)

// Provider is the name that VolumeSnapshotLocations have it by.
const Provider = externalstorage.Provider

// Snapshotter is what Velero calls.
type Snapshotter struct{ *externalstorage.Snapshotter }

var _ vsv1.VolumeSnapshotter = (*Snapshotter)(nil)

// Init takes the config of a location.
func (s *Snapshotter) Init(config map[string]string) error { return ours(s.Snapshotter.Init(config)) }

// GetVolumeID is "" for a volume that the location leaves to others.
func (s *Snapshotter) GetVolumeID(item runtime.Unstructured) (string, error) {
	volume, err := volumeOf(item)
	if err != nil {
		return "", ours(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	id, err := s.VolumeID(ctx, volume)
	return id, ours(err)
}

// GetVolumeInfo gives the kind of storage for the type.
func (s *Snapshotter) GetVolumeInfo(volumeID, _ string) (kind string, iops *int64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	kind, err = s.VolumeInfo(ctx, volumeID)
	return kind, nil, ours(err)
}

// CreateSnapshot returns when the snapshot is Ready and in Velero's namespace.
func (s *Snapshotter) CreateSnapshot(volumeID, _ string, tags map[string]string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), createLimit)
	defer cancel()
	id, err := s.Create(ctx, volumeID, tags)
	return id, ours(err)
}

// CreateVolumeFromSnapshot returns the name of the new volume, which SetVolumeID
// makes a PersistentVolume of.
func (s *Snapshotter) CreateVolumeFromSnapshot(snapshotID, _, zone string, _ *int64) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	id, err := s.Volume(ctx, snapshotID, zone)
	return id, ours(err)
}

// SetVolumeID makes of a volume as it was backed up the one that Velero creates.
func (s *Snapshotter) SetVolumeID(item runtime.Unstructured, volumeID string) (runtime.Unstructured, error) {
	volume, err := volumeOf(item)
	if err != nil {
		return nil, ours(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	if volume, err = s.Replace(ctx, volume, volumeID); err != nil {
		return nil, ours(err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(volume)
	if err != nil {
		return nil, ours(fmt.Errorf("write PersistentVolume %s: %w", volume.Name, err))
	}
	return &unstructured.Unstructured{Object: content}, nil
}

// DeleteSnapshot returns when the snapshot controller has deleted the data.
func (s *Snapshotter) DeleteSnapshot(snapshotID string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	return ours(s.Delete(ctx, snapshotID))
}

func volumeOf(item runtime.Unstructured) (*corev1.PersistentVolume, error) {
	volume := &corev1.PersistentVolume{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.UnstructuredContent(), volume); err != nil {
		return nil, fmt.Errorf("read the item that Velero passed: %w", err)
	}
	return volume, nil
}

// ours has an error say in Velero's log whose it is.
func ours(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("stillpoint: %w", err)
}
