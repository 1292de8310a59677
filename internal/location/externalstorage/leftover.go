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

// remains is what there is of one snapshot of ours.
type remains struct {
	name   string
	origin snapshot.Origin
	// asked is the VolumeSnapshot in the application's namespace, and made what the
	// controller has made of it.
	asked, made *unstructured.Unstructured
	// home and homeData are those in Velero's namespace.
	home, homeData *unstructured.Unstructured
}

// find gets what there is of one snapshot.
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

// all gets what there is of all snapshots of an installation.
func (s *Snapshotter) all(ctx context.Context, installation string) ([]*remains, error) {
	vss, err := s.clients.Dynamic.Resource(snapshots).List(ctx, metav1.ListOptions{LabelSelector: api.LabelInstallation + "=" + installation})
	if err != nil {
		return nil, fmt.Errorf("list the VolumeSnapshots of %s: %w", version, err)
	}
	// The controller makes them without labels.
	all, err := s.clients.Dynamic.Resource(datas).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the VolumeSnapshotDatas of %s: %w", version, err)
	}
	return gather(vss.Items, all.Items, installation, s.clients.VeleroNamespace), nil
}

// gather puts together what belongs together, in the order of the names.
func gather(vss, all []unstructured.Unstructured, installation, velero string) []*remains {
	byName := map[string]*remains{}
	of := func(name string) *remains {
		if byName[name] == nil {
			byName[name] = &remains{name: name, origin: snapshot.Origin{Installation: installation, BackupUID: backupUIDIn(installation, name)}}
		}
		return byName[name]
	}
	homes := map[string]string{} // names by those of the VolumeSnapshotData
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
			r.asked = vs
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
			of(ref[:nameLength]).made = data
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
	// nameLength is that of all names of nameOf.
	nameLength = len(prefix) + hashLength + 1 + uidLength + 1 + hashLength
)

// backupUIDIn is the UID of the backup in a name of nameOf, "" in any other.
func backupUIDIn(installation, name string) string {
	rest, ours := strings.CutPrefix(name, namesOf(installation))
	if !ours || len(name) != nameLength {
		return ""
	}
	return rest[:uidLength]
}

// verdict decides whether remains are left over: nobody will ever ask for them
// again. The reason tells of the backup.
//
// What is in Velero's namespace may be all that a backup lives on, and is left to
// it, whatever there is in an application's: a tenant can make that, too.
func (r *remains) verdict(backups []velerov1.Backup) (over bool, reason string) {
	moved := r.home != nil || r.homeData != nil
	i := slices.IndexFunc(backups, func(b velerov1.Backup) bool { return string(b.UID) == r.origin.BackupUID })
	if i < 0 {
		name := cmp.Or(r.origin.Backup, "with the UID "+r.origin.BackupUID)
		if moved {
			// Velero brings a Backup that somebody has deleted back from the object store,
			// with another UID, and then it lives on this very snapshot.
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
	default: // a deletion asks for the snapshot's own
		return false, cleanup.StateOf(backup)
	}
}

// discard removes remains with the data that they stand for, whichever of the
// objects has it: one of them alone may tell the controller to delete it.
func (s *Snapshotter) discard(ctx context.Context, r *remains) error {
	id := &Identity{Namespace: s.clients.VeleroNamespace, Name: r.name, Data: r.name, Installation: r.origin.Installation, Backup: r.origin.Backup, BackupUID: r.origin.BackupUID}
	if r.home == nil && r.made != nil {
		// It never came to be moved.
		if r.homeData != nil {
			if err := s.drop(ctx, datas, r.homeData); err != nil {
				return err
			}
		}
		if r.asked != nil {
			gone, err := s.deleted(ctx, r.asked, r.made, min(s.settings().timeout, confirmLimit))
			if gone || err != nil {
				return err
			}
		}
		id.Data = r.made.GetName()
		return s.confirm(ctx, id, nil, r.made)
	}
	if r.made != nil {
		if err := s.drop(ctx, datas, r.made); err != nil {
			return err
		}
	}
	if r.asked != nil {
		if err := s.drop(ctx, snapshots, r.asked); err != nil {
			return err
		}
	}
	switch {
	case r.homeData != nil:
		id.Data = r.homeData.GetName()
		return s.confirm(ctx, id, r.home, r.homeData)
	case r.home != nil:
		return s.drop(ctx, snapshots, r.home)
	default:
		return nil
	}
}

const (
	// tidyLimit is how long a backup waits for what earlier ones have left to go.
	tidyLimit = 10 * time.Second
	// tidyOn is how long it goes on beside the backup.
	tidyOn = 3 * time.Minute
)

// tidy removes what earlier backups have left, at the first snapshot of each
// backup. Trouble is a warning: it concerns another backup.
func (s *Snapshotter) tidy(ctx context.Context, backup *velerov1.Backup, installation string) {
	s.mu.Lock()
	done := s.tidied[backup.UID]
	s.tidied[backup.UID] = true
	s.mu.Unlock()
	if done {
		return
	}
	finding, cancel := context.WithTimeout(ctx, tidyLimit)
	defer cancel()
	left, err := s.leftovers(finding, installation)
	if err != nil {
		s.log.Warnf("What earlier backups may have left of the API %s is not looked for: %v", version, err)
		return
	}
	going, over := context.WithTimeout(context.WithoutCancel(ctx), tidyOn)
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

// Leftover is a snapshot whose backup is over without it, or may be.
type Leftover struct {
	// Over says that it is certain. Others are for a user to look at.
	Over   bool
	Reason string
	*remains
}

func (l Leftover) String() string {
	o := l.Object()
	return o.GetKind() + " " + key(o)
}

// Object is the one by which it is known: the VolumeSnapshot, where there is one,
// and in Velero's namespace, where it has one there.
func (l Leftover) Object() *unstructured.Unstructured {
	return cmp.Or(l.home, l.asked, l.homeData, l.made)
}

// Backup is the name of its backup; "" is not known.
func (l Leftover) Backup() string { return l.origin.Backup }

// Leftovers lists what earlier backups have left, and changes nothing.
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
// confirmed it.
func (s *Snapshotter) Discard(ctx context.Context, l Leftover) error {
	return s.discard(ctx, l.remains)
}

func (s *Snapshotter) leftovers(ctx context.Context, installation string) ([]Leftover, error) {
	all, err := s.all(ctx, installation)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	// After the snapshots: the backup of each that is listed is there by now.
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
