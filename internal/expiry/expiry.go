// Package expiry removes what a backup has left in the cluster when that backup
// is deleted: snapshots kept beside an export, and VolumeSnapshots and contents
// that were never tidied away. What the backup restores from is Velero's own to
// delete.
package expiry

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// Expiry is safe for concurrent use.
type Expiry struct {
	clients *cluster.Clients
	log     logrus.FieldLogger

	mu   sync.Mutex
	done map[types.UID]bool
}

// New returns an Expiry for the Velero that the clients reach.
func New(clients *cluster.Clients, log logrus.FieldLogger) *Expiry {
	return &Expiry{clients: clients, log: log, done: map[types.UID]bool{}}
}

// Backup removes what a backup that is being deleted has left, and waits until
// that is gone, for as long as ctx allows. Velero calls for each item of the
// backup; what is done, is done at the first call of a process.
//
// The ConfigMaps that record freezes go by themselves: the Backup owns them.
func (e *Expiry) Backup(ctx context.Context, backup *velerov1.Backup) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done[backup.UID] {
		return nil
	}
	left, err := e.left(ctx, backup)
	if err != nil {
		return err
	}
	e.done[backup.UID] = true
	targets, kept := left.plan()
	for _, text := range kept {
		e.log.Warnf("Backup %s is deleted: %s", backup.Name, text)
	}
	if len(targets) == 0 {
		return nil
	}
	vetoed, err := snapshot.RemoveAll(ctx, e.clients.Snapshots, targets...)
	for _, target := range vetoed {
		e.log.Warnf("Backup %s is deleted: %s", backup.Name, vetoText(target.String()))
	}
	if err != nil {
		return fmt.Errorf("remove what backup %s has left, which is the sweep's now: %w", backup.Name, err)
	}
	e.log.Infof("Backup %s is deleted: removed what it had left: %v", backup.Name, targets)
	return nil
}

func vetoText(name string) string {
	return fmt.Sprintf("VolumeSnapshot %s stays: it or its content has the annotation %s", name, snapshot.KeepAnnotation)
}

// remains are what this installation has taken for a backup.
type remains struct {
	leftovers []leftover
	claims    []corev1.PersistentVolumeClaim // of their namespaces
}

// leftover is a VolumeSnapshot and its content, or one of them.
type leftover struct {
	target  snapshot.Target
	objects []metav1.Object
}

func (e *Expiry) left(ctx context.Context, backup *velerov1.Backup) (remains, error) {
	installation, err := e.clients.Installation(ctx)
	if err != nil {
		return remains{}, err
	}
	client, velero, ours := e.clients.Snapshots, e.clients.VeleroNamespace, snapshot.Of(installation).String()
	contents, err := snapshot.Contents(ctx, client, ours)
	if err != nil {
		return remains{}, err
	}
	marked, err := snapshot.List(ctx, client, metav1.NamespaceAll, ours)
	if err != nil {
		return remains{}, err
	}
	// The copies that a data mover makes beside Velero have the annotations only.
	copies, err := snapshot.List(ctx, client, velero, "!"+snapshot.InstallationLabel)
	if err != nil {
		return remains{}, err
	}
	found := remains{}
	for _, pair := range snapshot.Pairs(slices.Concat(marked, copies), contents) {
		l := leftover{}
		if pair.Content != nil {
			l.target, l.objects = snapshot.TargetOfContent(pair.Content), append(l.objects, pair.Content)
		}
		if pair.Snapshot != nil {
			l.target, l.objects = snapshot.TargetOf(pair.Snapshot), append(l.objects, pair.Snapshot)
		}
		origin, trusted, err := snapshot.OriginOfPair(pair.Snapshot, pair.Content, velero)
		if err == nil && trusted && origin.Installation == installation && origin.Of(backup, l.objects[0].GetCreationTimestamp().Time) {
			found.leftovers = append(found.leftovers, l)
		}
	}
	for _, namespace := range found.namespaces() {
		claims, err := cluster.All[corev1.PersistentVolumeClaim](ctx, "claims of namespace "+namespace, "", cluster.Typed(e.clients.Kube.CoreV1().PersistentVolumeClaims(namespace).List))
		if err != nil {
			return remains{}, err
		}
		found.claims = append(found.claims, claims...)
	}
	return found, nil
}

func (r remains) namespaces() []string {
	var names []string
	for _, l := range r.leftovers {
		names = append(names, l.target.Namespace)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// neededBy is a claim that waits for a VolumeSnapshot, "" when none does.
func (r remains) neededBy(t snapshot.Target) string {
	for i := range r.claims {
		if snapshot.Awaits(&r.claims[i], t.Namespace, t.Name) {
			return r.claims[i].Name
		}
	}
	return ""
}

// plan decides what goes: all leftovers, with the storage's snapshots, but for what
// a user wants to stay and what a claim waits for. kept tells of these.
func (r remains) plan() (targets []snapshot.Target, kept []string) {
	for _, l := range r.leftovers {
		switch claim := r.neededBy(l.target); {
		case slices.ContainsFunc(l.objects, snapshot.Vetoed):
			kept = append(kept, vetoText(l.target.String()))
		case claim != "":
			kept = append(kept, fmt.Sprintf("VolumeSnapshot %s stays until the sweep: claim %s is Pending and waits for it", l.target, claim))
		default:
			targets = append(targets, l.target)
		}
	}
	return targets, kept
}
