package restore

import (
	"github.com/sirupsen/logrus"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"stillpoint.io/stillpoint/internal/location/externalstorage"
)

// ExternalSnapshots returns the action on the objects of the snapshot API before CSI's.
// They are not restored: the controller takes a new snapshot for a created
// VolumeSnapshot, and a VolumeSnapshotData would refer to data of another object.
func ExternalSnapshots(log logrus.FieldLogger) (any, error) {
	return &externalSnapshotAction{log}, nil
}

type externalSnapshotAction struct{ log logrus.FieldLogger }

func (*externalSnapshotAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{
		"volumesnapshots." + externalstorage.Group,
		"volumesnapshotdatas." + externalstorage.Group,
	}}, nil
}

func (a *externalSnapshotAction) Execute(input *velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error) {
	item := &unstructured.Unstructured{Object: input.Item.UnstructuredContent()}
	name := item.GetName()
	if item.GetNamespace() != "" {
		name = item.GetNamespace() + "/" + name
	}
	a.log.Infof("Left out an object of the snapshot API before CSI: %s %s of %s is not restored: its controller would take a new snapshot. Volumes come back from the backup's own snapshots", item.GetKind(), name, externalstorage.Group)
	return velero.NewRestoreItemActionExecuteOutput(item).WithoutRestore(), nil
}
