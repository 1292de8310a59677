package externalstorage

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/location"
	"stillpoint.io/stillpoint/internal/velero"
)

// onFake returns a Snapshotter without a controller.
func onFake(t *testing.T, objects ...runtime.Object) *Snapshotter {
	t.Helper()
	log, _ := logrustest.NewNullLogger()
	s := New(&cluster.Clients{
		VeleroNamespace: "velero",
		Dynamic: fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
			map[schema.GroupVersionResource]string{snapshots: "VolumeSnapshotList", datas: "VolumeSnapshotDataList"}, objects...),
	}, nil, logrus.FieldLogger(log))
	require.NoError(t, s.Init(map[string]string{"timeout": "300ms"}))
	return s
}

func openEBSSubject() *location.Subject {
	volume := pv(iscsi, openEBSVolume)
	volume.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("5Gi")}
	volume.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	volume.Spec.StorageClassName = "openebs-cstor"
	return &location.Subject{
		Volume: volume, Backup: backupOf(one, ""),
		Claim: &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "claim-uid"}},
	}
}

// openEBSController simulates OpenEBS's fork of the controller for a VolumeSnapshot
// (pkg/volume/openebs/processor.go of openebs-k8s-provisioner). It waits for the watch,
// because the fake API server does not repeat earlier events.
func openEBSController(ctx context.Context, t *testing.T, s *Snapshotter, name string) {
	t.Helper()
	client := s.clients.Dynamic.Resource(snapshots).Namespace("shop")
	server, _ := s.clients.Dynamic.(*fake.FakeDynamicClient)
	for ctx.Err() == nil {
		vs, err := client.Get(ctx, name, metav1.GetOptions{})
		watched := slices.ContainsFunc(server.Actions(), func(a clienttesting.Action) bool { return a.GetVerb() == "watch" })
		if err != nil || !watched {
			time.Sleep(time.Millisecond)
			continue
		}
		data := &unstructured.Unstructured{Object: map[string]any{
			"spec": map[string]any{
				"openebsVolume": map[string]any{"snapshotId": "pv_name_1516777187978793304", "capacity": "5Gi"},
				volumeRef:       map[string]any{"kind": "PersistentVolume", "name": "pv"},
				snapshotRef:     map[string]any{"kind": "VolumeSnapshot", "name": "shop/" + name},
			},
			"status": map[string]any{"conditions": []any{condition(conditionReady, time.Now())}},
		}}
		data.SetAPIVersion(version.String())
		data.SetKind("VolumeSnapshotData")
		data.SetName("k8s-volume-snapshot-1")
		_, err = s.clients.Dynamic.Resource(datas).Create(ctx, data, metav1.CreateOptions{})
		assert.NoError(t, err)
		labels := vs.GetLabels()
		labels[volumeLabel] = "pv"
		vs.SetLabels(labels)
		vs.Object["spec"] = map[string]any{"persistentVolumeClaimName": "db", "snapshotDataName": "k8s-volume-snapshot-1"}
		vs.Object["status"] = map[string]any{"conditions": []any{condition(conditionReady, time.Now())}, "creationTimestamp": nil}
		_, err = client.Update(ctx, vs, metav1.UpdateOptions{})
		assert.NoError(t, err)
		return
	}
}

func (s *Snapshotter) names(t *testing.T) (found []string) {
	t.Helper()
	for _, of := range []schema.GroupVersionResource{snapshots, datas} {
		list, err := s.clients.Dynamic.Resource(of).List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		for i := range list.Items {
			found = append(found, key(&list.Items[i]))
		}
	}
	return found
}

func TestOpenEBS(t *testing.T) {
	s := onFake(t)
	require.NoError(t, s.Init(map[string]string{"timeout": "1m"}))
	taking := newTaking(s, here, openEBSSubject(), map[string]string{"team": "a", velero.TagBackup: "b-1", velero.TagVolume: "pv"})
	go openEBSController(t.Context(), t, s, taking.name)
	require.NoError(t, taking.take(t.Context(), 0))
	id, err := taking.moveToVelero(t.Context())
	require.NoError(t, err)
	assert.Equal(t, map[string]any{"openebsVolume": map[string]any{"snapshotId": "pv_name_1516777187978793304", "capacity": "5Gi"}}, id.Source)
	assert.Equal(t, []string{"velero/" + taking.name, taking.name}, s.names(t), "moved, and nothing is left in the application's namespace")

	home, err := s.clients.Dynamic.Resource(snapshots).Namespace("velero").Get(t.Context(), taking.name, metav1.GetOptions{})
	require.NoError(t, err)
	assert.Equal(t, taking.name, dataName(home))
	state, _ := stateOf(home)
	assert.Equal(t, conditionReady, state, "without a condition the controller would take a new snapshot")
	for key, value := range map[string]string{"team": "a", "velero.io/backup-name": "b-1", volumeLabel: "pv", "velero.io/exclude-from-backup": "true"} {
		assert.Equal(t, value, home.GetLabels()[key], key)
	}

	// The ID suffices if all objects are gone.
	text, err := location.EncodeID(Provider, id)
	require.NoError(t, err)
	decoded, err := decode(text)
	require.NoError(t, err)
	assert.Equal(t, id, decoded)
	elsewhere := onFake(t)
	elsewhere.clients.VeleroNamespace = "backups"
	made, err := elsewhere.ensure(t.Context(), decoded)
	require.NoError(t, err)
	assert.Equal(t, "backups/"+taking.name, key(made))
	data, err := elsewhere.clients.Dynamic.Resource(datas).Get(t.Context(), dataName(made), metav1.GetOptions{})
	require.NoError(t, err)
	source, err := sourceIn(data)
	require.NoError(t, err)
	assert.Equal(t, id.Source, source)
	assert.NotEqual(t, id.Data, data.GetName(), "a postponed deletion of the first would find it")
	again, err := elsewhere.ensure(t.Context(), decoded)
	require.NoError(t, err)
	assert.Equal(t, made.GetName(), again.GetName())
	assert.Len(t, elsewhere.names(t), 2)

	claim := decoded.promotion("backups", "snapshot-promoter")
	assert.Equal(t, "5Gi", claim.Spec.Resources.Requests.Storage().String())
	assert.Equal(t, map[string]string{sourceAnnotation: taking.name}, claim.Annotations)
}

// A tenant must not get another tenant's data.
func TestCheckOwner(t *testing.T) {
	s := onFake(t)
	taking := newTaking(s, here, openEBSSubject(), nil)
	taking.ready = request(taking.name, taking.subject, taking.origin, nil)
	taking.ready.SetUID("uid")
	data := func(of, volume string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{
			snapshotRef: map[string]any{"name": of}, volumeRef: map[string]any{"name": volume},
		}}}
	}
	require.NoError(t, taking.checkOwner(data("shop/"+taking.name, "pv")))
	require.NoError(t, taking.checkOwner(data("shop/"+taking.name+"-uid", "pv")))
	for _, other := range []*unstructured.Unstructured{
		data("shop/"+taking.name+"-other", "pv"), data("bank/"+taking.name, "pv"), data("shop/"+taking.name, "other"), data("", ""),
	} {
		require.ErrorContains(t, taking.checkOwner(other), "VolumeSnapshotData")
	}
}

func TestTakeWithoutController(t *testing.T) {
	s := onFake(t)
	taking := newTaking(s, here, openEBSSubject(), nil)
	err := taking.take(t.Context(), 0)
	for _, want := range []string{"shop/" + taking.name, "of claim db (PersistentVolume pv, openebs)", "not Ready after 0s, and the snapshot controller did not react: does it run"} {
		require.ErrorContains(t, err, want)
	}
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, taking.undo(t.Context()))
	assert.Empty(t, s.names(t))
}

// A resumed call finds its own snapshot, and refuses another backup's of that name.
func TestCreateFindsItsOwn(t *testing.T) {
	s := onFake(t)
	taking := newTaking(s, here, openEBSSubject(), nil)
	first, err := s.create(t.Context(), request(taking.name, taking.subject, taking.origin, nil))
	require.NoError(t, err)
	second, err := s.create(t.Context(), request(taking.name, taking.subject, taking.origin, nil))
	require.NoError(t, err)
	assert.Equal(t, first.GetName(), second.GetName())

	other := taking.origin
	other.BackupUID = two
	_, err = s.create(t.Context(), request(taking.name, taking.subject, other, nil))
	require.ErrorContains(t, err, "exists already and does not belong to this backup; delete it")
}

func TestDecode(t *testing.T) {
	for name, test := range map[string]struct{ id, fault string }{
		"empty":          {Provider + ":v1:{}", "missing: data, installation, name, namespace, size, volume"},
		"two sources":    {Provider + `:v1:{"namespace":"a","name":"b","data":"c","volume":"d","size":"1Gi","installation":"e","source":{"hostPath":{},"cinderVolume":{}}}`, "source must have one field, and has 2"},
		"size":           {Provider + `:v1:{"namespace":"a","name":"b","data":"c","volume":"d","size":"much","installation":"e","source":{"hostPath":{}}}`, `size "much"`},
		"another's":      {"stillpoint.io/csi:v1:{}", "is of provider stillpoint.io/csi"},
		"of the future":  {Provider + ":v2:{}", "has the version v2"},
		"unknown fields": {Provider + `:v1:{"colour":"red"}`, "colour"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := decode(test.id)
			require.ErrorContains(t, err, test.fault)
		})
	}
}
