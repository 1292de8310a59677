package restore

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// orphan is a restored object with the owners that it had in the backup. Velero strips
// the references, whose UIDs are those of the backup. Encoded as JSON, the orphan is
// the ID of the operation that sets them again.
type orphan struct {
	APIVersion string                  `json:"apiVersion"`
	Kind       string                  `json:"kind"`
	Namespace  string                  `json:"namespace,omitempty"`
	Name       string                  `json:"name"`
	Owners     []metav1.OwnerReference `json:"owners"`
}

// Orphan returns the ID of the operation that sets the owner references of an item, or
// "" if it has none, or none that its owner does not set itself.
func Orphan(item Item) (operation string, err error) {
	from := item.BackedUp
	o := orphan{APIVersion: from.GetAPIVersion(), Kind: from.GetKind(), Namespace: targetNamespace(item.Restore, from.GetNamespace()), Name: from.GetName()}
	for _, owner := range from.GetOwnerReferences() {
		if !adopts(owner, from) {
			o.Owners = append(o.Owners, owner)
		}
	}
	if len(o.Owners) == 0 {
		return "", nil
	}
	id, err := json.Marshal(o)
	return string(id), err
}

// adopts reports whether the owner's controller finds the object by a selector, or
// the object is not restored under its name.
func adopts(owner metav1.OwnerReference, object *unstructured.Unstructured) bool {
	group, of := schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind).Group, object.GroupVersionKind()
	switch of.Kind {
	case "Pod", "ReplicaSet", "ControllerRevision", "Endpoints", "EndpointSlice":
		return slices.Contains([]string{"apps", "batch"}, group) || owner.Kind == "ReplicationController" || owner.Kind == "Service" || owner.Kind == "Node"
	}
	return of.Group == velerov1.SchemeGroupVersion.Group || strings.HasSuffix(of.Group, "snapshot.storage.k8s.io")
}

// Adopt sets the owner references of an object. Velero calls it after it has restored
// all objects.
func (r *Restorer) Adopt(ctx context.Context, operation string, restore *velerov1.Restore) (velero.OperationProgress, error) {
	o := orphan{}
	if err := json.Unmarshal([]byte(operation), &o); err != nil || len(o.Owners) == 0 {
		return velero.OperationProgress{}, fmt.Errorf("operation ID %q is invalid: it names no object with owners", operation)
	}
	done, text, err := r.adopt(ctx, o, restore)
	progress := velero.OperationProgress{Completed: done, Description: text, Updated: r.clock.Now()}
	switch {
	case apierrors.IsForbidden(err) || apierrors.IsInvalid(err):
		progress.Completed, progress.Err = true, err.Error()
	case err != nil: // transient
		progress.Description = err.Error()
	}
	return progress, nil
}

func (r *Restorer) adopt(ctx context.Context, o orphan, restore *velerov1.Restore) (done bool, text string, err error) {
	name := o.Kind + " " + strings.TrimPrefix(o.Namespace+"/"+o.Name, "/")
	child, err := r.object(ctx, o.APIVersion, o.Kind, o.Namespace, o.Name)
	if err != nil {
		return false, "", err
	}
	if child == nil || !restoredBy(child, restore) {
		return true, name + " was not made by this restore", nil
	}
	before := child.DeepCopy()
	var texts []string
	for _, reference := range o.Owners {
		// A pod uses the claim of a generic ephemeral volume only if it owns the claim.
		ephemeral := o.Kind == "PersistentVolumeClaim" && reference.Kind == "Pod"
		owner, err := r.object(ctx, reference.APIVersion, reference.Kind, o.Namespace, reference.Name)
		switch {
		case err != nil:
			return false, "", err
		case owner == nil && ephemeral && r.clock.Since(child.CreationTimestamp.Time) < podGrace:
			return false, fmt.Sprintf("%s waits for its pod %s", name, reference.Name), nil
		case owner == nil || owner.DeletionTimestamp != nil || (!ephemeral && !restoredBy(owner, restore)):
			texts = append(texts, fmt.Sprintf("%s has lost its owner %s %s, which this restore did not bring back", name, reference.Kind, reference.Name))
			continue
		}
		texts = append(texts, fmt.Sprintf("%s is owned by %s %s again", name, reference.Kind, reference.Name))
		reference.UID = owner.UID
		if controlled := metav1.GetControllerOfNoCopy(child); controlled == nil || !ptr.Deref(reference.Controller, false) {
			child.OwnerReferences = append(slices.DeleteFunc(child.OwnerReferences, func(other metav1.OwnerReference) bool { return other.UID == owner.UID }), reference)
		}
	}
	if len(child.OwnerReferences) > len(before.OwnerReferences) {
		err = r.clients.Objects.Patch(ctx, child, crclient.MergeFromWithOptions(before, crclient.MergeFromWithOptimisticLock{}))
	}
	if err != nil {
		return false, "", fmt.Errorf("set the owner references of %s: %w", name, err)
	}
	text = strings.Join(texts, "; ")
	r.log.Info(text)
	return true, text, nil
}

func restoredBy(object metav1.Object, restore *velerov1.Restore) bool {
	return object.GetLabels()[velerov1.RestoreNameLabel] == label.GetValidName(restore.Name)
}

// object returns the metadata of an object, nil if it does not exist.
func (r *Restorer) object(ctx context.Context, version, kind, namespace, name string) (*metav1.PartialObjectMetadata, error) {
	object := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: version, Kind: kind}}
	err := r.clients.Objects.Get(ctx, crclient.ObjectKey{Namespace: namespace, Name: name}, object)
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return nil, nil //nolint:nilnil // see above
	}
	if err != nil {
		return nil, fmt.Errorf("get %s %s/%s: %w", kind, namespace, name, err)
	}
	return object, nil
}
