package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/cluster/bed"
	"stillpoint.io/stillpoint/tests/cluster/loopcsi"
)

// snapshots names every snapshot of the application that there is: objects of
// its namespace, copies that Velero's exporter makes in its own, named after
// the DataUpload, and what the storage holds.
func (d *demo) snapshots(ctx context.Context) ([]string, error) {
	uploads := &velerov2alpha1.DataUploadList{}
	objects := &snapshotv1.VolumeSnapshotList{}
	contents := &snapshotv1.VolumeSnapshotContentList{}
	err := errors.Join(
		d.Objects().List(ctx, uploads, client.InNamespace(cluster.VeleroNamespace), client.MatchingLabels{velerov1.BackupNameLabel: d.backup}),
		d.Objects().List(ctx, objects),
		d.Objects().List(ctx, contents),
	)
	if err != nil {
		return nil, err
	}
	ours := func(in, name string) bool {
		if in == cluster.VeleroNamespace {
			for i := range uploads.Items {
				if uploads.Items[i].Name == name {
					return true
				}
			}
		}
		return in == namespace
	}
	var found []string
	for _, vs := range objects.Items {
		if ours(vs.Namespace, vs.Name) {
			found = append(found, "VolumeSnapshot "+vs.Namespace+"/"+vs.Name)
		}
	}
	for _, content := range contents.Items {
		if ref := content.Spec.VolumeSnapshotRef; ours(ref.Namespace, ref.Name) {
			found = append(found, "VolumeSnapshotContent "+content.Name)
		}
	}
	volume, err := d.volume(ctx)
	if err != nil {
		return nil, err
	}
	stored, err := storedSnapshots(volume)
	return append(found, stored...), err
}

// volume is the storage's name of the application's volume.
func (d *demo) volume(ctx context.Context) (string, error) {
	pvc, err := d.Client().CoreV1().PersistentVolumeClaims(namespace).Get(ctx, claim, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	pv := &corev1.PersistentVolume{}
	if err := d.Objects().Get(ctx, client.ObjectKey{Name: pvc.Spec.VolumeName}, pv); err != nil {
		return "", err
	}
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != loopcsi.Name {
		return "", fmt.Errorf("volume %s is not one of the test bed's storage", pv.Name)
	}
	return pv.Spec.CSI.VolumeHandle, nil
}

// storedSnapshots looks into the storage behind the CSI driver's back: that an
// object is gone does not mean that its snapshot is.
func storedSnapshots(volume string) ([]string, error) {
	b, err := bed.Open(func(string, ...any) {})
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.Dir, "data", "store", "snapshots")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list the storage's snapshots: %w", err)
	}
	var found []string
	for _, entry := range entries {
		about, err := os.ReadFile(filepath.Join(dir, entry.Name(), "about.json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has just gone, or is being made
		}
		var s loopcsi.Snapshot
		if err == nil {
			err = json.Unmarshal(about, &s)
		}
		if err != nil {
			return nil, fmt.Errorf("look at the storage's snapshot %s: %w", entry.Name(), err)
		}
		if s.Volume == volume {
			found = append(found, "snapshot "+s.ID+" of the storage")
		}
	}
	return found, nil
}
