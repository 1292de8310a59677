package cleanup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	snapshotfake "github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned/fake"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
	crfake "sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
)

// bed is a cluster with an API server, a snapshot controller and a storage, as far as a
// sweep uses them.
type bed struct {
	*Cleaner
	t         *testing.T
	kube      *fake.Clientset
	snapshots *snapshotfake.Clientset
	// refuses is the storage's error for a handle that it does not delete.
	refuses map[string]string

	mu sync.Mutex
	// stored are the handles in the storage.
	stored   map[string]bool
	requests []string
}

func newBed(t *testing.T, s *scene) *bed {
	t.Helper()
	b := &bed{t: t, refuses: map[string]string{}, stored: map[string]bool{"h1": true}}
	var kube, snapshots, objects []runtime.Object
	for uid := range s.namespaces {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "of-" + uid, UID: types.UID(uid)}}
		if uid == s.installation {
			namespace.Name = "velero"
		}
		kube, objects = append(kube, namespace), append(objects, namespace)
	}
	for i := range s.snapshots {
		snapshots = append(snapshots, &s.snapshots[i])
	}
	for i := range s.contents {
		b.stored[handleOf(&s.contents[i])] = true
		snapshots = append(snapshots, &s.contents[i])
	}
	for i := range s.backups {
		objects = append(objects, &s.backups[i])
	}
	for i := range s.restores {
		objects = append(objects, &s.restores[i])
	}
	for i := range s.uploads {
		objects = append(objects, &s.uploads[i])
	}
	for i := range s.records {
		kube = append(kube, &s.records[i])
	}
	for i := range s.claims {
		kube = append(kube, &s.claims[i])
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, velerov1.AddToScheme, velerov2alpha1.AddToScheme} {
		require.NoError(t, add(scheme))
	}
	b.kube, b.snapshots = fake.NewClientset(kube...), snapshotfake.NewSimpleClientset(snapshots...)
	b.snapshots.PrependReactor("*", "*", b.note)
	b.kube.PrependReactor("*", "*", b.note)
	b.snapshots.PrependReactor("delete", "*", b.deleted)
	client := crfake.NewClientBuilder().WithScheme(scheme).WithRuntimeObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
		Get: func(ctx context.Context, client crclient.WithWatch, key crclient.ObjectKey, into crclient.Object, options ...crclient.GetOption) error {
			b.noted(fmt.Sprintf("get %T", into))
			return client.Get(ctx, key, into, options...)
		},
		List: func(ctx context.Context, client crclient.WithWatch, into crclient.ObjectList, options ...crclient.ListOption) error {
			b.noted(fmt.Sprintf("list %T", into))
			return client.List(ctx, into, options...)
		},
	}).Build()
	clock := clocktesting.NewFakePassiveClock(epoch)
	b.Cleaner = New(&cluster.Clients{
		Kube: b.kube, Objects: client, Remembered: cluster.Remember(client, clock), Snapshots: b.snapshots, VeleroNamespace: "velero",
	}, clock)
	b.settings = func(context.Context) (*config.Config, error) { return s.config, nil }
	return b
}

func (b *bed) noted(request string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = append(b.requests, request)
}

func (b *bed) note(action kubetesting.Action) (bool, runtime.Object, error) {
	b.noted(action.GetVerb() + " " + action.GetResource().Resource)
	return false, nil, nil
}

// deleted simulates the controller, the sidecar and the driver.
func (b *bed) deleted(action kubetesting.Action) (bool, runtime.Object, error) {
	of, ok := action.(kubetesting.DeleteAction)
	require.True(b.t, ok)
	tracker := b.snapshots.Tracker()
	contents := snapshotv1.SchemeGroupVersion.WithResource("volumesnapshotcontents")
	name := of.GetName()
	if action.GetResource().Resource == "volumesnapshots" {
		object, err := tracker.Get(action.GetResource(), action.GetNamespace(), name)
		if err != nil {
			return true, nil, err
		}
		status := object.(*snapshotv1.VolumeSnapshot).Status //nolint:forcetypeassert // it is one
		if status == nil {
			return false, nil, nil
		}
		name = *status.BoundVolumeSnapshotContentName
	}
	object, err := tracker.Get(contents, "", name)
	if apierrors.IsNotFound(err) {
		return false, nil, nil
	}
	content, _ := object.(*snapshotv1.VolumeSnapshotContent)
	if content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete {
		if text := b.refuses[handleOf(content)]; text != "" {
			content = content.DeepCopy()
			content.DeletionTimestamp = ptr.To(metav1.NewTime(epoch))
			content.Status.Error = &snapshotv1.VolumeSnapshotError{Message: &text}
			return true, nil, tracker.Update(contents, content, "")
		}
		b.mu.Lock()
		delete(b.stored, handleOf(content))
		b.mu.Unlock()
		_ = tracker.Delete(contents, "", name)
	}
	return action.GetResource() == contents && content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete, nil, nil
}

// left returns the remaining objects and storage snapshots.
func (b *bed) left() []string {
	b.t.Helper()
	var left []string
	snapshots, err := b.snapshots.SnapshotV1().VolumeSnapshots("").List(b.t.Context(), metav1.ListOptions{})
	require.NoError(b.t, err)
	for _, vs := range snapshots.Items {
		left = append(left, vs.Namespace+"/"+vs.Name)
	}
	contents, err := b.snapshots.SnapshotV1().VolumeSnapshotContents().List(b.t.Context(), metav1.ListOptions{})
	require.NoError(b.t, err)
	for _, content := range contents.Items {
		left = append(left, content.Name)
	}
	records, err := b.kube.CoreV1().ConfigMaps("").List(b.t.Context(), metav1.ListOptions{})
	require.NoError(b.t, err)
	for _, record := range records.Items {
		left = append(left, record.Name)
	}
	for handle := range b.stored {
		left = append(left, handle)
	}
	return left
}

// sweep runs a sweep that deletes, and returns its line for each object.
func (b *bed) sweep(between func(), objects ...string) map[string]string {
	b.t.Helper()
	report, err := b.Find(b.t.Context(), Options{Objects: objects})
	require.NoError(b.t, err)
	between()
	said := map[string]string{}
	ctx, cancel := context.WithTimeout(b.t.Context(), 300*time.Millisecond)
	defer cancel()
	b.Delete(ctx, report, func(r Result) { said[r.Finding.Object()] = r.Line() })
	return said
}

func failedRecord(s *scene) {
	s.records = append(s.records, corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "stillpoint-group-1", CreationTimestamp: metav1.NewTime(epoch.Add(-3 * time.Hour)), Labels: map[string]string{api.LabelBackupUID: "b1"}}})
}

func TestDelete(t *testing.T) {
	all := func(changes ...func(*scene)) []func(*scene) { return changes }
	for name, c := range map[string]struct {
		changes []func(*scene)
		named   []string
		left    []string
		said    map[string]string
	}{
		"of a failed backup":     {all(ours, failedRecord), nil, nil, map[string]string{"shop/snap": "Deleted shop/snap, gone after 0s", "configmap/stillpoint-group-1": "Deleted configmap/stillpoint-group-1, gone after 0s"}},
		"policy Retain":          {all(ours, func(s *scene) { s.content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentRetain }), nil, nil, map[string]string{"shop/snap": "Deleted shop/snap, gone after 0s"}},
		"content alone":          {all(ours, onlyContent, func(s *scene) { s.content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentRetain }), nil, nil, map[string]string{"content/snap-content": "Deleted content/snap-content, gone after 0s"}},
		"the backup lives on it": {all(ours, handedOver, in(velerov1.BackupPhaseCompleted)), nil, []string{"h1"}, map[string]string{"shop/snap": "Deleted the objects of shop/snap; the storage's snapshot stays"}},
		"restored":               {all(byOurRestore("here"), restore("Completed"), func(s *scene) { s.content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentDelete }), nil, []string{"h1"}, map[string]string{"shop/snap": "Deleted the objects of shop/snap; the storage's snapshot stays"}},
		"listed":                 {nil, nil, []string{"shop/snap", "snap-content", "h1"}, map[string]string{}},
		"listed and named":       {nil, []string{"shop/snap"}, nil, map[string]string{"shop/snap": "Deleted shop/snap, gone after 0s"}},
		"restored and named":     {all(byRestore), []string{"shop/snap"}, []string{"h1"}, map[string]string{"shop/snap": "Deleted the objects of shop/snap; the storage's snapshot stays"}},
		"vetoed and named":       {all(ours, vetoed), []string{"shop/snap"}, []string{"shop/snap", "snap-content", "h1"}, map[string]string{"shop/snap": `NOT DELETED: shop/snap: annotation stillpoint.io/keep-snapshot: "true"; else: backup nightly is Failed`}},
		"needed and named":       {all(pending(dataSource("snapshot.storage.k8s.io", "VolumeSnapshot", "snap"))), []string{"shop/snap"}, []string{"shop/snap", "snap-content", "h1"}, map[string]string{"shop/snap": "NOT DELETED: shop/snap: claim shop/waiting is Pending and needs it; else: only Velero's label velero.io/backup-name: backup nightly is Failed"}},
		"a bound claim was made of it": {all(ours, pending(func(c *corev1.PersistentVolumeClaim) {
			dataSource("snapshot.storage.k8s.io", "VolumeSnapshot", "snap")(c)
			c.Status.Phase = corev1.ClaimBound
		})), nil, nil, map[string]string{"shop/snap": "Deleted shop/snap, gone after 0s"}},
		"a user's and named":   {all(func(s *scene) { s.vs.Labels = nil }), []string{"shop/snap"}, []string{"shop/snap", "snap-content", "h1"}, map[string]string{"shop/snap": "NOT DELETED: shop/snap: not of a backup or restore of Velero's"}},
		"another's and named":  {all(mark("there")), []string{"shop/snap"}, []string{"shop/snap", "snap-content", "h1"}, map[string]string{"shop/snap": "NOT DELETED: shop/snap: of another Velero of this cluster, whose namespace has the UID there"}},
		"another one is named": {all(ours, failedRecord), []string{"configmap/stillpoint-group-1"}, []string{"shop/snap", "snap-content", "h1"}, map[string]string{"configmap/stillpoint-group-1": "Deleted configmap/stillpoint-group-1, gone after 0s"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, newScene(c.changes...))
			assert.Equal(t, c.said, b.sweep(func() {}, c.named...))
			assert.ElementsMatch(t, c.left, b.left())
		})
	}

	t.Run("the driver refuses", func(t *testing.T) {
		b := newBed(t, newScene(ours))
		b.refuses["h1"] = "the pool is offline"
		assert.Contains(t, b.sweep(func() {})["shop/snap"], "NOT DELETED: shop/snap: ")
		assert.Contains(t, b.sweep(func() {})["shop/snap"], "the pool is offline")
		assert.Contains(t, b.left(), "h1")
	})
}

// A change between judgement and deletion keeps the snapshot.
func TestDeleteLooksAgain(t *testing.T) {
	for name, c := range map[string]struct {
		between func(*testing.T, *bed)
		said    string
	}{
		"the backup runs again": {func(t *testing.T, b *bed) {
			backup := &velerov1.Backup{}
			require.NoError(t, b.get(t.Context(), "nightly", backup))
			backup.Status.Phase = velerov1.BackupPhaseInProgress
			require.NoError(t, b.clients.Objects.Update(t.Context(), backup))
		}, "kept: backup nightly is InProgress"},
		"a veto": {func(t *testing.T, b *bed) {
			vs := newScene(ours, vetoed).vs
			_, err := b.snapshots.SnapshotV1().VolumeSnapshots("shop").Update(t.Context(), vs, metav1.UpdateOptions{})
			require.NoError(t, err)
		}, "kept: annotation stillpoint.io/keep-snapshot"},
		"a claim": {func(t *testing.T, b *bed) {
			claim := newScene(pending(dataSource("snapshot.storage.k8s.io", "VolumeSnapshot", "snap"))).claims[0]
			_, err := b.kube.CoreV1().PersistentVolumeClaims("shop").Create(t.Context(), &claim, metav1.CreateOptions{})
			require.NoError(t, err)
		}, "kept: claim shop/waiting is Pending and needs it"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, newScene(ours))
			said := b.sweep(func() { c.between(t, b) })
			assert.Contains(t, said["shop/snap"], "NOT DELETED: shop/snap: "+c.said)
			assert.ElementsMatch(t, []string{"shop/snap", "snap-content", "h1"}, b.left())
		})
	}

	t.Run("another of the same name", func(t *testing.T) {
		b := newBed(t, newScene(ours, onlySnapshot))
		b.sweep(func() {
			vs := newScene(ours, onlySnapshot).vs
			vs.UID = "s9"
			_, err := b.snapshots.SnapshotV1().VolumeSnapshots("shop").Update(t.Context(), vs, metav1.UpdateOptions{})
			require.NoError(t, err)
		})
		assert.Contains(t, b.left(), "shop/"+takenOf("data").Name)
	})
	t.Run("a content that waits for another of the same name", func(t *testing.T) {
		b := newBed(t, newScene(ours, func(s *scene) {
			s.vs.Labels, s.vs.Annotations = nil, nil
			s.vs.Status.BoundVolumeSnapshotContentName = ptr.To("else")
			s.content.Spec.VolumeSnapshotRef.UID = ""
		}))
		b.sweep(func() {})
		assert.Equal(t, []string{"shop/snap"}, b.left())
	})
}

// The list of backups is older than the backup.
func TestYoungSnapshotOfANewBackup(t *testing.T) {
	s := newScene(ours, in(velerov1.BackupPhaseInProgress), func(s *scene) { s.vs.CreationTimestamp = metav1.NewTime(epoch) })
	b := newBed(t, s)
	b.clients.Objects = interceptor.NewClient(b.clients.Objects, interceptor.Funcs{
		List: func(context.Context, crclient.WithWatch, crclient.ObjectList, ...crclient.ListOption) error {
			return nil
		},
	})
	report, err := b.Find(t.Context(), Options{All: true})
	require.NoError(t, err)
	require.Len(t, report.Findings, 1)
	assert.Equal(t, "backup nightly is InProgress", report.Findings[0].Reason)
}

// A label shortens a long name. The backup is found nevertheless.
func TestLongNames(t *testing.T) {
	long := strings.Repeat("nightly-", 10) + "1"
	b := newBed(t, newScene(in(velerov1.BackupPhaseCompleted), handedOver, func(s *scene) {
		s.backup.Name, s.vs.Labels[velerov1.BackupNameLabel] = long, label.GetValidName(long)
	}))
	assert.Equal(t, "Deleted the objects of shop/snap; the storage's snapshot stays", b.sweep(func() {}, "shop/snap")["shop/snap"])
	assert.ElementsMatch(t, []string{"h1"}, b.left())
}

func TestFindOptions(t *testing.T) {
	b := newBed(t, newScene(ours, another(func(*snapshotv1.VolumeSnapshotContent) {}), func(s *scene) { s.contents[0].Spec.Driver = "else" }))
	found := func(options Options) (objects []string) {
		report, err := b.Find(t.Context(), options)
		require.NoError(t, err)
		for i := range report.Findings {
			objects = append(objects, report.Findings[i].Object())
		}
		return objects
	}
	assert.Equal(t, []string{"shop/snap"}, found(Options{}))
	assert.Equal(t, []string{"shop/snap", "content/other"}, found(Options{All: true}))
	assert.Equal(t, []string{"content/other"}, found(Options{Objects: []string{"content/other"}}))
	assert.Equal(t, []string{"shop/snap"}, found(Options{Namespaces: []string{"lab", "shop"}}))
	assert.Empty(t, found(Options{Namespaces: []string{"lab"}}))
	_, err := b.Find(t.Context(), Options{Objects: []string{"shop/snap", "shop/nosuch"}})
	require.ErrorContains(t, err, "there is no shop/nosuch; it must be namespace/name")
}

// maxPerBackup runs the clean-up of a starting backup, and returns its log.
func (b *bed) atBackup(ctx context.Context) string {
	var said bytes.Buffer
	log := logrus.New()
	log.SetOutput(&said)
	log.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true})
	<-b.AtBackup(ctx, log)
	return said.String()
}

func TestAtBackup(t *testing.T) {
	t.Run("nothing", func(t *testing.T) {
		b := newBed(t, newScene(onlyContent, func(s *scene) { s.content = nil }))
		assert.Empty(t, b.atBackup(t.Context()))
		assert.Len(t, b.requests, 6, b.requests)
	})
	t.Run("a snapshot that is kept", func(t *testing.T) {
		b := newBed(t, newScene(ours, kept, in(velerov1.BackupPhaseCompleted), moving("")))
		assert.Empty(t, b.atBackup(t.Context()))
		assert.Len(t, b.requests, 8, b.requests)
		assert.Contains(t, b.left(), "h1")
	})
	t.Run("of a failed backup", func(t *testing.T) {
		b := newBed(t, newScene(ours, failedRecord))
		said := b.atBackup(t.Context())
		assert.Contains(t, said, `level=info msg="Deleted a leftover: VolumeSnapshot shop/snap, 64Mi, 3h old: backup nightly is Failed"`)
		assert.Contains(t, said, "Deleted a leftover: ConfigMap configmap/stillpoint-group-1")
		assert.NotContains(t, said, "warning")
		assert.Empty(t, b.left())
	})
	t.Run("what is only listed", func(t *testing.T) {
		b := newBed(t, newScene())
		assert.Equal(t, "level=info msg=\"Kept snapshots of uncertain origin, which `stillpoint sweep` lists: 1\"\n", b.atBackup(t.Context()))
		assert.Contains(t, b.left(), "h1")
	})
	t.Run("shared with an object without a mark", func(t *testing.T) {
		b := newBed(t, newScene(ours, another(func(*snapshotv1.VolumeSnapshotContent) {})))
		assert.Empty(t, b.atBackup(t.Context()))
		assert.Contains(t, b.left(), "h1")
	})
	t.Run("the backup itself runs", func(t *testing.T) {
		b := newBed(t, newScene(ours, func(s *scene) { s.backups = append(s.backups, running("b3")) }))
		assert.Contains(t, b.atBackup(t.Context()), "Deleted a leftover: VolumeSnapshot shop/snap")
	})
	t.Run("the driver refuses", func(t *testing.T) {
		b := newBed(t, newScene(ours, func(s *scene) {
			for i := range 3 {
				another(marked("nightly", "b1"))(s)
				s.contents[i].Name, s.contents[i].Spec.Source.SnapshotHandle = fmt.Sprintf("other-%d", i), ptr.To("bad")
				s.contents[i].Status = &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: ptr.To("bad")}
			}
		}))
		b.refuses["bad"] = "the pool is offline"
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		said := b.atBackup(ctx)
		assert.Contains(t, said, "Deleted a leftover: VolumeSnapshot shop/snap")
		assert.Equal(t, 1, strings.Count(said, "level=warning"), said)
		assert.Contains(t, said, "Leftovers of earlier backups are not deleted yet, and the next backup tries again: 3")
	})
	t.Run("the API server refuses", func(t *testing.T) {
		b := newBed(t, newScene(ours))
		b.snapshots.PrependReactor("list", "volumesnapshotcontents", func(kubetesting.Action) (bool, runtime.Object, error) {
			return true, nil, errors.New("no rights")
		})
		assert.Equal(t, "level=warning msg=\"Snapshots that earlier backups may have left are not looked for: list the VolumeSnapshotContents: no rights\"\n", b.atBackup(t.Context()))
	})
	t.Run("too many", func(t *testing.T) {
		b := newBed(t, newScene(func(s *scene) {
			ours(s)
			for i := range 120 {
				vs := takenOf(fmt.Sprintf("data-%d", i))
				vs.UID = types.UID(fmt.Sprintf("n%d", i))
				s.snapshots = append(s.snapshots, *vs)
			}
		}))
		said := b.atBackup(t.Context())
		assert.Equal(t, 100, strings.Count(said, "msg=\"Deleted "))
		assert.Contains(t, said, "Earlier backups have left 121 objects; 100 of them are deleted now")
	})
}

func TestTable(t *testing.T) {
	s := newScene(ours, failedRecord, another(func(c *snapshotv1.VolumeSnapshotContent) {
		marked("nightly", "b1")(c)
		c.Status.RestoreSize = nil
	}))
	add := func(name string, changes ...func(*scene)) {
		more := newScene(changes...)
		more.vs.Name, more.vs.UID = name, types.UID(name)
		more.content.Name, more.content.Status.SnapshotHandle = name+"-content", ptr.To(name)
		more.content.Spec.VolumeSnapshotRef.Name, more.content.Spec.VolumeSnapshotRef.UID = name, more.vs.UID
		s.snapshots, s.contents = append(s.snapshots, *more.vs), append(s.contents, *more.content)
	}
	add("vetoed", ours, vetoed)
	add("theirs")
	add("restored", byOurRestore("here"))
	for name, c := range map[string]*scene{"some": s, "none": newScene(ours, in(velerov1.BackupPhaseInProgress))} {
		report, err := newBed(t, c).Find(t.Context(), Options{})
		require.NoError(t, err)
		var table, document bytes.Buffer
		require.NoError(t, report.Table(&table))
		golden(t, name+".golden", table.String())
		require.NoError(t, report.JSON(&document))
		golden(t, name+".json.golden", document.String())
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "set UPDATE_GOLDEN=1 to accept")
}

// A joined error is one line of a list.
func TestLineOfExternal(t *testing.T) {
	e := &External{Kind: "VolumeSnapshot", Namespace: "velero", Name: "x"}
	const object = "VolumeSnapshot velero/x of volumesnapshot.external-storage.k8s.io"
	assert.Equal(t, "Deleted "+object+" with its data, gone after 1.2s", e.Line(1234*time.Millisecond, nil))
	assert.Equal(t, "NOT DELETED: "+object+": the first the second", e.Line(0, errors.Join(errors.New("the first"), errors.New("the second"))))
}
