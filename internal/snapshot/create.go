package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"strconv"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/label"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"

	"stillpoint.io/stillpoint/internal/api"
)

// OwnedBy selects the VolumeSnapshots that Stillpoint creates for a backup. Velero's own
// have only the backup's name, which another Velero may use, too.
func OwnedBy(backup *velerov1.Backup) labels.Selector {
	return labels.SelectorFromSet(labels.Set{velerov1.BackupUIDLabel: string(backup.UID)})
}

// New returns the VolumeSnapshot of a claim as Velero's own action creates it
// (createVolumeSnapshot in pkg/backup/actions/csi of Velero 1.18), with its origin and
// the reason for the class. It omits the claim's labels that excluded matches or that
// belong to Stillpoint or Velero. installation is the UID of Velero's namespace. The
// exclude label keeps the VolumeSnapshot out of other backups. Velero includes it in
// this one because an action names it.
func New(installation string, backup *velerov1.Backup, claim *corev1.PersistentVolumeClaim, class, reason string, excluded func(label string) bool) *snapshotv1.VolumeSnapshot {
	vs := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:   claim.Namespace,
			Name:        name(firstPrefix, string(backup.UID), claim.Name, string(claim.UID)),
			Labels:      map[string]string{},
			Finalizers:  []string{sourceProtection, boundProtection},
			Annotations: map[string]string{api.AnnotationClassReason: reason},
		},
		Spec: snapshotv1.VolumeSnapshotSpec{
			Source:                  snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim.Name},
			VolumeSnapshotClassName: &class,
		},
	}
	maps.Copy(vs.Labels, claim.Labels)
	maps.DeleteFunc(vs.Labels, func(key, _ string) bool {
		domain, _, _ := strings.Cut(key, "/")
		return excluded(key) || of(domain, "stillpoint.io") || of(domain, "velero.io")
	})
	vs.Labels[excludeLabel] = "true"
	vs.Labels[velerov1.BackupNameLabel] = label.GetValidName(backup.Name)
	vs.Labels[velerov1.PVCUIDLabel], vs.Annotations[api.AnnotationClaimUID] = string(claim.UID), string(claim.UID)
	Origin{Installation: installation, Backup: backup.Name, BackupUID: string(backup.UID)}.Mark(vs)
	return vs
}

// of reports whether a domain is equal to another one or below it.
func of(domain, above string) bool { return domain == above || strings.HasSuffix(domain, "."+above) }

// excludeLabel excludes an object from backups.
const excludeLabel = velerov1.ExcludeFromBackupLabel

// Kept returns a second VolumeSnapshot of a claim, which stays beside the export of the
// first. Velero does not process it with the backup. last is the maximum number of such
// snapshots of the claim, 0 for no limit.
func Kept(first *snapshotv1.VolumeSnapshot, backup *velerov1.Backup, claim *corev1.PersistentVolumeClaim, last int) *snapshotv1.VolumeSnapshot {
	vs := first.DeepCopy()
	vs.Name = name(keptPrefix, string(backup.UID), claim.Name, string(claim.UID))
	delete(vs.Labels, velerov1.BackupNameLabel)
	vs.Labels[api.LabelKept] = string(claim.UID)
	if last > 0 {
		vs.Annotations[api.AnnotationKeepLast] = strconv.Itoa(last)
	}
	return vs
}

// Prefixes of the names of snapshots.
const firstPrefix, keptPrefix = "velero-", "kept-"

// name returns the same name on each call, so that a later process finds the snapshot of
// an earlier one and takes no second one. The name begins as Velero's do, and fits into
// the label that Velero sets on the claim.
func name(prefix, backupUID, claim, claimUID string) string {
	sum := sha256.Sum256([]byte(backupUID + "/" + claimUID))
	suffix := "-" + hex.EncodeToString(sum[:5])
	prefix += claim
	prefix = strings.TrimRight(prefix[:min(len(prefix), validation.LabelValueMaxLength-len(suffix))], ".-")
	return prefix + suffix
}

// Create creates a VolumeSnapshot, or finds the one that an earlier process of the same
// backup created for the claim. It updates vs from the cluster.
func Create(ctx context.Context, client versioned.Interface, vs *snapshotv1.VolumeSnapshot) error {
	snapshots := client.SnapshotV1().VolumeSnapshots(vs.Namespace)
	created, err := snapshots.Create(ctx, vs, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		if err != nil {
			return fmt.Errorf("create VolumeSnapshot %s/%s: %w", vs.Namespace, vs.Name, err)
		}
		*vs = *created
		return nil
	}
	found, err := snapshots.Get(ctx, vs.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get VolumeSnapshot %s/%s: %w", vs.Namespace, vs.Name, err)
	}
	source := found.Spec.Source.PersistentVolumeClaimName
	if source == nil || *source != *vs.Spec.Source.PersistentVolumeClaimName || found.Labels[velerov1.BackupUIDLabel] != vs.Labels[velerov1.BackupUIDLabel] {
		return fmt.Errorf("VolumeSnapshot %s/%s is there already and does not belong to this backup; delete it", vs.Namespace, vs.Name)
	}
	*vs = *found
	return nil
}
