package snapshotclass

import (
	"context"
	"fmt"
	"sync"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
)

// catalogueLife is how long a Catalogue uses what it has read.
const catalogueLife = time.Minute

// Catalogue gathers what the chain decides by: the classes of the cluster and
// the rules of the configuration, read once a minute at the most. It is safe
// for concurrent use.
type Catalogue struct {
	clients *cluster.Clients
	clock   clock.PassiveClock

	mu       sync.Mutex
	until    time.Time
	classes  []snapshotv1.VolumeSnapshotClass
	settings *config.Config
}

// NewCatalogue returns a Catalogue.
func NewCatalogue(clients *cluster.Clients, clock clock.PassiveClock) *Catalogue {
	return &Catalogue{clients: clients, clock: clock}
}

// Input gathers what Choose needs for a claim whose volume has that driver.
func (c *Catalogue) Input(ctx context.Context, claim *corev1.PersistentVolumeClaim, driver string, backup *velerov1.Backup) (Input, error) {
	classes, settings, err := c.read(ctx)
	if err != nil {
		return Input{}, err
	}
	in := Input{Claim: claim, Driver: driver, Backup: backup, Rules: settings.SnapshotClasses, Classes: classes}
	if claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName == "" {
		return in, nil
	}
	class := &storagev1.StorageClass{}
	err = c.clients.Remembered.Get(ctx, crclient.ObjectKey{Name: *claim.Spec.StorageClassName}, class)
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return Input{}, fmt.Errorf("get StorageClass %s: %w", *claim.Spec.StorageClassName, err)
	default:
		in.StorageClass = class
	}
	return in, nil
}

// Settings is the configuration that the rules are of.
func (c *Catalogue) Settings(ctx context.Context) (*config.Config, error) {
	_, settings, err := c.read(ctx)
	return settings, err
}

func (c *Catalogue) read(ctx context.Context) ([]snapshotv1.VolumeSnapshotClass, *config.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clock.Now().Before(c.until) {
		return c.classes, c.settings, nil
	}
	settings, err := config.Load(ctx, c.clients.Kube, c.clients.VeleroNamespace)
	if err != nil {
		return nil, nil, err
	}
	classes, err := c.clients.Snapshots.SnapshotV1().VolumeSnapshotClasses().List(ctx, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) { // a cluster without the CustomResourceDefinition has none
		return nil, nil, fmt.Errorf("list the VolumeSnapshotClasses: %w", err)
	}
	c.classes, c.settings, c.until = classes.Items, settings, c.clock.Now().Add(catalogueLife)
	return c.classes, c.settings, nil
}
