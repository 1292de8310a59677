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

// callLimit limits one call of Velero, which passes no context. A call sends a few
// requests to the API server. The first one about an operation also waits for the
// claims.
const callLimit = 2 * time.Minute

// Shared creates the actions of one process. They share a Restorer, since a decision on
// a snapshot also applies to its claim.
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

// Snapshots returns the action on VolumeSnapshotClasses, VolumeSnapshotContents and
// VolumeSnapshots.
func (s *Shared) Snapshots(log logrus.FieldLogger) (any, error) {
	r, err := s.connect(log)
	return &action{[]string{
		"volumesnapshotclasses.snapshot.storage.k8s.io",
		"volumesnapshotcontents.snapshot.storage.k8s.io",
		"volumesnapshots.snapshot.storage.k8s.io",
	}, func(ctx context.Context, item restore.Item) (answer, error) {
		restore.StripFinalizers(item.Object)
		switch kind := item.BackedUp.GetKind(); kind {
		case "VolumeSnapshotClass":
			skip, err := r.Class(ctx, item)
			return answer{skip: skip}, err
		case "VolumeSnapshotContent":
			return answer{}, r.Content(ctx, item)
		case "VolumeSnapshot":
			return answer{}, r.Snapshot(ctx, item)
		default:
			return answer{}, fmt.Errorf("%s %s/%s is of a kind that the restore of snapshots does not handle", kind, item.BackedUp.GetNamespace(), item.BackedUp.GetName())
		}
	}}, err
}

// Volumes returns the action on PersistentVolumes.
func (s *Shared) Volumes(log logrus.FieldLogger) (any, error) {
	r, err := s.connect(log)
	return &action{[]string{"persistentvolumes"}, func(ctx context.Context, item restore.Item) (answer, error) {
		skip, err := r.Volume(ctx, item)
		return answer{skip: skip}, err
	}}, err
}

// StatefulSets returns the action on StatefulSets.
func (s *Shared) StatefulSets(log logrus.FieldLogger) (any, error) {
	r, err := s.connect(log)
	return &action{[]string{"statefulsets.apps"}, func(_ context.Context, item restore.Item) (answer, error) {
		return answer{}, r.StatefulSet(item)
	}}, err
}

// Claims returns the action on PersistentVolumeClaims. Its operations delete the source
// of a claim once the claim is bound.
func (s *Shared) Claims(log logrus.FieldLogger) (any, error) {
	r, err := s.connect(log)
	return &operatingAction{action{[]string{"persistentvolumeclaims"}, func(ctx context.Context, item restore.Item) (answer, error) {
		operation, err := r.Claim(ctx, item)
		return answer{operation: operation}, err
	}}, r.Progress, r.Cancel}, err
}

// Owners returns the action on objects of all kinds. Its operations restore owner
// references when all objects are restored.
func (s *Shared) Owners(log logrus.FieldLogger) (any, error) {
	r, err := s.connect(log)
	return &operatingAction{action{nil, func(_ context.Context, item restore.Item) (answer, error) {
		operation, err := restore.Orphan(item)
		return answer{operation: operation}, err
	}}, r.Adopt, func(context.Context, string, *velerov1.Restore) error { return nil }}, err
}

// action handles the items of some resources, of all if resources is empty.
type action struct {
	resources []string
	do        func(context.Context, restore.Item) (answer, error)
}

func (a *action) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: a.resources}, nil
}

func (a *action) Execute(input *velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error) {
	return execute(input, a.do)
}

// operatingAction is an action with operations, whose progress Velero requests when
// all items are restored.
type operatingAction struct {
	action

	progress func(ctx context.Context, operation string, of *velerov1.Restore) (velero.OperationProgress, error)
	cancel   func(ctx context.Context, operation string, of *velerov1.Restore) error
}

// Name is not called through the plugin protocol; Velero uses the registered one.
func (*operatingAction) Name() string { return "" }

func (a *operatingAction) Progress(operation string, of *velerov1.Restore) (velero.OperationProgress, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	progress, err := a.progress(ctx, operation, of)
	if err != nil {
		return progress, fmt.Errorf("stillpoint: %w", err)
	}
	return progress, nil
}

func (a *operatingAction) Cancel(operation string, of *velerov1.Restore) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	if err := a.cancel(ctx, operation, of); err != nil {
		return fmt.Errorf("stillpoint: %w", err)
	}
	return nil
}

// AreAdditionalItemsReady is never called: no action returns additional items.
func (*operatingAction) AreAdditionalItemsReady([]velero.ResourceIdentifier, *velerov1.Restore) (bool, error) {
	return true, nil
}

// answer is the result of an action beside the item.
type answer struct {
	// skip excludes the item from the restore.
	skip bool
	// operation is the ID of an operation, "" for none.
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
