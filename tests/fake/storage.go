package fake

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// Finalizers and annotations of external-snapshotter 8.2 (pkg/utils/util.go).
const (
	AsSourceFinalizer      = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection"
	BoundFinalizer         = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"
	ContentFinalizer       = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
	ClaimFinalizer         = "snapshot.storage.kubernetes.io/pvc-as-source-protection"
	BeingCreatedAnnotation = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"
	BeingDeletedAnnotation = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
)

// defaultCut is how long a cut takes.
const defaultCut = 20 * time.Millisecond

// Storage is a CSI driver with its sidecar, and the snapshot controller. They do
// what external-snapshotter 8.2 does (processSnapshotWithDeletionTimestamp in
// pkg/common-controller, syncContent and shouldDelete in pkg/sidecar-controller).
type Storage struct {
	api *API

	mu sync.Mutex
	// controller and sidecar report whether each of them runs.
	controller, sidecar bool
	behave              func(claim types.NamespacedName) Behaviour
	deletion            func(handle string) error
	snapshots           map[string]Snapshot
	started             map[types.UID]time.Time
	deletions           []string
	woken               chan struct{}
}

// Behaviour is how the driver cuts the snapshots of a volume.
type Behaviour struct {
	// Cut is how long a cut takes (default 20 ms), Ready how long the snapshot
	// cannot be used after it.
	Cut, Ready time.Duration
	// Err has every try to cut fail. Final reports whether the error is one after
	// which the driver has certainly taken no snapshot (isCSIFinalError).
	Err   error
	Final bool
	// Never has the driver not answer at all.
	Never bool
}

// Snapshot is what the driver holds.
type Snapshot struct {
	Handle, Volume string
	Cut            time.Time
	// Frozen reports whether the claim's file system was frozen at the cut.
	Frozen bool
}

// NewStorage starts the storage, which runs as long as the test.
func NewStorage(t testing.TB, api *API, frozen func(claim types.NamespacedName) bool) *Storage {
	s := &Storage{
		api: api, controller: true, sidecar: true,
		behave:    func(types.NamespacedName) Behaviour { return Behaviour{} },
		deletion:  func(string) error { return nil },
		snapshots: map[string]Snapshot{}, started: map[types.UID]time.Time{}, woken: make(chan struct{}, 1),
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			changed := api.Changed()
			s.reconcile(frozen)
			select {
			case <-done:
				return
			case <-changed:
			case <-s.woken:
			case <-time.After(5 * time.Millisecond): // cuts that take their time
			}
		}
	}()
	t.Cleanup(func() { close(done); <-ended })
	return s
}

// Behave decides how volumes are cut, by their claims.
func (s *Storage) Behave(behave func(claim types.NamespacedName) Behaviour) {
	s.change(func() { s.behave = behave })
}

// FailDeletion decides about each deletion of a snapshot by the driver.
func (s *Storage) FailDeletion(deletion func(handle string) error) {
	s.change(func() { s.deletion = deletion })
}

// StopController and StopSidecar stop a component; the functions that they return
// start it again.
func (s *Storage) StopController() (start func()) {
	s.change(func() { s.controller = false })
	return func() { s.change(func() { s.controller = true }) }
}

// StopSidecar is StopController for the driver's sidecar.
func (s *Storage) StopSidecar() (start func()) {
	s.change(func() { s.sidecar = false })
	return func() { s.change(func() { s.sidecar = true }) }
}

func (s *Storage) change(do func()) {
	s.mu.Lock()
	do()
	s.mu.Unlock()
	select {
	case s.woken <- struct{}{}:
	default:
	}
}

// Snapshots are those that the driver holds, sorted by their handles.
func (s *Storage) Snapshots() []Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Snapshot
	for _, handle := range slices.Sorted(maps.Keys(s.snapshots)) {
		all = append(all, s.snapshots[handle])
	}
	return all
}

// Hold puts a snapshot into the storage, as one that exists already.
func (s *Storage) Hold(snapshot Snapshot) {
	s.change(func() { s.snapshots[snapshot.Handle] = snapshot })
}

// Deletions are the handles that the driver was asked to delete.
func (s *Storage) Deletions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.deletions)
}

func (s *Storage) reconcile(frozen func(types.NamespacedName) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.controller {
		for _, object := range s.api.All("volumesnapshots") {
			vs := &snapshotv1.VolumeSnapshot{}
			if runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, vs) == nil {
				s.snapshot(vs)
			}
		}
	}
	if s.sidecar {
		for _, object := range s.api.All("volumesnapshotcontents") {
			content := &snapshotv1.VolumeSnapshotContent{}
			if runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, content) == nil {
				s.content(content, frozen)
			}
		}
	}
}

func contentOf(vs *snapshotv1.VolumeSnapshot) string {
	switch {
	case vs.Status != nil && vs.Status.BoundVolumeSnapshotContentName != nil:
		return *vs.Status.BoundVolumeSnapshotContentName
	case vs.Spec.Source.VolumeSnapshotContentName != nil:
		return *vs.Spec.Source.VolumeSnapshotContentName
	}
	return "snapcontent-" + string(vs.UID)
}

// snapshot is the snapshot controller's part.
func (s *Storage) snapshot(vs *snapshotv1.VolumeSnapshot) {
	content := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: contentOf(vs)}}
	found := s.read(content)
	if found && (content.Spec.VolumeSnapshotRef.Name != vs.Name || content.Spec.VolumeSnapshotRef.Namespace != vs.Namespace ||
		(content.Spec.VolumeSnapshotRef.UID != "" && content.Spec.VolumeSnapshotRef.UID != vs.UID)) {
		found = false
	}
	if vs.DeletionTimestamp != nil {
		s.deleted(vs, content, found)
		return
	}
	if !slices.Contains(vs.Finalizers, AsSourceFinalizer) || !slices.Contains(vs.Finalizers, BoundFinalizer) {
		s.api.Update("volumesnapshots", vs.Namespace, vs.Name, func(o *unstructured.Unstructured) {
			o.SetFinalizers(union(o.GetFinalizers(), AsSourceFinalizer, BoundFinalizer))
		})
	}
	ready := vs.Status != nil && ptr.Deref(vs.Status.ReadyToUse, false)
	s.protect(vs, !ready)
	switch {
	case !found && vs.Spec.Source.PersistentVolumeClaimName != nil && vs.Status == nil:
		s.bind(vs)
	case !found:
	case content.Spec.VolumeSnapshotRef.UID == "":
		s.api.Update("volumesnapshotcontents", "", content.Name, func(o *unstructured.Unstructured) {
			_ = unstructured.SetNestedField(o.Object, string(vs.UID), "spec", "volumeSnapshotRef", "uid")
			o.SetFinalizers(union(o.GetFinalizers(), ContentFinalizer))
		})
	default:
		s.status(vs, content)
	}
}

// protect keeps a finalizer on the claim while its snapshot is not ready.
func (s *Storage) protect(vs *snapshotv1.VolumeSnapshot, protected bool) {
	if vs.Spec.Source.PersistentVolumeClaimName == nil {
		return
	}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: vs.Namespace, Name: *vs.Spec.Source.PersistentVolumeClaimName}}
	if !s.read(claim) || slices.Contains(claim.Finalizers, ClaimFinalizer) == protected {
		return
	}
	s.api.Update("persistentvolumeclaims", claim.Namespace, claim.Name, func(o *unstructured.Unstructured) {
		if protected {
			o.SetFinalizers(union(o.GetFinalizers(), ClaimFinalizer))
		} else {
			o.SetFinalizers(without(o.GetFinalizers(), ClaimFinalizer))
		}
	})
}

// bind makes the content of a VolumeSnapshot.
func (s *Storage) bind(vs *snapshotv1.VolumeSnapshot) {
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: vs.Namespace, Name: *vs.Spec.Source.PersistentVolumeClaimName}}
	class := &snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: ptr.Deref(vs.Spec.VolumeSnapshotClassName, "")}}
	volume := &corev1.PersistentVolume{}
	why := ""
	switch {
	case !s.read(claim):
		why = "snapshot controller failed to update: failed to get claim " + claim.Name
	case !s.read(class):
		why = fmt.Sprintf("failed to get snapshot class with error failed to retrieve snapshot class %s from the informer", class.Name)
	default:
		volume.Name = claim.Spec.VolumeName
		if !s.read(volume) || volume.Spec.CSI == nil {
			why = "cannot find CSI PersistentVolumeSource for volume " + volume.Name
		}
	}
	if why != "" {
		s.setStatus("volumesnapshots", vs.Namespace, vs.Name, func(status map[string]any) {
			status["error"] = map[string]any{"message": why, "time": now()}
			status["readyToUse"] = false
		})
		return
	}
	annotations := map[string]string{}
	content := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: contentOf(vs), Finalizers: []string{ContentFinalizer}, Annotations: annotations},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			VolumeSnapshotRef: corev1.ObjectReference{
				APIVersion: snapshotv1.SchemeGroupVersion.String(), Kind: "VolumeSnapshot", Namespace: vs.Namespace, Name: vs.Name, UID: vs.UID,
			},
			DeletionPolicy: class.DeletionPolicy, Driver: class.Driver, VolumeSnapshotClassName: &class.Name,
			Source: snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &volume.Spec.CSI.VolumeHandle},
		},
	}
	s.api.add(content)
}

// status tells the VolumeSnapshot what its content says.
func (s *Storage) status(vs *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
	bound := vs.Status != nil && vs.Status.BoundVolumeSnapshotContentName != nil
	cut := content.Status != nil && content.Status.CreationTime != nil
	ready := cut && ptr.Deref(content.Status.ReadyToUse, false)
	failed := content.Status != nil && content.Status.Error != nil
	same := bound && cut == (vs.Status.CreationTime != nil) && ready == ptr.Deref(vs.Status.ReadyToUse, false) && failed == (vs.Status.Error != nil)
	if same {
		return
	}
	s.setStatus("volumesnapshots", vs.Namespace, vs.Name, func(status map[string]any) {
		status["boundVolumeSnapshotContentName"] = content.Name
		status["readyToUse"] = ready
		delete(status, "error")
		if failed {
			status["error"] = map[string]any{"message": *content.Status.Error.Message, "time": now()}
		}
		if cut {
			status["creationTime"] = time.Unix(0, *content.Status.CreationTime).UTC().Format(time.RFC3339)
			status["restoreSize"] = fmt.Sprint(ptr.Deref(content.Status.RestoreSize, 0))
		}
	})
}

// deleted is processSnapshotWithDeletionTimestamp.
func (s *Storage) deleted(vs *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent, found bool) {
	s.protect(vs, false)
	cascade := found && content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete
	if found && content.Annotations[BeingDeletedAnnotation] == "" {
		s.api.Update("volumesnapshotcontents", "", content.Name, func(o *unstructured.Unstructured) {
			annotate(o, BeingDeletedAnnotation, "yes")
		})
	}
	if cascade && content.DeletionTimestamp == nil {
		s.api.Delete("volumesnapshotcontents", "", content.Name)
	}
	if cascade {
		return // until the content is gone
	}
	s.api.Update("volumesnapshots", vs.Namespace, vs.Name, func(o *unstructured.Unstructured) {
		o.SetFinalizers(without(o.GetFinalizers(), AsSourceFinalizer, BoundFinalizer))
	})
}

// content is the sidecar's part.
func (s *Storage) content(content *snapshotv1.VolumeSnapshotContent, frozen func(types.NamespacedName) bool) {
	switch {
	case s.shouldDelete(content):
		if content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete && content.Status != nil && content.Status.SnapshotHandle != nil {
			s.deleteSnapshot(content)
			return
		}
		s.api.Update("volumesnapshotcontents", "", content.Name, func(o *unstructured.Unstructured) {
			o.SetFinalizers(without(o.GetFinalizers(), ContentFinalizer))
		})
	case content.Status != nil && ptr.Deref(content.Status.ReadyToUse, false):
	case content.Spec.Source.SnapshotHandle != nil:
		s.found(content)
	case content.Spec.Source.VolumeHandle != nil:
		s.cut(content, frozen)
	}
}

func (s *Storage) shouldDelete(content *snapshotv1.VolumeSnapshotContent) bool {
	switch {
	case content.DeletionTimestamp == nil:
		return false
	case content.Spec.Source.SnapshotHandle != nil && content.Spec.VolumeSnapshotRef.UID == "":
		return true
	case content.Annotations[BeingCreatedAnnotation] != "":
		return false
	}
	return content.Annotations[BeingDeletedAnnotation] != ""
}

func (s *Storage) deleteSnapshot(content *snapshotv1.VolumeSnapshotContent) {
	handle := *content.Status.SnapshotHandle
	s.deletions = append(s.deletions, handle)
	if s.deletion(handle) != nil {
		return
	}
	delete(s.snapshots, handle)
	s.setStatus("volumesnapshotcontents", "", content.Name, func(status map[string]any) {
		for _, key := range []string{"snapshotHandle", "readyToUse", "creationTime", "restoreSize"} {
			delete(status, key)
		}
	})
}

// found is a content that was made for a snapshot which exists.
func (s *Storage) found(content *snapshotv1.VolumeSnapshotContent) {
	snapshot, ok := s.snapshots[*content.Spec.Source.SnapshotHandle]
	if !ok {
		if content.Status == nil {
			s.setStatus("volumesnapshotcontents", "", content.Name, func(status map[string]any) {
				text := "Failed to check and update snapshot content: failed to list snapshot for content " + content.Name + ": \"can not find snapshot for snapshotID " + *content.Spec.Source.SnapshotHandle + "\""
				status["error"], status["readyToUse"] = map[string]any{"message": text, "time": now()}, false
			})
		}
		return
	}
	s.setStatus("volumesnapshotcontents", "", content.Name, func(status map[string]any) {
		status["snapshotHandle"], status["creationTime"] = snapshot.Handle, snapshot.Cut.UnixNano()
		status["readyToUse"], status["restoreSize"] = true, int64(1<<30)
	})
}

func (s *Storage) cut(content *snapshotv1.VolumeSnapshotContent, frozen func(types.NamespacedName) bool) {
	claim := s.claimOf(content)
	behaviour := s.behave(claim)
	since, began := s.started[content.UID]
	if !began {
		since = time.Now()
		s.started[content.UID] = since
		s.api.Update("volumesnapshotcontents", "", content.Name, func(o *unstructured.Unstructured) {
			annotate(o, BeingCreatedAnnotation, "yes")
		})
	}
	cut := content.Status != nil && content.Status.CreationTime != nil
	passed := time.Since(since)
	delay := behaviour.Cut
	if delay == 0 {
		delay = defaultCut
	}
	switch {
	case behaviour.Never, !cut && passed < delay:
	case behaviour.Err != nil && !cut:
		s.failed(content, behaviour)
	case !cut:
		handle := "snap-" + string(content.UID)
		at := time.Now()
		s.snapshots[handle] = Snapshot{Handle: handle, Volume: *content.Spec.Source.VolumeHandle, Cut: at, Frozen: frozen != nil && frozen(claim)}
		s.setStatus("volumesnapshotcontents", "", content.Name, func(status map[string]any) {
			status["snapshotHandle"], status["creationTime"], status["restoreSize"] = handle, at.UnixNano(), int64(1<<30)
			status["readyToUse"] = behaviour.Ready == 0
			delete(status, "error")
		})
		s.answered(content)
	case passed >= delay+behaviour.Ready:
		s.setStatus("volumesnapshotcontents", "", content.Name, func(status map[string]any) { status["readyToUse"] = true })
	}
}

func (s *Storage) failed(content *snapshotv1.VolumeSnapshotContent, behaviour Behaviour) {
	text := fmt.Sprintf("Failed to create snapshot: failed to take snapshot of the volume %s: %q", *content.Spec.Source.VolumeHandle, behaviour.Err)
	if content.Status != nil && content.Status.Error != nil && ptr.Deref(content.Status.Error.Message, "") == text {
		return
	}
	s.setStatus("volumesnapshotcontents", "", content.Name, func(status map[string]any) {
		status["error"] = map[string]any{"message": text, "time": now()}
		status["readyToUse"] = false
	})
	if behaviour.Final {
		s.answered(content)
	}
}

// answered notes that the driver has answered.
func (s *Storage) answered(content *snapshotv1.VolumeSnapshotContent) {
	s.api.Update("volumesnapshotcontents", "", content.Name, func(o *unstructured.Unstructured) {
		annotations := o.GetAnnotations()
		delete(annotations, BeingCreatedAnnotation)
		o.SetAnnotations(annotations)
	})
}

// claimOf finds the claim whose volume a content is cut from.
func (s *Storage) claimOf(content *snapshotv1.VolumeSnapshotContent) types.NamespacedName {
	for _, object := range s.api.All("persistentvolumes") {
		handle, _, _ := unstructured.NestedString(object.Object, "spec", "csi", "volumeHandle")
		if handle == *content.Spec.Source.VolumeHandle {
			namespace, _, _ := unstructured.NestedString(object.Object, "spec", "claimRef", "namespace")
			name, _, _ := unstructured.NestedString(object.Object, "spec", "claimRef", "name")
			return types.NamespacedName{Namespace: namespace, Name: name}
		}
	}
	return types.NamespacedName{}
}

func (s *Storage) setStatus(resource, namespace, name string, change func(status map[string]any)) {
	s.api.Update(resource, namespace, name, func(o *unstructured.Unstructured) {
		status, _, _ := unstructured.NestedMap(o.Object, "status")
		if status == nil {
			status = map[string]any{}
		}
		change(status)
		o.Object["status"] = status
	})
}

// read reads an object by its name, and reports whether it exists.
func (s *Storage) read(into runtime.Object) bool {
	wanted, err := toUnstructured(into)
	if err != nil {
		return false
	}
	s.api.mu.Lock()
	defer s.api.mu.Unlock()
	kind, _ := s.api.kindOf(wanted.GroupVersionKind())
	found := s.api.objects[kind.resource()][nameOf(wanted)]
	return found != nil && runtime.DefaultUnstructuredConverter.FromUnstructured(found.DeepCopy().Object, into) == nil
}

func now() string { return time.Now().UTC().Format(time.RFC3339) }

func annotate(o *unstructured.Unstructured, key, value string) {
	annotations := o.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[key] = value
	o.SetAnnotations(annotations)
}

func union(all []string, more ...string) []string {
	for _, one := range more {
		if !slices.Contains(all, one) {
			all = append(all, one)
		}
	}
	return all
}

func without(all []string, gone ...string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(one string) bool { return slices.Contains(gone, one) })
}
