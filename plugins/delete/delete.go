// Package delete holds the action that Velero calls while it deletes a backup, including
// an expired one. It converts Velero's types; package cleanup decides what to delete.
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

// callLimit limits one call of Velero, which passes no context and deletes one backup
// after another. The sweep deletes what the storage does not delete in this time.
const callLimit = time.Minute

type action struct {
	cleaner *cleanup.Cleaner
	log     logrus.FieldLogger
}

// New returns the action.
func New(log logrus.FieldLogger) (any, error) {
	clients, err := cluster.NewClients()
	if err != nil {
		return nil, fmt.Errorf("stillpoint: %w", err)
	}
	return &action{cleanup.New(clients, clock.RealClock{}), log}, nil
}

// AppliesTo selects items that every backup with volumes has, and the contents of its
// snapshots.
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
