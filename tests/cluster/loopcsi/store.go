package loopcsi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound says that a volume or snapshot does not exist.
	ErrNotFound = errors.New("not found")
	// ErrBadID says that an id could not have come from this driver.
	ErrBadID = errors.New("not an id of this driver")
)

// Store keeps volumes and snapshots in a directory of a file system that can
// make reflinks. Each is a directory that appears and disappears by a rename:
// after a crash it is there as a whole or not at all.
type Store struct {
	dir  string
	open *os.File // locked while the store is open, shared by all who have it open
}

// Volume is what the store knows about a volume.
type Volume struct {
	ID       string `json:"id"`
	Capacity int64  `json:"capacity"` // bytes
	Source   Source `json:"source"`
	// Directory makes it a directory of the store instead of an image.
	Directory bool `json:"directory,omitempty"`
	// Block says that it is used as a device and holds no file system of ours.
	Block bool `json:"block,omitempty"`
}

// Source is where a volume's first content came from; both are empty for a new one.
type Source struct {
	Snapshot string `json:"snapshot,omitempty"`
	Volume   string `json:"volume,omitempty"`
}

// Snapshot is what the store knows about a snapshot. The bucket has the same of
// one that was exported, and with it all that is needed elsewhere.
type Snapshot struct {
	ID      string    `json:"id"` // its name, without what marks an exported one
	Volume  string    `json:"volume"`
	Size    int64     `json:"size"` // bytes
	Created time.Time `json:"created"`
	// Ready is when it may be used; the content does not change after Created.
	Ready     time.Time `json:"ready"`
	Directory bool      `json:"directory,omitempty"`
	Block     bool      `json:"block,omitempty"`
	// Export is set when the snapshot is its copy in the bucket.
	Export *Export `json:"export,omitempty"`
	// Deletion is set when its deletion is to be slow, or to fail.
	Deletion *Deletion `json:"deletion,omitempty"`
}

// Deletion is what a VolumeSnapshotClass ordered for the deletion of a snapshot.
type Deletion struct {
	// Fail is the message with which it fails; empty when it does not.
	Fail string `json:"fail,omitempty"`
	// Times is how often it fails from now on; 0 is until it is allowed.
	Times int `json:"times,omitempty"`
	// Delay is the time that it takes, counted from the first request.
	Delay time.Duration `json:"delay,omitempty"`
	// Asked is when it was first requested; zero before.
	Asked time.Time `json:"asked,omitzero"`
}

// Export is how a snapshot gets into the bucket.
type Export struct {
	// Driver is the name of the driver that uploads it.
	Driver string `json:"driver"`
	// DeleteLocal drops the content that is here once it is there. That the
	// snapshot exists is still known here, also while the bucket does not answer.
	DeleteLocal bool `json:"deleteLocal,omitempty"`
	// Uploaded is when all of it was there; zero before.
	Uploaded time.Time `json:"uploaded,omitzero"`
}

// ready says whether a volume can be made from the snapshot.
func (s Snapshot) ready(now time.Time) bool {
	return !now.Before(s.Ready) && (s.Export == nil || !s.Export.Uploaded.IsZero())
}

const (
	volumes   = "volumes"
	snapshots = "snapshots"
	about     = "about.json" // in each volume and snapshot
	image     = "image"      // its content, or
	tree      = "tree"
	unsettled = ".unsettled-" // prefix of what is being made or removed
	lockFile  = ".lock"
)

// OpenStore opens the store in dir. The first to have it open removes what a
// crash left half-made; with another it may be that one's work.
func OpenStore(dir string) (*Store, error) {
	for _, kind := range []string{volumes, snapshots} {
		if err := os.MkdirAll(filepath.Join(dir, kind), 0o700); err != nil {
			return nil, fmt.Errorf("open store %s: %w", dir, err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	s := &Store{dir: dir, open: lock}
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		err = s.removeRests()
	}
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_SH)
	}
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, errors.Join(err, lock.Close()))
	}
	return s, nil
}

// Close lets the store go.
func (s *Store) Close() error { return s.open.Close() }

func (s *Store) removeRests() error {
	for _, kind := range []string{volumes, snapshots} {
		rests, _ := filepath.Glob(filepath.Join(s.dir, kind, unsettled+"*"))
		for _, rest := range rests {
			if err := os.RemoveAll(rest); err != nil {
				return err
			}
		}
	}
	return nil
}

// Size is how many bytes the whole store can hold.
func (s *Store) Size() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, fmt.Errorf("size of store %s: %w", s.dir, err)
	}
	return int64(st.Blocks) * st.Bsize, nil
}

// Volume looks a volume up; ErrNotFound when there is none.
func (s *Store) Volume(id string) (Volume, error) {
	var v Volume
	return v, s.read(volumes, id, &v)
}

// Snapshot looks a snapshot up; ErrNotFound when there is none.
func (s *Store) Snapshot(id string) (Snapshot, error) {
	var v Snapshot
	return v, s.read(snapshots, id, &v)
}

// Image is the file behind a volume, Tree its directory; one of them exists.
func (s *Store) Image(id string) string { return filepath.Join(s.dir, volumes, id, image) }

// Tree is the directory of a directory-backed volume.
func (s *Store) Tree(id string) string { return filepath.Join(s.dir, volumes, id, tree) }

// copyOf copies the content of a volume or snapshot of the store.
func (s *Store) copyOf(kind, id string) func(dir string) error {
	return func(dir string) error { return copyContent(filepath.Join(s.dir, kind, id), dir) }
}

// CreateVolume makes a volume. content, unless nil, puts its first content into
// a directory: of the volume's kind, and no larger. fill is called for an image
// that is empty, grow for one that is larger than its source, to make a file
// system and to make it larger.
func (s *Store) CreateVolume(v Volume, content func(dir string) error, fill, grow func(image string) error) error {
	return s.create(volumes, v.ID, v, func(dir string) error {
		if content != nil {
			if err := content(dir); err != nil {
				return err
			}
			if v.Directory {
				return nil
			}
			return enlarge(filepath.Join(dir, image), v.Capacity, grow)
		}
		if v.Directory {
			return os.Mkdir(filepath.Join(dir, tree), 0o777)
		}
		file := filepath.Join(dir, image)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			return err
		}
		if err := os.Truncate(file, v.Capacity); err != nil {
			return err
		}
		return fill(file)
	})
}

func enlarge(image string, size int64, grow func(string) error) error {
	info, err := os.Stat(image)
	if err != nil || info.Size() >= size {
		return err
	}
	if err := os.Truncate(image, size); err != nil {
		return err
	}
	return grow(image)
}

// CreateSnapshot copies what the volume's device holds at this moment and
// returns the snapshot with the time of that moment.
func (s *Store) CreateSnapshot(snap Snapshot, readyAfter time.Duration) (Snapshot, error) {
	v, err := s.Volume(snap.Volume)
	if err != nil {
		return snap, err
	}
	snap.Size, snap.Directory, snap.Block = v.Capacity, v.Directory, v.Block
	err = s.create(snapshots, snap.ID, &snap, func(dir string) error {
		err := copyContent(filepath.Join(s.dir, volumes, v.ID), dir)
		snap.Created = time.Now()
		snap.Ready = snap.Created.Add(readyAfter)
		return err
	})
	return snap, err
}

// UpdateSnapshot replaces what the store knows about a snapshot that it has.
func (s *Store) UpdateSnapshot(snap Snapshot) error {
	dir, err := s.path(snapshots, snap.ID)
	if err != nil {
		return err
	}
	b, err := json.Marshal(snap)
	if err != nil {
		return err
	}
	aside := filepath.Join(dir, about+".new")
	err = os.WriteFile(aside, b, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("update snapshot %s: %w", snap.ID, err)
	}
	return os.Rename(aside, filepath.Join(dir, about))
}

// isMissing says that there is no such snapshot or volume, or cannot be one.
func isMissing(err error) bool { return errors.Is(err, ErrNotFound) || errors.Is(err, ErrBadID) }

// SizeOf is how many bytes the content of a snapshot takes, those included that
// it shares with its volume; 0 when it is not there.
func (s *Store) SizeOf(id string) (int64, error) {
	var size int64
	for _, content := range []string{image, tree} {
		err := filepath.WalkDir(filepath.Join(s.dir, snapshots, id, content), func(path string, _ fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil {
				err = unix.Lstat(path, &st)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it is of the other kind, or has just gone
			}
			size += st.Blocks * 512 // the unit of stat(2)
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("size of snapshot %s: %w", id, err)
		}
	}
	return size, nil
}

// HasContent tells a snapshot that is more than known to the store.
func (s *Store) HasContent(id string) bool {
	for _, content := range []string{image, tree} {
		if _, err := os.Lstat(filepath.Join(s.dir, snapshots, id, content)); err == nil {
			return true
		}
	}
	return false
}

// DropContent removes the content of a snapshot and goes on knowing it.
func (s *Store) DropContent(id string) error {
	dir, err := s.path(snapshots, id)
	if err != nil {
		return err
	}
	for _, content := range []string{image, tree} {
		if err := s.removePath(filepath.Join(dir, content)); err != nil {
			return fmt.Errorf("drop the content of snapshot %s: %w", id, err)
		}
	}
	return nil
}

// Snapshots lists the snapshots in the store, in the order of their ids.
func (s *Store) Snapshots() ([]Snapshot, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, snapshots))
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var all []Snapshot
	for _, entry := range entries {
		if !idForm.MatchString(entry.Name()) {
			continue // it is being made, or removed
		}
		snap, err := s.Snapshot(entry.Name())
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, snap)
	}
	return all, nil
}

// DeleteVolume removes a volume; one that does not exist is no error.
func (s *Store) DeleteVolume(id string) error { return s.remove(volumes, id) }

// DeleteSnapshot removes a snapshot; one that does not exist is no error.
func (s *Store) DeleteSnapshot(id string) error { return s.remove(snapshots, id) }

var idForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func (s *Store) path(kind, id string) (string, error) {
	if !idForm.MatchString(id) {
		return "", fmt.Errorf("%s %q: %w", strings.TrimSuffix(kind, "s"), id, ErrBadID)
	}
	return filepath.Join(s.dir, kind, id), nil
}

func (s *Store) read(kind, id string, into any) error {
	dir, err := s.path(kind, id)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, about))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s %s: %w", strings.TrimSuffix(kind, "s"), id, ErrNotFound)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s %s: %w", strings.TrimSuffix(kind, "s"), id, err)
	}
	return nil
}

// create makes a volume's or snapshot's directory aside, lets fill put the
// content in, and then gives it its name.
func (s *Store) create(kind, id string, what any, fill func(dir string) error) error {
	final, err := s.path(kind, id)
	if err != nil {
		return err
	}
	aside, err := os.MkdirTemp(filepath.Join(s.dir, kind), unsettled)
	if err != nil {
		return err
	}
	defer os.RemoveAll(aside)
	if err := fill(aside); err != nil {
		return fmt.Errorf("create %s %s: %w", strings.TrimSuffix(kind, "s"), id, err)
	}
	b, err := json.Marshal(what)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(aside, about), b, 0o600); err != nil {
		return err
	}
	return os.Rename(aside, final)
}

func (s *Store) remove(kind, id string) error {
	dir, err := s.path(kind, id)
	if errors.Is(err, ErrBadID) {
		return nil // it cannot exist
	}
	return s.removePath(dir)
}

// removePath removes a directory or file, as a whole or not at all; one that
// does not exist is no error.
func (s *Store) removePath(path string) error {
	aside, err := os.MkdirTemp(filepath.Join(s.dir, snapshots), unsettled)
	if err != nil {
		return err
	}
	defer os.RemoveAll(aside)
	err = os.Rename(path, filepath.Join(aside, filepath.Base(path)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
