package group

import (
	"context"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"

	"stillpoint.io/stillpoint/internal/unit"
)

// Preview tells with which others the volume of a claim would be snapshotted
// in a backup, and takes nothing. The group comes with an error when that
// concerns all of it.
func (g *Groups) Preview(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (*unit.Unit, error) {
	return g.run(backup).decide(ctx, claim)
}
