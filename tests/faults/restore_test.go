package faults

import (
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/tests/fake"
)

// longName is too long for the value of a label.
var longName = "nightly-" + strings.Repeat("x", 60)

func retained(_ *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
	volume.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
}

// again is a restore of a backup into namespace again, of a cluster that has lost the
// volumes' objects.
func again(bed *fake.Bed, backup *velerov1.Backup) *velerov1.Restore {
	for _, volume := range bed.API.All("persistentvolumes") {
		bed.API.Delete("persistentvolumes", "", volume.GetName())
	}
	bed.API.Put(bed.T, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "again"}})
	restore := bed.Restore(backup)
	restore.Spec.NamespaceMapping = map[string]string{"shop": "again"}
	bed.API.Put(bed.T, restore)
	return restore
}

// bound waits until a claim of namespace again has a volume, and returns its data.
func bound(bed *fake.Bed, claim string) string {
	data := ""
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		bed.Bind()
		if data = bed.DataOf("again", claim); !strings.HasPrefix(data, "unbound") {
			return data
		}
	}
	return data
}

func said(r *fake.Restoring, level logrus.Level, words ...string) bool {
	for _, entry := range r.Log.AllEntries() {
		found := entry.Level <= level
		for _, word := range words {
			found = found && strings.Contains(entry.Message, word)
		}
		if found {
			return true
		}
	}
	return false
}

// Of a backup whose name is no label Velero has no information on CSI snapshots, and
// brings volumes with reclaim policy Retain back as they are now.
func TestLongBackupName(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]func(*velerov1.Backup){"snapshots of Stillpoint": fake.WithPolicy, "snapshots of Velero": func(*velerov1.Backup) {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Claim: retained, Volumes: 2})
			v := bed.Velero()
			backup := bed.Backup(path, fake.Named(longName))
			r := v.Backup(backup, app)
			require.Empty(t, r.Dropped)
			assert.True(t, v.Said(logrus.WarnLevel, longName, "Retain"))
			tarball := bed.Tarball(r)

			restoring := bed.Restoring()
			out := restoring.Run(again(bed, backup), tarball)
			require.Empty(t, out.Errors)
			handles := []string{}
			for _, snapshot := range bed.Storage.Snapshots() {
				handles = append(handles, snapshot.Handle)
			}
			for _, claim := range app.Claims {
				assert.Contains(t, handles, bound(bed, claim))
			}
			assert.True(t, said(restoring, logrus.WarnLevel, "claim again/db-data0 gets the data of the backup instead"))
		})
	}
}

// The same of a volume that an earlier restore has left: it is not this one's to
// delete, so that the claim is refused.
func TestVolumeThatIsReserved(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{})
	backup := bed.Backup(fake.WithPolicy)
	tarball := bed.Tarball(bed.Velero().Backup(backup, app))
	restore := again(bed, backup)
	bed.API.Put(t, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "left", Labels: map[string]string{velerov1.RestoreNameLabel: "earlier"}},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain, ClaimRef: &corev1.ObjectReference{Namespace: "again", Name: "db-data0"},
		},
	})
	out := bed.Restoring().Run(restore, tarball)
	require.ErrorContains(t, out.Errors["PersistentVolumeClaim db-data0"], "PersistentVolume left with reclaim policy Retain is reserved for it by its claimRef")
	assert.Equal(t, "missing", bed.DataOf("again", "db-data0"))
}

// What cannot be prevented is an error: here a person has reserved a volume.
func TestClaimIsBoundToAnOlderVolume(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{})
	backup := bed.Backup(fake.WithPolicy)
	tarball := bed.Tarball(bed.Velero().Backup(backup, app))
	restore := again(bed, backup)
	bed.API.Put(t, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "of-a-person", CreationTimestamp: metav1.NewTime(time.Now().Add(-time.Hour))},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: fake.Driver, VolumeHandle: "now"}},
			ClaimRef:               &corev1.ObjectReference{Namespace: "again", Name: "db-data0"},
		},
	})
	out := bed.Restoring().Run(restore, tarball)
	require.Empty(t, out.Errors)
	require.Equal(t, "now", bound(bed, "db-data0"))
	assert.Contains(t, out.Progress()[0].Err, "claim again/db-data0 lacks the data of the backup: it is bound to PersistentVolume of-a-person")
}

// A server without EnableCSI does not restore from VolumeSnapshots.
func TestRestoreWithoutCSI(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{})
	backup := bed.Backup(fake.WithPolicy)
	tarball := bed.Tarball(bed.Velero().Backup(backup, app))
	restoring := bed.Restoring()
	restoring.WithoutCSI = true
	out := restoring.Run(again(bed, backup), tarball)
	require.ErrorContains(t, out.Errors["PersistentVolumeClaim db-data0"], "does this server run with --features=EnableCSI?")
}

// The mark of an earlier backup on a claim says nothing of this one.
func TestStaleMark(t *testing.T) {
	t.Parallel()
	marked := func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
		claim.Annotations = map[string]string{"stillpoint.io/no-snapshot": "of long ago"}
	}
	t.Run("is dropped from a backup with a snapshot", func(t *testing.T) {
		t.Parallel()
		bed := fake.New(t)
		r := bed.Velero().Backup(bed.Backup(), bed.Deploy(fake.App{Claim: marked}))
		require.Contains(t, r.Claims, "db-data0")
		assert.NotContains(t, r.Claims["db-data0"].Annotations, "stillpoint.io/no-snapshot")
	})
	for name, saved := range map[string]func(bed *fake.Bed, claim *corev1.PersistentVolumeClaim){
		"snapshot": nil,
		"fs-backup": func(bed *fake.Bed, claim *corev1.PersistentVolumeClaim) {
			delete(claim.Annotations, velerov1.VolumeSnapshotLabel)
			bed.API.Put(bed.T, &velerov1.PodVolumeBackup{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: fake.VeleroNamespace, Name: "pvb", Labels: map[string]string{velerov1.BackupNameLabel: "nightly"},
					Annotations: map[string]string{"velero.io/pvc-name": claim.Name},
				},
				Spec:   velerov1.PodVolumeBackupSpec{Pod: corev1.ObjectReference{Namespace: "shop"}},
				Status: velerov1.PodVolumeBackupStatus{Phase: velerov1.PodVolumeBackupPhaseCompleted},
			})
		},
		"nothing": func(_ *fake.Bed, claim *corev1.PersistentVolumeClaim) {
			delete(claim.Annotations, velerov1.VolumeSnapshotLabel)
		},
	} {
		t.Run("restored with "+name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			backup := bed.Backup()
			r := bed.Velero().Backup(backup, bed.Deploy(fake.App{}))
			claim := r.Claims["db-data0"] // as an older Stillpoint has left it
			metav1.SetMetaDataAnnotation(&claim.ObjectMeta, "stillpoint.io/no-snapshot", "of long ago")
			if saved != nil {
				saved(bed, claim)
			}
			tarball := bed.Tarball(r)
			out := bed.Restoring().Run(again(bed, backup), tarball)
			if name == "nothing" {
				require.ErrorContains(t, out.Errors["PersistentVolumeClaim db-data0"], "has no snapshot of its volume (of long ago)")
				return
			}
			require.Empty(t, out.Errors)
			restored := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "again", Name: "db-data0"}}
			require.True(t, bed.API.Get(t, restored))
			assert.NotContains(t, restored.Annotations, "stillpoint.io/no-snapshot")
			if name == "snapshot" {
				assert.Equal(t, bed.Storage.Snapshots()[0].Handle, bound(bed, "db-data0"))
			}
		})
	}
}

// Finalizers by which controllers protect an object for a moment are not restored:
// on the copy nothing removes them.
func TestFinalizers(t *testing.T) {
	t.Parallel()
	transient := map[string][]string{
		"PersistentVolumeClaim": {
			"snapshot.storage.kubernetes.io/pvc-as-source-protection", "provisioner.storage.kubernetes.io/cloning-protection",
			"forklift.konveyor.io/populate-target-protection",
		},
		"PersistentVolume":      {"external-attacher/disk-example-com"},
		"VolumeSnapshot":        {"snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection", "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection", "snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection"},
		"VolumeSnapshotContent": {"snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"},
	}
	own := "example.com/keeps-it"
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Claim: func(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
		claim.Finalizers = append([]string{"kubernetes.io/pvc-protection", own}, transient["PersistentVolumeClaim"]...)
		volume.Finalizers = append([]string{own}, transient["PersistentVolume"]...)
	}})
	t.Run("backed up", func(t *testing.T) {
		for name, path := range map[string]func(*velerov1.Backup){"snapshots of Stillpoint": fake.WithPolicy, "snapshots of Velero": func(*velerov1.Backup) {}} {
			v := bed.Velero()
			backup := bed.Backup(path, fake.Named(strings.ReplaceAll(strings.ToLower(name), " ", "-")))
			r := v.Backup(backup, app)
			assert.Equal(t, []string{"kubernetes.io/pvc-protection", own}, r.Claims["db-data0"].Finalizers, name)
			volume, _, err := v.Volume.Execute(&bed.API.All("persistentvolumes")[0], backup)
			require.NoError(t, err)
			assert.Equal(t, []string{own}, finalizersOf(volume))
		}
	})
	t.Run("restored", func(t *testing.T) {
		backup := bed.Backup()
		restore := again(bed, backup)
		restoring := bed.Restoring()
		for kind, execute := range map[string]func(runtime.Object) (runtime.Unstructured, error){
			"PersistentVolumeClaim": func(o runtime.Object) (runtime.Unstructured, error) {
				output, err := restoring.Claims.Execute(bed.Input(o, o, restore))
				return output.UpdatedItem, err
			},
			"PersistentVolume": func(o runtime.Object) (runtime.Unstructured, error) {
				output, err := restoring.Volumes.Execute(bed.Input(o, o, restore))
				return output.UpdatedItem, err
			},
			"VolumeSnapshot": func(o runtime.Object) (runtime.Unstructured, error) {
				output, err := restoring.Snapshots.Execute(bed.Input(o, o, restore))
				return output.UpdatedItem, err
			},
			"VolumeSnapshotContent": func(o runtime.Object) (runtime.Unstructured, error) {
				output, err := restoring.Snapshots.Execute(bed.Input(o, o, restore))
				return output.UpdatedItem, err
			},
		} {
			o := &unstructured.Unstructured{Object: map[string]any{"kind": kind, "metadata": map[string]any{"name": "x"}}}
			o.SetFinalizers(append(transient[kind], own))
			after, err := execute(o)
			require.NoError(t, err, kind)
			assert.Equal(t, []string{own}, finalizersOf(after), kind)
		}
	})
}

// A claim of a generic ephemeral volume is of use only to the pod that owns it, and an
// object of an operator only to the operator's own.
func TestOwnerReferences(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	bed.API.AddKind(fake.Kind{Group: "db.example.com", Version: "v1", Resource: "clusters", Kind: "Cluster", Namespaced: true})
	cluster := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "db.example.com/v1", "kind": "Cluster", "metadata": map[string]any{"namespace": "shop", "name": "main", "uid": "c1"}}}
	ownedBy := func(apiVersion, kind, name string) []metav1.OwnerReference {
		return []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: name, UID: "old-x", Controller: ptr.To(true), BlockOwnerDeletion: ptr.To(true)}}
	}
	secret := func(name string, owners []metav1.OwnerReference) *corev1.Secret {
		return &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, OwnerReferences: owners}}
	}
	app := bed.Deploy(fake.App{Kind: "StatefulSet", Claim: func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
		claim.Name = "db-0-scratch"
		claim.OwnerReferences = ownedBy("v1", "Pod", "db-0")
	}, Pod: func(pod *corev1.Pod) {
		pod.Spec.Volumes[0] = corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}
	}})
	app.Claims = []string{"db-0-scratch"}
	backup := bed.Backup(fake.WithPolicy)
	r := bed.Velero().Backup(backup, app)
	tarball := append(bed.Tarball(r), cluster, secret("password", ownedBy("db.example.com/v1", "Cluster", "main")),
		secret("of-another", ownedBy("db.example.com/v1", "Cluster", "elsewhere")))

	restore := again(bed, backup)
	bed.API.Put(t, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "db.example.com/v1", "kind": "Cluster", "metadata": map[string]any{"namespace": "again", "name": "elsewhere"}}})
	out := bed.Restoring().Run(restore, tarball)
	require.Empty(t, out.Errors)
	var texts []string
	for _, progress := range out.Progress() {
		assert.Empty(t, progress.Err)
		texts = append(texts, progress.Description)
	}
	owners := func(resource, name string) []metav1.OwnerReference {
		for _, object := range bed.API.All(resource) {
			if object.GetNamespace() == "again" && object.GetName() == name {
				return object.GetOwnerReferences()
			}
		}
		t.Fatalf("there is no %s %s", resource, name)
		return nil
	}
	uid := func(resource, name string) string {
		for _, object := range bed.API.All(resource) {
			if object.GetNamespace() == "again" && object.GetName() == name {
				return string(object.GetUID())
			}
		}
		return ""
	}
	for _, test := range []struct{ resource, name, of, owner string }{
		{"persistentvolumeclaims", "db-0-scratch", "pods", "db-0"}, {"secrets", "password", "clusters", "main"},
	} {
		refs := owners(test.resource, test.name)
		require.Len(t, refs, 1, test.name)
		assert.Equal(t, uid(test.of, test.owner), string(refs[0].UID))
		assert.True(t, *refs[0].Controller)
	}
	assert.Empty(t, owners("secrets", "of-another"), "its owner is not of the backup")
	assert.Empty(t, owners("pods", "db-0"), "controllers adopt their pods themselves")
	assert.Contains(t, texts, "PersistentVolumeClaim again/db-0-scratch is owned by Pod db-0 again")
	assert.Contains(t, texts, "Secret again/of-another has lost its owner Cluster elsewhere, which this restore did not bring back")
}

// A volume that was made by hand has no StorageClass, or one that provisions nothing,
// and its claim chose it by labels.
func TestStaticVolume(t *testing.T) {
	t.Parallel()
	for name, class := range map[string]*string{"empty": ptr.To(""), "no object": ptr.To("manual"), "no provisioner": ptr.To("by-hand")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			for name, fileSystem := range map[string]string{"a-xfs": "xfs", "plain": "ext4"} {
				bed.API.Put(t, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: fake.Driver, Parameters: map[string]string{"csi.storage.k8s.io/fstype": fileSystem}})
			}
			bed.API.Put(t, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "by-hand"}, Provisioner: "kubernetes.io/no-provisioner"})
			app := bed.Deploy(fake.App{Claim: func(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
				retained(claim, volume)
				claim.Spec.StorageClassName, volume.Spec.StorageClassName = class, ptr.Deref(class, "")
				claim.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"disk": "one"}}
			}})
			v := bed.Velero()
			backup := bed.Backup(fake.WithPolicy)
			r := v.Backup(backup, app)
			require.Empty(t, v.Errors())
			assert.Equal(t, "plain", *r.Claims["db-data0"].Spec.StorageClassName)
			tarball := bed.Tarball(r)
			out := bed.Restoring().Run(again(bed, backup), tarball)
			require.Empty(t, out.Errors)
			assert.Equal(t, bed.Storage.Snapshots()[0].Handle, bound(bed, "db-data0"))
		})
	}
}

// Velero's own action drops a claim whose storageClassName is absent, whoever takes
// the snapshot. The check says so beforehand.
func TestClaimThatVeleroDrops(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Claim: func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
		claim.Spec.StorageClassName = nil
	}})
	require.ErrorContains(t, bed.Velero().Backup(bed.Backup(fake.WithPolicy), app).Dropped["db-data0"], "PVC has no storage class")
	code, stdout, _ := bed.Command("check", "--namespace", "shop", "--policy", fake.Policy)
	assert.NotZero(t, code)
	assert.Contains(t, stdout, "has no storageClassName, not even an empty one")
}

// Volumes of which the backup has no data come back as the configuration says, and
// both the backup and the restore say how.
func TestVolumesWithoutData(t *testing.T) {
	t.Parallel()
	retain, remove := corev1.PersistentVolumeReclaimRetain, corev1.PersistentVolumeReclaimDelete
	for _, test := range []struct {
		mode   string
		policy corev1.PersistentVolumeReclaimPolicy
		data   string // of the restored claim
	}{
		{"", retain, "now"},
		{"velero", retain, "now"},
		{"provision", retain, "empty"},
		{"refuse", retain, "missing"},
		{"velero", remove, "empty"},
		{"provision", remove, "empty"},
		{"refuse", remove, "missing"},
	} {
		t.Run(test.mode+" "+string(test.policy), func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			effective := "restore.volumesWithoutData: velero"
			if test.mode != "" {
				bed.Configure("version: v1\nrestore: {volumesWithoutData: " + test.mode + "}\n")
				effective = "restore.volumesWithoutData: " + test.mode
			}
			app := bed.Deploy(fake.App{Claim: func(_ *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
				volume.Spec.PersistentVolumeReclaimPolicy, volume.Spec.CSI.VolumeHandle = test.policy, "now"
			}})
			v := bed.Velero()
			backup := bed.Backup(func(b *velerov1.Backup) { b.Spec.SnapshotVolumes = ptr.To(false) })
			r := v.Backup(backup, app)
			assert.Equal(t, test.policy == retain, v.Said(logrus.InfoLevel, "No snapshot in the backup: claim shop/db-data0", effective), v.Lines(logrus.InfoLevel))
			tarball := bed.Tarball(r)
			restoring := bed.Restoring()
			out := restoring.Run(again(bed, backup), tarball)
			assert.Equal(t, test.policy == retain, said(restoring, logrus.WarnLevel, "No data of the backup: PersistentVolume pvc-", effective))
			if test.data == "missing" {
				require.ErrorContains(t, out.Errors["PersistentVolumeClaim db-data0"], "has no data of its volume ("+effective+")")
				assert.Empty(t, bed.API.All("persistentvolumes"))
			} else {
				require.Empty(t, out.Errors)
			}
			assert.Equal(t, test.data, bound(bed, "db-data0"))
		})
	}
}

// A VolumeSnapshotter's volume is one with data, whatever else the claim says.
func TestVolumeOfASnapshotter(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	bed.Configure("version: v1\nrestore: {volumesWithoutData: refuse}\n")
	app := bed.Deploy(fake.App{Claim: func(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
		retained(claim, volume)
		claim.Annotations = map[string]string{"stillpoint.io/no-snapshot": "of long ago"}
	}})
	backup := bed.Backup(fake.Named(longName))
	volume := &bed.API.All("persistentvolumes")[0]
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: app.Namespace, Name: app.Claims[0]}}
	require.True(t, bed.API.Get(t, claim))
	restore := again(bed, backup)
	restoring := bed.Restoring()
	filled := volume.DeepCopy()
	require.NoError(t, unstructured.SetNestedField(filled.Object, "from-the-snapshot", "spec", "csi", "volumeHandle"))
	output, err := restoring.Volumes.Execute(bed.Input(filled, volume, restore))
	require.NoError(t, err)
	assert.False(t, output.SkipRestore)
	_, err = restoring.Claims.Execute(bed.Input(claim, claim, restore))
	require.NoError(t, err)
}

func finalizersOf(item runtime.Unstructured) []string {
	return (&unstructured.Unstructured{Object: item.UnstructuredContent()}).GetFinalizers()
}
