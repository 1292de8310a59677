package group

import (
	"context"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/velero"
)

// upload creates the DataUpload of a snapshot, as Velero's own action does.
func (g *group) upload(ctx context.Context, claim *corev1.PersistentVolumeClaim, vs *snapshotv1.VolumeSnapshot) (*velerov2alpha1.DataUpload, error) {
	upload := velero.NewDataUpload(g.backup, claim, vs, g.members[claim.Name].decision.Volume.Spec.CSI.Driver)
	if vs.Status != nil && vs.Status.BoundVolumeSnapshotContentName != nil {
		upload.Annotations = map[string]string{api.AnnotationContent: *vs.Status.BoundVolumeSnapshotContentName}
	}
	if err := g.clients.Objects.Create(ctx, upload); err != nil {
		return nil, fmt.Errorf("create the DataUpload of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return upload, nil
}

// warnOfWorkers logs a warning if the server has several workers.
func (r *run) warnOfWorkers(ctx context.Context) {
	deployment, err := r.clients.Kube.AppsV1().Deployments(r.backup.Namespace).Get(ctx, "velero", metav1.GetOptions{})
	if err != nil {
		return // another name, or no permission
	}
	if server, err := velero.ReadServer(deployment); err == nil && server.Workers > 1 {
		r.log.Warnf("The server has %d workers. %s", server.Workers, velero.WorkersWarning)
	}
}
