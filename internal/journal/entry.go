package journal

import (
	"errors"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/workload"
)

// Entry is one pending undo. Its commands can hold secrets: Name and ByHand
// are what may be shown of it.
type Entry struct {
	// ID is the name of the Secret that holds the entry. Open gives one where it
	// is empty; NewID makes one before that.
	ID string `json:"-"`
	// Backup is the name of Velero's Backup.
	Backup    string    `json:"backup"`
	BackupUID types.UID `json:"backupUID"`
	// Name is what is quiesced, as users call it: "Deployment shop/db".
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	// NamespaceUID tells the namespace from a later one of its name; "" is not known.
	NamespaceUID types.UID `json:"namespaceUID,omitempty"`
	// Objects get the events that tell what came of it.
	Objects []workload.Ref `json:"objects,omitempty"`
	// Since is when it began; Open fills in now.
	Since time.Time `json:"since"`
	// Until is when the session that made it is over at the latest. From then on
	// the entry is abandoned, whoever lives. The zero time is a session that ends
	// with its process only.
	Until time.Time `json:"until"`
	// Holder is the process that is going to undo it; Open fills in this one. It is
	// empty when nobody is going to before the next start of a plugin.
	Holder Holder `json:"holder"`
	// Undo is what is left to be done, in the order in which to run it.
	Undo []Undo `json:"undo"`

	// Tried is when somebody else than the first holder began to undo it, or gave
	// up, and Failure why that did not succeed. They are zero while nobody has.
	Tried   time.Time `json:"tried,omitzero"`
	Failure string    `json:"failure,omitempty"`

	// version is the Secret's, as this process knows it.
	version string
}

// pauseOfTries lies between two tries that nobody has asked for.
const pauseOfTries = 5 * time.Minute

// Due reports that an abandoned entry may be tried without being asked: one that
// has failed just now would fail again.
func (i *Entry) Due(now time.Time) bool {
	return i.Failure == "" || now.Sub(i.Tried) >= pauseOfTries
}

// Undo is one step of an entry. It has either a Call, a Task or Unknown.
type Undo struct {
	Blueprint string       `json:"blueprint"`
	Phase     string       `json:"phase"`
	Call      *render.Call `json:"call,omitempty"`
	Task      *render.Task `json:"task,omitempty"`
	// Guarded reports that a guard stands in the container: it runs the command by
	// itself when its session dies.
	Guarded bool `json:"guarded,omitempty"`
	// Unknown says why nobody but the first holder can do it: what it needs was
	// lost with that process. It is for people.
	Unknown string `json:"unknown,omitempty"`
	// ByHand is what a person runs. Secrets in it are masked.
	ByHand string `json:"byHand,omitempty"`
	// Volumes are the file systems that the step thaws. Those stay frozen when the
	// container dies.
	Volumes []Volume `json:"volumes,omitempty"`
}

// Volume is a file system that may be frozen.
type Volume struct {
	// Claim is the name of the PersistentVolumeClaim, in the call's namespace.
	Claim string `json:"claim"`
	// ClaimUID tells the claim from a later one of its name; "" is not known.
	ClaimUID types.UID `json:"claimUID,omitempty"`
	// MountPath is where the call's container has it.
	MountPath string `json:"mountPath,omitempty"`
	// Node is the name of the node, and Path where that has the volume mounted.
	Node string `json:"node"`
	Path string `json:"path"`
}

// ErrTaken says that an entry is not this process's any more: somebody else has
// released it, or is about to.
var ErrTaken = errors.New("somebody else has released it meanwhile, as `stillpoint thaw` does")
