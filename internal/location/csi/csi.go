// Package csi takes snapshots of CSI volumes through a VolumeSnapshotLocation,
// for Velero servers without the EnableCSI feature. What Velero keeps of a
// snapshot is its driver and handle: VolumeSnapshots and their contents are there
// while one is taken, restored from or deleted, and not in between, so neither a
// deleted namespace nor a lost cluster takes the backup along.
package csi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/decision"
	"stillpoint.io/stillpoint/internal/location"
	"stillpoint.io/stillpoint/internal/location/csi/spec"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// Snapshotter is one location's. It is safe for concurrent use once it is
// configured.
type Snapshotter struct {
	clients   *cluster.Clients
	quiescer  location.Quiescer
	decisions *decision.Decisions
	promoter  *location.Promoter
	log       logrus.FieldLogger

	mu      sync.Mutex
	options *spec.Spec
	// followers are those of the backups that this process serves.
	followers map[types.UID]*snapshot.Follower
	// storageClasses are those of the volumes that Velero has asked for, by their ids.
	storageClasses map[string]string
	// promoted are the volumes that this process has made, by their ids.
	promoted map[string]*corev1.PersistentVolume
}

// New returns a Snapshotter, which Init has to configure.
func New(clients *cluster.Clients, quiescer location.Quiescer, decisions *decision.Decisions, log logrus.FieldLogger) *Snapshotter {
	return &Snapshotter{
		clients: clients, quiescer: quiescer, decisions: decisions, log: log,
		promoter: location.NewPromoter(clients, log), promoted: map[string]*corev1.PersistentVolume{},
		followers: map[types.UID]*snapshot.Follower{}, storageClasses: map[string]string{},
	}
}

// Init takes the config of a location.
func (s *Snapshotter) Init(config map[string]string) error {
	options, err := spec.Decode(config)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.options = options
	return nil
}

func (s *Snapshotter) settings() *spec.Spec {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.options
}

// VolumeID is how Velero knows a volume: driver/handle, "" for one that this
// location leaves to others.
func (s *Snapshotter) VolumeID(_ context.Context, volume *corev1.PersistentVolume) (string, error) {
	if why := s.settings().LeavesOut(volume); why != "" {
		s.log.Infof("PersistentVolume %s is not for provider %s: %s", volume.Name, spec.Provider, why)
		return "", nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.storageClasses[idOf(volume)] = volume.Spec.StorageClassName
	return idOf(volume), nil
}

func idOf(volume *corev1.PersistentVolume) string {
	return volume.Spec.CSI.Driver + "/" + volume.Spec.CSI.VolumeHandle
}

// handleOf takes a volume's id apart. Handles may have slashes, drivers do not.
func handleOf(id string) (driver, handle string, err error) {
	driver, handle, found := strings.Cut(id, "/")
	if !found || driver == "" || handle == "" {
		return "", "", fmt.Errorf("volume id %q is not <CSI driver>/<volume handle>", id)
	}
	return driver, handle, nil
}

// VolumeInfo is what Velero notes of a volume as its type: its StorageClass. Velero
// asks for it right after the volume's id, in the same process.
func (s *Snapshotter) VolumeInfo(_ context.Context, id string) (string, error) {
	if _, _, err := handleOf(id); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.storageClasses[id], nil
}

// identity is all that a restore is told of a snapshot.
type identity struct {
	Driver string `json:"driver"`
	Handle string `json:"handle"`
	Class  string `json:"class,omitempty"`
	// Exported tells that the handle names a copy which the driver keeps elsewhere.
	Exported bool `json:"exported,omitempty"`
	// Secret is namespace/name of the one that the driver needs to delete it.
	Secret string `json:"secret,omitempty"`
	// Size is in bytes: that of the volume, or what the snapshot restores to.
	Size         int64                               `json:"size"`
	StorageClass string                              `json:"storageClass,omitempty"`
	Mode         corev1.PersistentVolumeMode         `json:"mode,omitempty"`
	AccessModes  []corev1.PersistentVolumeAccessMode `json:"accessModes"`
	// Volume, Namespace and Claim are those that the snapshot was taken of.
	Volume    string `json:"volume"`
	Namespace string `json:"namespace"`
	Claim     string `json:"claim"`
}

func (i identity) validate() error {
	var missing []string
	for field, value := range map[string]string{"driver": i.Driver, "handle": i.Handle} {
		if value == "" {
			missing = append(missing, field)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("a snapshot id of provider %s has no %s", spec.Provider, strings.Join(missing, " and no "))
	}
	return nil
}

func decodeID(id string) (identity, error) {
	var i identity
	if err := location.DecodeID(spec.Provider, id, &i); err != nil {
		return i, err
	}
	return i, i.validate()
}

// Deletion and restore make a content of a handle, by a name of its own.

// Secrets that the sidecar calls the driver with.
const (
	secretName      = "snapshot.storage.kubernetes.io/deletion-secret-name"
	secretNamespace = "snapshot.storage.kubernetes.io/deletion-secret-namespace"
)

// static makes the pair that stands for a snapshot which the storage has already.
// why begins their names.
func (s *Snapshotter) static(i identity, why, installation string, policy snapshotv1.DeletionPolicy) (*snapshotv1.VolumeSnapshot, *snapshotv1.VolumeSnapshotContent) {
	content := snapshot.OfHandle(why, s.clients.VeleroNamespace, i.Driver, i.Handle, policy)
	content.Labels = map[string]string{api.LabelPromoted: installation, velerov1.ExcludeFromBackupLabel: "true"}
	if i.Class != "" {
		content.Spec.VolumeSnapshotClassName = &i.Class
	}
	if i.Mode != "" {
		content.Spec.SourceVolumeMode = &i.Mode
	}
	if namespace, secret, ok := strings.Cut(i.Secret, "/"); ok {
		content.Annotations = map[string]string{secretName: secret, secretNamespace: namespace}
	}
	vs := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.clients.VeleroNamespace, Name: content.Name, Labels: maps.Clone(content.Labels)},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: ptr.To(content.Name)}},
	}
	if i.Class != "" {
		vs.Spec.VolumeSnapshotClassName = &i.Class
	}
	return vs, content
}

// Delete removes the storage's snapshot, and returns when the storage has
// confirmed it, or with what is in the way.
func (s *Snapshotter) Delete(ctx context.Context, id string) error {
	i, err := decodeID(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.settings().Limit())
	defer cancel()
	installation, err := s.clients.Installation(ctx)
	if err != nil {
		return err
	}
	targets, err := s.objects(ctx, i, installation)
	if err != nil {
		return err
	}
	settings, err := s.decisions.Settings(ctx)
	if _, unknown := s.knows(ctx, i.Driver); config.Unusable(err) && unknown == nil {
		settings, err = config.Default(s.clients.VeleroNamespace), nil // the cluster has the driver, and needs no map
	}
	if err != nil {
		return err
	}
	if err := s.mapped(ctx, &i, settings); err != nil { // what another cluster has taken
		return fmt.Errorf("delete snapshot %s: %w", i.Handle, err)
	}
	kept, err := snapshot.RemoveAll(ctx, s.clients.Snapshots, targets...)
	if err == nil && len(kept) > 0 {
		err = fmt.Errorf("VolumeSnapshot %s: %w", kept[0], snapshot.ErrVetoed)
	}
	if err != nil {
		return fmt.Errorf("delete snapshot %s of driver %s: %w", i.Handle, i.Driver, err)
	}
	_, content := s.static(i, "delete", installation, snapshotv1.VolumeSnapshotContentDelete)
	return snapshot.DeleteByHandle(ctx, s.clients.Snapshots, content)
}

// objects are those that the backup has left of a snapshot: where the claim was
// not in the backup, nobody was asked to take them away.
func (s *Snapshotter) objects(ctx context.Context, i identity, installation string) ([]snapshot.Target, error) {
	list, err := snapshot.List(ctx, s.clients.Snapshots, i.Namespace, snapshot.Of(installation).String())
	if err != nil {
		return nil, err
	}
	var targets []snapshot.Target
	for n := range list {
		if vs := &list[n]; vs.Annotations[velerov1.VolumeSnapshotHandleAnnotation] == i.Handle && vs.Annotations[velerov1.DriverNameAnnotation] == i.Driver {
			targets = append(targets, snapshot.TargetOf(vs))
		}
	}
	return targets, nil
}

// knows is an error where the cluster does not have a driver, and lists those
// that it has.
func (s *Snapshotter) knows(ctx context.Context, driver string) ([]string, error) {
	list, err := s.clients.Kube.StorageV1().CSIDrivers().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the CSIDrivers: %w", err)
	}
	var names []string
	for _, d := range list.Items {
		names = append(names, d.Name)
	}
	if !slices.Contains(names, driver) {
		return names, fmt.Errorf("this cluster has no CSIDriver %s; it has: %s", driver, orNone(names))
	}
	return names, nil
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// discarded is the error of a snapshot that was of no use.
func discarded(err, removal error) error {
	if removal != nil {
		return errors.Join(err, fmt.Errorf("it could not be deleted either: %w", removal))
	}
	return fmt.Errorf("%w; it is deleted", err)
}
