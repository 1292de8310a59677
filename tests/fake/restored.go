package fake

import (
	"fmt"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/client"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework/common"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	riav2 "github.com/vmware-tanzu/velero/pkg/plugin/velero/restoreitemaction/v2"
	csiactions "github.com/vmware-tanzu/velero/pkg/restore/actions/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
)

// Tarball is what a backup has of a workload, in the order in which Velero restores
// it: contents, VolumeSnapshots, volumes, claims as the actions left them, and pods.
func (b *Bed) Tarball(r *Result) []runtime.Object {
	b.T.Helper()
	var objects []runtime.Object
	for _, resource := range []string{"volumesnapshotcontents", "volumesnapshots", "persistentvolumes"} {
		for _, object := range b.API.All(resource) {
			objects = append(objects, &object)
		}
	}
	for _, claim := range r.Claims {
		objects = append(objects, claim)
	}
	for _, pod := range b.API.All("pods") {
		objects = append(objects, &pod)
	}
	return objects
}

// Restored is what became of a restore.
type Restored struct {
	// Errors are by kind and name, as in "PersistentVolumeClaim db-data0".
	Errors     map[string]error
	operations []struct {
		action riav2.RestoreItemAction
		id     string
	}
	r         *Restoring
	restore   *velerov1.Restore
	backup    []*unstructured.Unstructured
	seen      map[string]bool
	informed  map[string]bool // claims of which the volume information has a snapshot
	provision map[string]bool // volumes that are not restored but provisioned
}

// Run restores what a backup has, as restoreItem in pkg/restore of Velero 1.18 does.
func (r *Restoring) Run(restore *velerov1.Restore, tarball []runtime.Object) *Restored {
	r.bed.T.Helper()
	out := &Restored{Errors: map[string]error{}, r: r, restore: restore, seen: map[string]bool{}, informed: map[string]bool{}, provision: map[string]bool{}}
	for _, object := range tarball {
		item, err := toUnstructured(object)
		if err != nil {
			r.bed.T.Fatal(err)
		}
		out.backup = append(out.backup, item)
		source, _, _ := unstructured.NestedString(item.Object, "spec", "source", "persistentVolumeClaimName")
		// generateVolumeInfoForCSIVolumeSnapshot in internal/volume.
		if source != "" && item.GetLabels()[velerov1.BackupNameLabel] == restore.Spec.BackupName {
			out.informed[item.GetNamespace()+"/"+source] = true
		}
		if item.GetAnnotations()[velerov1.DataUploadNameAnnotation] != "" {
			out.informed[item.GetNamespace()+"/"+item.GetName()] = true
		}
	}
	for _, item := range out.backup {
		out.item(item)
	}
	return out
}

func (o *Restored) item(backedUp *unstructured.Unstructured) {
	key := backedUp.GetKind() + " " + backedUp.GetName()
	if o.seen[key+backedUp.GetNamespace()] {
		return
	}
	o.seen[key+backedUp.GetNamespace()] = true
	item := backedUp.DeepCopy()
	if backedUp.GetKind() == "PersistentVolume" && !o.volume(item) {
		o.provision[backedUp.GetName()] = true
		return
	}
	for _, field := range []string{"generateName", "selfLink", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences"} {
		unstructured.RemoveNestedField(item.Object, "metadata", field)
	}
	delete(item.Object, "status")
	item, err := o.act(item, backedUp)
	if err != nil {
		o.Errors[key] = err
	}
	if item == nil || err != nil {
		return
	}
	if volume, _, _ := unstructured.NestedString(item.Object, "spec", "volumeName"); o.provision[volume] {
		unstructured.RemoveNestedField(item.Object, "spec", "volumeName")
	}
	if mapped := o.restore.Spec.NamespaceMapping[item.GetNamespace()]; mapped != "" {
		item.SetNamespace(mapped)
	}
	labels := item.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	labels[velerov1.RestoreNameLabel] = label.GetValidName(o.restore.Name)
	labels[velerov1.BackupNameLabel] = label.GetValidName(o.restore.Spec.BackupName)
	item.SetLabels(labels)
	o.r.bed.API.add(item)
}

// volume prepares a PersistentVolume, and reports whether Velero restores it.
func (o *Restored) volume(item *unstructured.Unstructured) bool {
	namespace, _, _ := unstructured.NestedString(item.Object, "spec", "claimRef", "namespace")
	name, _, _ := unstructured.NestedString(item.Object, "spec", "claimRef", "name")
	policy, _, _ := unstructured.NestedString(item.Object, "spec", "persistentVolumeReclaimPolicy")
	if o.informed[namespace+"/"+name] || policy == "Delete" {
		return false
	}
	unstructured.RemoveNestedField(item.Object, "spec", "claimRef", "uid")
	unstructured.RemoveNestedField(item.Object, "spec", "claimRef", "resourceVersion")
	if mapped := o.restore.Spec.NamespaceMapping[namespace]; mapped != "" {
		_ = unstructured.SetNestedField(item.Object, mapped, "spec", "claimRef", "namespace")
	}
	return true
}

// act calls Velero's own actions and then the plugin's. The item is nil where one
// leaves it out.
func (o *Restored) act(item, backedUp *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	own := func(make func(client.Factory) common.HandlerInitializer) func(*velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error) {
		var action riav2.RestoreItemAction
		o.r.bed.Connect(func() {
			logger, _ := Logs()
			action = made[riav2.RestoreItemAction](o.r.bed, make(client.NewFactory("velero", client.VeleroConfig{client.ConfigKeyNamespace: VeleroNamespace})), logger)
		})
		return action.Execute
	}
	type call func(*velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error)
	var calls []call
	var operating riav2.RestoreItemAction
	switch item.GetKind() {
	case "PersistentVolume":
		calls = []call{o.r.Volumes.Execute}
	case "VolumeSnapshot":
		calls = []call{own(csiactions.NewVolumeSnapshotRestoreItemAction), o.r.Snapshots.Execute}
	case "VolumeSnapshotContent":
		calls = []call{own(csiactions.NewVolumeSnapshotContentRestoreItemAction), o.r.Snapshots.Execute}
	case "PersistentVolumeClaim":
		annotations := item.GetAnnotations() // PVCAction in pkg/restore/actions
		for _, key := range []string{"pv.kubernetes.io/bind-completed", "pv.kubernetes.io/bound-by-controller", velerov1.VolumeSnapshotLabel, velerov1.DataUploadNameAnnotation} {
			delete(annotations, key)
		}
		item.SetAnnotations(annotations)
		calls, operating = []call{own(csiactions.NewPvcRestoreItemAction), o.r.Claims.Execute}, o.r.Claims
	}
	if len(calls) == 2 && o.r.WithoutCSI {
		calls = calls[1:]
	}
	for i, call := range append(calls, o.r.Owners.Execute) {
		output, err := call(&velero.RestoreItemActionExecuteInput{Item: item, ItemFromBackup: backedUp, Restore: o.restore})
		if err != nil {
			return nil, err
		}
		if output.OperationID != "" {
			action := operating
			if i == len(calls) {
				action = o.r.Owners
			}
			o.operations = append(o.operations, struct {
				action riav2.RestoreItemAction
				id     string
			}{action, output.OperationID})
		}
		if output.SkipRestore {
			return nil, nil //nolint:nilnil // left out
		}
		item = &unstructured.Unstructured{Object: output.UpdatedItem.UnstructuredContent()}
		unstructured.RemoveNestedField(item.Object, "metadata", "annotations", velerov1.MustIncludeAdditionalItemRestoreAnnotation)
		for _, additional := range output.AdditionalItems {
			for _, other := range o.backup {
				if strings.EqualFold(other.GetKind()+"s", additional.Resource) && other.GetName() == additional.Name && other.GetNamespace() == additional.Namespace {
					o.item(other)
				}
			}
		}
	}
	return item, nil
}

// Progress asks once for all operations, as Velero does when all items are restored.
func (o *Restored) Progress() []velero.OperationProgress {
	o.r.bed.T.Helper()
	var all []velero.OperationProgress
	for _, operation := range o.operations {
		progress, err := operation.action.Progress(operation.id, o.restore)
		if err != nil {
			o.r.bed.T.Errorf("progress of %s: %v", operation.id, err)
		}
		all = append(all, progress)
	}
	return all
}

// Data says where the data of a volume comes from: a handle of a snapshot, the handle
// of the volume itself, or "empty".
const Data = "data"

// Bind is one pass of the PersistentVolume controller and the provisioner over all
// claims. A volume that is reserved for a claim by its claimRef comes before all else.
func (b *Bed) Bind() {
	b.T.Helper()
	for _, object := range b.API.All("persistentvolumeclaims") {
		claim := &corev1.PersistentVolumeClaim{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, claim); err != nil {
			b.T.Fatal(err)
		}
		if claim.Status.Phase == corev1.ClaimBound {
			continue
		}
		name := b.reserved(claim)
		if name == "" && claim.Spec.VolumeName == "" {
			name = b.provisioned(claim)
		}
		if name == "" {
			continue
		}
		b.API.Update("persistentvolumes", "", name, func(o *unstructured.Unstructured) {
			_ = unstructured.SetNestedField(o.Object, string(claim.UID), "spec", "claimRef", "uid")
			_ = unstructured.SetNestedField(o.Object, "Bound", "status", "phase")
		})
		b.API.Update("persistentvolumeclaims", claim.Namespace, claim.Name, func(o *unstructured.Unstructured) {
			_ = unstructured.SetNestedField(o.Object, name, "spec", "volumeName")
			_ = unstructured.SetNestedField(o.Object, "Bound", "status", "phase")
		})
	}
}

// Release is one pass of the PersistentVolume controller over the volumes whose claims
// are gone. Those that go with their claims are deleted.
func (b *Bed) Release() {
	b.T.Helper()
	claims := map[string]bool{}
	volumes := b.API.All("persistentvolumes") // before the claims: what is bound has one
	for _, claim := range b.API.All("persistentvolumeclaims") {
		claims[string(claim.GetUID())] = true
	}
	for i := range volumes {
		volume := &corev1.PersistentVolume{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(volumes[i].Object, volume); err != nil {
			b.T.Fatal(err)
		}
		switch {
		case volume.Status.Phase != corev1.VolumeBound || volume.Spec.ClaimRef == nil || claims[string(volume.Spec.ClaimRef.UID)]:
		case volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete:
			b.API.Delete("persistentvolumes", "", volume.Name)
		default:
			b.API.Update("persistentvolumes", "", volume.Name, func(o *unstructured.Unstructured) {
				_ = unstructured.SetNestedField(o.Object, "Released", "status", "phase")
			})
		}
	}
}

func (b *Bed) reserved(claim *corev1.PersistentVolumeClaim) string {
	for _, volume := range b.API.All("persistentvolumes") {
		namespace, _, _ := unstructured.NestedString(volume.Object, "spec", "claimRef", "namespace")
		name, _, _ := unstructured.NestedString(volume.Object, "spec", "claimRef", "name")
		uid, _, _ := unstructured.NestedString(volume.Object, "spec", "claimRef", "uid")
		if namespace == claim.Namespace && name == claim.Name && (uid == "" || uid == string(claim.UID)) && volume.GetDeletionTimestamp() == nil {
			return volume.GetName()
		}
	}
	return ""
}

// provisioned makes a volume as external-provisioner does. It returns "" for a claim
// that it cannot serve.
func (b *Bed) provisioned(claim *corev1.PersistentVolumeClaim) string {
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: ptr.Deref(claim.Spec.StorageClassName, "")}}
	if claim.Spec.Selector != nil || !b.API.Get(b.T, class) || class.Provisioner != Driver {
		return ""
	}
	data := "empty"
	if source := claim.Spec.DataSource; source != nil {
		vs := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: claim.Namespace, Name: source.Name}}
		if !b.API.Get(b.T, vs) || vs.Status == nil || !ptr.Deref(vs.Status.ReadyToUse, false) {
			return ""
		}
		content := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: *vs.Status.BoundVolumeSnapshotContentName}}
		b.API.Get(b.T, content)
		data = *content.Status.SnapshotHandle
	}
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-" + string(claim.UID), Annotations: map[string]string{Data: data}},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName: class.Name, PersistentVolumeReclaimPolicy: ptr.Deref(class.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete),
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: Driver, VolumeHandle: "vol-" + string(claim.UID)}},
			ClaimRef:               &corev1.ObjectReference{Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID},
		},
	}
	b.API.Put(b.T, volume)
	return volume.Name
}

// DataOf says what a claim has: the handle of the snapshot that its volume was made
// from, "empty", the handle of a volume that was there before, or its phase.
func (b *Bed) DataOf(namespace, name string) string {
	b.T.Helper()
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	if !b.API.Get(b.T, claim) {
		return "missing"
	}
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: claim.Spec.VolumeName}}
	if claim.Status.Phase != corev1.ClaimBound || !b.API.Get(b.T, volume) {
		return fmt.Sprintf("unbound %s", claim.Status.Phase)
	}
	if data := volume.Annotations[Data]; data != "" {
		return data
	}
	return volume.Spec.CSI.VolumeHandle
}
