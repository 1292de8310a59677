package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Delete removes the VolumeSnapshots of claims that selector matches, with
// what they stand for in the storage whatever the deletion policy of their
// class says. It does not wait until they are gone.
func Delete(ctx context.Context, client versioned.Interface, namespace string, selector labels.Selector, claims ...string) error {
	list, err := client.SnapshotV1().VolumeSnapshots(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return fmt.Errorf("list the VolumeSnapshots of namespace %s: %w", namespace, err)
	}
	var errs []error
	for i := range list.Items {
		vs := &list.Items[i]
		if source := vs.Spec.Source.PersistentVolumeClaimName; source != nil && slices.Contains(claims, *source) {
			errs = append(errs, Remove(ctx, client, vs))
		}
	}
	return errors.Join(errs...)
}

// Remove is Delete for one VolumeSnapshot. One that is gone is no error.
func Remove(ctx context.Context, client versioned.Interface, vs *snapshotv1.VolumeSnapshot) error {
	content, err := client.SnapshotV1().VolumeSnapshotContents().Get(ctx, contentName(vs), metav1.GetOptions{})
	// A VolumeSnapshot may name any content, and be a tenant's; what counts is
	// which one the content names.
	if err == nil && content.Spec.VolumeSnapshotRef.Namespace == vs.Namespace && content.Spec.VolumeSnapshotRef.Name == vs.Name {
		policy := fmt.Sprintf(`{"spec":{"deletionPolicy":%q}}`, snapshotv1.VolumeSnapshotContentDelete)
		_, err = client.SnapshotV1().VolumeSnapshotContents().Patch(ctx, content.Name, types.MergePatchType, []byte(policy), metav1.PatchOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("set the deletion policy of VolumeSnapshotContent %s: %w", contentName(vs), err)
	}
	if err := client.SnapshotV1().VolumeSnapshots(vs.Namespace).Delete(ctx, vs.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete VolumeSnapshot %s/%s: %w", vs.Namespace, vs.Name, err)
	}
	return nil
}
