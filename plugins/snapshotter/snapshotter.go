// Package snapshotter is what Velero calls for VolumeSnapshotLocations. It converts
// and passes on; what is done stands in the packages below internal/location, one
// for each provider.
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
	// callLimit bounds a call of Velero's, which brings no context along. A snapshot
	// may wait for a workload to be quiesced: the longest prepare-timeout is 24 h.
	// What takes time besides has limits of its own.
	callLimit = 25 * time.Hour
	// askLimit bounds a call that only asks.
	askLimit = time.Minute
)

// Provider is what speaks to the storage.
type Provider interface {
	// Init takes the config of a location.
	Init(config map[string]string) error
	// VolumeID is "" for a volume that the location leaves to others.
	VolumeID(ctx context.Context, volume *corev1.PersistentVolume) (string, error)
	// VolumeInfo is of what kind a volume is.
	VolumeInfo(ctx context.Context, id string) (string, error)
	// Create takes a snapshot and returns its id.
	Create(ctx context.Context, id string, tags map[string]string) (string, error)
	// Restore makes a volume of a snapshot and returns its id.
	Restore(ctx context.Context, snapshot, zone string) (string, error)
	// Adopt makes of a volume as backed up the one that Velero creates.
	Adopt(ctx context.Context, item *corev1.PersistentVolume, id string) (*corev1.PersistentVolume, error)
	// Delete returns when the storage has confirmed it.
	Delete(ctx context.Context, snapshot string) error
}

// Snapshotter is a Provider as Velero calls it.
type Snapshotter struct{ provider Provider }

var _ vsv1.VolumeSnapshotter = (*Snapshotter)(nil)

// New returns the Snapshotter of a provider.
func New(provider Provider) *Snapshotter { return &Snapshotter{provider} }

// Init takes the config of a location.
func (s *Snapshotter) Init(config map[string]string) error { return ours(s.provider.Init(config)) }

// GetVolumeID is "" for a volume that the location leaves to others.
func (s *Snapshotter) GetVolumeID(item runtime.Unstructured) (string, error) {
	volume, err := volumeOf(item)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	id, err := s.provider.VolumeID(ctx, volume)
	return id, ours(err)
}

// GetVolumeInfo gives what kind of volume it is for the type. There are no IOPS to
// know.
func (s *Snapshotter) GetVolumeInfo(id, _ string) (kind string, iops *int64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	kind, err = s.provider.VolumeInfo(ctx, id)
	return kind, nil, ours(err)
}

// CreateSnapshot returns when the snapshot is taken.
func (s *Snapshotter) CreateSnapshot(id, _ string, tags map[string]string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	snapshot, err := s.provider.Create(ctx, id, tags)
	return snapshot, ours(err)
}

// CreateVolumeFromSnapshot returns the id of a new volume, which SetVolumeID makes
// a PersistentVolume of.
func (s *Snapshotter) CreateVolumeFromSnapshot(snapshot, _, zone string, _ *int64) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	id, err := s.provider.Restore(ctx, snapshot, zone)
	return id, ours(err)
}

// SetVolumeID makes of a volume as it was backed up the one that Velero creates.
func (s *Snapshotter) SetVolumeID(item runtime.Unstructured, id string) (runtime.Unstructured, error) {
	volume, err := volumeOf(item)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	if volume, err = s.provider.Adopt(ctx, volume, id); err != nil {
		return nil, ours(err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(volume)
	if err != nil {
		return nil, ours(fmt.Errorf("convert PersistentVolume %s: %w", volume.Name, err))
	}
	return &unstructured.Unstructured{Object: content}, nil
}

// DeleteSnapshot returns when the storage has confirmed it.
func (s *Snapshotter) DeleteSnapshot(snapshot string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	return ours(s.provider.Delete(ctx, snapshot))
}

func volumeOf(item runtime.Unstructured) (*corev1.PersistentVolume, error) {
	volume := &corev1.PersistentVolume{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.UnstructuredContent(), volume); err != nil {
		return nil, ours(fmt.Errorf("read the item that Velero passed: %w", err))
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
