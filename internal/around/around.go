package around

import (
	"context"
	"fmt"
	"sync"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/decision"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/quiesce"
	"stillpoint.io/stillpoint/internal/unit"
	"stillpoint.io/stillpoint/internal/workload"
)

// Freezes holds the freezes of this process. Velero starts a new process for each
// backup. It is safe for concurrent use.
type Freezes struct {
	clients    *cluster.Clients
	namespaces *unit.Namespaces
	decisions  *decision.Decisions
	executor   *podexec.Client
	log        logrus.FieldLogger
	reporter   *quiesce.Reporter

	mu      sync.Mutex // never held during a request
	freezes map[*decision.Unit]*freeze
	// calls are the claims for whose volumes Velero has called. The value is the reason
	// if the volume is to be quiesced but was not expected in the backup, otherwise "".
	calls map[claimKey]string
}

type claimKey struct {
	backup types.UID
	types.NamespacedName
}

// New returns Freezes for the decisions.
func New(clients *cluster.Clients, namespaces *unit.Namespaces, decisions *decision.Decisions, reporter *quiesce.Reporter, log logrus.FieldLogger) *Freezes {
	return &Freezes{
		clients:    clients,
		namespaces: namespaces,
		decisions:  decisions,
		executor:   podexec.New(clients),
		log:        log,
		reporter:   reporter,
		freezes:    map[*decision.Unit]*freeze{},
		calls:      map[claimKey]string{},
	}
}

// Volume handles Velero's call for a PersistentVolume, which precedes the snapshot of
// its claim. It returns when the unit of the claim is frozen, or at once if there is
// nothing to freeze. After an error Velero does not take the snapshot, and drops volume,
// claim and pod from the backup.
func (b *Freezes) Volume(ctx context.Context, volume *corev1.PersistentVolume, backup *velerov1.Backup) error {
	if volume.Spec.CSI == nil || volume.Spec.ClaimRef == nil {
		return nil
	}
	ref, decisions := volume.Spec.ClaimRef, b.decisions.For(backup)
	if !decisions.Namespace(ref.Namespace) {
		return nil
	}
	claim, err := b.claimOf(ctx, volume)
	if err != nil || claim == nil {
		return err
	}
	if asked, err := decisions.Quiesces(ctx, claim); err != nil || !asked {
		b.recordCall(claim, backup, "")
		return err
	}
	d, err := decisions.Expected(ctx, claim)
	if err != nil {
		return err
	}
	b.recordCall(claim, backup, d.Reason)
	if d.Path == decision.None {
		b.log.Infof("No freeze around a volume: claim %s/%s is not quiesced: %s", claim.Namespace, claim.Name, d.Reason)
	}
	if d.Path != decision.Around { // the other paths quiesce when they snapshot
		return nil
	}
	f, err := b.freezeOf(ctx, d, backup)
	if err != nil || f == nil {
		return err
	}
	return f.enter(ctx, claim.Name)
}

// recordCall records that Velero has called for the volume of a claim.
func (b *Freezes) recordCall(claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup, passed string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls[keyOf(backup, claim)] = passed
}

// claimOf returns the claim that a volume is bound to, nil if none.
func (b *Freezes) claimOf(ctx context.Context, volume *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	ref := volume.Spec.ClaimRef
	for _, look := range []func(context.Context, string) (*unit.Facts, error){b.namespaces.Recent, b.namespaces.Now} {
		facts, err := look(ctx, ref.Namespace)
		if err != nil {
			return nil, err
		}
		if claim := facts.Claim(ref.Name); claim != nil && claim.Spec.VolumeName == volume.Name {
			return claim, nil
		}
	}
	return nil, nil //nolint:nilnil // none is a valid answer
}

// freezeOf returns the freeze of a claim's unit, nil if there is nothing to quiesce.
func (b *Freezes) freezeOf(ctx context.Context, d *decision.Decision, backup *velerov1.Backup) (*freeze, error) {
	unit, err := b.decisions.For(backup).Unit(ctx, d)
	if err != nil || !unit.Quiesced() {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.freezes[unit] == nil {
		b.freezes[unit] = newFreeze(b, unit, backup)
	}
	return b.freezes[unit], nil
}

func keyOf(backup *velerov1.Backup, claim *corev1.PersistentVolumeClaim) claimKey {
	return claimKey{backup.UID, types.NamespacedName{Namespace: claim.Namespace, Name: claim.Name}}
}

// Claim handles Velero's call for a PersistentVolumeClaim after its own action has taken
// the snapshot. After an error the snapshot is not consistent and is deleted.
func (b *Freezes) Claim(ctx context.Context, d *decision.Decision, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) error {
	b.logFindings(ctx, d, claim, backup)
	if f := b.known(claim, backup); f != nil && f.unit.Path == decision.Around {
		return f.finishClaim(ctx, claim)
	}
	b.mu.Lock()
	passed, called := b.calls[keyOf(backup, claim)]
	b.mu.Unlock()
	if claim.Annotations[velerov1.VolumeSnapshotLabel] == "" || d.Path != decision.Around || called && passed == "" {
		return nil
	}
	// Velero's action has taken a snapshot without a freeze.
	live, err := b.clients.Kube.CoreV1().PersistentVolumeClaims(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	if asked, err := b.decisions.For(backup).Quiesces(ctx, live); err != nil || !asked {
		return err
	}
	f, err := b.freezeOf(ctx, d, backup)
	if err != nil || f == nil {
		return err
	}
	why := "the plugin process ended while the workload was quiesced, or the backup leaves out persistentvolumes, for which Stillpoint is called"
	if passed != "" { // another plugin has brought the claim into the backup
		why = "Stillpoint expected the backup to leave it out: " + passed
	}
	return f.missed(ctx, claim, why)
}

// logFindings logs the findings about a claim whose snapshot Velero takes.
func (b *Freezes) logFindings(ctx context.Context, d *decision.Decision, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) {
	if d.Path == decision.Around && claim.Annotations[velerov1.VolumeSnapshotLabel] == "" {
		return // Velero reports why
	}
	quiesced := true
	if d.Path == decision.Around && d.QuiesceRequired != nil {
		unit, err := b.decisions.For(backup).Unit(ctx, d)
		if err != nil {
			b.log.Warnf("Could not determine whether a volume is in use: claim %s/%s: %v", claim.Namespace, claim.Name, err)
		} else {
			quiesced = unit.Quiesced() || unit.Unquiesced(claim.Name) == nil
		}
	}
	decision.Log(b.log, logrus.WarnLevel, d.Findings(quiesced))
}

// known returns the freeze of a claim, nil if it has not begun.
func (b *Freezes) known(claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) *freeze {
	unit := b.decisions.For(backup).Known(claim)
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.freezes[unit]
}

// Level returns the consistency level of a claim's snapshot if it was taken in a freeze,
// but is of a volume that Stillpoint does not freeze; "" otherwise.
func (b *Freezes) Level(claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) string {
	if f := b.known(claim, backup); f != nil {
		return f.unfrozen[claim.Name].Level
	}
	return ""
}

// Related returns the other pods of a pod's unit that are in the backup, and the claims
// of the unit that no pod mounts. In one item block, Velero snapshots their volumes one
// right after the other. Related logs its errors, because an error would drop the pod
// from the backup.
func (b *Freezes) Related(ctx context.Context, pod *corev1.Pod, backup *velerov1.Backup) []velero.ResourceIdentifier {
	if len(workload.Claims(pod)) == 0 {
		return nil
	}
	facts, err := b.namespaces.Recent(ctx, pod.Namespace)
	if err != nil {
		b.log.Warnf("Could not keep the pods of a workload together: pod %s/%s: %v", pod.Namespace, pod.Name, err)
		return nil
	}
	taken := func(path decision.Path) bool { return path != decision.None }
	unit, together := facts.QuiescedWith(pod)
	if !together {
		// Velero's own hooks must cover the snapshots that Stillpoint takes.
		taken = func(path decision.Path) bool { return path == decision.Group }
		if unit, together = facts.HookBlock(pod, backup); !together {
			return nil
		}
	}
	return b.block(ctx, facts, unit, pod.Name, "", taken, backup)
}

// RelatedToClaim is Related for a claim that an annotated object joins with others. None
// of these claims needs a pod.
func (b *Freezes) RelatedToClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) []velero.ResourceIdentifier {
	facts, err := b.namespaces.Recent(ctx, claim.Namespace)
	if err != nil {
		b.log.Warnf("Could not find the claims that are frozen with a claim: %s/%s: %v", claim.Namespace, claim.Name, err)
		return nil
	}
	unit, joined := facts.JoinedByObjects(claim.Name)
	if !joined {
		return nil
	}
	return b.block(ctx, facts, unit, "", claim.Name, func(path decision.Path) bool { return path != decision.None }, backup)
}

// block returns the items of a unit that are in the backup, without the given pod and
// claim: its pods, and the claims that none of them mounts and that taken selects. Items
// outside of the backup are omitted, because Velero would add them to it. A pod does not
// add the claims of its generic ephemeral volumes.
func (b *Freezes) block(ctx context.Context, facts *unit.Facts, unit workload.Component, pod, claim string, taken func(decision.Path) bool, backup *velerov1.Backup) []velero.ResourceIdentifier {
	decisions := b.decisions.For(backup)
	var related []velero.ResourceIdentifier
	mounted := map[string]bool{claim: true}
	for _, w := range unit.Workloads {
		for _, other := range w.Pods {
			if in, err := decisions.Pod(ctx, &other); other.DeletionTimestamp != nil || other.Name != pod && (err != nil || !in) {
				continue // Velero skips terminating pods; errors are logged for the claims
			}
			for _, volume := range other.Spec.Volumes {
				if volume.PersistentVolumeClaim != nil {
					mounted[volume.PersistentVolumeClaim.ClaimName] = true
				}
			}
			if other.Name != pod {
				related = append(related, velero.ResourceIdentifier{GroupResource: kuberesource.Pods, Namespace: other.Namespace, Name: other.Name})
			}
		}
	}
	for _, name := range unit.Claims {
		other := facts.Claim(name)
		if mounted[name] || other == nil {
			continue
		}
		d, err := decisions.Expected(ctx, other)
		if err != nil {
			b.log.Warnf("Could not keep a claim together with its unit: claim %s/%s: %v", other.Namespace, name, err)
		} else if taken(d.Path) {
			related = append(related, velero.ResourceIdentifier{GroupResource: kuberesource.PersistentVolumeClaims, Namespace: other.Namespace, Name: name})
		}
	}
	return related
}
