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
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/restore"
)

// callLimit bounds one call of Velero's, which brings no context along. A call
// is a few requests to the API server; the first about an operation waits a
// little for the claims.
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
		s.restorer = restore.NewRestorer(clients, clock.RealClock{}, log)
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
	return execute(input, func(ctx context.Context, item restore.Item) (answer, error) {
		switch kind := item.BackedUp.GetKind(); kind {
		case "VolumeSnapshotClass":
			skip, err := a.restorer.Class(ctx, item)
			return answer{skip: skip}, err
		case "VolumeSnapshotContent":
			return answer{}, a.restorer.Content(ctx, item)
		case "VolumeSnapshot":
			return answer{}, a.restorer.Snapshot(ctx, item)
		default:
			return answer{}, fmt.Errorf("%s %s/%s is of no kind that this action is for", kind, item.BackedUp.GetNamespace(), item.BackedUp.GetName())
		}
	})
}

// claimAction is asked for the progress of what it removes when a claim is
// bound.
type claimAction struct{ restorer *restore.Restorer }

// Name is Velero's to answer: it knows the action by its registration.
func (*claimAction) Name() string { return "" }

func (*claimAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"persistentvolumeclaims"}}, nil
}

func (a *claimAction) Execute(input *velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error) {
	return execute(input, func(ctx context.Context, item restore.Item) (answer, error) {
		operation, err := a.restorer.Claim(ctx, item)
		return answer{operation: operation}, err
	})
}

func (a *claimAction) Progress(operation string, of *velerov1.Restore) (velero.OperationProgress, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	progress, err := a.restorer.Progress(ctx, operation, of)
	if err != nil {
		return progress, fmt.Errorf("stillpoint: %w", err)
	}
	return progress, nil
}

func (a *claimAction) Cancel(operation string, of *velerov1.Restore) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	if err := a.restorer.Cancel(ctx, operation, of); err != nil {
		return fmt.Errorf("stillpoint: %w", err)
	}
	return nil
}

// AreAdditionalItemsReady is never asked: there are none.
func (*claimAction) AreAdditionalItemsReady([]velero.ResourceIdentifier, *velerov1.Restore) (bool, error) {
	return true, nil
}

type statefulSetAction struct{ restorer *restore.Restorer }

func (*statefulSetAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"statefulsets.apps"}}, nil
}

func (a *statefulSetAction) Execute(input *velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error) {
	return execute(input, func(_ context.Context, item restore.Item) (answer, error) {
		return answer{}, a.restorer.StatefulSet(item)
	})
}

// answer is what Velero is told of an item beside the item itself.
type answer struct {
	// skip keeps the item from being restored.
	skip bool
	// operation is asked for its progress later; "" is none.
	operation string
}

func execute(input *velero.RestoreItemActionExecuteInput, do func(context.Context, restore.Item) (answer, error)) (*velero.RestoreItemActionExecuteOutput, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	item := restore.Item{
		Object:   &unstructured.Unstructured{Object: input.Item.UnstructuredContent()},
		BackedUp: &unstructured.Unstructured{Object: input.ItemFromBackup.UnstructuredContent()},
		Restore:  input.Restore,
	}
	answer, err := do(ctx, item)
	if err != nil {
		return nil, fmt.Errorf("stillpoint: %w", err)
	}
	output := velero.NewRestoreItemActionExecuteOutput(item.Object)
	if answer.skip {
		output = output.WithoutRestore()
	}
	if answer.operation != "" {
		output = output.WithOperationID(answer.operation)
	}
	return output, nil
}
