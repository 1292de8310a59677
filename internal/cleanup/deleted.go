package cleanup

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// Deleter cleans up after deleted backups. It is safe for concurrent use.
type Deleter struct {
	clients *cluster.Clients
	log     logrus.FieldLogger

	mu   sync.Mutex
	done map[types.UID]bool
}

// NewDeleter returns a Deleter for the Velero that the clients reach.
func NewDeleter(clients *cluster.Clients, log logrus.FieldLogger) *Deleter {
	return &Deleter{clients: clients, log: log, done: map[types.UID]bool{}}
}

// Backup removes what a backup that is being deleted has left, and waits until
// that is gone, for as long as ctx allows. Velero calls for each item of the
// backup; what is done, is done at the first call of a process.
//
// The ConfigMaps that record freezes go by themselves: the Backup owns them.
func (d *Deleter) Backup(ctx context.Context, backup *velerov1.Backup) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done[backup.UID] {
		return nil
	}
	left, err := d.left(ctx, backup)
	if err != nil {
		return err
	}
	d.done[backup.UID] = true
	targets, kept := left.plan()
	for _, text := range kept {
		d.log.Warnf("Backup %s is deleted: %s", backup.Name, text)
	}
	if len(targets) == 0 {
		return nil
	}
	vetoed, err := snapshot.RemoveAll(ctx, d.clients.Snapshots, targets...)
	for _, target := range vetoed {
		d.log.Warnf("Backup %s is deleted: %s", backup.Name, vetoText(target.String()))
	}
	if err != nil {
		return fmt.Errorf("remove what backup %s has left, which is the sweep's now: %w", backup.Name, err)
	}
	d.log.Infof("Backup %s is deleted: removed what it had left: %v", backup.Name, targets)
	return nil
}

func vetoText(name string) string {
	return fmt.Sprintf("VolumeSnapshot %s stays: it or its content has the annotation %s", name, api.AnnotationKeepSnapshot)
}

// remains are what this installation has taken for a backup.
type remains struct {
	leftovers []snapshot.Pair
	claims    []corev1.PersistentVolumeClaim // of their namespaces
}

func (d *Deleter) left(ctx context.Context, backup *velerov1.Backup) (remains, error) {
	installation, err := d.clients.Installation(ctx)
	if err != nil {
		return remains{}, err
	}
	velero := d.clients.VeleroNamespace
	marked, err := snapshot.Marked(ctx, d.clients.Snapshots, snapshot.Of(installation), velero)
	if err != nil {
		return remains{}, err
	}
	found, namespaces := remains{}, sets.New[string]()
	for _, pair := range marked {
		origin, trusted, err := pair.Origin(velero)
		if err == nil && trusted && origin.Installation == installation && origin.Of(backup, pair.Created()) {
			found.leftovers = append(found.leftovers, pair)
			namespaces.Insert(pair.Target().Namespace)
		}
	}
	for _, namespace := range sets.List(namespaces) {
		claims, err := cluster.All[corev1.PersistentVolumeClaim](ctx, "claims of namespace "+namespace, "", cluster.Typed(d.clients.Kube.CoreV1().PersistentVolumeClaims(namespace).List))
		if err != nil {
			return remains{}, err
		}
		found.claims = append(found.claims, claims...)
	}
	return found, nil
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
	for _, pair := range r.leftovers {
		target := pair.Target()
		switch claim := r.neededBy(target); {
		case slices.ContainsFunc(pair.Objects(), snapshot.Vetoed):
			kept = append(kept, vetoText(target.String()))
		case claim != "":
			kept = append(kept, fmt.Sprintf("VolumeSnapshot %s stays until the sweep: claim %s is Pending and waits for it", target, claim))
		default:
			targets = append(targets, target)
		}
	}
	return targets, kept
}
