// Package snapshotter holds the VolumeSnapshotters that Velero calls for
// VolumeSnapshotLocations. It converts Velero's types; the packages below
// internal/location, one for each provider, do the work.
package snapshotter

import (
	"context"
	"fmt"
	"time"

	vsv1 "github.com/vmware-tanzu/velero/pkg/plugin/velero/volumesnapshotter/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

const (
	// callLimit limits a call of Velero, which passes no context. A snapshot may wait
	// for a freeze, with a prepare-timeout of up to 24 h. The other steps have limits of
	// their own.
	callLimit = 25 * time.Hour
	// askLimit limits a call that only reads.
	askLimit = time.Minute
)

// Provider is the implementation for one kind of storage.
type Provider interface {
	// Init sets the config of a location.
	Init(config map[string]string) error
	// VolumeID returns the ID of a volume, "" if the location does not take it.
	VolumeID(ctx context.Context, volume *corev1.PersistentVolume) (string, error)
	// VolumeInfo returns the kind of a volume.
	VolumeInfo(ctx context.Context, id string) (string, error)
	// Create takes a snapshot and returns its ID.
	Create(ctx context.Context, id string, tags map[string]string) (string, error)
	// Restore provisions a volume from a snapshot and returns its ID.
	Restore(ctx context.Context, snapshot, zone string) (string, error)
	// Adopt returns the volume that Velero creates from the backed-up one.
	Adopt(ctx context.Context, item *corev1.PersistentVolume, id string) (*corev1.PersistentVolume, error)
	// Delete returns when the storage has confirmed the deletion.
	Delete(ctx context.Context, snapshot string) error
}

// Snapshotter implements Velero's interface with a Provider.
type Snapshotter struct{ provider Provider }

var _ vsv1.VolumeSnapshotter = (*Snapshotter)(nil)

// New returns the Snapshotter of a provider.
func New(provider Provider) *Snapshotter { return &Snapshotter{provider} }

// Init sets the config of a location.
func (s *Snapshotter) Init(config map[string]string) error { return prefixed(s.provider.Init(config)) }

// GetVolumeID returns the ID of a volume, "" if the location does not take it.
func (s *Snapshotter) GetVolumeID(item runtime.Unstructured) (string, error) {
	volume, err := volumeOf(item)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	id, err := s.provider.VolumeID(ctx, volume)
	return id, prefixed(err)
}

// GetVolumeInfo returns the kind of a volume as its type, and no IOPS.
func (s *Snapshotter) GetVolumeInfo(id, _ string) (kind string, iops *int64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	kind, err = s.provider.VolumeInfo(ctx, id)
	return kind, nil, prefixed(err)
}

// CreateSnapshot returns when the snapshot is taken.
func (s *Snapshotter) CreateSnapshot(id, _ string, tags map[string]string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	snapshot, err := s.provider.Create(ctx, id, tags)
	return snapshot, prefixed(err)
}

// CreateVolumeFromSnapshot returns the ID of a new volume. Velero then calls
// SetVolumeID.
func (s *Snapshotter) CreateVolumeFromSnapshot(snapshot, _, zone string, _ *int64) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	id, err := s.provider.Restore(ctx, snapshot, zone)
	return id, prefixed(err)
}

// SetVolumeID returns the PersistentVolume that Velero creates from the backed-up one.
func (s *Snapshotter) SetVolumeID(item runtime.Unstructured, id string) (runtime.Unstructured, error) {
	volume, err := volumeOf(item)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	if volume, err = s.provider.Adopt(ctx, volume, id); err != nil {
		return nil, prefixed(err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(volume)
	if err != nil {
		return nil, prefixed(fmt.Errorf("convert PersistentVolume %s: %w", volume.Name, err))
	}
	return &unstructured.Unstructured{Object: content}, nil
}

// DeleteSnapshot returns when the storage has confirmed the deletion.
func (s *Snapshotter) DeleteSnapshot(snapshot string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	return prefixed(s.provider.Delete(ctx, snapshot))
}

func volumeOf(item runtime.Unstructured) (*corev1.PersistentVolume, error) {
	volume := &corev1.PersistentVolume{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.UnstructuredContent(), volume); err != nil {
		return nil, prefixed(fmt.Errorf("read the item that Velero passed: %w", err))
	}
	return volume, nil
}

// prefixed prefixes an error for Velero's log.
func prefixed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("stillpoint: %w", err)
}
