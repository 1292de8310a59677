package csi

import (
	"cmp"
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
	"stillpoint.io/stillpoint/internal/mapping"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// Snapshotter serves one location. After Init it is safe for concurrent use.
type Snapshotter struct {
	clients   *cluster.Clients
	quiescer  location.Quiescer
	decisions *decision.Decisions
	promoter  *location.Promoter
	log       logrus.FieldLogger

	mu      sync.Mutex
	options *spec.Spec
	// followers has the follower of each backup that this process serves.
	followers map[types.UID]*snapshot.Follower
	// storageClasses has the StorageClass of each volume that Velero asked for, by ID.
	storageClasses map[string]string
	// promoted has the volumes that this process provisioned, by ID.
	promoted map[string]*corev1.PersistentVolume
}

// New returns a Snapshotter. Init configures it.
func New(clients *cluster.Clients, quiescer location.Quiescer, decisions *decision.Decisions, log logrus.FieldLogger) *Snapshotter {
	return &Snapshotter{
		clients: clients, quiescer: quiescer, decisions: decisions, log: log,
		promoter: location.NewPromoter(clients, log), promoted: map[string]*corev1.PersistentVolume{},
		followers: map[types.UID]*snapshot.Follower{}, storageClasses: map[string]string{},
	}
}

// Init sets the config of the location.
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

// VolumeID returns the ID by which Velero knows a volume, driver/handle; "" for a
// volume that this location does not take.
func (s *Snapshotter) VolumeID(_ context.Context, volume *corev1.PersistentVolume) (string, error) {
	if why := s.settings().LeavesOut(volume); why != "" {
		s.log.Infof("Not a volume of provider %s: PersistentVolume %s: %s", spec.Provider, volume.Name, why)
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

// handleOf splits the ID of a volume. A handle can contain slashes, a driver cannot.
func handleOf(id string) (driver, handle string, err error) {
	driver, handle, found := strings.Cut(id, "/")
	if !found || driver == "" || handle == "" {
		return "", "", fmt.Errorf("volume id %q is not <CSI driver>/<volume handle>", id)
	}
	return driver, handle, nil
}

// VolumeInfo returns what Velero stores as the type of a volume: its StorageClass.
// Velero asks for it right after the volume's ID, in the same process.
func (s *Snapshotter) VolumeInfo(_ context.Context, id string) (string, error) {
	if _, _, err := handleOf(id); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.storageClasses[id], nil
}

// identity has the fields of a snapshot's ID, which is all that a restore knows.
type identity struct {
	Driver string `json:"driver"`
	Handle string `json:"handle"`
	Class  string `json:"class,omitempty"`
	// Exported reports whether the handle refers to a copy outside the storage.
	Exported bool `json:"exported,omitempty"`
	// Secret is namespace/name of the Secret that the driver needs for the deletion.
	Secret string `json:"secret,omitempty"`
	// Size is in bytes: the size of the volume, or the restore size of the snapshot.
	Size         int64                               `json:"size"`
	StorageClass string                              `json:"storageClass,omitempty"`
	Mode         corev1.PersistentVolumeMode         `json:"mode,omitempty"`
	AccessModes  []corev1.PersistentVolumeAccessMode `json:"accessModes"`
	// Volume, Namespace and Claim name the source of the snapshot.
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

// Annotations of a content that name the Secret for its deletion.
const (
	secretName      = "snapshot.storage.kubernetes.io/deletion-secret-name"
	secretNamespace = "snapshot.storage.kubernetes.io/deletion-secret-namespace"
)

// static returns the pair of objects for an existing snapshot of the storage. Their
// names begin with why.
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

// Delete deletes the storage's snapshot, and returns when the storage confirmed the
// deletion.
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
	target, err := mapping.ReadTarget(ctx, s.clients)
	if err != nil {
		return err
	}
	settings, err := s.decisions.Settings(ctx)
	if config.Unusable(err) && missing(i.Driver, target) == nil {
		settings, err = config.Default(s.clients.VeleroNamespace), nil // the driver needs no map
	}
	if err != nil {
		return err
	}
	if err := s.mapped(&i, settings, target); err != nil { // another cluster may have taken the snapshot
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

// objects returns the remaining objects of a snapshot. They remain if the claim was
// not in the backup, since Velero then does not call for it.
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

// missing returns an error if the cluster does not have a driver.
func missing(driver string, target mapping.Target) error {
	if slices.Contains(target.Drivers, driver) {
		return nil
	}
	return fmt.Errorf("this cluster has no CSIDriver %s; it has: %s", driver, orNone(target.Drivers))
}

func orNone(names []string) string { return cmp.Or(strings.Join(names, ", "), "none") }

// discarded returns the error for a snapshot that was deleted because it is unusable.
func discarded(err, removal error) error {
	if removal != nil {
		return errors.Join(err, fmt.Errorf("it could not be deleted either: %w", removal))
	}
	return fmt.Errorf("%w; it is deleted", err)
}
