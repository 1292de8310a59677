package externalstorage

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/label"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"stillpoint.io/stillpoint/internal/location"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// Identity is all that a snapshot is known by, and enough to make its objects
// again where they are gone.
type Identity struct {
	// Namespace and Name are those of the VolumeSnapshot, Data is the name of its
	// VolumeSnapshotData.
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Data      string `json:"data"`
	// Volume is the name of the PersistentVolume that it was taken of.
	Volume         string `json:"volume"`
	ClaimNamespace string `json:"claimNamespace"`
	Claim          string `json:"claim"`
	// Size is that of the volume, as Kubernetes writes quantities.
	Size         string                              `json:"size"`
	AccessModes  []corev1.PersistentVolumeAccessMode `json:"accessModes"`
	StorageClass string                              `json:"storageClass,omitempty"`
	// Source is what the VolumeSnapshotData says about where the data is: one
	// field, whose name tells the kind of storage.
	Source map[string]any `json:"source"`
	// Installation is the UID of the namespace of the Velero that took it, for
	// Backup with BackupUID.
	Installation string `json:"installation"`
	Backup       string `json:"backup"`
	BackupUID    string `json:"backupUID"`
}

func (id *Identity) String() string {
	return fmt.Sprintf("VolumeSnapshot %s/%s, of PersistentVolume %s of claim %s/%s,", id.Namespace, id.Name, id.Volume, id.ClaimNamespace, id.Claim)
}

func decode(id string) (*Identity, error) {
	fields := &Identity{}
	if err := location.DecodeID(Provider, id, fields); err != nil {
		return nil, err
	}
	missing := []string{}
	for name, value := range map[string]string{
		"namespace": fields.Namespace, "name": fields.Name, "data": fields.Data, "volume": fields.Volume, "size": fields.Size, "installation": fields.Installation,
	} {
		if value == "" {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, fmt.Errorf("snapshot id %q: missing: %s", id, strings.Join(missing, ", "))
	}
	if len(fields.Source) != 1 {
		return nil, fmt.Errorf("snapshot id %q: source must have one field, and has %d", id, len(fields.Source))
	}
	if _, err := resource.ParseQuantity(fields.Size); err != nil {
		return nil, fmt.Errorf("snapshot id %q: size %q: %w", id, fields.Size, err)
	}
	return fields, nil
}

func (id *Identity) origin() snapshot.Origin {
	return snapshot.Origin{Installation: id.Installation, Backup: id.Backup, BackupUID: id.BackupUID}
}

// promotion is the claim by which a volume is made of the snapshot.
func (id *Identity) promotion(namespace, class string) *corev1.PersistentVolumeClaim {
	modes := id.AccessModes
	if len(modes) == 0 {
		modes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	}
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, GenerateName: "stillpoint-restore-",
			Annotations: map[string]string{sourceAnnotation: id.Name},
		},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: modes, StorageClassName: &class,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(id.Size)}},
		},
	}
}

// prefix begins the names of all objects that are made here.
const prefix = "stillpoint-"

// nameOf is the name of the snapshot that a backup has of a volume, the same
// whenever it is asked for. It begins as those of all snapshots of an installation
// do: the controller's own objects say nothing of them but their names.
func nameOf(installation string, backup *velerov1.Backup, volume string) string {
	return fmt.Sprintf("%s%s-%s", namesOf(installation), backup.UID, short(volume))
}

func namesOf(installation string) string { return prefix + short(installation) + "-" }

func short(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:4])
}

// The labels by which the controller says what it has done.
const (
	timestampLabel = "SnapshotMetadata-Timestamp"
	volumeLabel    = "SnapshotMetadata-PVName"
)

func object(kind, namespace, name string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{}}
	o.SetAPIVersion(version.String())
	o.SetKind(kind)
	o.SetNamespace(namespace)
	o.SetName(name)
	// Velero has the snapshot by its id. In a backup the object would only be in
	// the way: it is restored as a new snapshot.
	o.SetLabels(map[string]string{velerov1.ExcludeFromBackupLabel: "true"})
	return o
}

// request is the VolumeSnapshot by which the controller is asked for a snapshot.
func request(name string, subject *location.Subject, origin snapshot.Origin, tags map[string]string) *unstructured.Unstructured {
	o := object("VolumeSnapshot", subject.Claim.Namespace, name)
	labels := map[string]string{}
	for key, value := range tags {
		labels[key] = label.GetValidName(value)
	}
	maps.Copy(labels, o.GetLabels())
	labels[velerov1.BackupNameLabel] = label.GetValidName(subject.Backup.Name)
	labels[velerov1.PVCUIDLabel] = string(subject.Claim.UID)
	o.SetLabels(labels)
	origin.Mark(o)
	o.Object["spec"] = map[string]any{"persistentVolumeClaimName": subject.Claim.Name}
	return o
}

// conditionReady and the others are the types of conditions. The last one in the
// list counts.
const (
	conditionReady   = "Ready"
	conditionPending = "Pending"
	conditionError   = "Error"
)

// condition is one that the controller takes for its own.
func condition(kind string, at time.Time) map[string]any {
	return map[string]any{
		"type": kind, "status": string(corev1.ConditionTrue), "reason": "", "message": "Snapshot created successfully",
		"lastTransitionTime": at.UTC().Format(time.RFC3339),
	}
}

// stateOf reads the last condition; the kind is "" for none.
func stateOf(o *unstructured.Unstructured) (kind, message string) {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	if len(conditions) == 0 {
		return "", ""
	}
	last, _ := conditions[len(conditions)-1].(map[string]any)
	kind, _, _ = unstructured.NestedString(last, "type")
	message, _, _ = unstructured.NestedString(last, "message")
	if status, _, _ := unstructured.NestedString(last, "status"); kind == conditionReady && status != string(corev1.ConditionTrue) {
		return conditionPending, message
	}
	return kind, message
}

func dataName(vs *unstructured.Unstructured) string {
	name, _, _ := unstructured.NestedString(vs.Object, "spec", "snapshotDataName")
	return name
}

// references of a VolumeSnapshotData's spec, which is the source otherwise.
const (
	snapshotRef = "volumeSnapshotRef"
	volumeRef   = "persistentVolumeRef"
)

// sourceIn is what a VolumeSnapshotData says about where the data is.
func sourceIn(data *unstructured.Unstructured) (map[string]any, error) {
	spec, _, err := unstructured.NestedMap(data.Object, "spec")
	if err != nil {
		return nil, fmt.Errorf("VolumeSnapshotData %s: %w", data.GetName(), err)
	}
	delete(spec, snapshotRef)
	delete(spec, volumeRef)
	maps.DeleteFunc(spec, func(_ string, value any) bool { return value == nil })
	if len(spec) != 1 {
		return nil, fmt.Errorf("VolumeSnapshotData %s: the spec must have one source beside its references, and has: %s",
			data.GetName(), strings.Join(slices.Sorted(maps.Keys(spec)), ", "))
	}
	return spec, nil
}

// snapshotOf is the VolumeSnapshot that a VolumeSnapshotData is of: its namespace,
// and its name with its UID behind.
func snapshotOf(data *unstructured.Unstructured) (namespace, name string) {
	ref, _, _ := unstructured.NestedString(data.Object, "spec", snapshotRef, "name")
	namespace, name, found := strings.Cut(ref, "/")
	if !found {
		namespace, _, _ = unstructured.NestedString(data.Object, "spec", snapshotRef, "namespace")
		return namespace, ref
	}
	return namespace, name
}

// homeData is the VolumeSnapshotData that a snapshot has in Velero's namespace.
func (id *Identity) homeData(at time.Time) *unstructured.Unstructured {
	o := object("VolumeSnapshotData", "", id.Data)
	id.origin().Mark(o)
	spec := map[string]any{
		snapshotRef: map[string]any{"kind": "VolumeSnapshot", "name": id.Namespace + "/" + id.Name},
		volumeRef:   map[string]any{"kind": "PersistentVolume", "name": id.Volume},
	}
	maps.Copy(spec, id.Source)
	o.Object["spec"] = spec
	o.Object["status"] = map[string]any{"conditions": []any{condition(conditionReady, at)}}
	return o
}

// home is the VolumeSnapshot that names it. The controller takes one that is Ready
// for done, and looks after one that is Pending until it is Ready; of one
// without a condition it takes a new snapshot.
func (id *Identity) home(kind string, labels map[string]string, at time.Time) *unstructured.Unstructured {
	o := object("VolumeSnapshot", id.Namespace, id.Name)
	all := maps.Clone(labels)
	if all == nil {
		all = map[string]string{
			velerov1.BackupNameLabel: label.GetValidName(id.Backup),
			volumeLabel:              label.GetValidName(id.Volume),
			timestampLabel:           fmt.Sprint(at.UnixNano()),
		}
	}
	maps.Copy(all, o.GetLabels())
	o.SetLabels(all)
	id.origin().Mark(o)
	o.Object["spec"] = map[string]any{"persistentVolumeClaimName": id.Claim, "snapshotDataName": id.Data}
	o.Object["status"] = map[string]any{"conditions": []any{condition(kind, at)}}
	return o
}

// identify makes the identity that a snapshot has once it is in namespace.
func identify(namespace, name string, subject *location.Subject, origin snapshot.Origin, data *unstructured.Unstructured) (*Identity, error) {
	source, err := sourceIn(data)
	if err != nil {
		return nil, err
	}
	size, ok := subject.Volume.Spec.Capacity[corev1.ResourceStorage]
	if !ok {
		return nil, errors.New("PersistentVolume " + subject.Volume.Name + " has no capacity")
	}
	return &Identity{
		Namespace: namespace, Name: name, Data: name, Volume: subject.Volume.Name,
		ClaimNamespace: subject.Claim.Namespace, Claim: subject.Claim.Name,
		Size: size.String(), AccessModes: subject.Volume.Spec.AccessModes, StorageClass: subject.Volume.Spec.StorageClassName,
		Source: source, Installation: origin.Installation, Backup: origin.Backup, BackupUID: origin.BackupUID,
	}, nil
}
