package journal

import (
	"errors"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/workload"
)

// Entry is the pending undo of one freeze. Its commands can contain secrets: only Name and
// ByHand may be printed.
type Entry struct {
	// ID is the name of the Secret.
	ID string `json:"-"`
	// Backup is the name of the Backup.
	Backup    string    `json:"backup"`
	BackupUID types.UID `json:"backupUID"`
	// Name is what is quiesced: "Deployment shop/db".
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	// NamespaceUID distinguishes the namespace from a later one with its name. "" is
	// unknown.
	NamespaceUID types.UID `json:"namespaceUID,omitempty"`
	// Objects get the events.
	Objects []workload.Ref `json:"objects,omitempty"`
	// Since is the begin of the freeze.
	Since time.Time `json:"since"`
	// Until is the time at which the session ends at the latest. After it, the entry is
	// abandoned even if the holder lives. If it is zero, the session ends with its process.
	Until time.Time `json:"until"`
	// Holder is the process that will complete the entry. It is empty after a failed try,
	// until the plugin starts again.
	Holder Holder `json:"holder"`
	// Undo are the remaining steps, in their order.
	Undo []Undo `json:"undo"`

	// Tried is the time of the last try by a process that is not the first holder, and
	// Failure is its error. They are zero before the first try.
	Tried   time.Time `json:"tried,omitzero"`
	Failure string    `json:"failure,omitempty"`

	// version is the last known resource version of the Secret.
	version string
}

// retryPause is the time between two tries that a user did not request.
const retryPause = 5 * time.Minute

// Due reports whether an abandoned entry may be tried without a request of a user. An entry
// that failed just now would fail again.
func (e *Entry) Due(now time.Time) bool {
	return e.Failure == "" || now.Sub(e.Tried) >= retryPause
}

// Undo is one step of an entry. Exactly one of Call, Task and Unknown is set.
type Undo struct {
	Blueprint string       `json:"blueprint"`
	Phase     string       `json:"phase"`
	Call      *render.Call `json:"call,omitempty"`
	Task      *render.Task `json:"task,omitempty"`
	// Guarded is true if a guard in the container runs the command when the session dies.
	Guarded bool `json:"guarded,omitempty"`
	// Unknown is the reason why only the first holder could run the step, such as a value
	// that was lost with that process.
	Unknown string `json:"unknown,omitempty"`
	// ByHand has the commands for a user, with masked secrets.
	ByHand string `json:"byHand,omitempty"`
	// Volumes are the file systems that the step thaws. They stay frozen if the container
	// ends.
	Volumes []Volume `json:"volumes,omitempty"`
}

// Volume is a file system that can be frozen.
type Volume struct {
	// Claim is the name of the PersistentVolumeClaim in the namespace of the call.
	Claim string `json:"claim"`
	// ClaimUID distinguishes the claim from a later one with its name. "" is unknown.
	ClaimUID types.UID `json:"claimUID,omitempty"`
	// MountPath is the mount path in the container of the call.
	MountPath string `json:"mountPath,omitempty"`
	// Node is the name of the node, and Path is the mount path on it.
	Node string `json:"node"`
	Path string `json:"path"`
}

// ErrTaken means that another process holds or has completed the entry.
var ErrTaken = errors.New("somebody else has released it meanwhile, as `stillpoint thaw` does")
