package snapshot

import (
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestAwaits(t *testing.T) {
	group := ptr.To("snapshot.storage.k8s.io")
	now := metav1.Now()
	for name, c := range map[string]struct {
		change func(*corev1.PersistentVolumeClaim)
		want   bool
	}{
		"pending":           {func(*corev1.PersistentVolumeClaim) {}, true},
		"new":               {func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = "" }, true},
		"bound":             {func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimBound }, false},
		"lost":              {func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimLost }, false},
		"deleted":           {func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = &now }, false},
		"another":           {func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource.Name = "other" }, false},
		"another namespace": {func(c *corev1.PersistentVolumeClaim) { c.Namespace = "bank" }, false},
		"another kind":      {func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource.Kind = "PersistentVolumeClaim" }, false},
		"another group":     {func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource.APIGroup = nil }, false},
		"a reference": {func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSource, c.Spec.DataSourceRef = nil, &corev1.TypedObjectReference{APIGroup: group, Kind: "VolumeSnapshot", Name: "s"}
		}, true},
		"a reference across": {func(c *corev1.PersistentVolumeClaim) {
			c.Namespace = "bank"
			c.Spec.DataSource, c.Spec.DataSourceRef = nil, &corev1.TypedObjectReference{APIGroup: group, Kind: "VolumeSnapshot", Name: "s", Namespace: ptr.To("shop")}
		}, true},
		"nothing": {func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource = nil }, false},
	} {
		claim := &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data"},
			Spec:       corev1.PersistentVolumeClaimSpec{DataSource: &corev1.TypedLocalObjectReference{APIGroup: group, Kind: "VolumeSnapshot", Name: "s"}},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
		}
		c.change(claim)
		assert.Equal(t, c.want, Awaits(claim, "shop", "s"), name)
	}
}
