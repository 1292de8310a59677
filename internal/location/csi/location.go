package csi

import (
	"cmp"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"

	"stillpoint.io/stillpoint/internal/location"
)

// Provider is the name that a VolumeSnapshotLocation has it by.
const Provider = "stillpoint.io/csi"

// defaultTimeout is how long the storage may take for one call of Velero's.
const defaultTimeout = 10 * time.Minute

// options is what a VolumeSnapshotLocation's spec.config says.
type options struct {
	// drivers are patterns of the CSI drivers whose volumes are taken; none is all.
	drivers []string
	// classes are VolumeSnapshotClasses by StorageClass.
	classes map[string]string
	// timeout bounds one call: until a snapshot is cut, until a volume is
	// provisioned from one, until one is deleted. 0 is the default.
	timeout time.Duration
}

func decode(config map[string]string) (*options, error) {
	l := &options{classes: map[string]string{}}
	return l, location.Decode(Provider, config,
		location.Globs("drivers", &l.drivers),
		location.Names("volumeSnapshotClass", "StorageClass", l.classes),
		location.Duration("timeout", &l.timeout),
	)
}

// limit bounds a restore and a deletion.
func (l *options) limit() time.Duration { return cmp.Or(l.timeout, defaultTimeout) }

// cutLimit is how long a snapshot of a backup may take until it is cut: Velero's
// csiSnapshotTimeout unless the location says otherwise.
func (l *options) cutLimit(backup *velerov1.Backup) time.Duration {
	return cmp.Or(l.timeout, backup.Spec.CSISnapshotTimeout.Duration, defaultTimeout)
}

// takes says why a location leaves a volume to others, "" where it takes it.
func (l *options) takes(volume *corev1.PersistentVolume) string {
	switch {
	case volume.Spec.CSI == nil:
		return "it is not a CSI volume"
	case !location.Matches(l.drivers, volume.Spec.CSI.Driver):
		return "its driver " + volume.Spec.CSI.Driver + " is not among the location's drivers"
	case volume.Spec.ClaimRef == nil || volume.Status.Phase != corev1.VolumeBound && volume.Status.Phase != "":
		return "it is not bound to a claim, and VolumeSnapshots are taken of claims"
	}
	return ""
}

// Takes tells whether a location with that config takes a volume. An error is one
// of the config.
func Takes(config map[string]string, volume *corev1.PersistentVolume) (bool, error) {
	l, err := decode(config)
	if err != nil {
		return false, err
	}
	return l.takes(volume) == "", nil
}

// Classes are the VolumeSnapshotClasses that a location with that config names, by
// StorageClass. An error is one of the config.
func Classes(config map[string]string) (map[string]string, error) {
	l, err := decode(config)
	if err != nil {
		return nil, err
	}
	return l.classes, nil
}
