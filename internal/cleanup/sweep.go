package cleanup

import (
	"cmp"
	"slices"
	"time"
)

// Action is the decision on an object.
type Action string

// Actions of a clean-up.
const (
	// Delete deletes the objects and the storage's snapshot, whatever the deletion
	// policy.
	Delete Action = "delete"
	// DeleteObjectsOnly keeps the storage's snapshot, by the policy Retain.
	DeleteObjectsOnly Action = "deleteObjectsOnly"
	// List reports the object. It is deleted only if a user names it.
	List Action = "list"
	// Keep leaves the object unchanged.
	Keep Action = "keep"
)

// Kind is the kind of the object of a Finding.
type Kind string

// Kinds of a Finding. The finding of a VolumeSnapshot includes its content. A content
// has its own finding if its VolumeSnapshot is gone.
const (
	Snapshot Kind = "VolumeSnapshot"
	Content  Kind = "VolumeSnapshotContent"
	// Record is a ConfigMap in which package group records a freeze.
	Record Kind = "ConfigMap"
)

// Finding is one object and the decision on it. docs/sweep.md documents the JSON keys,
// which must not change.
type Finding struct {
	Kind Kind `json:"kind"`
	// Namespace and Name identify the VolumeSnapshot (also the missing one that a
	// content names) or the record.
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Content is the name of the VolumeSnapshotContent, "" if none.
	Content string `json:"content,omitempty"`
	// Handle is the storage's name of the snapshot, Driver the CSI driver.
	Handle string `json:"handle,omitempty"`
	Driver string `json:"driver,omitempty"`
	// Size is the size of a volume restored from the snapshot, in bytes; 0 if not known.
	Size    int64     `json:"sizeBytes"`
	Created time.Time `json:"created"`
	// Backup is the backup that the snapshot was taken for or restored from.
	Backup string `json:"backup,omitempty"`
	Action Action `json:"action"`
	// WhenNamed is the action if a user names a listed object.
	WhenNamed Action `json:"whenNamed,omitempty"`
	Reason    string `json:"reason"`
	// Orphan is false if the object's backup or restore is not over, or if the object is
	// foreign.
	Orphan bool `json:"orphan"`

	restored  bool
	missed    bool
	backupUID string // "" without a mark
	target    subject
}

// Object returns the name of the object on the command line: namespace/name of a
// VolumeSnapshot, content/name or configmap/name.
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

// toBeDeleted reports whether the object is to be deleted.
func (f *Finding) toBeDeleted() bool { return f.Action == Delete || f.Action == DeleteObjectsOnly }

// Age returns the age of the object.
func (f *Finding) Age(now time.Time) time.Duration { return now.Sub(f.Created) }

// inOrder sorts findings by action, then by name.
func inOrder(findings []Finding) {
	rank := map[Action]int{Delete: 0, DeleteObjectsOnly: 1, List: 2, Keep: 3}
	slices.SortStableFunc(findings, func(a, b Finding) int {
		return cmp.Or(rank[a.Action]-rank[b.Action], cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Object(), b.Object()))
	})
}
