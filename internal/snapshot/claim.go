package snapshot

import (
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// Awaits reports whether a claim waits to be filled from a VolumeSnapshot. It includes a
// claim that waits for its first pod.
func Awaits(claim *corev1.PersistentVolumeClaim, namespace, name string) bool {
	if claim.DeletionTimestamp != nil || (claim.Status.Phase != corev1.ClaimPending && claim.Status.Phase != "") {
		return false
	}
	of := func(group *string, kind, in, called string) bool {
		return ptr.Deref(group, "") == snapshotv1.GroupName && kind == "VolumeSnapshot" && in == namespace && called == name
	}
	source, ref := claim.Spec.DataSource, claim.Spec.DataSourceRef
	return (source != nil && of(source.APIGroup, source.Kind, claim.Namespace, source.Name)) ||
		(ref != nil && of(ref.APIGroup, ref.Kind, ptr.Deref(ref.Namespace, claim.Namespace), ref.Name))
}
