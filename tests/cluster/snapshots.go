package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster/loopcsi"
)

// StoredSnapshot is a snapshot as the storage has it, whatever the API says.
type StoredSnapshot = loopcsi.Stored

// Snapshots asks the CSI driver for all snapshots of the storage, those
// included that are in its bucket only: that an object is gone does not mean
// that its snapshot is. They are in the order of their handles.
func (c *Cluster) Snapshots(ctx context.Context) ([]StoredSnapshot, error) {
	var stored []StoredSnapshot
	err := c.askDriver(func(driver grpc.ClientConnInterface) (err error) {
		stored, err = loopcsi.StoredBy(ctx, driver)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the storage's snapshots: %w", err)
	}
	return stored, nil
}

// StoredSnapshots are the handles of a claim's snapshots in the storage.
func (c *Cluster) StoredSnapshots(ctx context.Context, namespace, claim string) ([]string, error) {
	volume, err := c.volume(ctx, namespace, claim)
	if err != nil {
		return nil, err
	}
	all, err := c.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, s := range all {
		if s.Volume == volume {
			found = append(found, s.ID)
		}
	}
	return found, nil
}

// DropSnapshots has the storage lose snapshots, named by their handles.
func (c *Cluster) DropSnapshots(ctx context.Context, handles ...string) error {
	return c.askDriver(func(driver grpc.ClientConnInterface) error {
		for _, handle := range handles {
			if _, err := csi.NewControllerClient(driver).DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: handle}); err != nil {
				return fmt.Errorf("delete the storage's snapshot %s: %w", handle, err)
			}
		}
		return nil
	})
}

// AllowDelete ends what the class of these snapshots, named by their handles,
// ordered for their deletion, and has those that wait for it deleted at once.
// Those that are gone are no error.
func (c *Cluster) AllowDelete(ctx context.Context, handles ...string) error {
	err := c.askDriver(func(driver grpc.ClientConnInterface) error {
		var failed []error
		for _, handle := range handles {
			failed = append(failed, loopcsi.AllowDeleteBy(ctx, driver, handle))
		}
		return errors.Join(failed...)
	})
	if err != nil {
		return fmt.Errorf("allow the deletion of snapshots: %w", err)
	}
	contents, err := c.contentsOf(ctx, handles...)
	if err != nil {
		return fmt.Errorf("allow the deletion of snapshots: %w", err)
	}
	for i := range contents {
		if err := c.wake(ctx, &contents[i]); err != nil {
			return fmt.Errorf("allow the deletion of snapshots: %w", err)
		}
	}
	return nil
}

// wake has the csi-snapshotter look at a content now: it waits up to 5 minutes
// after a deletion that failed, and sees no change that it made itself.
func (c *Cluster) wake(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) error {
	patch := fmt.Sprintf(`{"metadata":{"annotations":{"tests.stillpoint.io/woken":%q}}}`, time.Now().Format(time.RFC3339Nano))
	err := c.objects.Patch(ctx, content, crclient.RawPatch(types.MergePatchType, []byte(patch)))
	return crclient.IgnoreNotFound(err)
}

// contentsOf finds the VolumeSnapshotContents that name one of these handles.
func (c *Cluster) contentsOf(ctx context.Context, handles ...string) ([]snapshotv1.VolumeSnapshotContent, error) {
	wanted := map[string]bool{}
	for _, handle := range handles {
		wanted[handle] = true
	}
	list := &snapshotv1.VolumeSnapshotContentList{}
	if err := c.objects.List(ctx, list); err != nil {
		return nil, err
	}
	var found []snapshotv1.VolumeSnapshotContent
	for i := range list.Items {
		if wanted[snapshotHandle(&list.Items[i])] {
			found = append(found, list.Items[i])
		}
	}
	return found, nil
}

// snapshotHandle is the handle that a content names, "" before it has one.
func snapshotHandle(content *snapshotv1.VolumeSnapshotContent) string {
	if content.Status != nil && content.Status.SnapshotHandle != nil {
		return *content.Status.SnapshotHandle
	}
	if content.Spec.Source.SnapshotHandle != nil {
		return *content.Spec.Source.SnapshotHandle
	}
	return ""
}

// describeContent says all by which one sees why a content is still there.
func describeContent(content *snapshotv1.VolumeSnapshotContent) string {
	about := []string{
		"policy " + string(content.Spec.DeletionPolicy),
		"of " + content.Spec.VolumeSnapshotRef.Namespace + "/" + content.Spec.VolumeSnapshotRef.Name,
		"handle " + snapshotHandle(content),
	}
	if s := content.Status; s != nil {
		about = append(about, fmt.Sprintf("cut %t", s.CreationTime != nil), fmt.Sprintf("ready %t", s.ReadyToUse != nil && *s.ReadyToUse))
		if s.Error != nil && s.Error.Message != nil {
			about = append(about, "error "+*s.Error.Message)
		}
	} else {
		about = append(about, "no status")
	}
	for key := range content.Annotations {
		if strings.HasPrefix(key, "snapshot.storage.kubernetes.io/volumesnapshot-being-") {
			about = append(about, "annotation "+key)
		}
	}
	return fmt.Sprintf("VolumeSnapshotContent %s%s: %s", content.Name, terminating(content), strings.Join(about, ", "))
}

// describeSnapshot describes a VolumeSnapshot and its content.
func (c *Cluster) describeSnapshot(ctx context.Context, s *snapshotv1.VolumeSnapshot) string {
	text := fmt.Sprintf("VolumeSnapshot %s/%s%s", s.Namespace, s.Name, terminating(s))
	if s.Status == nil || s.Status.BoundVolumeSnapshotContentName == nil {
		return text + ": not bound"
	}
	content := &snapshotv1.VolumeSnapshotContent{}
	err := c.objects.Get(ctx, crclient.ObjectKey{Name: *s.Status.BoundVolumeSnapshotContentName}, content)
	switch {
	case apierrors.IsNotFound(err):
		return text + ": its content " + *s.Status.BoundVolumeSnapshotContentName + " is gone"
	case err != nil:
		return text + ": " + err.Error()
	}
	return text + ": " + describeContent(content)
}

// terminating says since when an object is being deleted and what keeps it.
func terminating(object crclient.Object) string {
	if object.GetDeletionTimestamp() == nil {
		return ""
	}
	return fmt.Sprintf(" (deleted at %s, finalizers %s)", object.GetDeletionTimestamp().Format(time.TimeOnly), strings.Join(object.GetFinalizers(), " "))
}

func (c *Cluster) askDriver(ask func(grpc.ClientConnInterface) error) error {
	driver, err := grpc.NewClient("unix://"+c.bed.CSISocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	return errors.Join(ask(driver), driver.Close())
}
