package cluster

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// By these a snapshot is to stay beside its export, as users are told.
const (
	keptLabel      = "stillpoint.io/kept"
	keepAnnotation = "stillpoint.io/keep-snapshot"
)

// leakLimit is how long after a test a snapshot may take to go.
const leakLimit = 20 * time.Second

// leaks is what tests of this process have found in the storage.
type leaks struct {
	mu sync.Mutex
	// known are the snapshots that no test is to answer for: they were there
	// before the first, or a test has answered for them. Nil before the first.
	known map[string]bool
	// owners are the backups that had snapshots at the end of a test.
	owners map[string]string
	// external are those of the snapshot API before CSI's that are known so, and
	// all else that it leaves.
	external map[string]bool
}

var found leaks

// LeavesNoSnapshots makes a test fail that leaves snapshots in the storage, or
// anything of the snapshot API before CSI's that nobody answers for: at
// its end, when its own clean-ups are done, there must be none that was not
// there before the first test of the process, except those that a backup owns.
// It must be called before anything that has something to clean up, and tests
// that call it cannot run beside each other.
//
// Velero takes two seconds for each snapshot of a backup that it deletes, so
// the tests do not wait for that. When a backup is gone and its snapshot is
// not, it is the next test that fails.
func (c *Cluster) LeavesNoSnapshots(t testing.TB) {
	t.Helper()
	before, err := c.Snapshots(t.Context())
	if err != nil {
		t.Fatalf("before the test: %v", err)
	}
	external, err := c.externalLeft(t.Context())
	if err != nil {
		t.Fatalf("before the test: %v", err)
	}
	found.mu.Lock()
	defer found.mu.Unlock()
	if found.known == nil {
		found.known, found.owners = map[string]bool{}, map[string]string{}
		for _, s := range before {
			found.known[s.ID] = true
		}
		found.external = map[string]bool{}
		for _, left := range external {
			found.external[left] = true
		}
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), leakLimit+diagnosisLimit)
		defer cancel()
		left, err := c.leftSnapshots(ctx)
		if err != nil {
			t.Errorf("after the test: %v", err)
		}
		for _, s := range left {
			t.Errorf("the storage still holds %s", c.describeStored(ctx, s))
		}
		external, err := c.leftExternal(ctx)
		if err != nil {
			t.Errorf("after the test: %v", err)
		}
		for _, left := range external {
			t.Errorf("there still is %s", left)
		}
	})
}

// leftSnapshots waits until there are no snapshots that nobody owns, and returns
// those that there still are after leakLimit.
func (c *Cluster) leftSnapshots(ctx context.Context) ([]StoredSnapshot, error) {
	found.mu.Lock()
	defer found.mu.Unlock()
	for deadline := time.Now().Add(leakLimit); ; time.Sleep(250 * time.Millisecond) {
		left, err := c.unowned(ctx)
		if err == nil && len(left) == 0 {
			return nil, nil
		}
		if time.Now().After(deadline) {
			for _, s := range left {
				found.known[s.ID] = true
			}
			return left, err
		}
	}
}

func (c *Cluster) unowned(ctx context.Context) ([]StoredSnapshot, error) {
	all, err := c.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	var suspects []StoredSnapshot
	for _, s := range all {
		if !found.known[s.ID] {
			suspects = append(suspects, s)
		}
	}
	if len(suspects) == 0 {
		return nil, nil
	}
	owners, err := c.backupsOfSnapshots()
	if err != nil {
		return nil, err
	}
	var left []StoredSnapshot
	for _, s := range suspects {
		if owner, owned := owners[s.ID]; owned {
			found.owners[s.ID] = owner
			continue
		}
		left = append(left, s)
	}
	return left, nil
}

// describeStored says all that is known about a snapshot that should be gone.
func (c *Cluster) describeStored(ctx context.Context, s StoredSnapshot) string {
	text := fmt.Sprintf("snapshot %s of volume %s, %s old, %d bytes, ready %t", s.ID, s.Volume, time.Since(s.Created).Round(time.Second), s.Size, s.Ready)
	if owner := found.owners[s.ID]; owner != "" {
		text += "\n    it was of backup " + owner + ", which is gone"
	}
	contents, err := c.contentsOf(ctx, s.ID)
	if err != nil {
		return text + "\n    " + err.Error()
	}
	if len(contents) == 0 {
		text += "\n    no VolumeSnapshotContent names it"
	}
	for i := range contents {
		ref := contents[i].Spec.VolumeSnapshotRef
		text += "\n    " + describeContent(&contents[i])
		vs := &snapshotv1.VolumeSnapshot{}
		if err := c.objects.Get(ctx, crclient.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, vs); err == nil {
			text += fmt.Sprintf("\n    VolumeSnapshot %s/%s%s", vs.Namespace, vs.Name, terminating(vs))
		}
	}
	return text
}

// backupsOfSnapshots are the backups in the object store by the handles of the
// snapshots that are their only copy, or that are kept beside an export.
func (c *Cluster) backupsOfSnapshots() (map[string]string, error) {
	dirs, err := filepath.Glob(c.bed.BackupDir("*"))
	if err != nil {
		return nil, err
	}
	owners := map[string]string{}
	for _, dir := range dirs {
		handles, err := ownedHandles(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // it may just be made, or deleted
			return nil, fmt.Errorf("look for the snapshots of backup %s: %w", filepath.Base(dir), err)
		}
		for _, handle := range handles {
			owners[handle] = filepath.Base(dir)
		}
	}
	return owners, nil
}

// ownedHandles reads a backup as Velero does to delete it: of the contents in
// it, those with its label are its own.
func ownedHandles(dir string) ([]string, error) {
	about, err := os.ReadFile(filepath.Join(dir, "velero-backup.json"))
	if err != nil {
		return nil, err
	}
	var backup velerov1.Backup
	if err := json.Unmarshal(about, &backup); err != nil {
		return nil, err
	}
	moved := backup.Spec.SnapshotMoveData != nil && *backup.Spec.SnapshotMoveData
	content, err := os.Open(filepath.Join(dir, backup.Name+".tar.gz"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = content.Close() }()
	items, err := snapshotsInBackup(content)
	if err != nil {
		return nil, err
	}
	var handles []string
	for i := range items.contents {
		c := &items.contents[i]
		if c.Labels[velerov1.BackupNameLabel] != backup.Name {
			continue
		}
		if !moved || kept(c) || items.kept[c.Name] {
			handles = append(handles, snapshotHandle(c))
		}
	}
	return handles, nil
}

// itemsOfSnapshots is what a backup holds about snapshots.
type itemsOfSnapshots struct {
	contents []snapshotv1.VolumeSnapshotContent
	kept     map[string]bool // names of the contents whose VolumeSnapshot is kept
}

func snapshotsInBackup(r io.Reader) (itemsOfSnapshots, error) {
	items := itemsOfSnapshots{kept: map[string]bool{}}
	plain, err := gzip.NewReader(r)
	if err != nil {
		return items, err
	}
	archive := tar.NewReader(plain)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return items, nil
		}
		if err != nil {
			return items, err
		}
		path := strings.Split(header.Name, "/")
		if len(path) < 4 || path[0] != "resources" {
			continue
		}
		switch path[1] {
		case "volumesnapshotcontents.snapshot.storage.k8s.io":
			var content snapshotv1.VolumeSnapshotContent
			if err := json.NewDecoder(archive).Decode(&content); err != nil {
				return items, fmt.Errorf("%s: %w", header.Name, err)
			}
			items.contents = append(items.contents, content)
		case "volumesnapshots.snapshot.storage.k8s.io":
			var s snapshotv1.VolumeSnapshot
			if err := json.NewDecoder(archive).Decode(&s); err != nil {
				return items, fmt.Errorf("%s: %w", header.Name, err)
			}
			if kept(&s) && s.Status != nil && s.Status.BoundVolumeSnapshotContentName != nil {
				items.kept[*s.Status.BoundVolumeSnapshotContentName] = true
			}
		}
	}
}

// kept says that a snapshot is to stay beside its export.
func kept(object crclient.Object) bool {
	_, kept := object.GetLabels()[keptLabel]
	return kept || object.GetAnnotations()[keepAnnotation] == "true"
}
