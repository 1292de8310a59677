package snapshot

import (
	"context"
	"errors"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Delete removes the VolumeSnapshots of a claim that selector matches, with
// what they stand for in the storage whatever the deletion policy of their
// class says. It does not wait until they are gone.
func Delete(ctx context.Context, client versioned.Interface, namespace, claim string, selector labels.Selector) error {
	list, err := client.SnapshotV1().VolumeSnapshots(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return fmt.Errorf("list the VolumeSnapshots of namespace %s: %w", namespace, err)
	}
	var errs []error
	for i := range list.Items {
		vs := &list.Items[i]
		if source := vs.Spec.Source.PersistentVolumeClaimName; source == nil || *source != claim {
			continue
		}
		policy := fmt.Sprintf(`{"spec":{"deletionPolicy":%q}}`, snapshotv1.VolumeSnapshotContentDelete)
		_, err := client.SnapshotV1().VolumeSnapshotContents().Patch(ctx, contentName(vs), types.MergePatchType, []byte(policy), metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("set the deletion policy of VolumeSnapshotContent %s: %w", contentName(vs), err))
			continue
		}
		if err := client.SnapshotV1().VolumeSnapshots(namespace).Delete(ctx, vs.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete VolumeSnapshot %s/%s: %w", namespace, vs.Name, err))
		}
	}
	return errors.Join(errs...)
}
