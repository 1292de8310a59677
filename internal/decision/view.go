package decision

import (
	"context"
	"fmt"
	"sync"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
)

// viewLife is how long the classes are used before they are read again.
const viewLife = time.Minute

// view is the configuration and the VolumeSnapshotClasses of the cluster. It is safe
// for concurrent use.
type view struct {
	clients  *cluster.Clients
	settings *config.Source
	clock    clock.PassiveClock

	mu      sync.Mutex
	until   time.Time
	classes []snapshotv1.VolumeSnapshotClass
}

// read returns both, which are a minute old at the most.
func (v *view) read(ctx context.Context) (*config.Config, []snapshotv1.VolumeSnapshotClass, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	settings, err := v.settings.Get(ctx)
	if err != nil {
		return nil, nil, err
	}
	if v.clock.Now().Before(v.until) {
		return settings, v.classes, nil
	}
	classes, err := v.clients.Snapshots.SnapshotV1().VolumeSnapshotClasses().List(ctx, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) { // a cluster without the CustomResourceDefinition has none
		return nil, nil, fmt.Errorf("list the VolumeSnapshotClasses: %w", err)
	}
	v.classes, v.until = classes.Items, v.clock.Now().Add(viewLife)
	return settings, v.classes, nil
}

// storageClass returns the StorageClass of a claim, nil if the claim has none or it
// does not exist.
func (v *view) storageClass(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*storagev1.StorageClass, error) {
	name := ptr.Deref(claim.Spec.StorageClassName, "")
	if name == "" {
		return nil, nil //nolint:nilnil // none is a valid answer
	}
	class := &storagev1.StorageClass{}
	err := v.clients.Remembered.Get(ctx, crclient.ObjectKey{Name: name}, class)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil //nolint:nilnil // as above
	case err != nil:
		return nil, fmt.Errorf("get StorageClass %s: %w", name, err)
	}
	return class, nil
}
