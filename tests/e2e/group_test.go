package e2e

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

const byStillpoint = "- conditions: {csi: {}}\n  action: {type: custom, parameters: {snapshotter: stillpoint.io}}\n"

// policyFile makes a ConfigMap with a volume policy beside Velero.
func policyFile(t *testing.T, c *cluster.Cluster, text string) string {
	t.Helper()
	policy := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: "e2e-" + rand.String(5)},
		Data:       map[string]string{"policy.yaml": "version: v1\n" + text},
	}
	require.NoError(t, c.Objects().Create(t.Context(), policy))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), policy) })
	return policy.Name
}

// handOver hands all CSI volumes of a backup to Stillpoint, and changes what
// else is asked for.
func handOver(t *testing.T, c *cluster.Cluster, before string, changes ...func(*velerov1.BackupSpec)) func(*velerov1.BackupSpec) {
	t.Helper()
	name := policyFile(t, c, "volumePolicies:\n"+before+byStillpoint)
	return func(spec *velerov1.BackupSpec) {
		spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: name}
		for _, change := range changes {
			change(spec)
		}
	}
}

func moveData(spec *velerov1.BackupSpec) { spec.SnapshotMoveData = ptr.To(true) }

// claim is a claim as it stands in the backup.
func (b *backup) claim(namespace, name string) *corev1.PersistentVolumeClaim {
	b.t.Helper()
	file := filepath.Join(b.t.TempDir(), "backup.tar.gz")
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	_, err := b.c.Velero(ctx, "backup", "download", b.name, "--output", file)
	require.NoError(b.t, err)
	zipped, err := os.Open(file)
	require.NoError(b.t, err)
	defer zipped.Close()
	plain, err := gzip.NewReader(zipped)
	require.NoError(b.t, err)
	for archive := tar.NewReader(plain); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		require.NoError(b.t, err)
		if header.Name == fmt.Sprintf("resources/persistentvolumeclaims/namespaces/%s/%s.json", namespace, name) {
			claim := &corev1.PersistentVolumeClaim{}
			require.NoError(b.t, json.NewDecoder(archive).Decode(claim))
			return claim
		}
	}
}

// describe is what `velero backup describe --details` tells of volumes.
func (b *backup) describe() string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	text, err := b.c.Velero(ctx, "backup", "describe", b.name, "--details")
	require.NoError(b.t, err)
	return text
}

// snapshots are the VolumeSnapshots and contents that are left of a namespace.
func (a *app) snapshots() []string {
	a.t.Helper()
	list := &snapshotv1.VolumeSnapshotList{}
	require.NoError(a.t, a.c.Objects().List(a.t.Context(), list, crclient.InNamespace(a.namespace)))
	var names []string
	for _, vs := range list.Items {
		names = append(names, "VolumeSnapshot "+vs.Name)
	}
	contents := &snapshotv1.VolumeSnapshotContentList{}
	require.NoError(a.t, a.c.Objects().List(a.t.Context(), contents))
	for _, content := range contents.Items {
		if content.Spec.VolumeSnapshotRef.Namespace == a.namespace {
			names = append(names, "VolumeSnapshotContent "+content.Name)
		}
	}
	return names
}

// noSnapshots waits until nothing is left.
func (a *app) noSnapshots() {
	a.t.Helper()
	assert.Eventually(a.t, func() bool { return len(a.snapshots()) == 0 }, 30*time.Second, 200*time.Millisecond)
}

// stored are the snapshots of a claim that the storage holds.
func (a *app) stored(claim string) []string {
	a.t.Helper()
	found, err := a.c.StoredSnapshots(a.t.Context(), a.namespace, claim)
	require.NoError(a.t, err)
	return found
}

// lastWrite is when the last line was written that a restored log holds from
// before: the writer, started again, counts from the beginning.
func lastWrite(t *testing.T, log string) time.Time {
	t.Helper()
	var last time.Time
	before := 0
	for line := range strings.Lines(log) {
		number, at, ok := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(number)
		if !ok || err != nil || n < before {
			break
		}
		before = n
		last, err = time.Parse(time.RFC3339Nano, at)
		require.NoError(t, err, line)
	}
	require.False(t, last.IsZero(), log)
	return last
}

// All volumes of a workload are snapshotted in one short freeze, and what Velero
// makes of them is what it makes of its own snapshots: they can be described,
// restored and deleted.
func TestGroup(t *testing.T) {
	c := connect(t)
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, volumes: 4})
	a.stall("app")
	b := startBackup(t, c, a.namespace, handOver(t, c, ""))
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	log := b.log()
	require.Len(t, frozenFor(t, log), 1, log)
	assert.Less(t, a.stall("app"), 2*time.Second, "four of Velero's snapshots take 15 seconds")
	assert.Contains(t, log, "4 volumes cut")
	assert.Empty(t, said(log, "warning", "error"))
	assert.Contains(t, log, "VolumeSnapshotClass loop: ")
	assert.Contains(t, a.events("app")["Thawed"], "Frozen for")

	details := b.describe()
	for i := range 4 {
		assert.Contains(t, details, fmt.Sprintf("%s/app-data%d:", a.namespace, i))
	}
	assert.Equal(t, 4, strings.Count(details, "Snapshot Content Name: snapcontent-"), details)
	assert.NotContains(t, details, "Operations Failed")

	r := b.restore(t, nil)
	require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(limit), r.log())
	r.kubectl("rollout", "status", "deployment/app", "--timeout=90s")
	var first, last time.Time
	for i := range 4 {
		at := lastWrite(t, r.kubectl("exec", "deployment/app", "-c", "writer", "--", "cat", fmt.Sprintf("/mnt/data%d/log", i)))
		if first.IsZero() || at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
	}
	assert.Less(t, last.Sub(first), time.Second, "the volumes are of one moment")

	claim := b.claim(a.namespace, "app-data0")
	require.NotNil(t, claim)
	assert.Equal(t, claim.Annotations["velero.io/volume-snapshot-name"], claim.Labels["velero.io/volume-snapshot-name"])
	a.noSnapshots() // Velero keeps the storage's own, and the objects in the backup
	assert.Len(t, a.stored("app-data0"), 1)
}

// With data movement each volume has its DataUpload, and what is restored comes
// from there. An upload that takes too long is cancelled.
func testGroupMovesData(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, volumes: 2})
	b := startBackup(t, c, a.namespace, handOver(t, c, "", moveData))
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(3*time.Minute), b.log())
	require.Len(t, frozenFor(t, b.log()), 1)
	details := b.describe()
	assert.Equal(t, 2, strings.Count(details, "Data Movement:"), details)
	a.noSnapshots()

	r := b.restore(t, nil)
	require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(3*time.Minute), r.log())
	r.kubectl("rollout", "status", "deployment/app", "--timeout=90s")
	for i := range 2 {
		lastWrite(t, r.kubectl("exec", "deployment/app", "-c", "writer", "--", "cat", fmt.Sprintf("/mnt/data%d/log", i)))
	}

	// Nobody works for this mover.
	b = startBackup(t, c, a.namespace, handOver(t, c, "", moveData, func(spec *velerov1.BackupSpec) {
		spec.DataMover, spec.ItemOperationTimeout.Duration = "e2e-nobody", time.Second
	}))
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	list := &velerov2alpha1.DataUploadList{}
	require.NoError(t, c.Objects().List(t.Context(), list, crclient.MatchingLabels{velerov1.BackupNameLabel: b.name}))
	require.Len(t, list.Items, 2)
	for _, upload := range list.Items {
		assert.True(t, upload.Spec.Cancel, upload.Name)
		assert.Equal(t, "loop", upload.Spec.CSISnapshot.SnapshotClass)
	}
}

// A group that fails leaves nothing behind: no frozen volume, no snapshot, and
// no claim that would come back empty.
func testGroupFails(t *testing.T, c *cluster.Cluster) {
	fails := slowClass(t, c, map[string]string{"fail": "disk on fire"})
	slow := slowClass(t, c, map[string]string{"delay": "8s"})
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, volumes: 2})
	annotate := func(claim, key, value string) {
		if value == "" {
			a.kubectl("annotate", "pvc", claim, key+"-")
		} else {
			a.kubectl("annotate", "--overwrite", "pvc", claim, key+"="+value)
		}
	}
	const class = "velero.io/csi-volumesnapshot-class"

	t.Run("the driver fails", func(t *testing.T) {
		annotate("app-data1", class, className(fails))
		b := startBackup(t, c, a.namespace, handOver(t, c, ""))
		require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
		errors := said(b.log(), "error")
		assert.Contains(t, errors, "the snapshot of claim "+a.namespace+"/app-data1 failed")
		assert.Contains(t, errors, "disk on fire")
		for _, name := range []string{"app-data0", "app-data1"} {
			claim := b.claim(a.namespace, name)
			require.NotNil(t, claim, "the claim is in the backup")
			assert.Contains(t, claim.Annotations["stillpoint.io/no-snapshot"], "disk on fire")
		}
		a.writesWithin(thawTime, "app-data0", "app-data1")
		a.noSnapshots()
	})

	t.Run("the driver fails, and crash-consistent will do", func(t *testing.T) {
		a.kubectl("annotate", "deployment", "app", "stillpoint.io/on-quiesce-error=continue")
		b := startBackup(t, c, a.namespace, handOver(t, c, "", func(spec *velerov1.BackupSpec) { spec.CSISnapshotTimeout.Duration = 6 * time.Second }))
		require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
		assert.Contains(t, said(b.log(), "warning"), "disk on fire")
		assert.Contains(t, said(b.log(), "error"), "claim "+a.namespace+"/app-data1 is backed up without")
		assert.NotContains(t, b.claim(a.namespace, "app-data0").Annotations, "stillpoint.io/no-snapshot")
		a.kubectl("annotate", "deployment", "app", "stillpoint.io/on-quiesce-error-")
	})

	t.Run("a class that is not there", func(t *testing.T) {
		annotate("app-data1", class, "nowhere")
		b := startBackup(t, c, a.namespace, handOver(t, c, ""))
		require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
		assert.Contains(t, said(b.log(), "error"), "nowhere")
		assert.NotContains(t, b.log(), "Quiesced", "nothing is frozen for a snapshot that cannot be taken")
	})

	t.Run("csiSnapshotTimeout", func(t *testing.T) {
		annotate("app-data1", class, className(slow))
		a.kubectl("annotate", "deployment", "app", "stillpoint.io/quiesce-")
		b := startBackup(t, c, a.namespace, handOver(t, c, "", func(spec *velerov1.BackupSpec) { spec.CSISnapshotTimeout.Duration = 3 * time.Second }))
		require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
		assert.Contains(t, said(b.log(), "error"), "it was not cut within csiSnapshotTimeout 3s")
		assert.NotContains(t, b.claim(a.namespace, "app-data0").Annotations, "stillpoint.io/no-snapshot", "nobody asked for one moment")
	})
}

func TestPluginKilledWhileAGroupIsFrozen(t *testing.T) {
	c := connect(t)
	slow := slowClass(t, c, map[string]string{"delay": "8s"})
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, volumes: 2, claim: slow})
	b := startBackup(t, c, a.namespace, handOver(t, c, ""))
	// A group sends its event when the freeze is over, but its record before.
	require.Eventually(t, func() bool { return len(a.owed()) > 0 && !a.writing("app-data0") }, 30*time.Second, 20*time.Millisecond)
	kill(t, syscall.SIGKILL, c.PluginPIDs())
	a.writesWithin(thawTime, "app-data0", "app-data1")
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	// Velero may call the dead process once more before it notices.
	assert.Regexp(t, "the plugin process ended while the workload was quiesced|connection refused", said(b.log(), "error"))
	assert.Equal(t, 1, strings.Count(b.log(), "Quiesced "), "it is not frozen a second time")
	assert.False(t, a.frozen("app-data0") || a.frozen("app-data1"))
}

// What a policy hands over and cannot be snapshotted is an error that says how
// to mend it; all other volumes are taken.
func testGroupRefusals(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{})
	claim := func(name, class string, labels map[string]string) {
		require.NoError(t, c.Objects().Create(t.Context(), &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: name, Labels: labels},
			Spec: corev1.PersistentVolumeClaimSpec{
				StorageClassName: ptr.To(class),
				AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
			},
		}))
	}
	claim("pending", "e2e-nowhere", map[string]string{"e2e": "all"})
	claim("grouped", "loop", map[string]string{"e2e-group": "db"})
	claim("idle", "loop", nil)
	host := hostVolume(t, c, a.namespace, map[string]string{"e2e": "all"})
	a.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/idle", "pvc/grouped", "--timeout=60s")

	all := "- conditions: {pvcLabels: {e2e: all}}\n  action: {type: custom, parameters: {snapshotter: stillpoint.io}}\n"
	b := startBackup(t, c, a.namespace, handOver(t, c, all, func(spec *velerov1.BackupSpec) { spec.VolumeGroupSnapshotLabelKey = "e2e-group" }))
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	errors := said(b.log(), "error")
	for _, want := range []string{
		"claim " + a.namespace + "/pending is Pending", "claim " + a.namespace + "/grouped has the label e2e-group=db", "pvcLabels: {e2e-group: db}",
		"PersistentVolume " + host + " is not a CSI volume",
	} {
		assert.Contains(t, errors, want)
	}
	assert.NotContains(t, b.claim(a.namespace, "pending").Annotations, "stillpoint.io/no-snapshot", "there is nothing to lose")
	assert.Contains(t, b.claim(a.namespace, "host").Annotations, "stillpoint.io/no-snapshot")
	for _, taken := range []string{"app-data0", "idle"} {
		assert.Contains(t, b.claim(a.namespace, taken).Annotations, "velero.io/volume-snapshot-name", taken)
	}
}

// hostVolume makes a volume that is not CSI's, with a claim named host, and waits
// until they are bound. It returns the name of the PersistentVolume.
func hostVolume(t *testing.T, c *cluster.Cluster, namespace string, labels map[string]string) string {
	t.Helper()
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: namespace + "-host"},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}, StorageClassName: "e2e-host",
			AccessModes:            []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			ClaimRef:               &corev1.ObjectReference{Namespace: namespace, Name: "host"},
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/run/e2e-host"}},
		},
	}
	require.NoError(t, c.Objects().Create(t.Context(), volume))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), volume) })
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "host", Labels: labels},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &volume.Spec.StorageClassName, AccessModes: volume.Spec.AccessModes,
			Resources: corev1.VolumeResourceRequirements{Requests: volume.Spec.Capacity},
		},
	}
	require.NoError(t, c.Objects().Create(t.Context(), claim))
	require.Eventually(t, func() bool {
		err := c.Objects().Get(t.Context(), crclient.ObjectKeyFromObject(claim), claim)
		return err == nil && claim.Status.Phase == corev1.ClaimBound
	}, limit, 200*time.Millisecond)
	return volume.Name
}

// serverFlags runs Velero's server with more flags for one test. The last of a flag
// counts.
func serverFlags(t *testing.T, c *cluster.Cluster, flags ...string) {
	t.Helper()
	require.NoError(t, changeFlags(t.Context(), c, func(args []string) []string { return append(args, flags...) }))
	t.Cleanup(func() { require.NoError(t, changeFlags(context.Background(), c, without(flags))) })
}

// without takes the last of each of these flags away.
func without(flags []string) func(args []string) []string {
	return func(args []string) []string {
		for _, flag := range slices.Backward(flags) {
			for i, arg := range slices.Backward(args) {
				if arg == flag {
					args = slices.Delete(args, i, i+1)
					break
				}
			}
		}
		return args
	}
}

// changeFlags changes the arguments of Velero's server, and waits until it runs so.
func changeFlags(ctx context.Context, c *cluster.Cluster, change func(args []string) []string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		server := &appsv1.Deployment{}
		if err := c.Objects().Get(ctx, crclient.ObjectKey{Namespace: cluster.VeleroNamespace, Name: "velero"}, server); err != nil {
			return err
		}
		container := &server.Spec.Template.Spec.Containers[0]
		container.Args = change(slices.Clone(container.Args))
		return c.Objects().Update(ctx, server)
	})
	if err != nil {
		return fmt.Errorf("change the flags of Velero's server: %w", err)
	}
	_, err = c.Kubectl(ctx, nil, "-n", cluster.VeleroNamespace, "rollout", "status", "deployment/velero", "--timeout=90s")
	return err
}

// expire lets the time of a backup be up.
func (b *backup) expire() {
	b.t.Helper()
	backup := &velerov1.Backup{}
	require.NoError(b.t, b.c.Objects().Get(b.t.Context(), crclient.ObjectKey{Namespace: cluster.VeleroNamespace, Name: b.name}, backup))
	before := backup.DeepCopy()
	backup.Status.Expiration = ptr.To(metav1.Now())
	require.NoError(b.t, b.c.Objects().Patch(b.t.Context(), backup, crclient.MergeFrom(before)))
}

// Eight workers ask at once, the policy is the server's own, and a filter policy
// leaves one claim out. Then the backup expires.
func TestGroupWithEightWorkers(t *testing.T) {
	c := connect(t)
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, volumes: 2})
	a.deploy("other", shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, volumes: 2})
	a.deploy("third", shape{volumes: 2})
	serverFlags(t, c, "--item-block-worker-count=8", "--garbage-collection-frequency=5s", "--global-backup-volume-policies-configmap="+policyFile(t, c, "volumePolicies:\n"+byStillpoint))

	filters := policyFile(t, c, fmt.Sprintf("namespacedFilterPolicies:\n- namespaces: [%s]\n  resourceFilters:\n"+
		"  - kinds: [persistentvolumeclaims]\n    excludedNames: [other-data1]\n  - kinds: ['*']\n", a.namespace))
	b := startBackup(t, c, a.namespace, func(spec *velerov1.BackupSpec) {
		spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: filters}
	})
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	log := b.log()
	assert.Len(t, frozenFor(t, log), 2, log)
	assert.Contains(t, said(log, "warning"), "The server has 8 workers")
	for _, name := range []string{"app-data0", "app-data1", "other-data0", "third-data0", "third-data1"} {
		claim := b.claim(a.namespace, name)
		require.NotNil(t, claim, name)
		assert.Contains(t, claim.Annotations, "velero.io/volume-snapshot-name", name)
	}
	assert.Nil(t, b.claim(a.namespace, "other-data1"))
	assert.Contains(t, log, "Not quiesced with its workload: claim "+a.namespace+"/other-data1: a filter policy of the backup leaves out its name")
	assert.NotContains(t, log, "Velero left the claim out", "it has no snapshot")
	a.noSnapshots()
	assert.Empty(t, a.stored("other-data1"))
	assert.Len(t, a.stored("other-data0"), 1)

	// The backup expires, and takes along what it stands for in the storage.
	b.expire()
	assert.Eventually(t, func() bool {
		return len(a.stored("app-data0"))+len(a.stored("app-data1"))+len(a.stored("other-data0"))+len(a.stored("third-data0")) == 0
	}, time.Minute, 500*time.Millisecond)
	a.noSnapshots()
}
