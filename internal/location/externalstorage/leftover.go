package externalstorage

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cleanup"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// remains are the existing objects of one snapshot.
type remains struct {
	name   string
	origin snapshot.Origin
	// requested is the VolumeSnapshot in the application's namespace, created is the
	// VolumeSnapshotData that the controller created for it.
	requested, created *unstructured.Unstructured
	// home and homeData are the objects in Velero's namespace.
	home, homeData *unstructured.Unstructured
}

// find returns the remains of one snapshot.
func (s *Snapshotter) find(ctx context.Context, installation, name string) (*remains, error) {
	all, err := s.all(ctx, installation)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.name == name {
			return r, nil
		}
	}
	return &remains{name: name}, nil
}

// all returns the remains of all snapshots of an installation.
func (s *Snapshotter) all(ctx context.Context, installation string) ([]*remains, error) {
	vss, err := s.clients.Dynamic.Resource(snapshots).List(ctx, metav1.ListOptions{LabelSelector: api.LabelInstallation + "=" + installation})
	if err != nil {
		return nil, fmt.Errorf("list the VolumeSnapshots of %s: %w", version, err)
	}
	// The controller creates VolumeSnapshotDatas without labels.
	all, err := s.clients.Dynamic.Resource(datas).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the VolumeSnapshotDatas of %s: %w", version, err)
	}
	return gather(vss.Items, all.Items, installation, s.clients.VeleroNamespace), nil
}

// gather groups the objects by snapshot, sorted by name.
func gather(vss, all []unstructured.Unstructured, installation, velero string) []*remains {
	byName := map[string]*remains{}
	of := func(name string) *remains {
		if byName[name] == nil {
			byName[name] = &remains{name: name, origin: snapshot.Origin{Installation: installation, BackupUID: backupUIDIn(installation, name)}}
		}
		return byName[name]
	}
	homes := map[string]string{} // name of the snapshot by VolumeSnapshotData
	for i := range vss {
		vs := &vss[i]
		origin, marked := snapshot.OriginOf(vs)
		if !marked || origin.Installation != installation || !strings.HasPrefix(vs.GetName(), namesOf(installation)) {
			continue
		}
		r := of(vs.GetName())
		r.origin = origin
		if vs.GetNamespace() == velero && dataName(vs) != "" {
			r.home, homes[dataName(vs)] = vs, r.name
		} else {
			r.requested = vs
		}
	}
	for i := range all {
		data := &all[i]
		origin, marked := snapshot.OriginOf(data)
		_, ref := snapshotOf(data)
		switch name := homes[data.GetName()]; {
		case name != "":
			byName[name].homeData = data
		case marked && origin.Installation == installation && strings.HasPrefix(data.GetName(), namesOf(installation)) && len(data.GetName()) >= nameLength:
			r := of(data.GetName()[:nameLength])
			r.homeData, r.origin = data, origin
		case !marked && strings.HasPrefix(ref, namesOf(installation)) && len(ref) > nameLength:
			of(ref[:nameLength]).created = data
		}
	}
	found := make([]*remains, 0, len(byName))
	for _, r := range byName {
		found = append(found, r)
	}
	slices.SortFunc(found, func(a, b *remains) int { return cmp.Compare(a.name, b.name) })
	return found
}

const (
	hashLength = 8
	uidLength  = 36
	// nameLength is the length of each name of nameOf.
	nameLength = len(prefix) + hashLength + 1 + uidLength + 1 + hashLength
)

// backupUIDIn returns the UID of the backup in a name of nameOf, "" for any other name.
func backupUIDIn(installation, name string) string {
	rest, ours := strings.CutPrefix(name, namesOf(installation))
	if !ours || len(name) != nameLength {
		return ""
	}
	return rest[:uidLength]
}

// verdict decides whether remains are leftovers. The reason describes the backup.
//
// Objects in Velero's namespace may be all that a backup can be restored from. They stay
// with it, whatever an application's namespace has, where a tenant can create objects.
func (r *remains) verdict(backups []velerov1.Backup) (over bool, reason string) {
	moved := r.home != nil || r.homeData != nil
	i := slices.IndexFunc(backups, func(b velerov1.Backup) bool { return string(b.UID) == r.origin.BackupUID })
	if i < 0 {
		name := cmp.Or(r.origin.Backup, "with the UID "+r.origin.BackupUID)
		if moved {
			// Velero recreates a deleted Backup object from the object store, with
			// another UID. That backup then restores from this snapshot.
			return false, "backup " + name + " is gone, but had it, and Velero may find that backup in the object store again"
		}
		return true, "backup " + name + " is gone"
	}
	backup := &backups[i]
	switch cleanup.LifetimeOf(backup) {
	case cleanup.Failed:
		return true, cleanup.StateOf(backup)
	case cleanup.Finished:
		return !moved, cleanup.StateOf(backup)
	default: // Velero's deletion of the backup calls Delete
		return false, cleanup.StateOf(backup)
	}
}

// discard deletes remains with their data, whichever object refers to the data. A single
// object can be enough for the controller to delete it.
func (s *Snapshotter) discard(ctx context.Context, r *remains) error {
	id := &Identity{Namespace: s.clients.VeleroNamespace, Name: r.name, Data: r.name, Installation: r.origin.Installation, Backup: r.origin.Backup, BackupUID: r.origin.BackupUID}
	if r.home == nil && r.created != nil {
		// The snapshot was not moved yet.
		if r.homeData != nil {
			if err := s.deleteObject(ctx, datas, r.homeData); err != nil {
				return err
			}
		}
		if r.requested != nil {
			gone, err := s.deleted(ctx, r.requested, r.created, min(s.settings().timeout, confirmLimit))
			if gone || err != nil {
				return err
			}
		}
		id.Data = r.created.GetName()
		return s.confirm(ctx, id, nil, r.created)
	}
	if r.created != nil {
		if err := s.deleteObject(ctx, datas, r.created); err != nil {
			return err
		}
	}
	if r.requested != nil {
		if err := s.deleteObject(ctx, snapshots, r.requested); err != nil {
			return err
		}
	}
	switch {
	case r.homeData != nil:
		id.Data = r.homeData.GetName()
		return s.confirm(ctx, id, r.home, r.homeData)
	case r.home != nil:
		return s.deleteObject(ctx, snapshots, r.home)
	default:
		return nil
	}
}

const (
	// leftoverWait is how long a backup waits for the deletion of leftovers.
	leftoverWait = 10 * time.Second
	// leftoverLimit is how long the deletion continues in the background.
	leftoverLimit = 3 * time.Minute
)

// deleteLeftovers deletes the leftovers of earlier backups, at the first snapshot of
// each backup. Problems are warnings, because they concern another backup.
func (s *Snapshotter) deleteLeftovers(ctx context.Context, backup *velerov1.Backup, installation string) {
	s.mu.Lock()
	done := s.cleaned[backup.UID]
	s.cleaned[backup.UID] = true
	s.mu.Unlock()
	if done {
		return
	}
	finding, cancel := context.WithTimeout(ctx, leftoverWait)
	defer cancel()
	left, err := s.leftovers(finding, installation)
	if err != nil {
		s.log.Warnf("What earlier backups may have left of the API %s is not looked for: %v", version, err)
		return
	}
	going, over := context.WithTimeout(context.WithoutCancel(ctx), leftoverLimit)
	var wait sync.WaitGroup
	for _, l := range left {
		if !l.Over {
			continue
		}
		wait.Go(func() {
			if err := s.Discard(going, l); err != nil {
				s.log.Warnf("A leftover is not deleted yet, and the next backup tries again: %s (%s): %v", l, l.Reason, err)
				return
			}
			s.log.Infof("Deleted a leftover with its data: %s: %s", l, l.Reason)
		})
	}
	gone := make(chan struct{})
	go func() {
		defer over()
		defer close(gone)
		wait.Wait()
	}()
	select {
	case <-gone:
	case <-finding.Done():
	}
}

// Leftover is a snapshot whose backup is over and does not need it, or may be.
type Leftover struct {
	// Over reports that the backup is certainly over. Other leftovers are for a user to
	// decide.
	Over   bool
	Reason string
	*remains
}

func (l Leftover) String() string {
	o := l.Object()
	return o.GetKind() + " " + key(o)
}

// Object returns the object that represents the snapshot: the VolumeSnapshot if it
// exists, preferably the one in Velero's namespace.
func (l Leftover) Object() *unstructured.Unstructured {
	return cmp.Or(l.home, l.requested, l.homeData, l.created)
}

// Backup returns the name of its backup, "" if not known.
func (l Leftover) Backup() string { return l.origin.Backup }

// Leftovers lists the leftovers of earlier backups, and changes nothing.
func (s *Snapshotter) Leftovers(ctx context.Context) ([]Leftover, error) {
	served, err := s.isServed(ctx)
	if err != nil || !served {
		return nil, err
	}
	installation, err := s.clients.Installation(ctx)
	if err != nil {
		return nil, err
	}
	return s.leftovers(ctx, installation)
}

// Discard deletes a leftover with its data, and returns when the controller has
// confirmed the deletion.
func (s *Snapshotter) Discard(ctx context.Context, l Leftover) error {
	return s.discard(ctx, l.remains)
}

func (s *Snapshotter) leftovers(ctx context.Context, installation string) ([]Leftover, error) {
	all, err := s.all(ctx, installation)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	// Listed after the snapshots, so that the list has the backup of each snapshot.
	backups := &velerov1.BackupList{}
	if err := s.clients.Objects.List(ctx, backups, crclient.InNamespace(s.clients.VeleroNamespace)); err != nil {
		return nil, fmt.Errorf("list the Backups of namespace %s: %w", s.clients.VeleroNamespace, err)
	}
	var left []Leftover
	for _, r := range all {
		over, reason := r.verdict(backups.Items)
		known := slices.ContainsFunc(backups.Items, func(b velerov1.Backup) bool { return string(b.UID) == r.origin.BackupUID })
		if over || !known {
			left = append(left, Leftover{Over: over, Reason: reason, remains: r})
		}
	}
	return left, nil
}
