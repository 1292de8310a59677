package externalstorage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/location"
	"stillpoint.io/stillpoint/internal/velero"
)

// Provider is the spec.provider of a VolumeSnapshotLocation that this package serves.
const Provider = "stillpoint.io/external-storage"

// Names in the API, of external-storage v5.5.0, folder snapshot.
const (
	Group = "volumesnapshot.external-storage.k8s.io"
	// promoter is the provisioner that provisions volumes from snapshots.
	promoter = Group + "/snapshot-promoter"
	// sourceAnnotation on a claim of that provisioner names the VolumeSnapshot.
	sourceAnnotation = "snapshot.alpha.kubernetes.io/snapshot"
)

// Resources of the API. CSI's have the same short names.
var (
	version   = schema.GroupVersion{Group: Group, Version: "v1"}
	snapshots = version.WithResource("volumesnapshots")
	datas     = version.WithResource("volumesnapshotdatas")
)

// Snapshotter is the VolumeSnapshotter of one process. Velero calls it for one
// volume after another.
type Snapshotter struct {
	clients  *cluster.Clients
	quiescer location.Quiescer
	promoter *location.Promoter
	log      logrus.FieldLogger

	mu      sync.Mutex
	options options
	served  *bool
	// cleaned has the UIDs of the backups at whose first snapshot the leftovers of
	// earlier backups were deleted.
	cleaned map[types.UID]bool
}

// New returns a Snapshotter. Init configures it.
func New(clients *cluster.Clients, quiescer location.Quiescer, log logrus.FieldLogger) *Snapshotter {
	return &Snapshotter{
		clients: clients, quiescer: quiescer, promoter: location.NewPromoter(clients, log), log: log,
		options: options{timeout: defaultTimeout}, cleaned: map[types.UID]bool{},
	}
}

// Init sets the config of the location.
func (s *Snapshotter) Init(config map[string]string) error {
	options, err := parseLocation(config)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.options = options
	return nil
}

func (s *Snapshotter) settings() options {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.options
}

// VolumeID returns the name of a volume that this location takes, "" for any other.
func (s *Snapshotter) VolumeID(ctx context.Context, volume *corev1.PersistentVolume) (string, error) {
	served, err := s.isServed(ctx)
	if err != nil {
		return "", err
	}
	ours, reason, err := s.settings().takes(volume, served)
	if err != nil {
		return "", err
	}
	if !ours {
		s.log.Infof("Volume of the API before CSI not taken: PersistentVolume %s: %s", volume.Name, reason)
		return "", nil
	}
	return volume.Name, nil
}

// isServed reports whether the API server serves the API. It caches the answer for the
// process.
func (s *Snapshotter) isServed(_ context.Context) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.served != nil {
		return *s.served, nil
	}
	_, err := s.clients.Kube.Discovery().ServerResourcesForGroupVersion(version.String())
	if err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("ask the API server for %s: %w", version, err)
	}
	served := err == nil
	s.served = &served
	return served, nil
}

// VolumeInfo returns the type of a volume's source. The IOPS are not known.
func (s *Snapshotter) VolumeInfo(ctx context.Context, id string) (kind string, err error) {
	volume := &corev1.PersistentVolume{}
	if err := s.clients.Objects.Get(ctx, crclient.ObjectKey{Name: id}, volume); err != nil {
		return "", fmt.Errorf("get PersistentVolume %s: %w", id, err)
	}
	return sourceOf(volume), nil
}

// Create takes a snapshot of a volume and returns its ID. The workload is frozen until
// the controller reports the snapshot as Ready.
func (s *Snapshotter) Create(ctx context.Context, volumeID string, tags map[string]string) (string, error) {
	subject, err := location.Find(ctx, s.clients, tags)
	if err != nil {
		return "", err
	}
	if subject.Volume.Name != volumeID {
		return "", fmt.Errorf("the tag %s names PersistentVolume %s, and the call is for %s", velero.TagVolume, subject.Volume.Name, volumeID)
	}
	installation, err := s.clients.Installation(ctx)
	if err != nil {
		return "", s.quiescer.Around(ctx, location.Request{Claim: subject.Claim, Backup: subject.Backup, Failed: err})
	}
	s.deleteLeftovers(ctx, subject.Backup, installation)

	t := newTaking(s, installation, subject, tags)
	err = s.quiescer.Around(ctx, location.Request{Claim: subject.Claim, Backup: subject.Backup, Take: t.take, Taken: t.taken})
	var home *Identity
	if err == nil {
		home, err = t.moveToVelero(ctx)
	}
	if err != nil {
		return "", errors.Join(err, t.undo(ctx))
	}
	return location.EncodeID(Provider, home)
}

// Restore provisions a volume from a snapshot and returns its name.
func (s *Snapshotter) Restore(ctx context.Context, snapshotID, zone string) (string, error) {
	id, err := decode(snapshotID)
	if err != nil {
		return "", err
	}
	options := s.settings()
	ctx, cancel := context.WithTimeout(ctx, options.timeout)
	defer cancel()
	class, err := s.promoterClass(ctx, options)
	if err != nil {
		return "", err
	}
	nodes, err := s.promoter.Nodes(ctx, class, zone)
	if err != nil {
		return "", err
	}
	home, err := s.ensure(ctx, id)
	if err != nil {
		return "", err
	}
	volume, err := s.promoter.Promote(ctx, id.promotion(home.GetNamespace(), class.Name), nodes...)
	if err != nil {
		return "", fmt.Errorf("provision a volume from %s: %w", id, err)
	}
	return volume.Name, nil
}

// promoterClass returns the StorageClass that provisions volumes from snapshots.
func (s *Snapshotter) promoterClass(ctx context.Context, options options) (*storagev1.StorageClass, error) {
	list, err := s.clients.Kube.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the StorageClasses: %w", err)
	}
	return options.promoter(list.Items)
}

// Adopt returns the volume that replaces a promoted volume.
func (s *Snapshotter) Adopt(ctx context.Context, item *corev1.PersistentVolume, volumeID string) (*corev1.PersistentVolume, error) {
	promoted, err := s.clients.Kube.CoreV1().PersistentVolumes().Get(ctx, volumeID, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get promoted PersistentVolume %s: %w", volumeID, err)
	}
	return s.promoter.Adopt(ctx, item, promoted)
}

// confirmLimit limits how long the controller takes to delete a snapshot or to react to
// one.
const confirmLimit = time.Minute
