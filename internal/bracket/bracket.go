// Package bracket quiesces around Velero's own CSI snapshots: it freezes in
// Velero's call for a PersistentVolume, which comes just before the snapshot,
// and thaws as soon as the storage has cut the last volume of the workload.
package bracket

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/quiesce"
	"stillpoint.io/stillpoint/internal/selection"
	"stillpoint.io/stillpoint/internal/snapshotclass"
	"stillpoint.io/stillpoint/internal/unit"
	velerofacts "stillpoint.io/stillpoint/internal/velero"
	"stillpoint.io/stillpoint/internal/workload"
)

// Bracket holds the freezes of this process, which Velero starts anew for each
// backup. It is safe for concurrent use.
type Bracket struct {
	clients    *cluster.Clients
	namespaces *unit.Namespaces
	classes    *snapshotclass.Catalogue
	executor   *podexec.Client
	csi        bool
	log        logrus.FieldLogger
	reporter   *quiesce.Reporter

	deciding   cluster.Keyed        // by namespace, while a freeze is decided on
	mu         sync.Mutex           // never held during a request
	freezes    map[claimKey]*freeze // around Velero's own snapshots
	shots      map[claimKey]*freeze // around those of VolumeSnapshotters
	selections map[types.UID]*selection.Selection
	// passed are claims that are to be quiesced and were not, and why: Velero
	// was not expected to snapshot them.
	passed map[claimKey]string
}

type claimKey struct {
	backup types.UID
	types.NamespacedName
}

// New returns a Bracket. csi tells whether the server runs with EnableCSI.
func New(clients *cluster.Clients, namespaces *unit.Namespaces, classes *snapshotclass.Catalogue, reporter *quiesce.Reporter, csi bool, log logrus.FieldLogger) *Bracket {
	return &Bracket{
		clients:    clients,
		namespaces: namespaces,
		classes:    classes,
		executor:   podexec.New(clients),
		csi:        csi,
		log:        log,
		reporter:   reporter,
		freezes:    map[claimKey]*freeze{},
		shots:      map[claimKey]*freeze{},
		selections: map[types.UID]*selection.Selection{},
		passed:     map[claimKey]string{},
	}
}

// selection is that of a backup.
func (b *Bracket) selection(backup *velerov1.Backup) *selection.Selection {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.selections[backup.UID]; !ok {
		b.selections[backup.UID] = selection.New(b.clients.Remembered, b.csi, backup)
	}
	return b.selections[backup.UID]
}

// Volume is Velero's call for a PersistentVolume: the next thing that Velero
// does may be the snapshot of its claim. It returns when the workload of the
// claim is frozen, or when there is nothing to freeze. An error keeps Velero
// from taking the snapshot, and drops volume, claim and pod from the backup.
func (b *Bracket) Volume(ctx context.Context, volume *corev1.PersistentVolume, backup *velerov1.Backup) error {
	if volume.Spec.CSI == nil || volume.Spec.ClaimRef == nil {
		return nil
	}
	ref := volume.Spec.ClaimRef
	if !b.included(ref.Namespace, backup) {
		return nil
	}
	facts, err := b.namespaces.Recent(ctx, ref.Namespace)
	if err != nil {
		return err
	}
	claim := facts.Claim(ref.Name)
	if claim == nil || claim.Spec.VolumeName != volume.Name { // as it was up to a minute ago
		if facts, err = b.namespaces.Now(ctx, ref.Namespace); err != nil {
			return err
		}
		claim = facts.Claim(ref.Name)
	}
	if claim == nil || claim.Spec.VolumeName != volume.Name {
		return nil
	}
	f, err := b.freezeOf(ctx, claim, backup)
	if err != nil || f == nil {
		return err
	}
	return f.enter(ctx, claim.Name)
}

func (b *Bracket) included(namespace string, backup *velerov1.Backup) bool {
	return b.selection(backup).Namespace(namespace)
}

// freezeOf returns the freeze that a claim is part of, nil when there is none
// to be. The first call for any claim of a group decides for all of them.
func (b *Bracket) freezeOf(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (*freeze, error) {
	defer b.deciding.Lock(claim.Namespace)()
	if f, decided := b.known(b.freezes, keyOf(backup, claim)); decided {
		return f, nil
	}
	f, err := b.decide(ctx, claim, backup)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.freezes[keyOf(backup, claim)] = f
	if f != nil {
		f.join(b.freezes)
	}
	return f, nil
}

func (b *Bracket) known(freezes map[claimKey]*freeze, key claimKey) (f *freeze, decided bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, decided = freezes[key]
	return f, decided
}

// join makes a freeze that of all its claims that have none.
func (f *freeze) join(freezes map[claimKey]*freeze) {
	for i := range f.group.Claims {
		key := keyOf(f.backup, &f.group.Claims[i])
		if _, decided := freezes[key]; !decided {
			freezes[key] = f
		}
	}
}

func (b *Bracket) decide(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (*freeze, error) {
	recent, err := b.namespaces.Current(ctx, claim.Namespace)
	if err != nil {
		return nil, err
	}
	if group, err := recent.Unit(claim); err == nil && !group.Quiesced() {
		return nil, nil //nolint:nilnil // nothing to do is a valid answer
	}
	selected := b.selection(backup)
	verdict, err := selected.Of(ctx, claim)
	if err != nil {
		return nil, err
	}
	switch verdict.Path {
	case selection.Velero:
	case selection.Group, selection.Snapshotter:
		return nil, nil //nolint:nilnil // quiesced for when it is snapshotted, and not before
	case selection.None:
		b.log.Infof("Claim %s/%s is not quiesced: %s", claim.Namespace, claim.Name, verdict.Reason)
		b.mu.Lock()
		b.passed[keyOf(backup, claim)] = verdict.Reason
		b.mu.Unlock()
		return nil, nil //nolint:nilnil // as above
	}
	f, _, err := b.freezeNow(ctx, claim, selection.Velero, backup)
	if f != nil && f.failed == nil {
		f.failed = verdict.Uncalled
	}
	return f, err
}

// freezeNow is the freeze for a claim that is snapshotted on a path: what is frozen
// is decided by how things are now. The freeze is nil where the claim's group asks
// for none.
func (b *Bracket) freezeNow(ctx context.Context, claim *corev1.PersistentVolumeClaim, path selection.Path, backup *velerov1.Backup) (*freeze, *unit.Unit, error) {
	facts, err := b.namespaces.Now(ctx, claim.Namespace)
	if err != nil {
		return nil, nil, err
	}
	group, err := facts.Unit(claim)
	if err == nil && !group.Quiesced() {
		return nil, group, nil
	}
	f := newFreeze(b, group, backup)
	f.failed = err
	if err == nil {
		f.failed = group.KeepClaims(b.sameDoor(ctx, group, claim.Name, path, backup))
	}
	return f, group, nil
}

func keyOf(backup *velerov1.Backup, claim *corev1.PersistentVolumeClaim) claimKey {
	return claimKey{backup.UID, types.NamespacedName{Namespace: claim.Namespace, Name: claim.Name}}
}

// Claim is Velero's call for a PersistentVolumeClaim after its own action has
// taken the snapshot. An error says that the snapshot is not what was asked
// for; it is deleted then.
func (b *Bracket) Claim(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) error {
	if claim.Annotations[velerov1.VolumeSnapshotLabel] != "" && !velerofacts.Finalizing(backup) {
		b.advise(ctx, claim, backup)
	}
	b.mu.Lock()
	f, decided := b.freezes[keyOf(backup, claim)]
	reason, passed := b.passed[keyOf(backup, claim)]
	b.mu.Unlock()
	switch {
	case f != nil:
		return f.leave(ctx, claim)
	case claim.Annotations[velerov1.VolumeSnapshotLabel] == "" || velerofacts.Finalizing(backup) || (decided && !passed):
		return nil
	}
	// Velero's action has taken a snapshot, and this process was not called before.
	live, err := b.clients.Kube.CoreV1().PersistentVolumeClaims(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	if passed { // another plugin has brought the claim into the backup
		facts, err := b.namespaces.Now(ctx, claim.Namespace)
		if err != nil {
			return err
		}
		group, err := facts.Unit(live)
		if err == nil && !group.Quiesced() {
			return nil
		}
		return newFreeze(b, group, backup).missed(ctx, claim, "Stillpoint took it for left out: "+reason)
	}
	if f, err = b.freezeOf(ctx, live, backup); err != nil || f == nil {
		return err
	}
	return f.missed(ctx, claim, "the plugin process ended while the workload was quiesced, or the backup leaves out persistentvolumes, for which Stillpoint is called")
}

// Level is how consistent the snapshot of a claim is that was taken in a freeze and
// is of a volume that Stillpoint does not freeze; "" for any other.
func (b *Bracket) Level(claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range []*freeze{b.freezes[keyOf(backup, claim)], b.shots[keyOf(backup, claim)]} {
		if f != nil {
			return f.unfrozen[claim.Name].Level
		}
	}
	return ""
}

// Related returns the other pods of a pod's workload when it is to be quiesced
// and they are in the backup too: they belong into one item block, so that
// Velero takes the workload's volumes one right after the other. So do the
// claims of the same freeze that no pod brings along. Trouble is a warning: an
// error would drop the pod from the backup.
func (b *Bracket) Related(ctx context.Context, pod *corev1.Pod, backup *velerov1.Backup) []velero.ResourceIdentifier {
	if len(workload.Claims(pod)) == 0 {
		return nil
	}
	facts, err := b.namespaces.Recent(ctx, pod.Namespace)
	if err != nil {
		b.log.Warnf("Pod %s/%s is not kept together with the other pods of its workload: %v", pod.Namespace, pod.Name, err)
		return nil
	}
	taken := func(path selection.Path) bool { return path != selection.None }
	unit, together := facts.QuiescedWith(pod)
	if !together {
		// Velero's own hooks are to cover what Stillpoint takes the snapshots of.
		taken = func(path selection.Path) bool { return path == selection.Group }
		if unit, together = facts.HookBlock(pod, backup); !together {
			return nil
		}
	}
	return b.block(ctx, facts, unit, pod.Name, "", taken, backup)
}

// RelatedToClaim is Related for a claim that an annotated object joins with
// others: it may be that no pod mounts any of them.
func (b *Bracket) RelatedToClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) []velero.ResourceIdentifier {
	facts, err := b.namespaces.Recent(ctx, claim.Namespace)
	if err != nil {
		b.log.Warnf("Claim %s/%s is not kept together with those that are frozen with it: %v", claim.Namespace, claim.Name, err)
		return nil
	}
	unit, joined := facts.JoinedByObjects(claim.Name)
	if !joined {
		return nil
	}
	return b.block(ctx, facts, unit, "", claim.Name, func(path selection.Path) bool { return path != selection.None }, backup)
}

// block are the items of a unit that are in the backup: pods, and the claims that
// none of them brings along, as far as taken reports that they are snapshotted,
// without the pod and the claim of these names. Velero would take any others along
// that are named here. A pod does not bring the claims of its generic ephemeral
// volumes along.
func (b *Bracket) block(ctx context.Context, facts *unit.Facts, unit workload.Component, pod, claim string, taken func(selection.Path) bool, backup *velerov1.Backup) []velero.ResourceIdentifier {
	selected := b.selection(backup)
	var related []velero.ResourceIdentifier
	mounted := map[string]bool{claim: true}
	for _, w := range unit.Workloads {
		for _, other := range w.Pods {
			if in, err := selected.Pod(ctx, &other); other.DeletionTimestamp != nil || other.Name != pod && (err != nil || !in) {
				continue // Velero skips a terminating one, and an error is told for the claims
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
		verdict, err := selected.Of(ctx, other)
		if err != nil {
			b.log.Warnf("Claim %s/%s is not kept together with those that are frozen with it: %v", other.Namespace, name, err)
		} else if taken(verdict.Path) {
			related = append(related, velero.ResourceIdentifier{GroupResource: kuberesource.PersistentVolumeClaims, Namespace: other.Namespace, Name: name})
		}
	}
	return related
}

// tooMany is an error when Velero's polls alone would outlast the freeze: all
// volumes but the last are waited for.
func tooMany(claims int, poll, timeout time.Duration) error {
	needed := time.Duration(claims-1) * poll
	if needed < timeout {
		return nil
	}
	return fmt.Errorf("%d volumes cannot be frozen together for Velero's own snapshots: Velero takes them one after another and polls every %s, "+
		"which is %s at least, and quiesce-timeout is %s; raise %s above that, set CSI_SNAPSHOT_EARLY_FREQUENT_POLLING=true on the Velero server, "+
		"or hand the volumes to Stillpoint's group snapshots by a volume policy with action custom",
		claims, poll, needed, timeout, api.AnnotationQuiesceTimeout)
}

// volumeGroup is the value of Velero's own volume group label on a claim.
func volumeGroup(claims []corev1.PersistentVolumeClaim, backup *velerov1.Backup) error {
	key := backup.Spec.VolumeGroupSnapshotLabelKey
	i := slices.IndexFunc(claims, func(c corev1.PersistentVolumeClaim) bool { return key != "" && c.Labels[key] != "" })
	if i < 0 {
		return nil
	}
	return fmt.Errorf("claim %s/%s has the label %s=%s: Velero takes a VolumeGroupSnapshot of it, around which Stillpoint cannot quiesce; remove the label or the annotation %s",
		claims[i].Namespace, claims[i].Name, key, claims[i].Labels[key], api.AnnotationQuiesce)
}
