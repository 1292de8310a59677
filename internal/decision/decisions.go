package decision

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/location/csi/spec"
	"stillpoint.io/stillpoint/internal/selection"
	"stillpoint.io/stillpoint/internal/snapshotclass"
	"stillpoint.io/stillpoint/internal/unit"
)

// Server is what decisions depend on of the Velero server.
type Server struct {
	// CSI reports that it runs with --features=EnableCSI.
	CSI bool
	// Poll is how often it looks whether a snapshot has been cut.
	Poll time.Duration
}

// Decisions makes the decisions of a process, which Velero starts anew for each
// backup. It is safe for concurrent use.
type Decisions struct {
	view       *view
	namespaces *unit.Namespaces
	server     Server

	mu      sync.Mutex
	backups map[types.UID]*Backup
}

// New returns Decisions.
func New(clients *cluster.Clients, namespaces *unit.Namespaces, server Server, clock clock.PassiveClock) *Decisions {
	return &Decisions{
		view:       &view{clients: clients, clock: clock, settings: config.NewSource(clients.Kube, clients.VeleroNamespace, clock)},
		namespaces: namespaces, server: server,
		backups: map[types.UID]*Backup{},
	}
}

// Settings returns the configuration by which decisions are made. It is a minute old
// at the most.
func (d *Decisions) Settings(ctx context.Context) (*config.Config, error) {
	return d.view.settings.Get(ctx)
}

// Backup makes the decisions of one backup. A claim is decided on once.
type Backup struct {
	*Decisions
	backup    *velerov1.Backup
	selection *selection.Selection

	deciding cluster.Keyed // by namespace
	mu       sync.Mutex
	claims   map[types.NamespacedName]*Decision
	units    map[types.NamespacedName]*Unit
}

// For returns the decisions of a backup.
func (d *Decisions) For(backup *velerov1.Backup) *Backup {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, ok := d.backups[backup.UID]
	if !ok {
		b = &Backup{
			Decisions: d, backup: backup,
			selection: selection.New(d.view.clients.Remembered, d.server.CSI, backup),
			claims:    map[types.NamespacedName]*Decision{},
			units:     map[types.NamespacedName]*Unit{},
		}
		d.backups[backup.UID] = b
	}
	return b
}

// Policies is an error if the backup's resource policies cannot be read, which fails
// the whole backup.
func (b *Backup) Policies(ctx context.Context) error { return b.selection.Policies(ctx) }

// Namespace reports whether a namespace is in the backup.
func (b *Backup) Namespace(name string) bool { return b.selection.Namespace(name) }

// Pod reports whether a pod is in the backup by itself.
func (b *Backup) Pod(ctx context.Context, pod *corev1.Pod) (bool, error) {
	return b.selection.Pod(ctx, pod)
}

// StorageClass returns the StorageClass that provisions the volume of a claim when it
// is restored, and the reason unless it is the claim's own.
func (b *Backup) StorageClass(ctx context.Context, claim *corev1.PersistentVolumeClaim) (name, reason string, err error) {
	return b.selection.StorageClass(ctx, claim)
}

// Expected decides on a claim before Velero calls for it, by the backup's filters.
// An error means that the cluster cannot be read.
func (b *Backup) Expected(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*Decision, error) {
	return b.once(claim, func(*Decision) bool { return true }, func(d *Decision) error {
		verdict, err := b.selection.Of(ctx, claim)
		if err != nil {
			return err
		}
		return b.decide(ctx, d, verdict)
	})
}

// Called decides on a claim that Velero calls for: it is in the backup, perhaps
// because another plugin has asked for it in spite of the filters. An error means
// that the cluster cannot be read.
func (b *Backup) Called(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*Decision, error) {
	return b.once(claim, func(known *Decision) bool { return !known.Excluded }, func(d *Decision) error {
		verdict, err := b.selection.OfIncluded(ctx, claim)
		if err != nil {
			return err
		}
		return b.decide(ctx, d, verdict)
	})
}

// Requested decides on a claim for whose volume Velero calls a VolumeSnapshotLocation,
// which names these VolumeSnapshotClasses by StorageClass.
func (b *Backup) Requested(ctx context.Context, claim *corev1.PersistentVolumeClaim, classes map[string]string) (*Decision, error) {
	return b.once(claim, func(known *Decision) bool { return known.Path == Location }, func(d *Decision) error {
		d.classes = classes
		return b.decide(ctx, d, selection.Verdict{Path: Location})
	})
}

// once returns the decision on a claim that is known and valid, or makes it.
func (b *Backup) once(claim *corev1.PersistentVolumeClaim, valid func(*Decision) bool, decide func(*Decision) error) (*Decision, error) {
	key := keyOf(claim)
	b.mu.Lock()
	known := b.claims[key]
	b.mu.Unlock()
	if known != nil && valid(known) {
		return known, nil
	}
	made := &Decision{Claim: claim}
	if err := decide(made); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := b.claims[key]; now != nil && valid(now) { // another call was faster
		return now, nil
	}
	b.claims[key] = made
	return made, nil
}

// decide fills in what follows from who takes the snapshot.
func (b *Backup) decide(ctx context.Context, d *Decision, verdict selection.Verdict) error {
	d.Path, d.Location, d.Reason, d.Excluded = verdict.Path, verdict.Location, verdict.Reason, verdict.Excluded
	d.Obstacle, d.NoMoment = verdict.Obstacle, verdict.Uncalled
	if verdict.Fails {
		d.findFailure(verdict.Reason)
	}
	if verdict.Warning != "" {
		d.find(logrus.WarnLevel, "The volume policy does not hand the volume to Stillpoint", "%s", verdict.Warning)
	}
	if d.Claim.Spec.VolumeName == "" {
		return nil
	}
	volume, err := b.selection.Volume(ctx, d.Claim)
	if err != nil {
		if !d.Snapshotted() {
			return nil // Velero reports it where it needs the volume
		}
		return err
	}
	d.Volume = volume
	if !d.Snapshotted() || volume.Spec.CSI == nil {
		return nil
	}
	if refusal := b.applyRules(ctx, d); d.Path != Around {
		d.Refusal = refusal
	}
	return nil
}

// findFailure notes that Velero's own action fails on the claim.
func (d *Decision) findFailure(reason string) {
	fix := ""
	if phase := d.Claim.Status.Phase; phase != corev1.ClaimBound {
		fix = fmt.Sprintf("; bind or delete it, or leave it out by a volume policy with the condition pvcPhase: [%s] and action skip", phase)
	}
	d.find(logrus.ErrorLevel, "Velero's own snapshot fails", "%s%s", reason, fix)
}

// applyRules applies the rules of the configuration, for classes, drivers and
// exports. The error is why they allow no snapshot.
func (b *Backup) applyRules(ctx context.Context, d *Decision) error {
	settings, classes, err := b.view.read(ctx)
	if err != nil {
		d.classUnknown(err)
		return err
	}
	d.ExcludesLabel = settings.ExcludesLabel
	profile := settings.Driver(d.Volume.Spec.CSI.Driver)
	input := snapshotclass.Input{Claim: d.Claim, Driver: profile.Name, Backup: b.backup, Rules: settings.SnapshotClasses, Classes: classes}
	if err := b.chooseClass(ctx, d, input, profile); err != nil {
		d.classUnknown(err)
		return err
	}
	if err := d.applyProfile(profile); err != nil {
		if d.Path == Around {
			d.find(logrus.ErrorLevel, "The snapshot cannot be used", "%v", err)
		}
		return err
	}
	if !boolptr.IsSetToTrue(b.backup.Spec.SnapshotMoveData) || d.Path == Location {
		return nil
	}
	d.Keep, err = keepOf(settings.LocalSnapshots, d.Claim, profile.Name, b.backup)
	switch {
	case err != nil && d.Path == Around:
		d.find(logrus.ErrorLevel, "It is not known what becomes of the local snapshot", "%v", err)
	case err != nil:
		return err
	case d.Keep.Second && d.Path == Around:
		d.find(logrus.WarnLevel, "No local snapshot is kept beside the export", "the %s asks for one, but Velero takes the snapshot of this volume; hand it to Stillpoint by a volume policy", d.Keep.Reason)
	case d.Keep.Second:
		d.find(logrus.InfoLevel, "A second snapshot is kept beside the export", "%s", d.Keep.Reason)
	}
	return nil
}

// classUnknown notes that Velero's class cannot be compared with Stillpoint's rules. The
// backup reports an unusable configuration once, for all claims.
func (d *Decision) classUnknown(err error) {
	if d.Path == Around && !config.Unusable(err) {
		d.find(logrus.WarnLevel, "It is not known whether Velero takes the right VolumeSnapshotClass", "%v", err)
	}
}

// chooseClass chooses the VolumeSnapshotClass. On the path Around Velero takes its
// own, and the error of Stillpoint's rules is a finding.
func (b *Backup) chooseClass(ctx context.Context, d *Decision, input snapshotclass.Input, profile config.DriverProfile) (err error) {
	if input.StorageClass, err = b.view.storageClass(ctx, d.Claim); err != nil {
		return err
	}
	if input.Location = d.classes; d.Location != nil && d.Location.Spec.Provider == spec.Provider {
		if input.Location, err = spec.Classes(d.Location.Spec.Config); err != nil {
			return err
		}
	}
	choice, err := snapshotclass.Choose(input)
	if d.Path != Around {
		d.Class, d.ClassReason, d.Exported = choice.Class.Name, choice.Reason, profile.Exported(choice.Class.Parameters)
		return err
	}
	taken, _ := input.Velero().Class()
	d.Class, d.ClassReason = taken, "Velero's own choice"
	if err != nil {
		d.find(logrus.WarnLevel, "Velero takes a VolumeSnapshotClass that no rule chooses", "%s, although %v", taken, err)
		return nil
	}
	if taken == choice.Class.Name {
		d.ClassReason = choice.Reason
	}
	if annotation := input.Velero().Annotation(choice.Class); annotation != "" {
		d.find(logrus.WarnLevel, "Velero takes another VolumeSnapshotClass than the rules choose", "%s and not %s, which it should by the %s; annotate the claim with %s",
			taken, choice.Class.Name, choice.Reason, annotation)
	}
	return nil
}
