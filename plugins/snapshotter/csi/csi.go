// Package csi is the VolumeSnapshotter stillpoint.io/csi, as Velero calls it. It
// converts and passes on; what is done stands in the package of the same name in
// internal/snapshotter.
package csi

import (
	"context"
	"fmt"
	"time"

	vsv1 "github.com/vmware-tanzu/velero/pkg/plugin/velero/volumesnapshotter/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"stillpoint.io/stillpoint/internal/snapshotter/csi"
)

// Provider is the name that VolumeSnapshotLocations have it by.
const Provider = csi.Provider

// callLimit bounds one call of Velero's, which brings no context along. It leaves
// room for the longest prepare-timeout of 24 h.
const callLimit = 25 * time.Hour

// Snapshotter is what Velero calls.
type Snapshotter struct{ *csi.Snapshotter }

var _ vsv1.VolumeSnapshotter = (*Snapshotter)(nil)

// GetVolumeID is "" for a volume that the location leaves to others.
func (s *Snapshotter) GetVolumeID(item runtime.Unstructured) (string, error) {
	volume, err := read(item)
	if err != nil {
		return "", err
	}
	return s.VolumeID(volume), nil
}

// GetVolumeInfo gives the StorageClass for the type; CSI knows nothing of IOPS.
func (s *Snapshotter) GetVolumeInfo(volume, _ string) (string, *int64, error) {
	storageClass, err := s.StorageClass(volume)
	return storageClass, nil, named(err)
}

// CreateSnapshot returns when the snapshot is cut.
func (s *Snapshotter) CreateSnapshot(volume, _ string, tags map[string]string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	id, err := s.Create(ctx, volume, tags)
	return id, named(err)
}

// CreateVolumeFromSnapshot returns the id of the new volume, which SetVolumeID
// makes a PersistentVolume of.
func (s *Snapshotter) CreateVolumeFromSnapshot(snapshot, _, zone string, _ *int64) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	id, err := s.Restore(ctx, snapshot, zone)
	return id, named(err)
}

// SetVolumeID makes the PersistentVolume that Velero creates.
func (s *Snapshotter) SetVolumeID(item runtime.Unstructured, id string) (runtime.Unstructured, error) {
	volume, err := read(item)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	adopted, err := s.Adopt(ctx, volume, id)
	if err != nil {
		return nil, named(err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(adopted)
	if err != nil {
		return nil, fmt.Errorf("stillpoint: convert PersistentVolume %s: %w", adopted.Name, err)
	}
	return &unstructured.Unstructured{Object: content}, nil
}

// DeleteSnapshot returns when the storage has confirmed it.
func (s *Snapshotter) DeleteSnapshot(snapshot string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	return named(s.Delete(ctx, snapshot))
}

func read(item runtime.Unstructured) (*corev1.PersistentVolume, error) {
	volume := &corev1.PersistentVolume{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.UnstructuredContent(), volume); err != nil {
		return nil, fmt.Errorf("stillpoint: read the item that Velero passed: %w", err)
	}
	return volume, nil
}

// named says whose error it is: Velero logs it without the plugin's name.
func named(err error) error {
	if err != nil {
		return fmt.Errorf("stillpoint: %w", err)
	}
	return nil
}
