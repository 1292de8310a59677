// Package snapshotclass decides which VolumeSnapshotClass a snapshot is taken
// with, and why. It is an ordered chain of pure rules, of which the first that
// has something to say decides; what is wrong is an error and never passed over.
package snapshotclass

import (
	"errors"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"stillpoint.io/stillpoint/internal/config"
)

// Input is what the choice is made from.
type Input struct {
	Claim        *corev1.PersistentVolumeClaim
	StorageClass *storagev1.StorageClass // nil when the claim has none or it is gone
	Driver       string                  // of the PersistentVolume
	Backup       *velerov1.Backup
	Rules        []config.SnapshotClassRule
	Classes      []snapshotv1.VolumeSnapshotClass // all of the cluster
}

// Choice is a class, and why it was taken.
type Choice struct {
	Class snapshotv1.VolumeSnapshotClass
	// Reason names the object and the key that decided, as in "annotation
	// velero.io/csi-volumesnapshot-class of PersistentVolumeClaim shop/data".
	Reason string
}

// Choose gives the class that a claim's volume is snapshotted with. The error
// names object, key, value and what is valid.
func Choose(in Input) (Choice, error) { return Choice{}, errors.New("not there yet") }

// ForContent is the class of a restored content of driver, from what is known
// without a claim: rules of the configuration that ask for nothing but drivers,
// marks on the classes, the only class. Errors are those of Choose.
func ForContent(driver string, rules []config.SnapshotClassRule, classes []snapshotv1.VolumeSnapshotClass) (Choice, error) {
	return Choice{}, errors.New("not there yet")
}

// Velero is the name of the class that Velero's own chain takes, "" for none.
func Velero(in Input) string { return "" }

// Mend names the annotation on the claim, as key=value, with which Velero
// itself would take the chosen class. It is "" where Velero takes it anyway,
// and where no annotation helps: Velero looks among the classes of the
// StorageClass's provisioner, which may be gone or not be the volume's driver.
func Mend(in Input, choice Choice) string { return "" }
