package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// hostApp is a Deployment that writes date and host name once, as the walk-through of
// OpenEBS has it, on volumes that are directories of the node.
type hostApp struct {
	*app
	// volumes are the names of the PersistentVolumes, data0 first.
	volumes []string
	// dirs are where they lie.
	dirs []string
}

func newHostApp(t *testing.T, c *cluster.Cluster, volumes int, annotations map[string]string) *hostApp {
	t.Helper()
	a := &hostApp{app: &app{t: t, c: c, namespace: c.Namespace(t, "e2e")}}
	pod := corev1.PodSpec{TerminationGracePeriodSeconds: ptr.To(int64(1))}
	command := "set -e\n"
	busybox := corev1.Container{Name: "busybox", Image: cluster.Image}
	for i := range volumes {
		dir, err := os.MkdirTemp("", "e2e-host-")
		require.NoError(t, err)
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		claim, path := fmt.Sprintf("data%d", i), fmt.Sprintf("/mnt/store%d", i)
		volume := &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: a.namespace + "-" + claim, Labels: map[string]string{"tests.stillpoint.io/app": a.namespace}},
			Spec: corev1.PersistentVolumeSpec{
				Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")},
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				// The second goes with its claim.
				PersistentVolumeReclaimPolicy: []corev1.PersistentVolumeReclaimPolicy{corev1.PersistentVolumeReclaimRetain, corev1.PersistentVolumeReclaimDelete}[i%2],
				StorageClassName:              "host",
				PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}},
				ClaimRef:                      &corev1.ObjectReference{Namespace: a.namespace, Name: claim},
			},
		}
		require.NoError(t, c.Objects().Create(t.Context(), volume))
		t.Cleanup(func() { // this one, and not what a restore has put in its place
			_ = c.Objects().Delete(context.Background(), volume, crclient.Preconditions{UID: &volume.UID})
		})
		require.NoError(t, c.Objects().Create(t.Context(), &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: claim},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: volume.Spec.AccessModes, StorageClassName: ptr.To("host"),
				Resources: corev1.VolumeResourceRequirements{Requests: volume.Spec.Capacity},
			},
		}))
		busybox.VolumeMounts = append(busybox.VolumeMounts, corev1.VolumeMount{Name: claim, MountPath: path})
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: claim, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}})
		command += fmt.Sprintf("test -e %[1]s/date.txt || { date > %[1]s/date.txt; echo \"$RANDOM $(hostname)\" > %[1]s/hostname.txt; }\n", path)
		a.volumes, a.dirs = append(a.volumes, volume.Name), append(a.dirs, dir)
	}
	busybox.Command = []string{"bash", "-c", command + "sync; sleep infinity"}
	pod.Containers = []corev1.Container{busybox}
	labels := map[string]string{"app": "busybox"}
	require.NoError(t, c.Objects().Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: "busybox", Annotations: annotations},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod},
		},
	}))
	a.kubectl("rollout", "status", "deployment/busybox", "--timeout=60s")
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(a.dirs[volumes-1], "hostname.txt"))
		return err == nil
	}, 10*time.Second, 50*time.Millisecond)
	return a
}

// files are what a directory holds, by name.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		require.NoError(t, err)
		found[entry.Name()] = string(content)
	}
	return found
}

// boundVolume is the volume of a claim.
func boundVolume(t *testing.T, c *cluster.Cluster, namespace, claim string) *corev1.PersistentVolume {
	t.Helper()
	pvc, pv := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}
	require.Eventually(t, func() bool {
		err := c.Objects().Get(t.Context(), crclient.ObjectKey{Namespace: namespace, Name: claim}, pvc)
		return err == nil && pvc.Status.Phase == corev1.ClaimBound
	}, 20*time.Second, 100*time.Millisecond, "claim %s/%s is not bound", namespace, claim)
	require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Name: pvc.Spec.VolumeName}, pv))
	t.Cleanup(func() { // it was made of a snapshot: with its claim its data goes, too
		if strings.HasPrefix(pv.Spec.HostPath.Path, "/tmp/restore/") {
			_ = c.Objects().Patch(context.Background(), pv, crclient.RawPatch(types.MergePatchType, []byte(`{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)))
		}
	})
	return pv
}

// oldLocation makes a VolumeSnapshotLocation of the API before CSI's. It stays
// until the backups are gone that have snapshots in it.
func oldLocation(t *testing.T, c *cluster.Cluster, config string) string {
	t.Helper()
	name := "e2e-" + rand.String(5)
	args := []string{"snapshot-location", "create", name, "--provider", "stillpoint.io/external-storage"}
	if config != "" {
		args = append(args, "--config", config)
	}
	_, err := c.Velero(t.Context(), args...)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		assert.Eventually(t, func() bool {
			backups := &velerov1.BackupList{}
			err := c.Objects().List(ctx, backups, crclient.InNamespace(cluster.VeleroNamespace))
			for _, b := range backups.Items {
				for _, l := range b.Spec.VolumeSnapshotLocations {
					err = firstError(err, l == name)
				}
			}
			return err == nil
		}, limit, 200*time.Millisecond, "there still are backups of VolumeSnapshotLocation %s", name)
		_ = c.Objects().Delete(ctx, &velerov1.VolumeSnapshotLocation{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: name}})
	})
	return name
}

func firstError(err error, found bool) error {
	if err == nil && found {
		return os.ErrExist
	}
	return err
}

// by has a backup take its snapshots through a location.
func by(location string) func(*velerov1.BackupSpec) {
	return func(spec *velerov1.BackupSpec) { spec.VolumeSnapshotLocations = []string{location} }
}

// external are the objects of the API before CSI's, as kind and namespace, and the
// files of snapshots, which are of some test as long as it runs alone.
func external(t *testing.T, c *cluster.Cluster) (objects, data []string) {
	t.Helper()
	snapshots, datas, err := c.ExternalObjects(t.Context())
	require.NoError(t, err)
	for _, o := range append(snapshots, datas...) {
		objects = append(objects, strings.TrimSuffix(o.GetKind()+" "+o.GetNamespace(), " "))
	}
	data, _, err = c.ExternalData()
	require.NoError(t, err)
	return objects, data
}

// The published walk-through of OpenEBS, by Velero's commands.
func TestExternalStorage(t *testing.T) {
	c := connect(t)
	location := oldLocation(t, c, "timeout=1m")
	a := newHostApp(t, c, 2, nil)
	written := []map[string]string{files(t, a.dirs[0]), files(t, a.dirs[1])}
	require.Len(t, written[0], 2)
	// A snapshot of the user's own, which is in the backup as an object.
	install(t, c, fmt.Sprintf("apiVersion: volumesnapshot.external-storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {namespace: %s, name: mine}\nspec: {persistentVolumeClaimName: data0}\n", a.namespace))
	a.kubectl("wait", "--for=jsonpath={.status.conditions[-1:].type}=Ready", "volumesnapshots.volumesnapshot.external-storage.k8s.io/mine", "--timeout=20s")

	b := startBackup(t, c, a.namespace, by(location))
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	objects, data := external(t, c)
	assert.ElementsMatch(t, []string{
		"VolumeSnapshot " + a.namespace, "VolumeSnapshotData", // the user's
		"VolumeSnapshot velero", "VolumeSnapshot velero", "VolumeSnapshotData", "VolumeSnapshotData",
	}, objects)
	assert.Len(t, data, 3)
	describe, err := c.Velero(t.Context(), "backup", "describe", b.name, "--details")
	require.NoError(t, err)
	assert.Contains(t, describe, "stillpoint.io/external-storage:v1:")

	t.Run("not in a backup of Velero's namespace", func(t *testing.T) {
		own := startBackup(t, c, cluster.VeleroNamespace, func(spec *velerov1.BackupSpec) {
			spec.IncludedResources = []string{"volumesnapshots.volumesnapshot.external-storage.k8s.io", "volumesnapshotdatas.volumesnapshot.external-storage.k8s.io", "configmaps"}
		})
		require.Equal(t, velerov1.BackupPhaseCompleted, own.finished(limit), own.log())
		listed, err := c.Velero(t.Context(), "backup", "describe", own.name, "--details")
		require.NoError(t, err)
		assert.Contains(t, listed, "velero/kube-root-ca.crt")
		assert.NotContains(t, listed, "velero/stillpoint-")
	})

	t.Run("beside the original", func(t *testing.T) {
		require.NoError(t, os.WriteFile(filepath.Join(a.dirs[0], "date.txt"), []byte("changed"), 0o600))
		r := b.restore(t, nil)
		require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(limit), r.log())
		for i := range a.volumes {
			pv := boundVolume(t, c, r.namespace, fmt.Sprintf("data%d", i))
			assert.NotContains(t, a.volumes, pv.Name, "the original has its name")
			assert.Equal(t, written[i], files(t, pv.Spec.HostPath.Path))
			original := boundVolume(t, c, a.namespace, fmt.Sprintf("data%d", i))
			assert.Equal(t, a.dirs[i], original.Spec.HostPath.Path)
		}
		r.kubectl("rollout", "status", "deployment/busybox", "--timeout=60s")
		_, err := c.Velero(t.Context(), "restore", "describe", r.name)
		require.NoError(t, err)
		assert.Empty(t, r.kubectl("get", "volumesnapshots.volumesnapshot.external-storage.k8s.io", "-o", "name"))
		assert.Contains(t, r.log(), "is not restored: its controller would take a new snapshot")
	})

	t.Run("after the namespace", func(t *testing.T) {
		require.NoError(t, c.DeleteNamespace(t.Context(), a.namespace))
		for _, name := range a.volumes {
			c.Kubectl(t.Context(), nil, "delete", "persistentvolume", name, "--ignore-not-found", "--timeout=20s") //nolint:errcheck // found out by what follows
		}
		require.Eventually(t, func() bool { _, data := external(t, c); return len(data) == 2 }, 10*time.Second, 100*time.Millisecond, "the user's goes with the namespace, ours do not")
		name := "e2e-" + rand.String(6)
		_, err := c.Velero(t.Context(), "restore", "create", name, "--from-backup", b.name, "--wait")
		require.NoError(t, err)
		a.kubectl("rollout", "status", "deployment/busybox", "--timeout=60s")
		for i, volume := range a.volumes {
			pv := boundVolume(t, c, a.namespace, fmt.Sprintf("data%d", i))
			assert.Equal(t, volume, pv.Name)
			assert.Equal(t, written[i], files(t, pv.Spec.HostPath.Path))
			assert.Equal(t, []corev1.PersistentVolumeReclaimPolicy{corev1.PersistentVolumeReclaimRetain, corev1.PersistentVolumeReclaimDelete}[i], pv.Spec.PersistentVolumeReclaimPolicy)
			assert.Equal(t, "host", pv.Spec.StorageClassName)
			assert.Equal(t, a.namespace, pv.Labels["tests.stillpoint.io/app"])
			assert.Equal(t, "64Mi", pv.Spec.Capacity.Storage().String())
			assert.Nil(t, pv.Spec.NodeAffinity)
			assert.Equal(t, "volumesnapshot.external-storage.k8s.io/snapshot-promoter", pv.Annotations["pv.kubernetes.io/provisioned-by"], "who deletes it")
		}
		assert.Contains(t, a.kubectl("exec", "deployment/busybox", "--", "cat", "/mnt/store0/date.txt"), strings.TrimSpace(written[0]["date.txt"]))
		claims, err := c.Kubectl(t.Context(), nil, "-n", cluster.VeleroNamespace, "get", "persistentvolumeclaims", "-o", "name")
		require.NoError(t, err)
		assert.Empty(t, claims, "temporary claims")
	})

	t.Run("a cluster that has lost the objects", func(t *testing.T) {
		snapshots, datas, err := c.ExternalObjects(t.Context())
		require.NoError(t, err)
		// The VolumeSnapshotDatas first: so the data stays.
		for _, o := range append(datas, snapshots...) {
			require.NoError(t, c.Objects().Delete(t.Context(), &o))
		}
		r := b.restore(t, nil)
		require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(limit), r.log())
		assert.Equal(t, written[1], files(t, boundVolume(t, c, r.namespace, "data1").Spec.HostPath.Path))
		boundVolume(t, c, r.namespace, "data0")
		assert.Contains(t, r.log(), "Made again what was gone")
	})

	b.delete()
	objects, data = external(t, c)
	assert.Empty(t, objects)
	assert.Empty(t, data)
}

// Without a controller there is silence, and a backup has its own deadline.
func TestExternalStorageControllerDown(t *testing.T) {
	c := connect(t)
	location := oldLocation(t, c, "timeout=5s,volumeSources=hostPath")
	a := newHostApp(t, c, 1, nil)
	down := func(t *testing.T) (up func()) {
		t.Helper()
		require.NoError(t, c.Kill(t.Context(), cluster.ExternalController))
		up = func() { require.NoError(t, c.Start(context.Background(), cluster.ExternalController)) }
		t.Cleanup(up)
		return up
	}

	t.Run("at a backup", func(t *testing.T) {
		up := down(t)
		b := startBackup(t, c, a.namespace, by(location))
		require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
		message := said(b.log(), "error")
		for _, want := range []string{"claim data0", a.volumes[0], "not Ready after 5s, and the snapshot controller did not react: does it run"} {
			assert.Contains(t, message, want)
		}
		objects, _ := external(t, c)
		assert.Empty(t, objects, "nothing is left that it would take a snapshot of when it is back")
		up()
		b.delete()
	})

	t.Run("at the deletion", func(t *testing.T) {
		b := startBackup(t, c, a.namespace, by(location))
		require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
		up := down(t)
		request := fmt.Sprintf("e2e-%s", rand.String(5))
		of := &velerov1.Backup{}
		require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Namespace: cluster.VeleroNamespace, Name: b.name}, of))
		asked := &velerov1.DeleteBackupRequest{
			ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: request, Labels: map[string]string{velerov1.BackupNameLabel: b.name, velerov1.BackupUIDLabel: string(of.UID)}},
			Spec:       velerov1.DeleteBackupRequestSpec{BackupName: b.name},
		}
		require.NoError(t, c.Objects().Create(t.Context(), asked))
		require.Eventually(t, func() bool {
			err := c.Objects().Get(t.Context(), crclient.ObjectKeyFromObject(asked), asked)
			return err == nil && asked.Status.Phase == velerov1.DeleteBackupRequestPhaseProcessed
		}, limit, 200*time.Millisecond)
		assert.Contains(t, strings.Join(asked.Status.Errors, "\n"), "the snapshot controller does not take notice of VolumeSnapshot velero/stillpoint-")
		_, data := external(t, c)
		require.Len(t, data, 1, "the data cannot have gone")
		up()
		b.delete()
		objects, data := external(t, c)
		assert.Empty(t, objects)
		assert.Empty(t, data)
	})

	// It deletes what it did not hear of, if it is asked again.
	t.Run("between two deaths", func(t *testing.T) {
		b := startBackup(t, c, a.namespace, by(location))
		require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
		up := down(t)
		snapshots, _, err := c.ExternalObjects(t.Context())
		require.NoError(t, err)
		require.Len(t, snapshots, 1)
		require.NoError(t, c.Objects().Delete(t.Context(), &snapshots[0]), "as a Velero does that dies then")
		up()
		b.delete()
		objects, data := external(t, c)
		assert.Empty(t, objects)
		assert.Empty(t, data)
	})
}

// What a killed Velero leaves goes with the next backup, and the data with it.
func TestExternalStorageVeleroKilled(t *testing.T) {
	c := connect(t)
	location := oldLocation(t, c, "timeout=2m")
	a := newHostApp(t, c, 1, nil)
	for name, how := range map[string]struct{ halfMoved, sweep bool }{
		"before the snapshot is moved": {},
		"while it is moved":            {halfMoved: true},
		"and the sweep":                {halfMoved: true, sweep: true},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, c.Kill(t.Context(), cluster.ExternalController))
			t.Cleanup(func() { require.NoError(t, c.Start(context.Background(), cluster.ExternalController)) })
			b := startBackup(t, c, a.namespace, by(location))
			require.Eventually(t, func() bool { objects, _ := external(t, c); return len(objects) == 1 }, limit, 50*time.Millisecond)
			kill(t, syscall.SIGKILL, append(c.VeleroPIDs(), c.PluginPIDs()...))
			require.NoError(t, c.Start(t.Context(), cluster.ExternalController))
			require.Equal(t, velerov1.BackupPhaseFailed, b.finished(limit))
			a.kubectl("wait", "--for=jsonpath={.status.conditions[-1:].type}=Ready", "volumesnapshots.volumesnapshot.external-storage.k8s.io", "--all", "--timeout=20s")
			objects, left := external(t, c)
			require.ElementsMatch(t, []string{"VolumeSnapshot " + a.namespace, "VolumeSnapshotData"}, objects, "taken, and not moved")
			require.Len(t, left, 1)
			if how.halfMoved {
				halfMoved(t, c)
			}
			swept, code := runSweep(t)
			assert.Zero(t, code)
			assert.Contains(t, swept, "is deleted by --delete, and by the next backup that has such volumes: backup "+b.name+" is Failed")
			swept, code = runSweep(t, "-o", "json")
			assert.Zero(t, code)
			assert.Regexp(t, `"externalStorage": \[\s*\{\s*"kind": "VolumeSnapshot",[^}]*"backup": "`+b.name+`",\s*"over": true`, swept)
			if how.sweep {
				swept, code = runSweep(t, "--delete")
				assert.Zero(t, code)
				assert.Regexp(t, `Deleted VolumeSnapshot velero/\S+ of volumesnapshot.external-storage.k8s.io with its data, gone after `, swept)
				objects, left = external(t, c)
				assert.Empty(t, objects)
				assert.Empty(t, left)
				b.delete()
				return
			}

			next := startBackup(t, c, a.namespace, by(location))
			require.Equal(t, velerov1.BackupPhaseCompleted, next.finished(limit), next.log())
			assert.Contains(t, next.log(), "backup "+b.name+" is Failed")
			objects, data := external(t, c)
			assert.ElementsMatch(t, []string{"VolumeSnapshot velero", "VolumeSnapshotData"}, objects)
			require.Len(t, data, 1)
			assert.NotEqual(t, left, data)
			next.delete()
			b.delete()
		})
	}
}

// halfMoved makes of the only snapshot what there is of it before the first
// VolumeSnapshotData is deleted: two of each, of the same data.
func halfMoved(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	snapshots, datas, err := c.ExternalObjects(t.Context())
	require.NoError(t, err)
	require.Len(t, snapshots, 1)
	require.Len(t, datas, 1)
	asked, made := snapshots[0].DeepCopy(), datas[0].DeepCopy()
	made.SetName(asked.GetName())
	made.SetLabels(asked.GetLabels())
	made.SetAnnotations(asked.GetAnnotations())
	asked.SetNamespace(cluster.VeleroNamespace)
	require.NoError(t, unstructured.SetNestedField(asked.Object, made.GetName(), "spec", "snapshotDataName"))
	for _, o := range []*unstructured.Unstructured{made, asked} {
		o.SetUID("")
		o.SetResourceVersion("")
		require.NoError(t, c.Objects().Create(t.Context(), o))
	}
	time.Sleep(time.Second) // the controller takes notice, as it does in earnest
}

// The workload is quiesced until the controller says that the snapshot is Ready.
func TestExternalStorageQuiesced(t *testing.T) {
	c := connect(t)
	location := oldLocation(t, c, "")
	name := "e2e-" + rand.String(5)
	blueprint(t, c, execBlueprint(name, "busybox", "echo quiesced > /mnt/store0/state; echo quiesced > /mnt/store1/state", "echo running > /mnt/store0/state; echo running > /mnt/store1/state"))
	a := newHostApp(t, c, 2, map[string]string{"stillpoint.io/quiesce": name})
	b := startBackup(t, c, a.namespace, by(location))
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	t.Logf("frozen for %v", frozenFor(t, b.log()))
	r := b.restore(t, nil)
	require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(limit), r.log())
	for i := range a.volumes {
		assert.Equal(t, "running\n", files(t, a.dirs[i])["state"])
		assert.Equal(t, "quiesced\n", files(t, boundVolume(t, c, r.namespace, fmt.Sprintf("data%d", i)).Spec.HostPath.Path)["state"])
	}
	b.delete()
}

// A location that asks for what there is not is refused, by name.
func TestExternalStorageLocation(t *testing.T) {
	c := connect(t)
	location := oldLocation(t, c, "volumeSource=hostPath,timeout=soon")
	a := newHostApp(t, c, 1, nil)
	b := startBackup(t, c, a.namespace, by(location))
	b.finished(limit)
	message := strings.ReplaceAll(b.log(), `\"`, `"`)
	assert.Contains(t, message, "key volumeSource: unknown key; valid keys: provisioners, volumeSources, promoterClass, timeout")
	assert.Contains(t, message, `key timeout: value "soon"`)
	b.delete()
}
