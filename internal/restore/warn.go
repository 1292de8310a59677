package restore

import (
	"context"
	"fmt"
	"sync"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/config"
	decided "stillpoint.io/stillpoint/internal/decision"
	"stillpoint.io/stillpoint/internal/velero"
)

// Warner prepares claims for a backup, and warns of claims that a restore will not bring
// back as they are. It belongs to the process of one backup.
type Warner struct {
	Settings func(context.Context) (*config.Config, error)
	Log      logrus.FieldLogger

	nameWarning sync.Once
}

// Claim processes a claim that is about to be backed up, after Velero's own action. It
// logs what a restore will not bring back as it is now.
func (w *Warner) Claim(ctx context.Context, d *decided.Decision, item *unstructured.Unstructured, backup *velerov1.Backup) error {
	claim := &corev1.PersistentVolumeClaim{}
	if err := convert(item, claim); err != nil {
		return err
	}
	moves := boolptr.IsSetToTrue(backup.Spec.SnapshotMoveData)
	if claim.Annotations[velerov1.VolumeSnapshotLabel] != "" {
		unannotate(item, api.AnnotationNoSnapshot) // of an earlier backup
		if label.GetValidName(backup.Name) != backup.Name && !moves {
			w.nameWarning.Do(func() {
				w.Log.Warnf("The name of the backup is too long for a label: %s has more than 63 characters, and Velero's volume information lacks its CSI snapshots. "+
					"`velero backup describe` does not list them, and a restore without Stillpoint brings volumes with reclaim policy Retain back without the data of the backup", backup.Name)
			})
		}
		return nil
	}
	if claim.Spec.VolumeName == "" || claim.Annotations[api.AnnotationNoSnapshot] != "" || velero.Finalizing(backup) {
		return nil
	}
	if d.Path != decided.None || d.Volume == nil || d.Volume.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
		return nil
	}
	settings, err := w.Settings(ctx)
	if err != nil {
		return err
	}
	w.Log.Infof("No snapshot in the backup: claim %s/%s: %s. Unless fs-backup or another VolumeSnapshotter has its data, a restore %s (restore.volumesWithoutData: %s)",
		claim.Namespace, claim.Name, d.Reason, map[config.VolumesWithoutData]string{
			config.WithoutDataVelero:    fmt.Sprintf("brings PersistentVolume %s with reclaim policy Retain back as it was, with the data that its storage has then, or none", d.Volume.Name),
			config.WithoutDataProvision: "brings it back with a new, empty volume",
			config.WithoutDataRefuse:    "refuses it",
		}[settings.Restore.WithoutData()], settings.Restore.WithoutData())
	return nil
}
