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

// Provider is the spec.provider of the VolumeSnapshotLocation.
const Provider = "stillpoint.io/csi"

// defaultTimeout is the timeout of one call of Velero.
const defaultTimeout = 10 * time.Minute

// Spec is the spec.config of a VolumeSnapshotLocation.
type Spec struct {
	// Drivers are patterns of the CSI drivers whose volumes the location takes; empty
	// means all.
	Drivers []string
	// Classes are the VolumeSnapshotClasses by StorageClass.
	Classes map[string]string
	// Timeout limits one call: the time until a snapshot is cut, a volume is
	// provisioned, or a snapshot is deleted. 0 is the default.
	Timeout time.Duration
}

// Decode reads a config. Its error names the key, its value and the valid values.
func Decode(config map[string]string) (*Spec, error) {
	l := &Spec{Classes: map[string]string{}}
	return l, location.Decode(Provider, config,
		location.Globs("drivers", &l.Drivers),
		location.Names("volumeSnapshotClass", "StorageClass", l.Classes),
		location.Duration("timeout", &l.Timeout),
	)
}

// Limit returns the time limit of a restore and a deletion.
func (l *Spec) Limit() time.Duration { return cmp.Or(l.Timeout, defaultTimeout) }

// CutLimit returns how long a snapshot may take until it is cut: the location's timeout,
// or else Velero's csiSnapshotTimeout.
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

// Takes reports whether a location with that config takes a volume. It returns an error
// if the config is invalid.
func Takes(config map[string]string, volume *corev1.PersistentVolume) (bool, error) {
	l, err := Decode(config)
	if err != nil {
		return false, err
	}
	return l.LeavesOut(volume) == "", nil
}

// Classes returns the VolumeSnapshotClasses in that config, by StorageClass. It returns
// an error if the config is invalid.
func Classes(config map[string]string) (map[string]string, error) {
	l, err := Decode(config)
	if err != nil {
		return nil, err
	}
	return l.Classes, nil
}
