package cleanup

import (
	"cmp"
	"slices"
	"time"
)

// Action is what becomes of an object.
type Action string

// What can become of an object.
const (
	// Delete takes the storage's snapshot along, whatever the deletion policy.
	Delete Action = "delete"
	// DeleteObjectsOnly leaves the storage's snapshot, by the policy Retain.
	DeleteObjectsOnly Action = "deleteObjectsOnly"
	// List shows it. It is deleted only when a user names it.
	List Action = "list"
	// Keep does nothing.
	Keep Action = "keep"
)

// Kind is what kind of object a Finding is about.
type Kind string

// The kinds of a Finding. A VolumeSnapshot comes with its content; a content is
// a finding of its own when its VolumeSnapshot is gone.
const (
	Snapshot Kind = "VolumeSnapshot"
	Content  Kind = "VolumeSnapshotContent"
	// Record is a ConfigMap in which package group remembers a freeze.
	Record Kind = "ConfigMap"
)

// Finding is one object, and what is to become of it. Its JSON is for programs:
// docs/sweep.md explains the keys, which stay as they are.
type Finding struct {
	Kind Kind `json:"kind"`
	// Namespace and Name are those of the VolumeSnapshot, of the one that a
	// content names, or of the record.
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Content is the name of the VolumeSnapshotContent, "" for none.
	Content string `json:"content,omitempty"`
	// Handle is the storage's name of the snapshot, and Driver the CSI driver.
	Handle string `json:"handle,omitempty"`
	Driver string `json:"driver,omitempty"`
	// Size is how large a volume restored from it is, bytes; 0 is not known.
	Size    int64     `json:"sizeBytes"`
	Created time.Time `json:"created"`
	// Backup is the name of the backup that it was taken for or restored from.
	Backup string `json:"backup,omitempty"`
	Action Action `json:"action"`
	// WhenNamed is what is done with a listed one that a user names.
	WhenNamed Action `json:"whenNamed,omitempty"`
	Reason    string `json:"reason"`
	// Orphan is false where somebody still answers for the object: its backup or
	// restore is not over, or it is none of ours.
	Orphan bool `json:"orphan"`

	restored  bool
	missed    bool
	backupUID string // "" where it has no mark
	target    subject
}

// Object names what a finding is about, as a user names it on the command line:
// namespace/name of a VolumeSnapshot, content/name or configmap/name.
func (f *Finding) Object() string {
	switch f.Kind {
	case Content:
		return "content/" + f.Content
	case Record:
		return "configmap/" + f.Name
	default:
		return f.Namespace + "/" + f.Name
	}
}

// goes tells that the object is to be deleted.
func (f *Finding) goes() bool { return f.Action == Delete || f.Action == DeleteObjectsOnly }

// Age is how old the object is.
func (f *Finding) Age(now time.Time) time.Duration { return now.Sub(f.Created) }

// inOrder sorts findings by what is done with them, then by name.
func inOrder(findings []Finding) {
	rank := map[Action]int{Delete: 0, DeleteObjectsOnly: 1, List: 2, Keep: 3}
	slices.SortStableFunc(findings, func(a, b Finding) int {
		return cmp.Or(rank[a.Action]-rank[b.Action], cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Object(), b.Object()))
	})
}
