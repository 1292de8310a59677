// Package spec reads the spec.config of a VolumeSnapshotLocation of the provider
// stillpoint.io/csi.
package spec

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

// Spec is what a VolumeSnapshotLocation's spec.config says.
type Spec struct {
	// Drivers are patterns of the CSI drivers whose volumes are taken; none is all.
	Drivers []string
	// Classes are VolumeSnapshotClasses by StorageClass.
	Classes map[string]string
	// Timeout bounds one call: until a snapshot is cut, until a volume is
	// provisioned from one, until one is deleted. 0 is the default.
	Timeout time.Duration
}

// Decode reads a config. An error names the key, its value and what is valid.
func Decode(config map[string]string) (*Spec, error) {
	l := &Spec{Classes: map[string]string{}}
	return l, location.Decode(Provider, config,
		location.Globs("drivers", &l.Drivers),
		location.Names("volumeSnapshotClass", "StorageClass", l.Classes),
		location.Duration("timeout", &l.Timeout),
	)
}

// Limit bounds a restore and a deletion.
func (l *Spec) Limit() time.Duration { return cmp.Or(l.Timeout, defaultTimeout) }

// CutLimit is how long a snapshot of a backup may take until it is cut: Velero's
// csiSnapshotTimeout unless the location says otherwise.
func (l *Spec) CutLimit(backup *velerov1.Backup) time.Duration {
	return cmp.Or(l.Timeout, backup.Spec.CSISnapshotTimeout.Duration, defaultTimeout)
}

// LeavesOut returns why a location does not take a volume, "" if it does.
func (l *Spec) LeavesOut(volume *corev1.PersistentVolume) string {
	switch {
	case volume.Spec.CSI == nil:
		return "it is not a CSI volume"
	case !location.Matches(l.Drivers, volume.Spec.CSI.Driver):
		return "its driver " + volume.Spec.CSI.Driver + " is not among the location's drivers"
	case volume.Spec.ClaimRef == nil || volume.Status.Phase != corev1.VolumeBound && volume.Status.Phase != "":
		return "it is not bound to a claim, and VolumeSnapshots are taken of claims"
	}
	return ""
}

// Takes reports whether a location with that config takes a volume. An error is one
// of the config.
func Takes(config map[string]string, volume *corev1.PersistentVolume) (bool, error) {
	l, err := Decode(config)
	if err != nil {
		return false, err
	}
	return l.LeavesOut(volume) == "", nil
}

// Classes are the VolumeSnapshotClasses that a location with that config names, by
// StorageClass. An error is one of the config.
func Classes(config map[string]string) (map[string]string, error) {
	l, err := Decode(config)
	if err != nil {
		return nil, err
	}
	return l.Classes, nil
}
