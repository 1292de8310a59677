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

// Identity is the ID of a snapshot. It suffices to create the objects of the snapshot
// again.
type Identity struct {
	// Namespace and Name identify the VolumeSnapshot, Data its VolumeSnapshotData.
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Data      string `json:"data"`
	// Volume is the name of the source PersistentVolume.
	Volume         string `json:"volume"`
	ClaimNamespace string `json:"claimNamespace"`
	Claim          string `json:"claim"`
	// Size is the size of the volume as a Kubernetes quantity.
	Size         string                              `json:"size"`
	AccessModes  []corev1.PersistentVolumeAccessMode `json:"accessModes"`
	StorageClass string                              `json:"storageClass,omitempty"`
	// Source is the field of the VolumeSnapshotData that locates the data. Its name is
	// the type of the storage.
	Source map[string]any `json:"source"`
	// Installation is the UID of the namespace of the Velero that took the snapshot.
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
	required := map[string]string{
		"namespace": fields.Namespace, "name": fields.Name, "data": fields.Data, "volume": fields.Volume, "size": fields.Size, "installation": fields.Installation,
	}
	maps.DeleteFunc(required, func(_, value string) bool { return value != "" })
	if missing := slices.Sorted(maps.Keys(required)); len(missing) > 0 {
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

// promotion returns the claim that a volume is provisioned by.
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

// prefix begins the names of all objects that this package creates.
const prefix = "stillpoint-"

// nameOf returns the name of a backup's snapshot of a volume, always the same one. All
// names of an installation have one prefix, since the controller's own objects refer
// to a snapshot only by its name.
func nameOf(installation string, backup *velerov1.Backup, volume string) string {
	return fmt.Sprintf("%s%s-%s", namesOf(installation), backup.UID, short(volume))
}

func namesOf(installation string) string { return prefix + short(installation) + "-" }

func short(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:4])
}

// Labels that the controller sets on a VolumeSnapshot that it has worked on.
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
	// A restore would take a new snapshot of the object. Velero keeps the snapshot by
	// its ID.
	o.SetLabels(map[string]string{velerov1.ExcludeFromBackupLabel: "true"})
	return o
}

// request returns the VolumeSnapshot that requests a snapshot from the controller.
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

// Types of conditions. The last one in the list counts.
const (
	conditionReady   = "Ready"
	conditionPending = "Pending"
	conditionError   = "Error"
)

// condition returns a condition as the controller sets it.
func condition(kind string, at time.Time) map[string]any {
	return map[string]any{
		"type": kind, "status": string(corev1.ConditionTrue), "reason": "", "message": "Snapshot created successfully",
		"lastTransitionTime": at.UTC().Format(time.RFC3339),
	}
}

// stateOf returns the last condition; kind is "" if there is none.
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

// References in the spec of a VolumeSnapshotData. Its other field is the source.
const (
	snapshotRef = "volumeSnapshotRef"
	volumeRef   = "persistentVolumeRef"
)

// sourceIn returns the source of a VolumeSnapshotData.
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

// snapshotOf returns the VolumeSnapshot of a VolumeSnapshotData: its namespace, and its
// name followed by its UID.
func snapshotOf(data *unstructured.Unstructured) (namespace, name string) {
	ref, _, _ := unstructured.NestedString(data.Object, "spec", snapshotRef, "name")
	namespace, name, found := strings.Cut(ref, "/")
	if !found {
		namespace, _, _ = unstructured.NestedString(data.Object, "spec", snapshotRef, "namespace")
		return namespace, ref
	}
	return namespace, name
}

// homeData returns the VolumeSnapshotData of a snapshot in Velero's namespace.
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

// home returns the VolumeSnapshot in Velero's namespace. The controller ignores one
// that is Ready, waits for one that is Pending, and takes a new snapshot of one without
// a condition.
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

// identify returns the identity of a snapshot once it is in namespace.
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
