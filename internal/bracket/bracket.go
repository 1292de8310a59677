// Package bracket quiesces around Velero's own CSI snapshots: it freezes in
// Velero's call for a PersistentVolume, which comes just before the snapshot,
// and thaws as soon as the storage has cut the last volume of the workload.
package bracket

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/quiesce"
	"stillpoint.io/stillpoint/internal/workload"
)

// Bracket holds the freezes of this process, which Velero starts anew for each
// backup. It is safe for concurrent use.
type Bracket struct {
	clients  *cluster.Clients
	executor *cluster.Executor
	csi      bool
	log      logrus.FieldLogger
	events   *events

	mu      sync.Mutex
	freezes map[claimKey]*freeze
	units   map[claimKey]unitSeen
}

type claimKey struct {
	backup types.UID
	types.NamespacedName
}

// unitSeen is a unit that need not be looked up again for each of its pods.
type unitSeen struct {
	unit  workload.Unit
	asked bool
}

// New returns a Bracket. csi tells whether the server runs with EnableCSI.
func New(clients *cluster.Clients, csi bool, log logrus.FieldLogger) *Bracket {
	return &Bracket{
		clients:  clients,
		executor: cluster.NewExecutor(clients),
		csi:      csi,
		log:      log,
		events:   newEvents(clients.Kube),
		freezes:  map[claimKey]*freeze{},
		units:    map[claimKey]unitSeen{},
	}
}

// planner makes a planner with the configuration as it is now. Only a freeze
// needs it: a volume that nobody wants quiesced is not to fail for it.
func (b *Bracket) planner(ctx context.Context) (*quiesce.Planner, error) {
	settings, err := config.Load(ctx, b.clients.Kube, b.clients.VeleroNamespace)
	if err != nil {
		return nil, err
	}
	return &quiesce.Planner{
		Kube:     b.clients.Kube,
		Executor: b.executor,
		Finder:   blueprint.NewFinder(b.clients.Kube, b.clients.Dynamic, b.clients.VeleroNamespace, settings.BlueprintNamespaces),
		Warn:     b.log.Warnf,
	}, nil
}

func (b *Bracket) selection(backup *velerov1.Backup) *selection {
	quiet := logrus.New()
	quiet.SetLevel(logrus.PanicLevel)
	return &selection{backup: backup, client: b.clients.Objects, csi: b.csi, log: quiet}
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
	if !b.selection(backup).namespace(ref.Namespace) {
		return nil
	}
	claim, err := b.clients.Kube.CoreV1().PersistentVolumeClaims(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get claim %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	if claim.Spec.VolumeName != volume.Name {
		return nil
	}
	f, err := b.freezeOf(ctx, claim, backup)
	if err != nil || f == nil {
		return err
	}
	return f.enter(ctx, claim.Name)
}

// freezeOf returns the freeze that a claim is part of, nil when there is none
// to be. The first call for any claim of a group decides for all of them.
func (b *Bracket) freezeOf(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (*freeze, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := keyOf(backup, claim)
	if f, decided := b.freezes[key]; decided {
		return f, nil
	}
	f, err := b.decide(ctx, claim, backup)
	if err != nil {
		return nil, err
	}
	b.freezes[key] = f
	if f == nil {
		return nil, nil //nolint:nilnil // nothing to do is a valid answer
	}
	for i := range f.group.Claims {
		key := keyOf(backup, &f.group.Claims[i])
		if _, decided := b.freezes[key]; !decided {
			b.freezes[key] = f
		}
	}
	return f, nil
}

func (b *Bracket) decide(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (*freeze, error) {
	selection := b.selection(backup)
	planner := &quiesce.Planner{Kube: b.clients.Kube} // all that a group takes
	group, groupErr := planner.Group(ctx, claim, func(other corev1.PersistentVolumeClaim) (bool, error) {
		reason, err := selection.snapshots(ctx, &other)
		if reason != "" && other.Name != claim.Name {
			b.log.Infof("Claim %s/%s is not quiesced with its workload: %s", other.Namespace, other.Name, reason)
		}
		return reason == "", err
	})
	if groupErr == nil && !group.Asked() {
		return nil, nil //nolint:nilnil // nothing to do is a valid answer
	}
	reason, err := selection.snapshots(ctx, claim)
	if err != nil {
		return nil, err
	}
	if reason != "" {
		b.log.Infof("Claim %s/%s is not quiesced: %s", claim.Namespace, claim.Name, reason)
		return nil, nil //nolint:nilnil // as above
	}
	f := newFreeze(b, group, backup)
	f.failed = groupErr
	return f, nil
}

func keyOf(backup *velerov1.Backup, claim *corev1.PersistentVolumeClaim) claimKey {
	return claimKey{backup.UID, types.NamespacedName{Namespace: claim.Namespace, Name: claim.Name}}
}

// Claim is Velero's call for a PersistentVolumeClaim after its own action has
// taken the snapshot. An error says that the snapshot is not what was asked
// for; it is deleted then.
func (b *Bracket) Claim(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) error {
	b.mu.Lock()
	f, decided := b.freezes[keyOf(backup, claim)]
	b.mu.Unlock()
	switch {
	case f != nil:
		return f.leave(ctx, claim)
	case decided, claim.Annotations[velerov1.VolumeSnapshotLabel] == "":
		return nil
	}
	// Velero's action has taken a snapshot, and this process was not called before.
	live, err := b.clients.Kube.CoreV1().PersistentVolumeClaims(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	if f, err = b.freezeOf(ctx, live, backup); err != nil || f == nil {
		return err
	}
	return f.missed(ctx, claim)
}

// Related returns the other pods of a pod's workload when it is to be quiesced
// and they are in the backup too: they belong into one item block, so that
// Velero takes the workload's volumes one right after the other. Trouble is a
// warning: an error would drop the pod from the backup.
func (b *Bracket) Related(ctx context.Context, pod *corev1.Pod, backup *velerov1.Backup) []velero.ResourceIdentifier {
	seen, err := b.unitOf(ctx, pod, backup)
	if err != nil {
		b.log.Warnf("Pod %s/%s is not kept together with the other pods of its workload: %v", pod.Namespace, pod.Name, err)
		return nil
	}
	if !seen.asked {
		return nil
	}
	selection := b.selection(backup)
	var related []velero.ResourceIdentifier
	for _, w := range seen.unit.Workloads {
		for _, other := range w.Pods {
			if other.Name != pod.Name && selection.pod(&other) {
				related = append(related, velero.ResourceIdentifier{
					GroupResource: kuberesource.Pods, Namespace: other.Namespace, Name: other.Name,
				})
			}
		}
	}
	return related
}

func (b *Bracket) unitOf(ctx context.Context, pod *corev1.Pod, backup *velerov1.Backup) (unitSeen, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := claimKey{backup.UID, types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}}
	if seen, ok := b.units[key]; ok {
		return seen, nil
	}
	unit, err := workload.Of(ctx, b.clients.Kube, pod)
	if err != nil {
		return unitSeen{}, err
	}
	seen := unitSeen{unit: unit}
	if len(unit.Workloads) > 0 {
		planner := &quiesce.Planner{Kube: b.clients.Kube}
		if seen.asked, err = planner.Asked(ctx, unit); err != nil {
			return unitSeen{}, err
		}
	}
	b.units[key] = seen
	for _, w := range unit.Workloads {
		for _, other := range w.Pods {
			b.units[claimKey{backup.UID, types.NamespacedName{Namespace: other.Namespace, Name: other.Name}}] = seen
		}
	}
	return seen, nil
}

// pollInterval is how often Velero looks whether a snapshot has been cut, which
// is how long it takes per volume at least (volume_snapshot.go of Velero 1.18,
// WaitUntilVSCHandleIsReady).
func pollInterval() time.Duration {
	if early, err := strconv.ParseBool(os.Getenv("CSI_SNAPSHOT_EARLY_FREQUENT_POLLING")); err == nil && early {
		return time.Second
	}
	return 5 * time.Second
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
		claims, poll, needed, timeout, quiesce.AnnotationQuiesceTimeout)
}

// volumeGroup is the value of Velero's own volume group label on a claim.
func volumeGroup(claims []corev1.PersistentVolumeClaim, backup *velerov1.Backup) error {
	key := backup.Spec.VolumeGroupSnapshotLabelKey
	i := slices.IndexFunc(claims, func(c corev1.PersistentVolumeClaim) bool { return key != "" && c.Labels[key] != "" })
	if i < 0 {
		return nil
	}
	return fmt.Errorf("claim %s/%s has the label %s=%s: Velero takes a VolumeGroupSnapshot of it, around which Stillpoint cannot quiesce; remove the label or the annotation %s",
		claims[i].Namespace, claims[i].Name, key, claims[i].Labels[key], quiesce.AnnotationQuiesce)
}
