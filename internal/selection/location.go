package selection

import (
	"context"
	"fmt"
	"slices"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	vhutil "github.com/vmware-tanzu/velero/pkg/util/volumehelper"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/location/csi/spec"
	"stillpoint.io/stillpoint/internal/location/externalstorage"
	"stillpoint.io/stillpoint/internal/velero"
)

// providers are Stillpoint's VolumeSnapshotters, each with the function that selects its
// volumes by the config of a location.
var providers = map[string]func(config map[string]string, volume *corev1.PersistentVolume) (bool, error){
	spec.Provider:            spec.Takes,
	externalstorage.Provider: externalstorage.Takes,
}

// locationOf returns the VolumeSnapshotLocation of the backup through which Stillpoint
// takes the snapshot of a volume, or nil (takePVSnapshot in item_backupper.go of Velero
// 1.18). Locations of other providers are skipped, because it is not known which volumes
// they take.
func (s *Selection) locationOf(ctx context.Context, volume *corev1.PersistentVolume, action action) (*velerov1.VolumeSnapshotLocation, error) {
	switch {
	case s.csi && volume.Spec.CSI != nil: // Velero uses its CSI action
		return nil, nil //nolint:nilnil // nil is a valid result
	case action.kind != "" && action.kind != "snapshot":
		return nil, nil //nolint:nilnil // as above
	}
	if called, err := s.called(ctx, volume); err != nil || !called {
		return nil, err
	}
	locations, err := s.locations(ctx)
	if err != nil {
		return nil, err
	}
	for _, of := range locations {
		takes, ours := providers[of.Spec.Provider]
		if !ours {
			continue
		}
		if taken, err := takes(of.Spec.Config, volume); err != nil || !taken {
			continue // Velero reports the error when it requests the snapshot
		}
		wanted, err := s.wants(volume)
		if err != nil || !wanted {
			return nil, err
		}
		return &of, nil
	}
	return nil, nil //nolint:nilnil // as above
}

// called reports whether a PersistentVolume is in the backup. Otherwise, Velero calls no
// action and no VolumeSnapshotter for it.
func (s *Selection) called(ctx context.Context, volume *corev1.PersistentVolume) (bool, error) {
	f, err := s.included(ctx)
	return err == nil && f.Excludes(velero.Volumes, volume) == "", err
}

// locations returns the VolumeSnapshotLocations of the backup, in its order. Before Velero
// has set them in the spec, these are the only one of each provider.
func (s *Selection) locations(ctx context.Context) ([]velerov1.VolumeSnapshotLocation, error) {
	all := &velerov1.VolumeSnapshotLocationList{}
	if err := s.client.List(ctx, all, crclient.InNamespace(s.backup.Namespace)); err != nil {
		return nil, fmt.Errorf("list the VolumeSnapshotLocations: %w", err)
	}
	var chosen []velerov1.VolumeSnapshotLocation
	for _, name := range s.backup.Spec.VolumeSnapshotLocations {
		if i := slices.IndexFunc(all.Items, func(l velerov1.VolumeSnapshotLocation) bool { return l.Name == name }); i >= 0 {
			chosen = append(chosen, all.Items[i])
		}
	}
	if len(s.backup.Spec.VolumeSnapshotLocations) > 0 || s.backup.Status.Phase != "" {
		return chosen, nil
	}
	for _, l := range all.Items {
		same := func(other velerov1.VolumeSnapshotLocation) bool {
			return other.Spec.Provider == l.Spec.Provider && other.Name != l.Name
		}
		if !slices.ContainsFunc(all.Items, same) {
			chosen = append(chosen, l)
		}
	}
	return chosen, nil
}

// wants reports whether Velero requests a snapshot of a volume, by the volume policies and
// the spec.
func (s *Selection) wants(volume *corev1.PersistentVolume) (bool, error) {
	own, global, err := s.helpers()
	if err != nil {
		return false, err
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(volume)
	if err != nil {
		return false, fmt.Errorf("convert PersistentVolume %s: %w", volume.Name, err)
	}
	item := &unstructured.Unstructured{Object: content}
	for _, helper := range []vhutil.VolumeHelper{own, global} {
		if helper == nil {
			continue
		}
		wanted, err := helper.ShouldPerformSnapshot(item, kuberesource.PersistentVolumes)
		if err != nil {
			return false, fmt.Errorf("match the volume policies for PersistentVolume %s: %w", volume.Name, err)
		}
		if !wanted {
			return false, nil
		}
	}
	return true, nil
}
