package restore

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	snapshotfake "github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned/fake"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/client"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework/common"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"github.com/vmware-tanzu/velero/pkg/restore/actions/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
	crfake "sigs.k8s.io/controller-runtime/pkg/client/fake"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
)

// The files in testdata are the items of one volume in a backup that Velero
// made on the test bed, without their managedFields. These are their names.
const (
	sourceDriver    = "loop.csi.stillpoint.io"
	sourceClass     = "e2e-dmfhr"
	sourceNamespace = "e2e-gs7xq"
)

// target is the cluster that a volume is restored to. Velero's own action and then
// Stillpoint's process each item, which is created if neither refuses it.
type target struct {
	t         *testing.T
	kube      *fake.Clientset
	snapshots *snapshotfake.Clientset
	velero    crclient.WithWatch
	clock     *clocktesting.FakePassiveClock
	restorer  *Restorer
	log       *logtest.Hook
	restore   *velerov1.Restore
	// exported is the backup's annotation on its snapshots, "" if none.
	exported string
	// operation is the operation of the last claim.
	operation string
	// forgetful starts a new process for each item.
	forgetful bool
}

// newTarget returns a cluster with these classes. Velero uses the first one, "a".
// settings are the section `restore` of the configuration.
func newTarget(t *testing.T, settings string, classes ...snapshotv1.VolumeSnapshotClass) *target {
	t.Helper()
	w := &target{t: t, restore: &velerov1.Restore{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "again", UID: "5c0d6a3e"},
		Spec:       velerov1.RestoreSpec{BackupName: "monday", NamespaceMapping: map[string]string{sourceNamespace: "shop"}},
	}}
	var cluster []runtime.Object
	for _, name := range []string{sourceDriver, "new.csi", "bare.csi"} {
		cluster = append(cluster, &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	if settings != "" {
		cluster = append(cluster, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "velero", Name: "settings",
				Labels: map[string]string{"velero.io/plugin-config": "", "stillpoint.io/stillpoint": "Configuration"},
			},
			Data: map[string]string{"config.yaml": "version: v1\nrestore: " + settings},
		})
	}
	w.kube = fake.NewClientset(cluster...)
	w.snapshots = snapshotfake.NewSimpleClientset()
	w.clock = clocktesting.NewFakePassiveClock(time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC))
	seen := []runtime.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "velero", UID: "here"}},
		&velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "monday", UID: "b1"}},
	}
	for _, class := range classes {
		_, err := w.snapshots.SnapshotV1().VolumeSnapshotClasses().Create(t.Context(), &class, metav1.CreateOptions{})
		require.NoError(t, err)
		// Velero uses another version of these types.
		class.SetGroupVersionKind(snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshotClass"))
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&class)
		require.NoError(t, err)
		seen = append(seen, &unstructured.Unstructured{Object: content})
	}
	w.velero = crfake.NewClientBuilder().WithScheme(veleroScheme(t)).WithRuntimeObjects(seen...).Build()
	w.newProcess()
	return w
}

// veleroScheme returns the scheme of Velero's own client. Creating the client sends no
// request.
func veleroScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(file, []byte(`{
		"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
		"contexts": [{"name": "c", "context": {"cluster": "c"}}],
		"current-context": "c"
	}`), 0o600))
	t.Setenv("KUBECONFIG", file)
	made, err := client.NewFactory("stillpoint", client.VeleroConfig{}).KubebuilderClient()
	require.NoError(t, err)
	return made.Scheme()
}

func (w *target) newProcess() {
	log, hook := logtest.NewNullLogger()
	w.log = hook
	w.restorer = NewRestorer(&cluster.Clients{Kube: w.kube, Snapshots: w.snapshots, Objects: w.velero, Remembered: w.velero, VeleroNamespace: "velero"}, w.clock, log)
	w.restorer.wait = 3 * pollInterval
}

// factory provides the client of Velero's actions.
type factory struct {
	client.Factory
	client crclient.Client
}

func (f factory) KubebuilderClient() (crclient.Client, error) { return f.client, nil }

func backedUp(t *testing.T, file string) *unstructured.Unstructured {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file+".json"))
	require.NoError(t, err)
	item := &unstructured.Unstructured{}
	require.NoError(t, json.Unmarshal(text, item))
	return item
}

// item returns the item of a file as Velero's own action leaves it, nil if that action
// excludes it.
func (w *target) item(file string) *Item {
	w.t.Helper()
	original := backedUp(w.t, file)
	if kind := original.GetKind(); w.exported != "" && (kind == "VolumeSnapshot" || kind == "VolumeSnapshotContent") {
		annotate(original, api.AnnotationExported, w.exported)
	}
	var initialize common.HandlerInitializer
	switch original.GetKind() {
	case "VolumeSnapshotClass":
		initialize = csi.NewVolumeSnapshotClassRestoreItemAction
	case "VolumeSnapshotContent":
		initialize = csi.NewVolumeSnapshotContentRestoreItemAction(factory{client: w.velero})
	case "VolumeSnapshot":
		initialize = csi.NewVolumeSnapshotRestoreItemAction(factory{client: w.velero})
	default:
		initialize = csi.NewPvcRestoreItemAction(factory{client: w.velero})
	}
	quiet := logrus.New()
	quiet.SetLevel(logrus.PanicLevel)
	made, err := initialize(quiet)
	require.NoError(w.t, err)
	action, ok := made.(interface {
		Execute(*velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error)
	})
	require.True(w.t, ok)
	item := original.DeepCopy()
	unstructured.RemoveNestedField(item.Object, "status") // by Velero's restore itself
	output, err := action.Execute(&velero.RestoreItemActionExecuteInput{Item: item, ItemFromBackup: original, Restore: w.restore})
	require.NoError(w.t, err)
	if output.SkipRestore {
		return nil
	}
	return &Item{Object: &unstructured.Unstructured{Object: output.UpdatedItem.UnstructuredContent()}, BackedUp: original, Restore: w.restore}
}

// bring restores one item. It returns the item as created, nil if it was not created.
func (w *target) bring(file string) (*unstructured.Unstructured, error) {
	w.t.Helper()
	if w.forgetful {
		w.newProcess()
	}
	item := w.item(file)
	if item == nil {
		return nil, nil //nolint:nilnil // not created, as asked
	}
	var skip bool
	var err error
	switch item.BackedUp.GetKind() {
	case "VolumeSnapshotClass":
		skip, err = w.restorer.Class(w.t.Context(), *item)
	case "VolumeSnapshotContent":
		if err = w.restorer.Content(w.t.Context(), *item); err == nil {
			_, err := w.snapshots.SnapshotV1().VolumeSnapshotContents().Create(w.t.Context(), typed(w.t, item.Object, &snapshotv1.VolumeSnapshotContent{}), metav1.CreateOptions{})
			require.NoError(w.t, err)
		}
	case "VolumeSnapshot":
		if err = w.restorer.Snapshot(w.t.Context(), *item); err == nil {
			_, err := w.snapshots.SnapshotV1().VolumeSnapshots("shop").Create(w.t.Context(), inShop(typed(w.t, item.Object, &snapshotv1.VolumeSnapshot{})), metav1.CreateOptions{})
			require.NoError(w.t, err)
		}
	default:
		w.operation, err = w.restorer.Claim(w.t.Context(), *item)
	}
	if err != nil || skip {
		return nil, err
	}
	return item.Object, nil
}

func typed[T any](t *testing.T, from *unstructured.Unstructured, into T) T {
	t.Helper()
	require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(from.Object, into))
	return into
}

// inShop makes the changes that Velero makes after all actions.
func inShop(snapshot *snapshotv1.VolumeSnapshot) *snapshotv1.VolumeSnapshot {
	snapshot.Namespace = "shop"
	return snapshot
}

// volume are all items of one volume, in Velero's order.
var volume = []string{"content", "snapshot", "claim"}

func TestVolumeComesBack(t *testing.T) {
	type want struct{ driver, class, policy string } // class "" for none
	for name, test := range map[string]struct {
		settings string
		want     want
		log      string
	}{
		"without a map, as Velero does it": {
			want: want{sourceDriver, "a", "Retain"},
		},
		"with a map of others": {
			settings: "{drivers: [{from: x.csi, to: new.csi}]}",
			want:     want{sourceDriver, "a", "Retain"},
		},
		"class": {
			settings: "{snapshotClasses: [{from: " + sourceClass + ", to: b}]}",
			want:     want{sourceDriver, "b", "Retain"}, log: "restore.snapshotClasses maps e2e-dmfhr to b",
		},
		"driver": {
			settings: "{drivers: [{from: " + sourceDriver + ", to: new.csi}]}",
			want:     want{"new.csi", "new", "Retain"}, log: "restore.drivers maps driver loop.csi.stillpoint.io to new.csi",
		},
		"driver without a class": {
			settings: "{drivers: [{from: " + sourceDriver + ", to: bare.csi}]}",
			want:     want{"bare.csi", "", "Retain"}, log: "class none",
		},
		"policy": {
			settings: "{deletionPolicy: Delete}",
			want:     want{sourceDriver, "a", "Delete"}, log: "deletion policy Delete",
		},
		"all": {
			settings: "{deletionPolicy: Delete, drivers: [{from: " + sourceDriver + ", to: new.csi}], snapshotClasses: [{from: " + sourceClass + ", to: new}]}",
			want:     want{"new.csi", "new", "Delete"},
		},
	} {
		for _, forgetful := range []bool{false, true} {
			t.Run(name+map[bool]string{true: ", processes that die"}[forgetful], func(t *testing.T) {
				w := newTarget(t, test.settings, class("a", sourceDriver), class("b", sourceDriver), class("new", "new.csi"))
				w.forgetful = forgetful
				made := map[string]*unstructured.Unstructured{}
				for _, file := range volume {
					before := w.item(file)
					var err error
					made[file], err = w.bring(file)
					require.NoError(t, err, file)
					if test.want == (want{sourceDriver, "a", "Retain"}) {
						if file == "snapshot" {
							before.Object.SetLabels(made[file].GetLabels()) // it is marked
						}
						assert.Equal(t, before.Object, made[file], "as Velero left it")
					}
					if file == "content" && !forgetful && test.log != "" {
						assert.Contains(t, messages(w.log), test.log)
					}
				}
				content := typed(t, made["content"], &snapshotv1.VolumeSnapshotContent{})
				assert.Equal(t, test.want, want{content.Spec.Driver, ptr.Deref(content.Spec.VolumeSnapshotClassName, ""), string(content.Spec.DeletionPolicy)})
				assert.Equal(t, "snapshot-fbc5f1ed-6bef-49fa-aaf6-10cf861cb0f0", *content.Spec.Source.SnapshotHandle)
				annotations := made["snapshot"].GetAnnotations()
				assert.Equal(t, test.want.driver, annotations[velerov1.DriverNameAnnotation])
				assert.Equal(t, test.want.policy, annotations[velerov1.VSCDeletionPolicyAnnotation])
			})
		}
	}
}

func messages(log *logtest.Hook) string {
	var all []string
	for _, entry := range log.AllEntries() {
		all = append(all, entry.Message)
	}
	return strings.Join(all, "\n")
}

// Without a configuration there is one request for it, one for the backup, two for an
// existing claim and its volume, and those that mark the claim's source.
func TestRequestsWithoutMaps(t *testing.T) {
	w := newTarget(t, "", class("a", sourceDriver))
	for _, file := range append([]string{"class"}, volume...) {
		_, err := w.bring(file)
		require.NoError(t, err)
	}
	var asked []string
	for _, action := range w.kube.Actions() {
		asked = append(asked, action.GetVerb()+" "+action.GetResource().Resource)
	}
	assert.Equal(t, []string{"list configmaps", "get persistentvolumeclaims", "list persistentvolumes"}, asked)
	asked = nil
	for _, action := range w.snapshots.Actions() {
		if action.GetVerb() != "create" { // which is this test's
			asked = append(asked, action.GetVerb()+" "+action.GetResource().Resource)
		}
	}
	assert.Equal(t, []string{"get volumesnapshots", "get volumesnapshotcontents", "patch volumesnapshotcontents"}, asked,
		"this backup's content has no origin")
}

// Each object of the volume reports an invalid map, and none is created, even if the
// process dies after each.
func TestVolumeIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		settings string
		wants    []string
	}{
		"no such class": {
			"{snapshotClasses: [{from: " + sourceClass + ", to: nowhere}]}",
			[]string{sourceClass, `"nowhere"`, "here: a, b"},
		},
		"class of another driver": {
			"{snapshotClasses: [{from: " + sourceClass + ", to: new}]}",
			[]string{sourceClass, `"new"`, "new.csi", "here: a, b"},
		},
		"no such driver": {
			"{drivers: [{from: " + sourceDriver + ", to: nowhere.csi}]}",
			[]string{sourceDriver, `"nowhere.csi"`, "its drivers: bare.csi, loop.csi.stillpoint.io, new.csi"},
		},
		"ambiguous": {
			"{snapshotClasses: [{from: " + sourceClass + ", skip: true}]}",
			[]string{"restore.snapshotClasses skips " + sourceClass, "a", "b"},
		},
		"invalid": {
			"{driver: []}",
			[]string{"velero/settings", "restore.driver"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTarget(t, test.settings, class("a", sourceDriver), class("b", sourceDriver), class("new", "new.csi"))
			for _, file := range volume {
				_, err := w.bring(file)
				for _, want := range test.wants {
					assert.ErrorContains(t, err, want, file)
				}
			}
		})
		t.Run(name+", processes that die", func(t *testing.T) {
			w := newTarget(t, test.settings, class("a", sourceDriver), class("b", sourceDriver), class("new", "new.csi"))
			w.forgetful = true
			for _, file := range volume {
				_, err := w.bring(file)
				assert.ErrorContains(t, err, "is not restored", file)
			}
		})
	}
}

// A new process detects the refusal by the missing objects.
func TestMissingContentWasRefused(t *testing.T) {
	w := newTarget(t, "{snapshotClasses: [{from: "+sourceClass+", to: b}]}", class("a", sourceDriver), class("b", sourceDriver))
	_, err := w.bring("snapshot")
	require.ErrorContains(t, err, "VolumeSnapshot e2e-gs7xq/velero-app-data0-n4qjt is not restored: its VolumeSnapshotContent")
	_, err = w.bring("claim")
	require.ErrorContains(t, err, "claim e2e-gs7xq/app-data0 is not restored: its VolumeSnapshot e2e-gs7xq/velero-app-data0-n4qjt was refused")
	w.newProcess()
	_, err = w.bring("claim")
	require.ErrorContains(t, err, "claim e2e-gs7xq/app-data0 is not restored: its VolumeSnapshot e2e-gs7xq/velero-app-data0-n4qjt, shop/")
}

// A VolumeSnapshot without a driver's name depends only on its content.
func TestSnapshotWithoutADriver(t *testing.T) {
	w := newTarget(t, "{snapshotClasses: [{from: "+sourceClass+", to: b}]}", class("a", sourceDriver), class("b", sourceDriver))
	_, err := w.bring("content")
	require.NoError(t, err)
	w.newProcess()
	item := w.item("snapshot")
	unannotate(item.BackedUp, velerov1.DriverNameAnnotation)
	require.NoError(t, w.restorer.Snapshot(t.Context(), *item))
}

// The configuration at the restore's first item and the decision at the volume's first
// item apply to the end.
func TestDecisionsStand(t *testing.T) {
	w := newTarget(t, "{snapshotClasses: [{from: "+sourceClass+", to: b}]}", class("a", sourceDriver), class("b", sourceDriver))
	_, err := w.bring("content")
	require.NoError(t, err)
	require.NoError(t, w.kube.CoreV1().ConfigMaps("velero").Delete(t.Context(), "settings", metav1.DeleteOptions{}))
	require.NoError(t, w.snapshots.SnapshotV1().VolumeSnapshotClasses().Delete(t.Context(), "b", metav1.DeleteOptions{}))
	snapshot, err := w.bring("snapshot")
	require.NoError(t, err)
	assert.NotNil(t, snapshot)
	w.restore.UID = "another"
	content, err := w.bring("content")
	require.NoError(t, err)
	assert.Equal(t, "a", *typed(t, content, &snapshotv1.VolumeSnapshotContent{}).Spec.VolumeSnapshotClassName)
}

func TestClass(t *testing.T) {
	for name, test := range map[string]struct {
		settings     string
		name, driver string // "" for one that is left out
		err          string
	}{
		"no map":            {"", sourceClass, sourceDriver, ""},
		"skip":              {"{snapshotClasses: [{from: " + sourceClass + ", skip: true}]}", "", "", ""},
		"another name":      {"{snapshotClasses: [{from: " + sourceClass + ", to: c}]}", "c", sourceDriver, ""},
		"onto one there is": {"{snapshotClasses: [{from: " + sourceClass + ", to: a}]}", "", "", ""},
		"another driver":    {"{drivers: [{from: " + sourceDriver + ", to: new.csi}]}", sourceClass, "new.csi", ""},
		"onto another's":    {"{snapshotClasses: [{from: " + sourceClass + ", to: new}]}", "", "", "VolumeSnapshotClass e2e-dmfhr is not restored: restore.snapshotClasses maps"},
		"invalid":           {"{driver: []}", "", "", "VolumeSnapshotClass e2e-dmfhr is not restored: read the restore maps"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTarget(t, test.settings, class("a", sourceDriver), class("new", "new.csi"))
			w.restore.Spec.IncludeClusterResources = ptr.To(true)
			made, err := w.bring("class")
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			if test.name == "" {
				assert.Nil(t, made)
				return
			}
			assert.Equal(t, test.name, made.GetName())
			assert.Equal(t, test.driver, typed(t, made, &snapshotv1.VolumeSnapshotClass{}).Driver)
		})
	}
}

// Velero restores classes by itself. Stillpoint then creates none for a map.
func TestUnrequestedClass(t *testing.T) {
	w := newTarget(t, "{snapshotClasses: [{from: "+sourceClass+", to: c}]}", class("a", sourceDriver))
	_, err := w.bring("class")
	require.ErrorContains(t, err, "VolumeSnapshotClass e2e-dmfhr is not restored: restore.snapshotClasses maps")
}

// A claim without a snapshot in the backup comes back only if the user asked for it.
// That needs no configuration, and no valid one.
func TestUnsavedClaim(t *testing.T) {
	live := func(change func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "unsaved-data0"}}
		if change != nil {
			change(claim)
		}
		return claim
	}
	for name, test := range map[string]struct {
		restorePVs *bool
		live       *corev1.PersistentVolumeClaim
		refused    bool
	}{
		"refused":              {refused: true},
		"refused, asked for":   {restorePVs: ptr.To(true), refused: true},
		"empty on purpose":     {restorePVs: ptr.To(false)},
		"exists":               {live: live(nil)},
		"exists elsewhere":     {live: live(func(claim *corev1.PersistentVolumeClaim) { claim.Namespace = sourceNamespace }), refused: true},
		"exists, about to go":  {live: live(func(claim *corev1.PersistentVolumeClaim) { claim.DeletionTimestamp = ptr.To(metav1.Now()) }), refused: true},
		"another one is there": {live: live(func(claim *corev1.PersistentVolumeClaim) { claim.Name = "app-data0" }), refused: true},
		"about to go, on purpose": {
			live:       live(func(claim *corev1.PersistentVolumeClaim) { claim.DeletionTimestamp = ptr.To(metav1.Now()) }),
			restorePVs: ptr.To(false),
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTarget(t, "{driver: []}")
			w.restore.Spec.RestorePVs = test.restorePVs
			if test.live != nil {
				require.NoError(t, w.kube.Tracker().Add(test.live))
			}
			made, err := w.bring("claim-unsaved")
			if test.refused {
				require.EqualError(t, err, "claim e2e-gs7xq/unsaved-data0 is not restored: backup monday has no snapshot of its volume (not frozen in time), "+
					"so that it would come back empty; restore it from another backup, or bring it back empty on purpose with --restore-volumes=false (RestorePVs), "+
					"which then holds for every claim of that restore")
				return
			}
			require.NoError(t, err)
			assert.NotContains(t, made.GetAnnotations(), api.AnnotationNoSnapshot)
			assert.Contains(t, made.GetAnnotations(), "volume.kubernetes.io/storage-provisioner", "the others stay")
		})
	}
}

// A StatefulSet's controller would create the refused claim.
func TestStatefulSetOfAnUnsavedClaim(t *testing.T) {
	for name, test := range map[string]struct {
		namespace, set, template string
		refused                  bool
	}{
		"its own claim":     {"e2e-gs7xq", "db", "data", true},
		"another set's":     {"e2e-gs7xq", "db-1", "data", false},
		"another template":  {"e2e-gs7xq", "db", "wal", false},
		"another namespace": {"shop", "db", "data", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTarget(t, "{driver: []}")
			item := w.item("claim-unsaved")
			item.BackedUp.SetName("data-db-0")
			_, err := w.restorer.Claim(t.Context(), *item)
			require.Error(t, err)
			set := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"volumeClaimTemplates": []any{
				map[string]any{"metadata": map[string]any{"name": test.template}},
			}}}}
			set.SetNamespace(test.namespace)
			set.SetName(test.set)
			err = w.restorer.StatefulSet(Item{Object: set, BackedUp: set, Restore: item.Restore})
			if test.refused {
				require.EqualError(t, err, "StatefulSet e2e-gs7xq/db is not restored: its claim data-db-0 was refused, and its controller would make an empty one")
			} else {
				require.NoError(t, err)
			}
		})
	}
}

// The maps do not apply to a claim that Velero does not fill from a snapshot.
func TestClaimWithAnotherSource(t *testing.T) {
	w := newTarget(t, "{driver: []}")
	item := w.item("claim")
	require.NoError(t, set(item.Object, "of-its-own", "spec", "dataSource", "name"))
	_, err := w.restorer.Claim(t.Context(), *item)
	require.NoError(t, err)
	unstructured.RemoveNestedField(item.Object.Object, "spec", "dataSource")
	_, err = w.restorer.Claim(t.Context(), *item)
	require.ErrorContains(t, err, "Velero has not made it the data source of the claim: does this server run with --features=EnableCSI?")
}

// A claim that is restored empty on purpose needs no map either.
func TestEmptyClaimNeedsNoMap(t *testing.T) {
	w := newTarget(t, "{driver: []}")
	w.restore.Spec.RestorePVs = ptr.To(false)
	for _, file := range append([]string{"class"}, volume...) {
		_, err := w.bring(file)
		require.NoError(t, err, file)
	}
}

func class(name, driver string) snapshotv1.VolumeSnapshotClass {
	return snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Driver: driver}
}
