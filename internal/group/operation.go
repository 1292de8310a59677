package group

import (
	"context"
	"errors"
	"fmt"
	"strings"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/snapshot"
)

// groupOperation begins the ids of operations that look after a group.
const groupOperation = "group-"

// operationFor gives the first claim of this process, and of each group with
// several volumes, an operation. Velero asks for its progress when all items
// are done: that is when it is known which snapshots nobody claimed.
func (g *group) operationFor(claim *corev1.PersistentVolumeClaim) (id string) {
	give := func() { id = label.GetValidName(groupOperation + string(g.backup.UID) + "." + string(claim.UID)) }
	g.operation.Do(give)
	if len(g.members) > 1 {
		g.ownOperation.Do(give)
	}
	return id
}

// Progress tells how an operation stands. Trouble that may pass is told in the
// description: Velero never asks again after an error.
func (g *Groups) Progress(ctx context.Context, operation string, backup *velerov1.Backup) (velero.OperationProgress, error) {
	r := g.run(backup)
	if err := r.settle(ctx); err != nil {
		return velero.OperationProgress{Description: "Delete the snapshots that no claim took: " + err.Error()}, nil //nolint:nilerr // it may pass
	}
	switch {
	case strings.HasPrefix(operation, groupOperation):
		return velero.OperationProgress{Completed: true, Description: "All snapshots are claimed"}, nil
	case strings.HasPrefix(operation, string(velerov1.AsyncOperationIDPrefixDataUpload)):
		upload, err := r.find(ctx, operation)
		switch {
		case err != nil:
			return velero.OperationProgress{Description: err.Error()}, nil //nolint:nilerr // it may pass
		case upload == nil:
			return velero.OperationProgress{Completed: true, Err: "the DataUpload is gone"}, nil
		}
		return progress(upload), nil
	}
	return velero.OperationProgress{}, fmt.Errorf("operation ID %s is invalid", operation)
}

// Cancel ends an operation, as far as there is anything to end. It can be
// repeated.
func (g *Groups) Cancel(ctx context.Context, operation string, backup *velerov1.Backup) error {
	r := g.run(backup)
	if strings.HasPrefix(operation, groupOperation) {
		return r.settle(ctx)
	}
	upload, err := r.find(ctx, operation)
	if err != nil || upload == nil || upload.Spec.Cancel {
		return err
	}
	before := upload.DeepCopy()
	upload.Spec.Cancel = true
	if err := r.clients.Objects.Patch(ctx, upload, crclient.MergeFrom(before)); err != nil {
		return fmt.Errorf("cancel DataUpload %s: %w", upload.Name, err)
	}
	return nil
}

// settle deletes the snapshots of a backup that no claim took: Velero left the
// claim out, or a process died before it could hand the snapshot over. What
// Velero took carries its annotation, or has a DataUpload; so this process need
// not be the one that took the snapshots.
func (r *run) settle(ctx context.Context) error {
	r.settling.Lock()
	defer r.settling.Unlock()
	if r.settled {
		return nil
	}
	list, err := r.clients.Snapshots.SnapshotV1().VolumeSnapshots(metav1.NamespaceAll).
		List(ctx, metav1.ListOptions{LabelSelector: snapshot.OwnedBy(r.backup).String()})
	if err != nil {
		return fmt.Errorf("list the VolumeSnapshots of backup %s: %w", r.backup.Name, err)
	}
	uploaded := map[string]bool{}
	if boolptr.IsSetToTrue(r.backup.Spec.SnapshotMoveData) {
		uploads := &velerov2alpha1.DataUploadList{}
		if err := r.clients.Objects.List(ctx, uploads, crclient.InNamespace(r.backup.Namespace), crclient.MatchingLabels{velerov1.BackupUIDLabel: string(r.backup.UID)}); err != nil {
			return fmt.Errorf("list the DataUploads of backup %s: %w", r.backup.Name, err)
		}
		for _, upload := range uploads.Items {
			if upload.Spec.CSISnapshot != nil {
				uploaded[upload.Spec.SourceNamespace+"/"+upload.Spec.CSISnapshot.VolumeSnapshot] = true
			}
		}
	}
	var errs []error
	for i := range list.Items {
		vs := &list.Items[i]
		if vs.Annotations[velerov1.VolumeSnapshotHandleAnnotation] != "" || uploaded[vs.Namespace+"/"+vs.Name] {
			continue
		}
		if err := snapshot.Remove(ctx, r.clients.Snapshots, vs); err != nil {
			errs = append(errs, err)
			continue
		}
		r.log.Infof("Deleted VolumeSnapshot %s/%s of claim %s: Velero left the claim out, or the plugin process ended before it was handed over",
			vs.Namespace, vs.Name, *vs.Spec.Source.PersistentVolumeClaimName)
	}
	errs = append(errs, r.forget(ctx))
	err = errors.Join(errs...)
	r.settled = err == nil
	return err
}
