package decision

import (
	"fmt"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"

	"stillpoint.io/stillpoint/internal/selection"
)

// Path is who takes the snapshot of a volume, and so which executor serves it.
type Path = selection.Path

// The paths.
const (
	None     = selection.None        // no snapshot
	Group    = selection.Group       // Stillpoint, all volumes of a unit at once
	Around   = selection.Velero      // Velero's own CSI action; Stillpoint freezes around it
	Location = selection.Snapshotter // a VolumeSnapshotLocation, one volume after another
)

// Decision is what becomes of one claim in one backup.
type Decision struct {
	Claim *corev1.PersistentVolumeClaim
	// Volume is the PersistentVolume of the claim; nil if the claim has none.
	Volume *corev1.PersistentVolume
	Path   Path
	// Location is the VolumeSnapshotLocation of the path Location.
	Location *velerov1.VolumeSnapshotLocation
	// Reason is why the path is None. Excluded reports that the backup's filters are
	// the reason: another plugin may still bring the claim into the backup.
	Reason   string
	Excluded bool

	// Obstacle is why a volume that a volume policy hands to Stillpoint cannot be
	// snapshotted, whatever the configuration says. It concerns this claim alone.
	Obstacle error
	// Refusal is why the configuration allows no snapshot of the volume: its class,
	// the profile of its driver, what is to be kept. No unit with such a claim is
	// frozen. On the path Around, where Velero takes the snapshot, it is nil.
	Refusal error
	// QuiesceRequired is why a snapshot is unusable that is taken of the volume while
	// it is in use and not quiesced; nil if it is usable.
	QuiesceRequired error
	// NoMoment is why there is no moment to freeze before Velero's own snapshot; nil
	// if there is one.
	NoMoment error

	// Class is the name of the VolumeSnapshotClass that the snapshot is taken with, ""
	// if that is not known, and ClassReason what decided on it.
	Class, ClassReason string
	// Exported reports that the driver itself exports snapshots of the class.
	Exported bool
	// Keep is what stays beside the export of a backup that moves data.
	Keep Keep
	// ExcludesLabel reports whether a label of the claim is not for its
	// VolumeSnapshot.
	ExcludesLabel func(key string) bool

	classes  map[string]string // of the location, by StorageClass
	findings []Finding
}

// Finding is what the user should know of a decision. The backup's log and the
// report of `stillpoint check` have it in the same words.
type Finding struct {
	// Level is Error if the claim cannot be restored from the backup, Warn if
	// something is not as the user wants it, else Info.
	Level logrus.Level
	Text  string
}

// Snapshotted reports whether a snapshot is to be taken and nothing is known to be
// in the way.
func (d *Decision) Snapshotted() bool { return d.Path != None && d.Obstacle == nil }

// Findings are those of the claim. quiesced reports that its unit is quiesced, or
// that the volume is not in use.
func (d *Decision) Findings(quiesced bool) []Finding {
	if !d.Snapshotted() || quiesced || d.QuiesceRequired == nil {
		return d.findings
	}
	return append(d.findings[:len(d.findings):len(d.findings)], d.finding(logrus.ErrorLevel, "The snapshot is unusable", "%v", d.QuiesceRequired))
}

// find adds a finding, whose beginning is constant so that it leads to one place.
func (d *Decision) find(level logrus.Level, beginning, format string, args ...any) {
	d.findings = append(d.findings, d.finding(level, beginning, format, args...))
}

func (d *Decision) finding(level logrus.Level, beginning, format string, args ...any) Finding {
	return Finding{level, fmt.Sprintf("%s: claim %s/%s: ", beginning, d.Claim.Namespace, d.Claim.Name) + fmt.Sprintf(format, args...)}
}

// Log writes findings of at least that level to the backup's log.
func Log(log logrus.FieldLogger, level logrus.Level, findings []Finding) {
	for _, f := range findings {
		switch {
		case f.Level > level:
		case f.Level == logrus.ErrorLevel:
			log.Error(f.Text)
		case f.Level == logrus.WarnLevel:
			log.Warn(f.Text)
		default:
			log.Info(f.Text)
		}
	}
}
