package export

import (
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/config"
)

func TestSuits(t *testing.T) {
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}}}
	assert.NoError(t, Suits(config.DriverProfile{Name: "d"}, volume, false))
	assert.EqualError(t, Suits(config.DriverProfile{Name: "d", AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}}, volume, true),
		"PersistentVolume pv has the access modes [ReadWriteMany]; driver d can snapshot [ReadWriteOnce], by its profile in the configuration")
	needs := config.DriverProfile{Name: "d", Quiesce: config.QuiesceRequired}
	assert.NoError(t, Suits(needs, volume, true))
	assert.ErrorContains(t, Suits(needs, volume, false), "PersistentVolume pv is in use and its workload is not quiesced")
}
