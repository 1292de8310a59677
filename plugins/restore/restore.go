// Package restore holds the actions that Velero calls while it restores. They
// convert and pass on; what is decided stands in the package restore of
// internal.
package restore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/restore"
)

// callLimit bounds one call of Velero's, which brings no context along. A call
// is a few requests to the API server.
const callLimit = 2 * time.Minute

// Shared is what the actions of one process have in common: what was decided
// on a snapshot holds for its claim.
type Shared struct {
	once     sync.Once
	restorer *restore.Restorer
	err      error
}

func (s *Shared) connect(log logrus.FieldLogger) (*restore.Restorer, error) {
	s.once.Do(func() {
		clients, err := cluster.NewClients()
		if err != nil {
			s.err = fmt.Errorf("stillpoint: %w", err)
			return
		}
		s.restorer = restore.NewRestorer(clients.Kube, clients.Snapshots, clients.VeleroNamespace, log)
	})
	return s.restorer, s.err
}

// Snapshots makes the action on VolumeSnapshotClasses, VolumeSnapshotContents
// and VolumeSnapshots.
func (s *Shared) Snapshots(log logrus.FieldLogger) (any, error) {
	r, err := s.connect(log)
	return &snapshotAction{r}, err
}

// Claims makes the action on PersistentVolumeClaims.
func (s *Shared) Claims(log logrus.FieldLogger) (any, error) {
	r, err := s.connect(log)
	return &claimAction{r}, err
}

// StatefulSets makes the action on StatefulSets.
func (s *Shared) StatefulSets(log logrus.FieldLogger) (any, error) {
	r, err := s.connect(log)
	return &statefulSetAction{r}, err
}

type snapshotAction struct{ restorer *restore.Restorer }

func (*snapshotAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{
		"volumesnapshotclasses.snapshot.storage.k8s.io",
		"volumesnapshotcontents.snapshot.storage.k8s.io",
		"volumesnapshots.snapshot.storage.k8s.io",
	}}, nil
}

func (a *snapshotAction) Execute(input *velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error) {
	return execute(input, func(ctx context.Context, item restore.Item) (skip bool, err error) {
		switch kind := item.BackedUp.GetKind(); kind {
		case "VolumeSnapshotClass":
			return a.restorer.Class(ctx, item)
		case "VolumeSnapshotContent":
			return false, a.restorer.Content(ctx, item)
		case "VolumeSnapshot":
			return false, a.restorer.Snapshot(ctx, item)
		default:
			return false, fmt.Errorf("%s %s/%s is of no kind that this action is for", kind, item.BackedUp.GetNamespace(), item.BackedUp.GetName())
		}
	})
}

type claimAction struct{ restorer *restore.Restorer }

func (*claimAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"persistentvolumeclaims"}}, nil
}

func (a *claimAction) Execute(input *velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error) {
	return execute(input, func(ctx context.Context, item restore.Item) (skip bool, err error) {
		return false, a.restorer.Claim(ctx, item)
	})
}

type statefulSetAction struct{ restorer *restore.Restorer }

func (*statefulSetAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"statefulsets.apps"}}, nil
}

func (a *statefulSetAction) Execute(input *velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error) {
	return execute(input, func(_ context.Context, item restore.Item) (skip bool, err error) {
		return false, a.restorer.StatefulSet(item)
	})
}

func execute(input *velero.RestoreItemActionExecuteInput, do func(context.Context, restore.Item) (skip bool, err error)) (*velero.RestoreItemActionExecuteOutput, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	item := restore.Item{
		Object:   &unstructured.Unstructured{Object: input.Item.UnstructuredContent()},
		BackedUp: &unstructured.Unstructured{Object: input.ItemFromBackup.UnstructuredContent()},
		Restore:  input.Restore,
	}
	skip, err := do(ctx, item)
	if err != nil {
		return nil, fmt.Errorf("stillpoint: %w", err)
	}
	output := velero.NewRestoreItemActionExecuteOutput(item.Object)
	if skip {
		output = output.WithoutRestore()
	}
	return output, nil
}
