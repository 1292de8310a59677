package velero

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	snapshotv1ofvelero "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/util/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// ClassInput is what Velero chooses a VolumeSnapshotClass by.
type ClassInput struct {
	Backup       *velerov1.Backup
	Claim        *corev1.PersistentVolumeClaim
	StorageClass *storagev1.StorageClass // nil if it does not exist
	Classes      []snapshotv1.VolumeSnapshotClass
}

// Class returns the name of the VolumeSnapshotClass that Velero's own action takes,
// or the error with which that action ends. Velero's rules have four peculiarities:
// they ask for classes of the StorageClass's provisioner, not of the volume's
// driver; they ignore a name that does not fit; a label or annotation on a class
// counts whatever its value; and of several such classes the first one listed wins,
// which from the API server is the first by name.
func (in ClassInput) Class() (string, error) {
	if in.StorageClass == nil {
		return "", errors.New("the StorageClass does not exist")
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	class, err := csi.GetVolumeSnapshotClass(in.StorageClass.Provisioner, in.Backup, in.Claim, log, classes{in: in})
	if err != nil {
		return "", err
	}
	return class.Name, nil
}

// Annotation returns the annotation on the claim, as key=value, with which Velero
// takes the class wanted. It is "" if Velero takes that class anyway, and if no
// annotation helps: Velero looks among the classes of the StorageClass's
// provisioner, and the StorageClass may not exist or be of another driver.
func (in ClassInput) Annotation(wanted snapshotv1.VolumeSnapshotClass) string {
	if taken, _ := in.Class(); taken == wanted.Name || in.StorageClass == nil || !strings.EqualFold(in.StorageClass.Provisioner, wanted.Driver) {
		return ""
	}
	return velerov1.VolumeSnapshotClassDriverPVCAnnotation + "=" + wanted.Name
}

// classes is a client that lists the classes of its input, which is all that
// Velero's function asks of it.
type classes struct {
	crclient.Client

	in ClassInput
}

// List fills the list in the order of the API server.
func (c classes) List(_ context.Context, list crclient.ObjectList, _ ...crclient.ListOption) error {
	into, ok := list.(*snapshotv1ofvelero.VolumeSnapshotClassList)
	if !ok {
		return errors.New("only VolumeSnapshotClasses can be listed")
	}
	for _, class := range c.in.Classes {
		into.Items = append(into.Items, snapshotv1ofvelero.VolumeSnapshotClass{ObjectMeta: class.ObjectMeta, Driver: class.Driver})
	}
	slices.SortFunc(into.Items, func(a, b snapshotv1ofvelero.VolumeSnapshotClass) int { return strings.Compare(a.Name, b.Name) })
	return nil
}
