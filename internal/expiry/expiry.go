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

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
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
	// A veto on a content alone is seen only now.
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

// remains are the objects that may be of a backup.
type remains struct {
	origin    snapshot.Origin // of the backup
	snapshots []snapshotv1.VolumeSnapshot
	contents  []snapshotv1.VolumeSnapshotContent
	claims    []corev1.PersistentVolumeClaim // of the namespaces of the snapshots
}

func (e *Expiry) left(ctx context.Context, backup *velerov1.Backup) (remains, error) {
	installation, err := e.clients.Installation(ctx)
	if err != nil {
		return remains{}, err
	}
	found := remains{
		origin: snapshot.Origin{Installation: installation, Backup: backup.Name, BackupUID: string(backup.UID)},
	}
	client := e.clients.Snapshots.SnapshotV1()
	ours := metav1.ListOptions{LabelSelector: snapshot.OwnedBy(backup).String()}
	marked, err := client.VolumeSnapshots(metav1.NamespaceAll).List(ctx, ours)
	if err != nil {
		return remains{}, fmt.Errorf("list the VolumeSnapshots of backup %s: %w", backup.Name, err)
	}
	// The copies that a data mover makes beside Velero have the annotations only.
	copies, err := client.VolumeSnapshots(e.clients.VeleroNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return remains{}, fmt.Errorf("list the VolumeSnapshots of namespace %s: %w", e.clients.VeleroNamespace, err)
	}
	contents, err := client.VolumeSnapshotContents().List(ctx, ours)
	if err != nil {
		return remains{}, fmt.Errorf("list the VolumeSnapshotContents of backup %s: %w", backup.Name, err)
	}
	found.snapshots, found.contents = slices.Concat(marked.Items, copies.Items), contents.Items
	for _, namespace := range found.namespaces() {
		claims, err := e.clients.Kube.CoreV1().PersistentVolumeClaims(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return remains{}, fmt.Errorf("list the claims of namespace %s: %w", namespace, err)
		}
		found.claims = append(found.claims, claims.Items...)
	}
	return found, nil
}

func (r remains) namespaces() []string {
	var names []string
	for i := range r.snapshots {
		names = append(names, r.snapshots[i].Namespace)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// neededBy is a claim that waits for a VolumeSnapshot, "" when none does.
func (r remains) neededBy(name types.NamespacedName) string {
	for i := range r.claims {
		if snapshot.Awaits(&r.claims[i], name.Namespace, name.Name) {
			return r.claims[i].Name
		}
	}
	return ""
}

// plan decides what goes: all that was taken for the backup by this
// installation, with the storage's snapshot, but for what a user wants to stay
// and what a claim waits for. kept tells of these.
func (r remains) plan() (targets []snapshot.Target, kept []string) {
	seen := map[types.NamespacedName]bool{}
	consider := func(name types.NamespacedName, object metav1.Object, target snapshot.Target) {
		origin, marked := snapshot.OriginOf(object)
		if seen[name] || !marked || origin.Installation != r.origin.Installation || origin.BackupUID != r.origin.BackupUID {
			return
		}
		seen[name] = true
		switch claim := r.neededBy(name); {
		case snapshot.Vetoed(object):
			kept = append(kept, vetoText(name.String()))
		case claim != "":
			kept = append(kept, fmt.Sprintf("VolumeSnapshot %s stays until the sweep: claim %s is Pending and waits for it", name, claim))
		default:
			targets = append(targets, target)
		}
	}
	for i := range r.snapshots {
		vs := &r.snapshots[i]
		consider(types.NamespacedName{Namespace: vs.Namespace, Name: vs.Name}, vs, snapshot.TargetOf(vs))
	}
	for i := range r.contents {
		content := &r.contents[i]
		of := types.NamespacedName{Namespace: content.Spec.VolumeSnapshotRef.Namespace, Name: content.Spec.VolumeSnapshotRef.Name}
		consider(of, content, snapshot.Target{Namespace: of.Namespace, Name: of.Name, Content: content.Name})
	}
	return targets, kept
}
