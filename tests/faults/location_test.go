package faults

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/tests/fake"
)

// taken is a snapshot through a location, of the only volume.
func taken(t *testing.T, bed *fake.Bed, config map[string]string) (id string, volume *corev1.PersistentVolume) {
	t.Helper()
	bed.Deploy(fake.App{})
	l := bed.Locating(config)
	backup := bed.Backup()
	object := bed.API.All("persistentvolumes")[0]
	of, err := l.Snapshotter.GetVolumeID(&object)
	require.NoError(t, err)
	kind, _, err := l.Snapshotter.GetVolumeInfo(of, "")
	require.NoError(t, err)
	assert.Equal(t, fake.Class, kind)
	id, err = l.Snapshotter.CreateSnapshot(of, "", map[string]string{"velero.io/backup": backup.Name, "velero.io/pv": object.GetName()})
	require.NoError(t, err)
	volume = &corev1.PersistentVolume{}
	require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, volume))
	return id, volume
}

// provisions binds claims as they come, and releases volumes, until the test ends.
func provisions(t *testing.T, bed *fake.Bed) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
			bed.Bind()
			bed.Release()
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// A volume comes back from a location's snapshot with its data, by whichever process,
// and nothing is left of the way there.
func TestRestoreThroughALocation(t *testing.T) {
	t.Parallel()
	for name, another := range map[string]bool{"one process": false, "the process has died in between": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			id, volume := taken(t, bed, map[string]string{"timeout": "20s"})
			handle := bed.Storage.Snapshots()[0].Handle
			provisions(t, bed)
			l := bed.Locating(map[string]string{"timeout": "20s"})
			restored, err := l.Snapshotter.CreateVolumeFromSnapshot(id, fake.Class, "", nil)
			require.NoError(t, err)
			if another {
				l = bed.Locating(map[string]string{"timeout": "20s"})
			}
			object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(volume)
			require.NoError(t, err)
			item := bed.API.All("persistentvolumes")[0]
			item.Object = object
			adopted, err := l.Snapshotter.SetVolumeID(&item, restored)
			require.NoError(t, err)
			got := &corev1.PersistentVolume{}
			require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(adopted.UnstructuredContent(), got))
			assert.Equal(t, fake.Driver+"/"+got.Spec.CSI.VolumeHandle, restored)
			assert.NotEqual(t, volume.Spec.CSI.VolumeHandle, got.Spec.CSI.VolumeHandle, "a volume of its own")
			assert.Equal(t, volume.Spec.PersistentVolumeReclaimPolicy, got.Spec.PersistentVolumeReclaimPolicy)
			assert.Len(t, snapshotsOf(bed), 1, "that of the backup")
			assert.Len(t, contentsOf(bed), 1)
			require.Len(t, bed.Storage.Snapshots(), 1, "it is the backup's")
			assert.Equal(t, handle, bed.Storage.Snapshots()[0].Handle)
			for _, claim := range bed.API.All("persistentvolumeclaims") {
				assert.NotEqual(t, fake.VeleroNamespace, claim.GetNamespace(), claim.GetName())
			}
		})
	}
}

// What a restore through a location needs and does not find is named, and nothing is
// left of the attempt.
func TestRestoreThroughALocationThatCannotBe(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(t *testing.T, bed *fake.Bed)
		says   string
	}{
		"the StorageClass is gone": {
			change: func(_ *testing.T, bed *fake.Bed) { bed.API.Delete("storageclasses", "", fake.Class) },
			says:   "StorageClass fast (as backed up) does not exist in this cluster",
		},
		"a StorageClass of another driver": {
			change: func(t *testing.T, bed *fake.Bed) {
				t.Helper()
				bed.API.Put(t, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Provisioner: "other.example.com", VolumeBindingMode: ptr.To(storagev1.VolumeBindingImmediate)})
				bed.API.Put(t, &corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{
						Namespace: fake.VeleroNamespace, Name: "change-storage-class",
						Labels: map[string]string{"velero.io/plugin-config": "", "velero.io/change-storage-class": "RestoreItemAction"},
					},
					Data: map[string]string{fake.Class: "other"},
				})
			},
			says: "StorageClass other (by ConfigMap velero/change-storage-class, which maps StorageClass fast) is of provisioner other.example.com",
		},
		"a driver that restores from exports only": {
			change: func(_ *testing.T, bed *fake.Bed) {
				bed.Configure("version: v1\ndrivers: [{name: disk.example.com, restoreFrom: export}]\n")
			},
			says: "restores from exports only, by its profile in the configuration",
		},
		"the snapshot controller is down": {
			change: func(_ *testing.T, bed *fake.Bed) { bed.Storage.StopController() },
			says:   "is not ready to use: it took longer than the location's timeout, 1s; is the snapshot controller running",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			id, _ := taken(t, bed, map[string]string{"timeout": "20s"})
			test.change(t, bed)
			provisions(t, bed)
			_, err := bed.Locating(map[string]string{"timeout": "1s"}).Snapshotter.CreateVolumeFromSnapshot(id, fake.Class, "", nil)
			require.ErrorContains(t, err, test.says)
			assert.Len(t, snapshotsOf(bed), 1, "that of the backup")
			assert.Len(t, contentsOf(bed), 1)
			assert.Len(t, bed.Storage.Snapshots(), 1, "it is the backup's")
		})
	}
}
