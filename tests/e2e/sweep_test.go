package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cleanup"
	"stillpoint.io/stillpoint/internal/snapshot"
	"stillpoint.io/stillpoint/tests/cluster"
)

// runSweep runs `stillpoint sweep` as a user with a kubeconfig does, and returns
// all that it prints.
func runSweep(t *testing.T, args ...string) (output string, code int) {
	t.Helper()
	binary := os.Getenv("STILLPOINT_PLUGIN")
	if binary == "" {
		t.Skip("STILLPOINT_PLUGIN does not name the plugin's binary")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, append([]string{"sweep"}, args...)...).CombinedOutput()
	t.Logf("stillpoint sweep %s\n%s", strings.Join(args, " "), out)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), exit.ExitCode()
	}
	require.NoError(t, err)
	return string(out), 0
}

// taken waits until each of the claims has a VolumeSnapshot, and returns their
// names.
func (a *app) taken(claims ...string) (names []string) {
	a.t.Helper()
	for _, claim := range claims {
		require.Eventually(a.t, func() bool {
			list := &snapshotv1.VolumeSnapshotList{}
			if a.c.Objects().List(a.t.Context(), list, crclient.InNamespace(a.namespace)) != nil {
				return false
			}
			for _, vs := range list.Items {
				if ptr.Deref(vs.Spec.Source.PersistentVolumeClaimName, "") == claim {
					names = append(names, vs.Name)
					return true
				}
			}
			return false
		}, limit, 50*time.Millisecond, claim) // Velero may have queued the backup
	}
	return names
}

// Velero is killed while it takes snapshots: one that is marked as ours, which
// the next backup deletes, and one of its own, which a user must name.
func TestSweepAfterVeleroWasKilled(t *testing.T) {
	c := connect(t)
	slow := slowClass(t, c, map[string]string{"delay": "5s"})
	a := newApp(t, c, shape{volumes: 2, claim: func(claim *corev1.PersistentVolumeClaim) {
		if claim.Name == "app-data1" {
			slow(claim)
			claim.Labels = map[string]string{"e2e": "velero"}
		}
	}})
	own := "- conditions: {pvcLabels: {e2e: velero}}\n  action: {type: snapshot}\n"
	b := startBackup(t, c, a.namespace, handOver(t, c, own))
	names := a.taken("app-data0", "app-data1")
	kill(t, syscall.SIGKILL, append(c.VeleroPIDs(), c.PluginPIDs()...))
	require.Equal(t, velerov1.BackupPhaseFailed, b.finished(3*time.Minute), "a restarted Velero gives its backups up")
	a.kubectl("wait", "--for=jsonpath={.status.readyToUse}=true", "volumesnapshot", "--all", "--timeout=60s")
	require.Len(t, a.stored("app-data0"), 1)
	require.Len(t, a.stored("app-data1"), 1)

	marked, velero := a.namespace+"/"+names[0], a.namespace+"/"+names[1]
	table, code := runSweep(t, "--namespace", a.namespace)
	assert.Equal(t, 0, code)
	assert.Regexp(t, marked+` +64Mi .* `+b.name+` +delete +backup `+b.name+` is Failed\n`, table)
	assert.Regexp(t, velero+` +64Mi .* `+b.name+` +list +only Velero's label velero.io/backup-name: backup `+b.name+` is Failed\n`, table)
	assert.Len(t, a.snapshots(), 4, "nothing is deleted without --delete")

	table, code = runSweep(t, "--delete", velero)
	assert.Equal(t, 0, code, table)
	assert.Empty(t, a.stored("app-data1"))
	assert.Len(t, a.stored("app-data0"), 1, "it was not named")

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, err := c.Kubectl(ctx, nil, "-n", "velero", "rollout", "status", "deployment/velero", "--timeout=100s")
	require.NoError(t, err)
	next := startBackup(t, c, a.namespace, handOver(t, c, ""))
	require.Equal(t, velerov1.BackupPhaseCompleted, next.finished(limit), next.log())
	assert.Contains(t, next.log(), "Deleted a leftover: VolumeSnapshot "+marked)
	assert.Contains(t, next.log(), "old: backup "+b.name+" is Failed")
	assert.Empty(t, said(next.log(), "warning", "error"))
	a.noSnapshots()
	assert.Len(t, a.stored("app-data0"), 1, "that of the next backup")
}

func noLabel(string) bool { return false }

// leave takes a snapshot of a claim for a backup, as the group path does, and
// leaves it there.
func (a *app) leave(backup *velerov1.Backup, claim string) *snapshotv1.VolumeSnapshot {
	a.t.Helper()
	pvc, err := a.c.Client().CoreV1().PersistentVolumeClaims(a.namespace).Get(a.t.Context(), claim, metav1.GetOptions{})
	require.NoError(a.t, err)
	velero, err := a.c.Client().CoreV1().Namespaces().Get(a.t.Context(), cluster.VeleroNamespace, metav1.GetOptions{})
	require.NoError(a.t, err)
	vs := snapshot.New(string(velero.UID), backup, pvc, cluster.SnapshotClass, "e2e", noLabel)
	require.NoError(a.t, a.c.Objects().Create(a.t.Context(), vs))
	a.kubectl("wait", "--for=jsonpath={.status.readyToUse}=true", "volumesnapshot/"+vs.Name, "--timeout=60s")
	require.NoError(a.t, a.c.Objects().Get(a.t.Context(), crclient.ObjectKeyFromObject(vs), vs))
	return vs
}

// The Backup is deleted, and Velero had no part in it.
func TestSweepWithoutTheBackup(t *testing.T) {
	c := connect(t)
	a := newApp(t, c, shape{volumes: 3})
	backup := &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: "e2e-" + rand.String(6)}}
	backup.Status.Phase = velerov1.BackupPhaseInProgress // Velero looks away until it is started anew
	require.NoError(t, c.Objects().Create(t.Context(), backup))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), backup) })
	snapshots := []*snapshotv1.VolumeSnapshot{a.leave(backup, "app-data0"), a.leave(backup, "app-data1"), a.leave(backup, "app-data2")}
	object := func(i int) string { return a.namespace + "/" + snapshots[i].Name }

	table, code := runSweep(t, "--delete", object(0))
	assert.Equal(t, 1, code, "its backup runs")
	assert.Contains(t, table, "NOT DELETED: "+object(0)+": backup "+backup.Name+" is ")
	require.NoError(t, c.Objects().Delete(t.Context(), backup))

	// The storage's snapshot of the first has lost its VolumeSnapshot.
	content := *snapshots[0].Status.BoundVolumeSnapshotContentName
	_, err := c.Kubectl(t.Context(), nil, "patch", "volumesnapshotcontent", content, "--type=merge", "--patch", `{"spec": {"deletionPolicy": "Retain"}}`)
	require.NoError(t, err)
	marked := &snapshotv1.VolumeSnapshotContent{}
	require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Name: content}, marked))
	before := marked.DeepCopy()
	origin, ok := snapshot.OriginOf(snapshots[0])
	require.True(t, ok)
	origin.Mark(marked)
	require.NoError(t, c.Objects().Patch(t.Context(), marked, crclient.MergeFrom(before)))
	a.kubectl("delete", "volumesnapshot", snapshots[0].Name)
	// The second is wanted by a user, the third by a claim that no pod uses.
	a.kubectl("annotate", "volumesnapshot", snapshots[1].Name, api.AnnotationKeepSnapshot+"=true")
	a.waiting(snapshots[2].Name)

	table, code = runSweep(t, "--delete", "--namespace", a.namespace)
	assert.Equal(t, 0, code, table)
	assert.Regexp(t, "content/"+content+` .* delete +backup `+backup.Name+` is gone\n`, table)
	assert.Contains(t, table, "Deleted content/"+content)
	assert.Regexp(t, object(1)+` .* keep +annotation stillpoint.io/keep-snapshot: "true"`, table)
	assert.Regexp(t, object(2)+` .* keep +claim `+a.namespace+`/waiting is Pending and needs it`, table)
	assert.Empty(t, a.stored("app-data0"))
	assert.Len(t, a.stored("app-data1"), 1)
	assert.Len(t, a.stored("app-data2"), 1)

	table, code = runSweep(t, "--delete", object(1), object(2))
	assert.Equal(t, 1, code)
	assert.Equal(t, 2, strings.Count(table, "NOT DELETED: "), table)
	a.kubectl("annotate", "volumesnapshot", snapshots[1].Name, api.AnnotationKeepSnapshot+"-")
	a.kubectl("delete", "pvc", "waiting")
	table, code = runSweep(t, "--delete", "--namespace", a.namespace)
	assert.Equal(t, 0, code, table)
	a.noSnapshots()
	assert.Empty(t, append(a.stored("app-data1"), a.stored("app-data2")...))
	table, code = runSweep(t, "--namespace", a.namespace)
	assert.Equal(t, 0, code)
	assert.Equal(t, "Nothing is left of backups and restores that are over.\n", table)
}

// waiting makes a claim of a snapshot in a class that waits for a pod.
func (a *app) waiting(vs string) {
	a.t.Helper()
	class := &storagev1.StorageClass{}
	require.NoError(a.t, a.c.Objects().Get(a.t.Context(), crclient.ObjectKey{Name: cluster.StorageClass}, class))
	class.ObjectMeta = metav1.ObjectMeta{Name: "e2e-" + rand.String(5)}
	class.VolumeBindingMode = ptr.To(storagev1.VolumeBindingWaitForFirstConsumer)
	require.NoError(a.t, a.c.Objects().Create(a.t.Context(), class))
	a.t.Cleanup(func() { _ = a.c.Objects().Delete(context.Background(), class) })
	require.NoError(a.t, a.c.Objects().Create(a.t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: "waiting"},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class.Name, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:  corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
			DataSource: &corev1.TypedLocalObjectReference{APIGroup: ptr.To(snapshotv1.GroupName), Kind: "VolumeSnapshot", Name: vs},
		},
	}))
}

// deploy/rbac.yaml is enough to sweep, by hand and at the start of a backup. What
// a restore has left goes without the storage's snapshot.
func TestRightsOfDeploySufficeToSweep(t *testing.T) {
	c := connect(t)
	a := newApp(t, c, shape{})
	backup := &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: "e2e-" + rand.String(6), UID: types.UID(rand.String(8))}}
	taken := a.leave(backup, "app-data0")
	a.restoredFrom(taken)
	a.kubectl("annotate", "volumesnapshot", taken.Name, api.AnnotationKeepSnapshot+"=true")

	clients, log, said := restricted(t, c)
	table, code := runSweep(t, "--delete", "--namespace", a.namespace)
	assert.Equal(t, 0, code, table)
	assert.Contains(t, table, "Deleted the objects of "+a.namespace+"/restored")
	assert.Len(t, a.snapshots(), 2)
	assert.Len(t, a.stored("app-data0"), 1, "the storage's snapshot is the backup's")

	a.kubectl("annotate", "volumesnapshot", taken.Name, api.AnnotationKeepSnapshot+"-")
	<-cleanup.New(clients, clock.RealClock{}).AtBackup(t.Context(), log)
	assert.Contains(t, said.String(), "Deleted a leftover: VolumeSnapshot "+a.namespace+"/"+taken.Name)
	assert.NotContains(t, said.String(), "level=warning")
	assert.Empty(t, a.snapshots())
	assert.Empty(t, a.stored("app-data0"))
}

// restoredFrom makes what a restore of this installation makes of a snapshot.
func (a *app) restoredFrom(taken *snapshotv1.VolumeSnapshot) {
	a.t.Helper()
	of := &snapshotv1.VolumeSnapshotContent{}
	require.NoError(a.t, a.c.Objects().Get(a.t.Context(), crclient.ObjectKey{Name: *taken.Status.BoundVolumeSnapshotContentName}, of))
	labels := map[string]string{
		api.LabelInstallation: taken.Labels[api.LabelInstallation], api.LabelRestore: rand.String(8), velerov1.RestoreNameLabel: "e2e-restore",
	}
	name := a.namespace + "-restored"
	require.NoError(a.t, a.c.Objects().Create(a.t.Context(), &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: of.Spec.Driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentRetain,
			Source:            snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: of.Status.SnapshotHandle},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: a.namespace, Name: "restored"},
		},
	}))
	require.NoError(a.t, a.c.Objects().Create(a.t.Context(), &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: "restored", Labels: labels},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: &name}},
	}))
	a.kubectl("wait", "--for=jsonpath={.status.readyToUse}=true", "volumesnapshot/restored", "--timeout=60s")
}
