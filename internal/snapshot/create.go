package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
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
)

// ClassReasonAnnotation stands on the VolumeSnapshots that Stillpoint creates
// and says why they have their class.
const ClassReasonAnnotation = "stillpoint.io/volume-snapshot-class-reason"

// sourceProtection is the first thing that the snapshot controller writes on a
// new VolumeSnapshot, and takes away when it is deleted. One that has it already
// is cut that much earlier.
const sourceProtection = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection"

// OwnedBy selects the VolumeSnapshots that Stillpoint creates for a backup.
// Velero's own have the backup's name only, which another Velero may use too.
func OwnedBy(backup *velerov1.Backup) labels.Selector {
	return labels.SelectorFromSet(labels.Set{velerov1.BackupUIDLabel: string(backup.UID)})
}

// New is the VolumeSnapshot of a claim as Velero's own action would make it
// (createVolumeSnapshot in pkg/backup/actions/csi of Velero 1.18), with its
// origin and the reason for the class besides. installation is the UID of
// Velero's namespace.
func New(installation string, backup *velerov1.Backup, claim *corev1.PersistentVolumeClaim, class, reason string) *snapshotv1.VolumeSnapshot {
	vs := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:   claim.Namespace,
			Name:        name("velero-", backup, claim),
			Labels:      map[string]string{},
			Finalizers:  []string{sourceProtection},
			Annotations: map[string]string{ClassReasonAnnotation: reason},
		},
		Spec: snapshotv1.VolumeSnapshotSpec{
			Source:                  snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim.Name},
			VolumeSnapshotClassName: &class,
		},
	}
	maps.Copy(vs.Labels, claim.Labels)
	vs.Labels[velerov1.BackupNameLabel] = label.GetValidName(backup.Name)
	vs.Labels[velerov1.PVCUIDLabel], vs.Annotations[claimAnnotation] = string(claim.UID), string(claim.UID)
	Origin{Installation: installation, Backup: backup.Name, BackupUID: string(backup.UID)}.Mark(vs)
	return vs
}

// excludeLabel has Velero pass an object over.
const excludeLabel = velerov1.ExcludeFromBackupLabel

// keepLastAnnotation has the number of snapshots of a claim that are kept beside
// exports; without it all of them are.
const keepLastAnnotation = "stillpoint.io/keep-last"

// Kept is a second VolumeSnapshot of a claim, which stays beside the export of
// the first. Velero does not know it as one of the backup's, and later backups
// pass it over. last is how many such snapshots of the claim there may be at the
// most, 0 any number.
func Kept(first *snapshotv1.VolumeSnapshot, backup *velerov1.Backup, claim *corev1.PersistentVolumeClaim, last int) *snapshotv1.VolumeSnapshot {
	vs := first.DeepCopy()
	vs.Name = name("kept-", backup, claim)
	delete(vs.Labels, velerov1.BackupNameLabel)
	vs.Labels[KeptLabel], vs.Labels[excludeLabel] = string(claim.UID), "true"
	if last > 0 {
		vs.Annotations[keepLastAnnotation] = strconv.Itoa(last)
	}
	return vs
}

// Surplus are those of a claim's kept snapshots that newer ones take the place
// of. How many may be there says the newest; those that are kept without a
// number are not counted, and stay.
func Surplus(kept []snapshotv1.VolumeSnapshot) []snapshotv1.VolumeSnapshot {
	numbered := slices.DeleteFunc(slices.Clone(kept), func(vs snapshotv1.VolumeSnapshot) bool {
		return vs.Annotations[keepLastAnnotation] == "" || vs.Status == nil || vs.Status.CreationTime == nil
	})
	slices.SortFunc(numbered, func(a, b snapshotv1.VolumeSnapshot) int {
		return b.Status.CreationTime.Compare(a.Status.CreationTime.Time)
	})
	if len(numbered) == 0 {
		return nil
	}
	last, err := strconv.Atoi(numbered[0].Annotations[keepLastAnnotation])
	if err != nil || last < 1 || last >= len(numbered) {
		return nil
	}
	return numbered[last:]
}

// name is the same whenever it is asked for, so that a snapshot which an
// earlier process has created is found, and none is taken twice. It begins as
// Velero's do, and fits into the label that Velero writes on the claim.
func name(prefix string, backup *velerov1.Backup, claim *corev1.PersistentVolumeClaim) string {
	sum := sha256.Sum256([]byte(string(backup.UID) + "/" + string(claim.UID)))
	suffix := "-" + hex.EncodeToString(sum[:5])
	prefix += claim.Name
	prefix = strings.TrimRight(prefix[:min(len(prefix), validation.LabelValueMaxLength-len(suffix))], ".-")
	return prefix + suffix
}

// Create creates a VolumeSnapshot, or finds the one of that name which an
// earlier process of the same backup has created for the same claim.
func Create(ctx context.Context, client versioned.Interface, vs *snapshotv1.VolumeSnapshot) error {
	snapshots := client.SnapshotV1().VolumeSnapshots(vs.Namespace)
	_, err := snapshots.Create(ctx, vs, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		if err != nil {
			return fmt.Errorf("create VolumeSnapshot %s/%s: %w", vs.Namespace, vs.Name, err)
		}
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
	return nil
}
