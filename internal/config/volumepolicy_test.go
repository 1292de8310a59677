package config

import (
	"os"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/plugin/utils/volumehelper"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// TestVolumePolicy has Velero's own code read deploy/volume-policy.yaml, as it
// is and with its example in force.
func TestVolumePolicy(t *testing.T) {
	file, err := os.ReadFile("../../deploy/volume-policy.yaml")
	require.NoError(t, err)
	csi := corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "csi.example.com", VolumeHandle: "h"}}
	nfs := corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: "s", Path: "/"}}
	orders := map[string]string{"velero.io/volume-group": "orders"}
	for name, test := range map[string]struct {
		file   string
		source corev1.PersistentVolumeSource
		labels map[string]string
		ours   bool
		velero bool
	}{
		"CSI":                              {file: string(file), source: csi, ours: true},
		"not CSI":                          {file: string(file), source: nfs, velero: true},
		"CSI, of a group":                  {file: string(file), source: csi, labels: orders, ours: true},
		"with example: CSI":                {file: activate(string(file)), source: csi, ours: true},
		"with example: CSI, of a group":    {file: activate(string(file)), source: csi, labels: orders, velero: true},
		"with example: CSI, another group": {file: activate(string(file)), source: csi, labels: map[string]string{"velero.io/volume-group": "x"}, ours: true},
	} {
		t.Run(name, func(t *testing.T) {
			policy := exampleOf(t, test.file)
			claim := &corev1.PersistentVolumeClaim{
				TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", Labels: test.labels},
				Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv"},
				Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
			}
			volume := &corev1.PersistentVolume{
				ObjectMeta: metav1.ObjectMeta{Name: "pv"},
				Spec:       corev1.PersistentVolumeSpec{PersistentVolumeSource: test.source, ClaimRef: &corev1.ObjectReference{Namespace: "shop", Name: "data"}},
			}
			backup := velerov1.Backup{
				ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "nightly"},
				Spec:       velerov1.BackupSpec{ResourcePolicy: &corev1.TypedLocalObjectReference{Kind: "configmap", Name: "stillpoint-volume-policy"}},
			}
			quiet := logrus.New()
			quiet.SetLevel(logrus.PanicLevel)
			helper, err := volumehelper.NewVolumeHelperWithCache(backup, fake.NewClientBuilder().WithRuntimeObjects(policy, claim, volume).Build(), quiet, nil)
			require.NoError(t, err)
			content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(claim)
			require.NoError(t, err)
			object := &unstructured.Unstructured{Object: content}

			ours, err := helper.ShouldPerformCustomAction(object, kuberesource.PersistentVolumeClaims, map[string]any{"snapshotter": "stillpoint.io"})
			require.NoError(t, err)
			require.Equal(t, test.ours, ours)
			others, err := helper.ShouldPerformCustomAction(object, kuberesource.PersistentVolumeClaims, map[string]any{"snapshotter": "example.com"})
			require.NoError(t, err)
			require.False(t, others)
			velero, err := helper.ShouldPerformSnapshot(object, kuberesource.PersistentVolumeClaims)
			require.NoError(t, err)
			require.Equal(t, test.velero, velero)
		})
	}
}
