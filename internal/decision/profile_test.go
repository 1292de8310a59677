package decision

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/config"
)

func TestApplyProfile(t *testing.T) {
	d := &Decision{Path: Group, Claim: &corev1.PersistentVolumeClaim{}, Volume: &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}},
	}}
	require.NoError(t, d.applyProfile(config.DriverProfile{Name: "d"}))
	require.EqualError(t, d.applyProfile(config.DriverProfile{Name: "d", AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}}),
		"PersistentVolume pv has the access modes [ReadWriteMany]; driver d can snapshot [ReadWriteOnce], by its profile in the configuration")
	assert.Empty(t, d.Findings(false))
	require.NoError(t, d.applyProfile(config.DriverProfile{Name: "d", Quiesce: config.QuiesceRequired}))
	assert.Empty(t, d.Findings(true), "quiesced")
	require.Len(t, d.Findings(false), 1)
	assert.Contains(t, d.Findings(false)[0].Text, "The snapshot is unusable: claim /: PersistentVolume pv is in use and its workload is not quiesced")
}
