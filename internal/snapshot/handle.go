package snapshot

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// notFound is the error that the CSI sidecar sets on a content whose handle the driver's
// ListSnapshots does not return (GetSnapshotStatus in pkg/snapshotter of
// external-snapshotter).
const notFound = "can not find snapshot for snapshotID"

// OfHandle returns a content for an existing snapshot of the storage. Its name begins
// with why, is the same on each call for a snapshot, and is also the name of its
// VolumeSnapshot.
func OfHandle(why, namespace, driver, handle string, policy snapshotv1.DeletionPolicy) *snapshotv1.VolumeSnapshotContent {
	sum := sha256.Sum256([]byte(driver + "\x00" + handle))
	name := "stillpoint-" + why + "-" + hex.EncodeToString(sum[:8])
	return &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: driver, DeletionPolicy: policy,
			Source:            snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: &handle},
			VolumeSnapshotRef: corev1.ObjectReference{APIVersion: snapshotv1.SchemeGroupVersion.String(), Kind: "VolumeSnapshot", Namespace: namespace, Name: name},
		},
	}
}

// DeleteByHandle deletes the snapshot of a content made by OfHandle. It returns when the
// driver has confirmed the deletion, or with the obstacle when ctx ends.
func DeleteByHandle(ctx context.Context, client versioned.Interface, content *snapshotv1.VolumeSnapshotContent) error {
	contents := client.SnapshotV1().VolumeSnapshotContents()
	content = content.DeepCopy()
	content.Finalizers = []string{contentProtection}
	target := Target{Namespace: content.Spec.VolumeSnapshotRef.Namespace, Name: content.Name, Content: content.Name}
	var known bool
	err := UntilGone(ctx, func(ctx context.Context) (string, error) {
		found, err := contents.Get(ctx, content.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) && known:
			return "", nil
		case apierrors.IsNotFound(err):
			// Also if a content that the driver was never asked about has just been
			// deleted.
			if found, err = contents.Create(ctx, content, metav1.CreateOptions{}); err != nil {
				return "", fmt.Errorf("create VolumeSnapshotContent %s: %w", content.Name, err)
			}
			return unanswered(found), nil
		case err != nil:
			return "", fmt.Errorf("get VolumeSnapshotContent %s: %w", content.Name, err)
		}
		known = known || answered(found)
		left, err := Remove(ctx, client, target)
		return cmp.Or(left, "VolumeSnapshotContent "+content.Name+" being deleted"), err
	})
	if err != nil {
		return fmt.Errorf("delete snapshot %s of driver %s: %w", ptr.Deref(content.Spec.Source.SnapshotHandle, ""), content.Spec.Driver, err)
	}
	return nil
}

// answered reports whether a content may be deleted with its snapshot. A content of a
// handle may be only after the driver has answered for the handle. Before that the
// sidecar releases the content without a call to the driver.
func answered(content *snapshotv1.VolumeSnapshotContent) bool {
	status := content.Status
	switch {
	case content.Spec.Source.SnapshotHandle == nil:
		return true
	case status == nil:
		return false
	case status.SnapshotHandle != nil:
		return true
	default:
		return status.Error != nil && strings.Contains(message(status.Error), notFound)
	}
}

// unanswered describes a content whose driver has not answered.
func unanswered(content *snapshotv1.VolumeSnapshotContent) string {
	why := "is its CSI sidecar csi-snapshotter running?"
	if content.Status != nil && content.Status.Error != nil {
		why = "its last error: " + message(content.Status.Error)
	}
	return fmt.Sprintf("VolumeSnapshotContent %s: driver %s has not answered for snapshot %s; %s",
		content.Name, content.Spec.Driver, ptr.Deref(content.Spec.Source.SnapshotHandle, ""), why)
}
