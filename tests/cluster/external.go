package cluster

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// PromoterClass is the StorageClass by which volumes are made of snapshots of
	// the API before CSI's.
	PromoterClass = "snapshot-promoter"
	// externalGroup is the group of that API.
	externalGroup = "volumesnapshot.external-storage.k8s.io"
	// promotedLabel is on what a restore makes on its way to a volume.
	promotedLabel = "stillpoint.io/promoted"
)

// ExternalObjects are the VolumeSnapshots and VolumeSnapshotDatas of the API
// before CSI's, of all namespaces.
func (c *Cluster) ExternalObjects(ctx context.Context) (snapshots, datas []unstructured.Unstructured, err error) {
	list := func(kind string) ([]unstructured.Unstructured, error) {
		all := &unstructured.UnstructuredList{}
		all.SetGroupVersionKind(schema.GroupVersionKind{Group: externalGroup, Version: "v1", Kind: kind + "List"})
		if err := c.objects.List(ctx, all); err != nil {
			return nil, fmt.Errorf("list the %ss of %s: %w", kind, externalGroup, err)
		}
		return all.Items, nil
	}
	if snapshots, err = list("VolumeSnapshot"); err != nil {
		return nil, nil, err
	}
	datas, err = list("VolumeSnapshotData")
	return snapshots, datas, err
}

// ExternalData are the snapshots of hostPath volumes that the machine has,
// whatever the API says, and the volumes that were made of them: paths.
func (c *Cluster) ExternalData() (snapshots, volumes []string, err error) {
	return c.bed.ExternalData()
}

// leftExternal waits until there is nothing that nobody answers for, and returns
// what there still is after leakLimit.
func (c *Cluster) leftExternal(ctx context.Context) ([]string, error) {
	found.mu.Lock()
	defer found.mu.Unlock()
	for deadline := time.Now().Add(leakLimit); ; time.Sleep(250 * time.Millisecond) {
		all, err := c.externalLeft(ctx)
		left := slices.DeleteFunc(all, func(one string) bool { return found.external[one] })
		if err == nil && len(left) == 0 {
			return nil, nil
		}
		if time.Now().After(deadline) {
			for _, one := range left {
				found.external[one] = true
			}
			return left, err
		}
	}
}

// externalLeft describes what no backup has: objects, data, volumes that nothing
// names, and what a restore has made on its way.
func (c *Cluster) externalLeft(ctx context.Context) ([]string, error) {
	snapshots, datas, err := c.ExternalObjects(ctx)
	if err != nil {
		return nil, err
	}
	files, volumes, err := c.ExternalData()
	if err != nil {
		return nil, err
	}
	pvs := &corev1.PersistentVolumeList{}
	if err := c.objects.List(ctx, pvs); err != nil {
		return nil, err
	}
	claims := &corev1.PersistentVolumeClaimList{}
	if err := c.objects.List(ctx, claims, crclient.HasLabels{promotedLabel}); err != nil {
		return nil, err
	}
	// After what it may have: a backup is written down at its end.
	kept, err := c.externalKept(ctx)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, o := range slices.Concat(snapshots, datas) {
		if !strings.Contains(kept, `"`+o.GetName()+`\"`) {
			left = append(left, strings.Join([]string{o.GetKind(), o.GetNamespace(), o.GetName()}, " "))
		}
	}
	for _, file := range files {
		if !strings.Contains(kept, file) {
			left = append(left, "the snapshot's data "+file)
		}
	}
	for _, path := range volumes {
		if !slices.ContainsFunc(pvs.Items, func(pv corev1.PersistentVolume) bool { return pv.Spec.HostPath != nil && pv.Spec.HostPath.Path == path }) {
			left = append(left, "the volume "+path+" without a PersistentVolume")
		}
	}
	for i := range pvs.Items {
		pv := &pvs.Items[i]
		abandoned, err := c.abandoned(ctx, pv)
		if err != nil {
			return nil, err
		}
		if abandoned {
			left = append(left, "PersistentVolume "+pv.Name)
		}
	}
	for i := range claims.Items {
		left = append(left, "the temporary claim "+claims.Items[i].Namespace+"/"+claims.Items[i].Name)
	}
	return left, nil
}

// abandoned tells that nobody will ever use a volume that was made of a snapshot:
// it is on its way to one that never came, or its claim is gone and it stays.
func (c *Cluster) abandoned(ctx context.Context, pv *corev1.PersistentVolume) (bool, error) {
	if pv.Labels[promotedLabel] != "" {
		return true, nil
	}
	if !strings.HasPrefix(pv.Annotations["pv.kubernetes.io/provisioned-by"], externalGroup) || pv.Status.Phase != corev1.VolumeReleased ||
		pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
		return false, nil
	}
	_, err := c.typed.CoreV1().Namespaces().Get(ctx, pv.Spec.ClaimRef.Namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return false, err
}

// externalKept is what the backups in the object store say about snapshots that
// VolumeSnapshotters have taken.
func (c *Cluster) externalKept(_ context.Context) (string, error) {
	files, err := filepath.Glob(filepath.Join(c.bed.BackupDir("*"), "*-volumesnapshots.json.gz"))
	if err != nil {
		return "", err
	}
	var kept strings.Builder
	for _, file := range files {
		content, err := unzip(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // it may just be made, or deleted
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read what backups have: %w", err)
		}
		kept.WriteString(content)
	}
	return kept.String(), nil
}

func unzip(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	plain, err := gzip.NewReader(f)
	if err != nil {
		return "", err
	}
	content, err := io.ReadAll(plain)
	return string(content), err
}
