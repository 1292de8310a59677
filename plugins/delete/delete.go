// Package delete holds the action that Velero calls while it deletes a backup,
// also one that has expired. It converts and passes on; what is removed is
// decided in package cleanup.
package delete

import (
	"context"
	"errors"
	"fmt"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/cleanup"
	"stillpoint.io/stillpoint/internal/cluster"
)

// callLimit bounds one call of Velero's, which brings no context along and
// deletes one backup after another. The storage may need longer; what is left
// then is the sweep's.
const callLimit = time.Minute

type action struct {
	cleaner *cleanup.Cleaner
	log     logrus.FieldLogger
}

// New makes the action.
func New(log logrus.FieldLogger) (any, error) {
	clients, err := cluster.NewClients()
	if err != nil {
		return nil, fmt.Errorf("stillpoint: %w", err)
	}
	return &action{cleanup.New(clients, clock.RealClock{}), log}, nil
}

// AppliesTo is what every backup with volumes has, any item of which will do, and
// the contents of those that are snapshots.
func (*action) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"namespaces", "persistentvolumeclaims", "volumesnapshotcontents.snapshot.storage.k8s.io"}}, nil
}

func (a *action) Execute(input *velero.DeleteItemActionExecuteInput) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	err := a.cleaner.DeletedBackup(ctx, input.Backup, a.log)
	if input.Item.GetObjectKind().GroupVersionKind().Kind == "VolumeSnapshotContent" {
		content := &snapshotv1.VolumeSnapshotContent{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(input.Item.UnstructuredContent(), content); err != nil {
			return fmt.Errorf("stillpoint: read the item that Velero passed: %w", err)
		}
		err = errors.Join(err, a.cleaner.DeletedContent(ctx, content, input.Backup, a.log))
	}
	if err != nil {
		return fmt.Errorf("stillpoint: %w", err)
	}
	return nil
}
