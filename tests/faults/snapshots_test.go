package faults

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/tests/fake"
)

const patient = 15 * time.Second

// snapshotsOf are the VolumeSnapshots of a cluster, contentsOf their contents.
func snapshotsOf(bed *fake.Bed) (all []snapshotv1.VolumeSnapshot) {
	for _, object := range bed.API.All("volumesnapshots") {
		vs := snapshotv1.VolumeSnapshot{}
		require.NoError(bed.T, runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &vs))
		all = append(all, vs)
	}
	return all
}

func contentsOf(bed *fake.Bed) (all []snapshotv1.VolumeSnapshotContent) {
	for _, object := range bed.API.All("volumesnapshotcontents") {
		content := snapshotv1.VolumeSnapshotContent{}
		require.NoError(bed.T, runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &content))
		all = append(all, content)
	}
	return all
}

func over(bed *fake.Bed, backup *velerov1.Backup, phase velerov1.BackupPhase) {
	backup.Status.Phase, backup.Status.CompletionTimestamp = phase, ptr.To(metav1.Now())
	bed.API.Put(bed.T, backup)
}

func gone(bed *fake.Bed) bool { return len(snapshotsOf(bed)) == 0 && len(contentsOf(bed)) == 0 }

// What is deleted by its handle is deleted by the driver, or the call fails: a
// sidecar that finds the content being deleted before it has asked the driver lets
// it go without a call.
func TestDeletionByHandleNeedsAnAnswer(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{})
	l := bed.Locating(map[string]string{"timeout": "1s"})
	backup := bed.Backup()
	volume := bed.API.All("persistentvolumes")[0]
	id, err := l.Snapshotter.GetVolumeID(&volume)
	require.NoError(t, err)
	taken, err := l.Snapshotter.CreateSnapshot(id, "", map[string]string{"velero.io/backup": backup.Name, "velero.io/pv": volume.GetName()})
	require.NoError(t, err)
	bed.API.Delete("volumesnapshots", app.Namespace, snapshotsOf(bed)[0].Name)
	bed.API.Delete("volumesnapshotcontents", "", contentsOf(bed)[0].Name)
	require.Eventually(t, func() bool { return gone(bed) }, patient, 10*time.Millisecond)
	require.Len(t, bed.Storage.Snapshots(), 1, "the backup has it")

	start := bed.Storage.StopSidecar()
	require.ErrorContains(t, l.Snapshotter.DeleteSnapshot(taken), "driver disk.example.com has not answered for snapshot "+bed.Storage.Snapshots()[0].Handle)
	go func() {
		time.Sleep(200 * time.Millisecond)
		start()
	}()
	require.NoError(t, l.Snapshotter.DeleteSnapshot(taken))
	assert.Empty(t, bed.Storage.Snapshots())
	assert.Len(t, bed.Storage.Deletions(), 1)
	assert.True(t, gone(bed))
	require.NoError(t, l.Snapshotter.DeleteSnapshot(taken), "it is gone already")
}

// freezeAround begins a freeze around Velero's own snapshot of the only claim, and
// returns the rest of Velero's calls.
func freezeAround(t *testing.T, bed *fake.Bed, v *fake.Velero, backup *velerov1.Backup) (rest func() (*corev1.PersistentVolumeClaim, error)) {
	t.Helper()
	v.Begin()
	volume, claim := bed.API.All("persistentvolumes")[0], bed.API.All("persistentvolumeclaims")[0]
	_, _, err := v.Volume.Execute(&volume, backup)
	require.NoError(t, err)
	return func() (*corev1.PersistentVolumeClaim, error) {
		after, _, _, _, err := v.Own.Execute(&claim, backup)
		require.NoError(t, err)
		named := &corev1.PersistentVolumeClaim{}
		require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(after.UnstructuredContent(), named))
		_, _, _, _, err = v.Claim.Execute(after, backup)
		return named, err
	}
}

// foreign is the snapshot that another Velero takes for its backup of the same name.
func foreign(bed *fake.Bed, claim string) {
	bed.API.Put(bed.T, &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "velero-foreign", Labels: map[string]string{velerov1.BackupNameLabel: "nightly"}},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}, VolumeSnapshotClassName: ptr.To(fake.Class)},
	})
	require.Eventually(bed.T, func() bool {
		return slices.ContainsFunc(snapshotsOf(bed), func(vs snapshotv1.VolumeSnapshot) bool {
			return vs.Name == "velero-foreign" && vs.Status != nil && vs.Status.CreationTime != nil
		})
	}, patient, 5*time.Millisecond)
}

// Another Velero has a backup of the same name, and its snapshot of the same claim
// is cut first.
func TestTwoVelerosWithTheSameSchedule(t *testing.T) {
	t.Parallel()
	t.Run("it is known", func(t *testing.T) {
		t.Parallel()
		bed := fake.New(t)
		app := bed.Deploy(fake.App{Annotations: fsfreeze})
		backup := bed.Backup()
		twin := backup.DeepCopy()
		twin.Namespace, twin.UID = "velero-2", "another"
		bed.API.Put(t, twin)
		v := bed.Velero()
		rest := freezeAround(t, bed, v, backup)
		foreign(bed, app.Claims[0])
		time.Sleep(100 * time.Millisecond)
		assert.True(t, bed.Node.FileSystem("shop", app.Claims[0]).Frozen(), "not thawed on another's cut")
		_, err := rest()
		require.NoError(t, err)
		assert.False(t, bed.Node.FileSystem("shop", app.Claims[0]).Frozen())
		for _, snapshot := range bed.Storage.Snapshots() {
			assert.True(t, snapshot.Frozen)
		}
		assert.Empty(t, v.Errors())
	})
	t.Run("it is found out", func(t *testing.T) {
		t.Parallel()
		bed := fake.New(t)
		app := bed.Deploy(fake.App{Annotations: fsfreeze})
		bed.API.Inject(func(r fake.Request) error {
			if r.Verb == "list" && r.Resource.Resource == "backups" && r.Namespace == "" {
				return apierrors.NewForbidden(schema.GroupResource{Group: "velero.io", Resource: "backups"}, "", errors.New("no right"))
			}
			return nil
		})
		rest := freezeAround(t, bed, bed.Velero(), bed.Backup())
		foreign(bed, app.Claims[0])
		require.Eventually(t, func() bool { return !bed.Node.FileSystem("shop", app.Claims[0]).Frozen() }, patient, 5*time.Millisecond)
		named, err := rest()
		require.ErrorContains(t, err, "another Velero may have a backup of the same name")
		left := snapshotsOf(bed)
		require.Len(t, left, 1, "its own is deleted, and not the other's")
		assert.NotEqual(t, named.Annotations[velerov1.VolumeSnapshotLabel], left[0].Name)
	})
	t.Run("it is marked", func(t *testing.T) {
		t.Parallel()
		bed := fake.New(t)
		app := bed.Deploy(fake.App{Annotations: fsfreeze})
		other := bed.Deploy(fake.App{Name: "other"})
		_ = other
		backup := bed.Backup()
		bed.API.Put(t, &snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "marked", Labels: map[string]string{velerov1.BackupNameLabel: "nightly", velerov1.BackupUIDLabel: "another"}},
			Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &app.Claims[0]}, VolumeSnapshotClassName: ptr.To(fake.Class)},
		})
		r := bed.Velero().Backup(backup, app)
		assert.Empty(t, r.Dropped, "not taken for what a dead process has left")
	})
}

// mover is Velero's data mover, as far as a backup looks for it.
func mover(bed *fake.Bed) {
	bed.API.Put(bed.T, &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "node-agent"},
		Status:     appsv1.DaemonSetStatus{DesiredNumberScheduled: 1, NumberReady: 1, NumberAvailable: 1},
	})
}

func moving(backup *velerov1.Backup) {
	fake.WithPolicy(backup)
	backup.Spec.SnapshotMoveData = ptr.To(true)
}

// move backs up with data movement; the upload ends in a phase. It returns the
// backup, which is over.
func move(t *testing.T, bed *fake.Bed, name, phase string, app *fake.Workload) *velerov1.Backup {
	t.Helper()
	backup := bed.Backup(moving, fake.Named(name))
	v := bed.Velero()
	r := v.Backup(backup, app)
	require.Empty(t, r.Dropped)
	require.Empty(t, v.Errors())
	require.Eventually(t, func() bool { // the kept one is marked beside the calls
		return !slices.ContainsFunc(contentsOf(bed), func(c snapshotv1.VolumeSnapshotContent) bool { return c.Labels["stillpoint.io/installation"] == "" })
	}, patient, 5*time.Millisecond)
	for _, upload := range bed.API.All("datauploads") {
		if upload.GetLabels()[velerov1.BackupUIDLabel] == string(backup.UID) {
			bed.API.Update("datauploads", upload.GetNamespace(), upload.GetName(), func(o *unstructured.Unstructured) {
				_ = unstructured.SetNestedField(o.Object, phase, "status", "phase")
			})
		}
	}
	for claim, progress := range bed.Velero().Progress(backup, r) {
		require.True(t, progress.Completed, "%s: %s", claim, progress.Description)
	}
	over(bed, backup, velerov1.BackupPhaseCompleted)
	return backup
}

// keptOf are the backups that have a kept snapshot, in the order of the alphabet.
func keptOf(bed *fake.Bed) (backups []string) {
	for _, vs := range snapshotsOf(bed) {
		if vs.Labels["stillpoint.io/kept"] != "" && vs.Annotations["stillpoint.io/backup"] != "" {
			backups = append(backups, vs.Annotations["stillpoint.io/backup"])
		}
	}
	slices.Sort(backups)
	return backups
}

func keeping(last string) func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	return func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
		claim.Annotations = map[string]string{"stillpoint.io/local-snapshots": "keepLast=" + last}
	}
}

// A tenant writes another's marks on a VolumeSnapshot.
func TestForgedMarksOfAKeptSnapshot(t *testing.T) {
	t.Parallel()
	for name, namespace := range map[string]string{"of another namespace": "evil", "of the same namespace": "shop"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			mover(bed)
			app := bed.Deploy(fake.App{Claim: keeping("2")})
			move(t, bed, "monday", "Completed", app)
			genuine := snapshotsOf(bed)[0]
			forged := genuine.DeepCopy()
			forged.ObjectMeta = metav1.ObjectMeta{Namespace: namespace, Name: genuine.Name, Labels: genuine.Labels, Annotations: genuine.Annotations}
			if namespace == "shop" {
				forged.Name = "forged"
			}
			forged.Annotations["stillpoint.io/keep-last"] = "1"
			later := metav1.NewTime(time.Now().Add(time.Hour))
			forged.Status.CreationTime, forged.Status.BoundVolumeSnapshotContentName = &later, ptr.To("none")
			bed.API.Put(t, forged)
			move(t, bed, "tuesday", "Completed", app)
			assert.Subset(t, keptOf(bed), []string{"monday", "tuesday"})
			assert.Len(t, bed.Storage.Snapshots(), 2)
		})
	}
}

// The labels of a claim that are Stillpoint's, Velero's or a GitOps tool's are not
// those of its VolumeSnapshots.
func TestLabelsOfTheClaim(t *testing.T) {
	t.Parallel()
	labels := map[string]string{
		"stillpoint.io/kept": "forged", "velero.io/restore-name": "r", "backup.velero.io/x": "y", "team": "a", "tier": "gold",
		"app.kubernetes.io/instance": "shop", "argocd.argoproj.io/instance": "shop", "kustomize.toolkit.fluxcd.io/name": "shop", "gitops.example.com/of": "shop",
	}
	labelled := func(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
		keeping("1")(claim, volume)
		for key, value := range labels {
			claim.Labels[key] = value
		}
	}
	for name, c := range map[string]struct {
		document string
		change   func(*velerov1.Backup)
		kept     []string
	}{
		"by default":          {"version: v1\n", fake.WithPolicy, []string{"app", "gitops.example.com/of", "team", "tier"}},
		"configured":          {"version: v1\nexcludedLabels: [\"gitops.example.com/*\", \"t??m\"]\n", fake.WithPolicy, []string{"app", "app.kubernetes.io/instance", "argocd.argoproj.io/instance", "kustomize.toolkit.fluxcd.io/name", "tier"}},
		"of a second one":     {"version: v1\n", moving, []string{"app", "gitops.example.com/of", "team", "tier"}},
		"of Velero's own one": {"version: v1\n", func(*velerov1.Backup) {}, []string{"app", "backup.velero.io/x", "gitops.example.com/of", "team", "tier"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			mover(bed)
			bed.Configure(c.document)
			app := bed.Deploy(fake.App{Claim: labelled})
			v := bed.Velero()
			require.Empty(t, v.Backup(bed.Backup(c.change), app).Dropped)
			require.Empty(t, v.Errors())
			for _, vs := range snapshotsOf(bed) {
				var left []string
				for key := range vs.Labels {
					if key == "stillpoint.io/kept" {
						assert.NotEqual(t, "forged", vs.Labels[key])
					} else if !strings.HasPrefix(key, "velero.io/") && !strings.HasPrefix(key, "stillpoint.io/") {
						left = append(left, key)
					}
				}
				slices.Sort(left)
				assert.Equal(t, c.kept, left, vs.Name)
				if c.document != "" && vs.Labels["velero.io/restore-name"] != "" {
					assert.Equal(t, "of Velero's own one", name)
				}
			}
		})
	}
}

// A VolumeSnapshot that is deleted while its backup runs leaves the storage's
// snapshot, which the sweep deletes when the backup does not have it.
func TestVolumeSnapshotDeletedDuringTheBackup(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]func(*velerov1.Backup){"snapshots of Stillpoint": fake.WithPolicy, "snapshots of Velero": func(*velerov1.Backup) {}} {
		t.Run("after Velero has it, "+name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{})
			backup := bed.Backup(path)
			v := bed.Velero()
			r := v.Backup(backup, app)
			bed.API.Delete("volumesnapshots", "shop", snapshotsOf(bed)[0].Name)
			require.Eventually(t, func() bool { return len(snapshotsOf(bed)) == 0 }, patient, 5*time.Millisecond)
			assert.Len(t, bed.Storage.Snapshots(), 1)
			for _, progress := range bed.Velero().Progress(backup, r) {
				assert.True(t, progress.Completed, progress.Description)
			}
			over(bed, backup, velerov1.BackupPhaseCompleted)
			code, _, stderr := bed.Command("sweep", "--delete")
			assert.Zero(t, code, stderr)
			assert.True(t, gone(bed))
			assert.Len(t, bed.Storage.Snapshots(), 1, "the backup has it")
		})
		t.Run("of a backup that fails, "+name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{})
			backup := bed.Backup(path)
			bed.Velero().Backup(backup, app)
			bed.API.Delete("volumesnapshots", "shop", snapshotsOf(bed)[0].Name)
			require.Eventually(t, func() bool { return len(snapshotsOf(bed)) == 0 }, patient, 5*time.Millisecond)
			over(bed, backup, velerov1.BackupPhaseFailed)
			code, stdout, stderr := bed.Command("sweep", "--delete")
			assert.Zero(t, code, stdout+stderr)
			assert.True(t, gone(bed), stdout)
			assert.Empty(t, bed.Storage.Snapshots())
		})
	}
	t.Run("before Velero has it", func(t *testing.T) {
		t.Parallel()
		bed := fake.New(t)
		app := bed.Deploy(fake.App{Annotations: fsfreeze, Volumes: 2})
		backup, v, r := bed.Backup(fake.WithPolicy), bed.Velero(), fake.NewResult()
		v.Begin()
		v.BackUpClaim(backup, "shop", app.Claims[0], r)
		of := func(claim string) *snapshotv1.VolumeSnapshot {
			for _, vs := range snapshotsOf(bed) {
				if *vs.Spec.Source.PersistentVolumeClaimName == claim {
					return &vs
				}
			}
			return nil
		}
		pruned := of(app.Claims[1])
		require.Eventually(t, func() bool {
			return slices.ContainsFunc(contentsOf(bed), func(c snapshotv1.VolumeSnapshotContent) bool {
				return c.Spec.VolumeSnapshotRef.UID == pruned.UID && c.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentRetain
			})
		}, patient, 5*time.Millisecond, "once it is cut, and not when Velero comes to its claim")
		bed.API.Delete("volumesnapshots", "shop", pruned.Name)
		require.Eventually(t, func() bool { return of(app.Claims[1]) == nil }, patient, 5*time.Millisecond)
		v.BackUpClaim(backup, "shop", app.Claims[1], r)
		assert.Contains(t, r.Claims[app.Claims[1]].Annotations["stillpoint.io/no-snapshot"], "it was deleted while the backup was running")
		assert.True(t, v.Said(logrus.ErrorLevel, "it was deleted while the backup was running"))
		assert.Len(t, bed.Storage.Snapshots(), 1, "nothing is left of the other")
		assert.Len(t, contentsOf(bed), 1)
	})
	t.Run("an upload that is gone", func(t *testing.T) {
		t.Parallel()
		bed := fake.New(t)
		mover(bed)
		app := bed.Deploy(fake.App{})
		backup := bed.Backup(moving)
		r := bed.Velero().Backup(backup, app)
		bed.API.Delete("datauploads", fake.VeleroNamespace, bed.API.All("datauploads")[0].GetName())
		bed.API.Delete("volumesnapshots", "shop", snapshotsOf(bed)[0].Name)
		require.Eventually(t, func() bool { return len(snapshotsOf(bed)) == 0 }, patient, 5*time.Millisecond)
		for _, progress := range bed.Velero().Progress(backup, r) {
			assert.Equal(t, "the DataUpload is gone", progress.Err)
		}
		assert.True(t, gone(bed))
		assert.Empty(t, bed.Storage.Snapshots())
	})
}

// Snapshots of failed uploads take no good one's place.
func TestKeepLastCountsExports(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	mover(bed)
	app := bed.Deploy(fake.App{Claim: keeping("1")})
	move(t, bed, "monday", "Completed", app)
	time.Sleep(time.Second) // their times have no fractions
	move(t, bed, "tuesday", "Failed", app)
	assert.Contains(t, keptOf(bed), "monday")
	time.Sleep(time.Second)
	move(t, bed, "wednesday", "Completed", app)
	assert.Equal(t, []string{"wednesday"}, keptOf(bed))
	assert.Len(t, bed.Storage.Snapshots(), 1)
}

// A Backup object is deleted by hand, and Velero finds it again in the object store.
func TestBackupThatIsFoundAgain(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	mover(bed)
	app := bed.Deploy(fake.App{Claim: keeping("3")})
	backup := move(t, bed, "monday", "Completed", app)
	bed.API.Delete("backups", fake.VeleroNamespace, backup.Name)
	sweep := func() {
		code, stdout, stderr := bed.Command("sweep", "--delete")
		assert.Zero(t, code, stdout+stderr)
	}
	sweep()
	assert.Equal(t, []string{"monday"}, keptOf(bed), "Velero has not looked yet")
	again := backup.DeepCopy()
	again.UID, again.ResourceVersion = "again", ""
	bed.API.Put(t, again)
	sweep()
	assert.Equal(t, []string{"monday"}, keptOf(bed))

	deletion, _ := bed.Deleting()
	namespace := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "shop"}}}
	require.NoError(t, deletion.Execute(&velero.DeleteItemActionExecuteInput{Item: namespace, Backup: again}))
	assert.True(t, gone(bed), "it goes with the backup")
	assert.Empty(t, bed.Storage.Snapshots())
}

// A backup without its tarball is deleted, and Velero calls no plugin for it.
func TestBackupThatIsNotFoundAgain(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	mover(bed)
	app := bed.Deploy(fake.App{Claim: keeping("3")})
	backup := move(t, bed, "monday", "Completed", app)
	bed.API.Delete("backups", fake.VeleroNamespace, backup.Name)
	location := &velerov1.BackupStorageLocation{
		ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "default"},
		Status:     velerov1.BackupStorageLocationStatus{Phase: velerov1.BackupStorageLocationPhaseAvailable, LastSyncedTime: ptr.To(metav1.Now())},
	}
	bed.API.Put(t, location)
	bed.Velero().Begin()
	bed.Velero().Begin()
	assert.Equal(t, []string{"monday"}, keptOf(bed), "Velero has not looked yet")
	location.Status.LastSyncedTime = ptr.To(metav1.NewTime(time.Now().Add(time.Hour)))
	bed.API.Put(t, location)
	bed.Velero().Begin()
	assert.Eventually(t, func() bool { return gone(bed) && len(bed.Storage.Snapshots()) == 0 }, patient, 10*time.Millisecond)
}

// A backup that begins leaves alone what one that runs beside it has listed.
func TestSweepBesideARunningBackup(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{})
	failed := bed.Backup(fake.WithPolicy, fake.Named("failed"))
	bed.Velero().Backup(failed, app)
	over(bed, failed, velerov1.BackupPhaseFailed)
	beside := bed.Backup(fake.Named("beside"), func(b *velerov1.Backup) {
		b.Spec.IncludedNamespaces = []string{"shop"}
		b.Status.Progress = &velerov1.BackupProgress{TotalItems: 5}
	})
	bed.Backup(fake.Named("begins"), func(b *velerov1.Backup) { b.Spec.IncludedNamespaces = []string{"lab"} })
	bed.Velero().Begin()
	time.Sleep(100 * time.Millisecond)
	assert.Len(t, snapshotsOf(bed), 1)
	over(bed, beside, velerov1.BackupPhaseCompleted)
	bed.Velero().Begin()
	assert.Eventually(t, func() bool { return gone(bed) }, patient, 10*time.Millisecond)
}

// A snapshot that no claim took and that does not go keeps nobody waiting.
func TestUnclaimedSnapshotThatStays(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Annotations: fsfreeze, Volumes: 2})
	backup, v, r := bed.Backup(fake.WithPolicy), bed.Velero(), fake.NewResult()
	v.Begin()
	v.BackUpClaim(backup, "shop", app.Claims[0], r) // and not the other
	for _, vs := range snapshotsOf(bed) {
		bed.API.Update("volumesnapshots", "shop", vs.Name, func(o *unstructured.Unstructured) { o.SetFinalizers(append(o.GetFinalizers(), "example.com/hold")) })
	}
	for claim, progress := range v.Progress(backup, r) {
		assert.True(t, progress.Completed, "%s: %s", claim, progress.Description)
	}
	assert.True(t, v.Said(logrus.WarnLevel, "the next backup tries again", app.Claims[1]))
}

// Without a snapshot controller a backup fails early and says why, and leaves
// nothing that keeps a namespace from ending.
func TestNoSnapshotController(t *testing.T) {
	t.Parallel()
	impatient := func(b *velerov1.Backup) {
		fake.WithPolicy(b)
		b.Spec.CSISnapshotTimeout = metav1.Duration{Duration: 4 * time.Second}
	}
	for name, annotations := range map[string]map[string]string{"frozen": fsfreeze, "not frozen": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			bed.Storage.StopController()
			app := bed.Deploy(fake.App{Annotations: annotations})
			v := bed.Velero()
			started := time.Now()
			r := v.Backup(bed.Backup(impatient), app)
			assert.Less(t, time.Since(started), 12*time.Second)
			assert.True(t, v.Said(logrus.ErrorLevel, "the snapshot controller has not reacted for 1s", "is it installed and running"), v.Errors())
			assert.NotEmpty(t, r.Claims[app.Claims[0]].Annotations["stillpoint.io/no-snapshot"])
			assert.False(t, bed.Node.FileSystem("shop", app.Claims[0]).Frozen())
			assert.True(t, gone(bed), "%v %v", snapshotsOf(bed), contentsOf(bed))
		})
	}
	t.Run("it stops in the middle", func(t *testing.T) {
		t.Parallel()
		bed := fake.New(t)
		bed.Storage.Behave(func(types.NamespacedName) fake.Behaviour { return fake.Behaviour{Cut: 300 * time.Millisecond} })
		go func() {
			for len(contentsOf(bed)) == 0 {
				time.Sleep(time.Millisecond)
			}
			bed.Storage.StopController()
		}()
		app := bed.Deploy(fake.App{})
		v := bed.Velero()
		v.Backup(bed.Backup(impatient), app)
		assert.True(t, v.Said(logrus.ErrorLevel, "the snapshot controller has not reacted"), v.Errors())
		assert.True(t, gone(bed), "%v %v", snapshotsOf(bed), contentsOf(bed))
		assert.Empty(t, bed.Storage.Snapshots(), "and not in the storage either")
	})
	t.Run("through a location", func(t *testing.T) {
		t.Parallel()
		bed := fake.New(t)
		bed.Storage.StopController()
		bed.Deploy(fake.App{})
		l := bed.Locating(map[string]string{"timeout": "4s"})
		backup := bed.Backup()
		volume := bed.API.All("persistentvolumes")[0]
		id, err := l.Snapshotter.GetVolumeID(&volume)
		require.NoError(t, err)
		_, err = l.Snapshotter.CreateSnapshot(id, "", map[string]string{"velero.io/backup": backup.Name, "velero.io/pv": volume.GetName()})
		require.ErrorContains(t, err, "the snapshot controller has not reacted")
		assert.True(t, gone(bed))
	})
	t.Run("one that is slow is waited for", func(t *testing.T) {
		t.Parallel()
		bed := fake.New(t)
		start := bed.Storage.StopController()
		go func() {
			time.Sleep(500 * time.Millisecond)
			start()
		}()
		app := bed.Deploy(fake.App{})
		v := bed.Velero()
		v.Backup(bed.Backup(impatient), app)
		assert.Empty(t, v.Errors())
		assert.Len(t, bed.Storage.Snapshots(), 1)
	})
}

// A request that takes long holds up nothing but what it is about.
func TestRequestsDoNotWaitForOthers(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]func(*velerov1.Backup){"snapshots of Stillpoint": fake.WithPolicy, "snapshots of Velero": func(*velerov1.Backup) {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			slow := bed.Deploy(fake.App{Namespace: "slow", Annotations: fsfreeze})
			quick := bed.Deploy(fake.App{Annotations: fsfreeze})
			release := make(chan struct{})
			bed.API.Inject(func(r fake.Request) error {
				if r.Namespace == "slow" && (r.Resource.Resource == "pods" || r.Resource.Resource == "persistentvolumeclaims") && r.Verb == "list" {
					<-release
				}
				return nil
			})
			v, backup := bed.Velero(), bed.Backup(path)
			v.Begin()
			done := make(chan struct{})
			go func() {
				defer close(done)
				v.BackUpClaim(backup, "slow", slow.Claims[0], fake.NewResult())
			}()
			time.Sleep(50 * time.Millisecond)
			finished := make(chan struct{})
			go func() {
				defer close(finished)
				v.BackUpClaim(backup, "shop", quick.Claims[0], fake.NewResult())
			}()
			select {
			case <-finished:
			case <-time.After(patient):
				t.Error("it waits for another workload's requests")
			}
			close(release)
			<-done
			<-finished
		})
	}
}

// Lists of what a cluster can have thousands of come in pages.
func TestListsHavePages(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	mover(bed)
	app := bed.Deploy(fake.App{Claim: keeping("1")})
	var mu sync.Mutex
	whole := map[string]bool{}
	bed.API.Inject(func(r fake.Request) error {
		resource := r.Resource.Resource
		if mu.Lock(); r.Verb == "list" && r.Limit == 0 && slices.Contains([]string{"volumesnapshots", "volumesnapshotcontents", "datauploads", "backups", "backupstoragelocations"}, resource) && r.Namespace == "" {
			whole[r.String()] = true
		}
		mu.Unlock()
		return nil
	})
	backup := move(t, bed, "monday", "Completed", app)
	code, _, stderr := bed.Command("sweep", "--delete")
	assert.Zero(t, code, stderr)
	deletion, _ := bed.Deleting()
	namespace := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "shop"}}}
	require.NoError(t, deletion.Execute(&velero.DeleteItemActionExecuteInput{Item: namespace, Backup: backup}))
	mu.Lock()
	defer mu.Unlock()
	assert.Empty(t, whole)
}

// Snapshots in place are no items of a later backup: Velero 1.18.3 leaves both kinds
// out of what it collects, and what Stillpoint makes, and restores leave, is
// excluded besides, as an action of another plugin could name it.
func TestSnapshotsInPlaceAreExcluded(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	mover(bed)
	app := bed.Deploy(fake.App{Claim: keeping("1")})
	move(t, bed, "monday", "Completed", app)
	backup := bed.Backup(fake.WithPolicy)
	require.Empty(t, bed.Velero().Backup(backup, app).Dropped)
	require.Len(t, snapshotsOf(bed), 2)
	for _, vs := range snapshotsOf(bed) {
		assert.Equal(t, "true", vs.Labels[velerov1.ExcludeFromBackupLabel], vs.Name)
	}
	// What is restored for a claim has the label again, and what is not lacks it.
	for name, c := range map[string]struct {
		resources []string
		label     string
	}{"with claims": {nil, "true"}, "without": {[]string{"volumesnapshots"}, ""}} {
		r := bed.Restoring()
		restore := bed.Restore(backup)
		restore.Spec.IncludedResources = c.resources
		item := snapshotsOf(bed)[slices.IndexFunc(snapshotsOf(bed), func(vs snapshotv1.VolumeSnapshot) bool { return vs.Labels["stillpoint.io/kept"] == "" })]
		item.TypeMeta = metav1.TypeMeta{APIVersion: snapshotv1.SchemeGroupVersion.String(), Kind: "VolumeSnapshot"}
		out, err := r.Snapshots.Execute(bed.Input(&item, &item, restore))
		require.NoError(t, err, name)
		labels, _, _ := unstructured.NestedStringMap(out.UpdatedItem.UnstructuredContent(), "metadata", "labels")
		assert.Equal(t, c.label, labels[velerov1.ExcludeFromBackupLabel], fmt.Sprint(name, labels))
	}
}

// Velero's action may fail before it names the snapshot on the claim. What was not
// consistent is deleted all the same, and the call ends where that takes long.
func TestDiscardOfASnapshotThatIsNotNamed(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze", "stillpoint.io/quiesce-timeout": "1s"}})
	bed.Storage.Behave(func(types.NamespacedName) fake.Behaviour { return fake.Behaviour{Cut: 2500 * time.Millisecond} })
	v, backup := bed.Velero(), bed.Backup()
	volume := bed.API.All("persistentvolumes")[0]
	_, _, err := v.Volume.Execute(&volume, backup)
	require.NoError(t, err)
	claim := bed.API.All("persistentvolumeclaims")[0]
	_, _, _, _, err = v.Own.Execute(claim.DeepCopy(), backup) //nolint:dogsled // as if its answer were lost
	require.NoError(t, err)
	began := time.Now()
	_, _, _, _, err = v.Claim.Execute(&claim, backup) //nolint:dogsled // the error is what counts
	require.ErrorContains(t, err, app.Claims[0])
	assert.Less(t, time.Since(began), 20*time.Second)
	assert.Eventually(t, func() bool { return len(bed.Storage.Snapshots()) == 0 }, 5*time.Second, 20*time.Millisecond)
}
