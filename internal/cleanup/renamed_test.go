package cleanup

import (
	"context"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	snapshotfake "github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned/fake"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
)

func TestContentOfARenamedDriver(t *testing.T) {
	renaming := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "stillpoint", Labels: map[string]string{config.PluginConfigLabel: "", api.LabelConfiguration: config.PluginKind}},
		Data:       map[string]string{config.Key: "version: v1\nrestore: {drivers: [{from: old.csi, to: new.csi}]}\n"},
	}
	monday := map[string]string{velerov1.BackupNameLabel: "monday"}
	for name, c := range map[string]struct {
		objects  []runtime.Object
		labels   map[string]string
		driver   string
		silent   bool // no driver answers for the new content
		deletes  bool
		released bool
		err      string
	}{
		"renamed":              {objects: []runtime.Object{renaming}, labels: monday, driver: "old.csi", deletes: true, released: true},
		"the old one is there": {objects: []runtime.Object{renaming, &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "old.csi"}}}, labels: monday, driver: "old.csi"},
		"not renamed":          {objects: []runtime.Object{renaming}, labels: monday, driver: "other.csi"},
		"no map":               {labels: monday, driver: "old.csi"},
		"not the backup's":     {objects: []runtime.Object{renaming}, labels: map[string]string{velerov1.BackupNameLabel: "sunday"}, driver: "old.csi"},
		"the new one is not there": {
			objects: []runtime.Object{renaming}, labels: monday, driver: "old.csi", silent: true,
			err: "backup monday: delete snapshot h1 of driver new.csi: VolumeSnapshotContent stillpoint-delete-77c2ae2410cfd50a: driver new.csi has not answered for snapshot h1; is its CSI sidecar csi-snapshotter running?",
		},
	} {
		t.Run(name, func(t *testing.T) {
			content := &snapshotv1.VolumeSnapshotContent{
				ObjectMeta: metav1.ObjectMeta{Name: "snapcontent-1", Labels: c.labels},
				Spec:       snapshotv1.VolumeSnapshotContentSpec{Driver: c.driver, VolumeSnapshotRef: corev1.ObjectReference{Namespace: "shop", Name: "s"}},
				Status:     &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: ptr.To("h1")},
			}
			now := metav1.Now()
			stuck := content.DeepCopy()
			stuck.Name, stuck.DeletionTimestamp, stuck.Finalizers = "vsc-1", &now, []string{"x"}
			stuck.Spec.Source.SnapshotHandle = ptr.To("h1")
			others := stuck.DeepCopy()
			others.Name, others.Spec.Source.SnapshotHandle = "vsc-2", ptr.To("h2")
			snapshots := snapshotfake.NewSimpleClientset(stuck, others)
			var deleted []string
			snapshots.PrependReactor("create", "volumesnapshotcontents", func(action k8stesting.Action) (bool, runtime.Object, error) {
				create, ok := action.(k8stesting.CreateAction)
				require.True(t, ok)
				made, ok := create.GetObject().(*snapshotv1.VolumeSnapshotContent)
				require.True(t, ok)
				assert.Equal(t, "new.csi", made.Spec.Driver)
				assert.Equal(t, "h1", *made.Spec.Source.SnapshotHandle)
				assert.Equal(t, snapshotv1.VolumeSnapshotContentDelete, made.Spec.DeletionPolicy)
				assert.NotEmpty(t, made.Finalizers, "it would go without a word to the storage")
				if !c.silent {
					made.Status = &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: ptr.To("h1")}
				}
				return false, nil, nil
			})
			snapshots.PrependReactor("delete", "volumesnapshotcontents", func(action k8stesting.Action) (bool, runtime.Object, error) {
				if deletion, ok := action.(k8stesting.DeleteAction); ok {
					deleted = append(deleted, deletion.GetName())
				}
				return false, nil, nil
			})
			log, _ := logtest.NewNullLogger()
			e := New(&cluster.Clients{Kube: fake.NewClientset(c.objects...), Snapshots: snapshots, VeleroNamespace: "velero"}, clock.RealClock{})
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			err := e.DeletedContent(ctx, content, &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Name: "monday"}}, log)
			if c.err != "" {
				require.EqualError(t, err, c.err)
			} else {
				require.NoError(t, err)
			}
			assert.Equal(t, c.deletes, len(deleted) == 1, deleted)
			for name, released := range map[string]bool{"vsc-1": c.released, "vsc-2": false} {
				left, err := snapshots.SnapshotV1().VolumeSnapshotContents().Get(t.Context(), name, metav1.GetOptions{})
				require.NoError(t, err)
				assert.Equal(t, released, len(left.Finalizers) == 0, name)
			}
		})
	}
}
