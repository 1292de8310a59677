package csi

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/location/csi/spec"
)

func TestTakes(t *testing.T) {
	volume := func(change func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
		v := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "a.csi", VolumeHandle: "x/y"}},
			ClaimRef:               &corev1.ObjectReference{Namespace: "shop", Name: "data"},
		}, Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound}}
		change(v)
		return v
	}
	as := func(*corev1.PersistentVolume) {}
	for name, test := range map[string]struct {
		config map[string]string
		volume *corev1.PersistentVolume
		why    string
	}{
		"all drivers":    {nil, volume(as), ""},
		"the driver":     {map[string]string{"drivers": "b.*,a.*"}, volume(as), ""},
		"another driver": {map[string]string{"drivers": "b.*"}, volume(as), "its driver a.csi is not among the location's drivers"},
		"not CSI":        {nil, volume(func(v *corev1.PersistentVolume) { v.Spec.CSI = nil }), "it is not a CSI volume"},
		"no claim":       {nil, volume(func(v *corev1.PersistentVolume) { v.Spec.ClaimRef = nil }), "it is not bound to a claim"},
		"released":       {nil, volume(func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeReleased }), "it is not bound to a claim"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := spec.Decode(test.config)
			require.NoError(t, err)
			why := l.LeavesOut(test.volume)
			assert.Contains(t, why, test.why)
			assert.Equal(t, test.why == "", why == "")
			takes, err := spec.Takes(test.config, test.volume)
			require.NoError(t, err)
			assert.Equal(t, test.why == "", takes)
		})
	}
	_, err := spec.Takes(map[string]string{"driver": "a"}, volume(as))
	require.ErrorContains(t, err, "key driver: unknown key")

	driver, handle, err := handleOf(idOf(volume(as)))
	require.NoError(t, err)
	assert.Equal(t, [2]string{"a.csi", "x/y"}, [2]string{driver, handle})
	for _, id := range []string{"", "a.csi", "/x", "a.csi/"} {
		_, _, err := handleOf(id)
		require.ErrorContains(t, err, "is not <CSI driver>/<volume handle>", id)
	}
}

func TestDecodeID(t *testing.T) {
	i, err := decodeID(`stillpoint.io/csi:v1:{"driver":"a.csi","handle":"h","size":5,"accessModes":["ReadWriteOnce"],"volume":"v","namespace":"n","claim":"c"}`)
	require.NoError(t, err)
	assert.Equal(t, "h", i.Handle)
	assert.Equal(t, int64(5), i.Size)
	_, err = decodeID(`stillpoint.io/csi:v1:{"size":5}`)
	require.EqualError(t, err, "a snapshot id of provider stillpoint.io/csi has no driver and no handle")
}

func TestClassFor(t *testing.T) {
	all := []storagev1.StorageClass{
		{ObjectMeta: metav1.ObjectMeta{Name: "slow"}, Provisioner: "a.csi"},
		{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Provisioner: "a.csi"},
		{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Provisioner: "b.csi"},
		{ObjectMeta: metav1.ObjectMeta{Name: "unusual"}, Provisioner: "d.csi"},
		{ObjectMeta: metav1.ObjectMeta{Name: "usual", Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}}, Provisioner: "d.csi"},
	}
	for name, test := range map[string]struct{ name, driver, want, text string }{
		"as backed up":     {name: "fast", driver: "a.csi", want: "fast"},
		"the only one":     {driver: "b.csi", want: "other"},
		"one of several":   {driver: "a.csi", want: "fast"},
		"the default one":  {driver: "d.csi", want: "usual"},
		"none":             {driver: "c.csi", text: "there is none of driver c.csi"},
		"does not exist":   {name: "gone", driver: "a.csi", text: "StorageClass gone (as backed up) does not exist in this cluster; map it by a ConfigMap for Velero's plugin velero.io/change-storage-class; StorageClasses of driver a.csi: fast, slow"},
		"another driver's": {name: "other", driver: "a.csi", text: "StorageClass other (as backed up) is of provisioner b.csi, and the snapshot of driver a.csi"},
	} {
		t.Run(name, func(t *testing.T) {
			class, err := classFor(test.name, "as backed up", test.driver, all)
			if test.text != "" {
				require.ErrorContains(t, err, test.text)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, test.want, class.Name)
		})
	}
}
