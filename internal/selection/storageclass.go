package selection

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// StorageClass returns the StorageClass that provisions the volume of a claim in a restore.
// It is the class of the claim, with an empty reason, if that provisions volumes. For a
// statically provisioned volume it is a class of the driver whose file system does not
// differ: first the one with the same file system, then the default class, then the first
// by name.
func (s *Selection) StorageClass(ctx context.Context, claim *corev1.PersistentVolumeClaim) (name, reason string, err error) {
	if own := ptr.Deref(claim.Spec.StorageClassName, ""); own != "" {
		class := &storagev1.StorageClass{}
		err := s.client.Get(ctx, crclient.ObjectKey{Name: own}, class)
		if err == nil && class.Provisioner != "kubernetes.io/no-provisioner" {
			return own, "", nil
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return "", "", fmt.Errorf("get StorageClass %s: %w", own, err)
		}
	}
	volume, err := s.Volume(ctx, claim)
	if err != nil {
		return "", "", err
	}
	classes := &storagev1.StorageClassList{}
	if err := s.client.List(ctx, classes); err != nil {
		return "", "", fmt.Errorf("list the StorageClasses: %w", err)
	}
	driver, fileSystem := volume.Spec.CSI.Driver, volume.Spec.CSI.FSType
	rank := func(class storagev1.StorageClass) int {
		made, rank := cmp.Or(class.Parameters["csi.storage.k8s.io/fstype"], class.Parameters["fstype"]), 0
		if class.Provisioner != driver || (made != fileSystem && made != "" && fileSystem != "") {
			return -1
		}
		if made != fileSystem {
			rank += 2
		}
		if class.Annotations["storageclass.kubernetes.io/is-default-class"] != "true" {
			rank++
		}
		return rank
	}
	fit := slices.DeleteFunc(slices.Clone(classes.Items), func(class storagev1.StorageClass) bool { return rank(class) < 0 })
	if len(fit) == 0 {
		return "", "", fmt.Errorf("it has no StorageClass that provisions volumes, and there is none of driver %s for file system %q: create one", driver, fileSystem)
	}
	best := slices.MinFunc(fit, func(a, b storagev1.StorageClass) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Name, b.Name))
	})
	return best.Name, fmt.Sprintf("the claim names none that provisions volumes, and this is the first choice of %d of driver %s", len(fit), driver), nil
}
