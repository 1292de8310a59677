package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// One backup of a workload, and of a claim that is marked as having no
// snapshot, is restored in every way.
func TestRestore(t *testing.T) {
	c := connect(t)
	// Velero gives a content the first class of its driver, so the class that
	// the map asks for must not be the first.
	classes := []string{className(slowClass(t, c, nil)), className(slowClass(t, c, nil))}
	slices.Sort(classes)
	from, to := classes[0], classes[1]

	a := newApp(t, c, shape{claim: func(claim *corev1.PersistentVolumeClaim) {
		claim.Annotations = map[string]string{"velero.io/csi-volumesnapshot-class": from}
	}})
	unsaved := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: a.namespace, Name: "unsaved-data0",
			Labels: map[string]string{"restored": "unsaved"}, Annotations: map[string]string{"stillpoint.io/no-snapshot": "not frozen in time"},
		},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
		},
	}
	require.NoError(t, c.Objects().Create(t.Context(), unsaved))
	a.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "persistentvolumeclaim/unsaved-data0", "--timeout=60s")
	a.kubectl("exec", "deployment/app", "-c", "sidecar", "--", "sh", "-c", "echo kept > /mnt/data0/marker; sync")
	b := startBackup(t, c, a.namespace, leaveOut(t, c, "restored", "unsaved"))
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())

	t.Run("a class that is mapped, and a claim without a snapshot", func(t *testing.T) {
		configure(t, c, fmt.Sprintf("deletionPolicy: Delete\nsnapshotClasses:\n- {from: %s, to: %s}", from, to))
		contents := watchContents(t, c)
		r := b.restore(t, nil)
		require.Equal(t, velerov1.RestorePhasePartiallyFailed, r.finished(limit))
		t.Logf("the restore took %s", r.took())
		errors := said(r.log(), "error")
		assert.Equal(t, 1, strings.Count(errors, "stillpoint:"), errors)
		for _, want := range []string{a.namespace + "/unsaved-data0", b.name, "not frozen in time", "--restore-volumes=false"} {
			assert.Contains(t, errors, want)
		}
		assert.Equal(t, []string{"app-data0"}, r.claims())

		content := contents(r.namespace)
		require.NotNil(t, content)
		assert.Equal(t, to, *content.Spec.VolumeSnapshotClassName)
		assert.Equal(t, snapshotv1.VolumeSnapshotContentDelete, content.Spec.DeletionPolicy)
		assert.Contains(t, r.log(), fmt.Sprintf("class %s: class by restore.snapshotClasses maps %s to %s", to, from, to))
		r.kubectl("rollout", "status", "deployment/app", "--timeout=60s")
		assert.Equal(t, "kept\n", r.kubectl("exec", "deployment/app", "-c", "sidecar", "--", "cat", "/mnt/data0/marker"))

		// What the claim came from is gone, and the storage's snapshot is the backup's,
		// whatever the map says of policies.
		assert.Contains(t, r.details(), "its content are removed; the storage's snapshot stays the backup's")
		r.leavesNothing()
		stored, err := c.StoredSnapshots(t.Context(), a.namespace, "app-data0")
		require.NoError(t, err)
		assert.Len(t, stored, 1)
	})

	t.Run("a class that is mapped to none", func(t *testing.T) {
		configure(t, c, fmt.Sprintf("snapshotClasses:\n- {from: %s, to: nowhere}", from))
		r := b.restore(t, volumes)
		require.Equal(t, velerov1.RestorePhasePartiallyFailed, r.finished(limit))
		r.refused(fmt.Sprintf(`maps VolumeSnapshotClass "%s" of the backup to "nowhere", which this cluster does not have`, from),
			from, to, cluster.SnapshotClass)
	})

	t.Run("a driver that is mapped to none", func(t *testing.T) {
		configure(t, c, "drivers:\n- {from: loop.csi.stillpoint.io, to: other.csi}")
		r := b.restore(t, volumes)
		require.Equal(t, velerov1.RestorePhasePartiallyFailed, r.finished(limit))
		r.refused(`maps driver "loop.csi.stillpoint.io" of the backup to "other.csi"`, "its drivers: loop.csi.stillpoint.io")
	})

	t.Run("a configuration that cannot be read", func(t *testing.T) {
		configure(t, c, "driver: []")
		r := b.restore(t, volumes)
		require.Equal(t, velerov1.RestorePhasePartiallyFailed, r.finished(limit))
		r.refused("e2e-restore", "restore.driver")
	})

	t.Run("a claim without a snapshot that is to be empty", func(t *testing.T) {
		r := b.restore(t, func(spec *velerov1.RestoreSpec) {
			spec.LabelSelector = &metav1.LabelSelector{MatchLabels: unsaved.Labels}
			spec.RestorePVs = ptr.To(false)
		})
		require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(limit), said(r.log(), "error"))
		assert.Equal(t, []string{"unsaved-data0"}, r.claims())
		claim, err := c.Client().CoreV1().PersistentVolumeClaims(r.namespace).Get(t.Context(), "unsaved-data0", metav1.GetOptions{})
		require.NoError(t, err)
		assert.NotContains(t, claim.Annotations, "stillpoint.io/no-snapshot")
		assert.Nil(t, claim.Spec.DataSource)
		r.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "persistentvolumeclaim", "--all", "--timeout=60s")
	})

	t.Run("a class of the backup that gets another name", func(t *testing.T) {
		name := "e2e-" + rand.String(5)
		configure(t, c, fmt.Sprintf("snapshotClasses:\n- {from: %s, to: %s}", from, name))
		class := &snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: name}}
		t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), class) })
		r := b.restore(t, func(spec *velerov1.RestoreSpec) {
			spec.IncludedResources = []string{"volumesnapshotclasses.snapshot.storage.k8s.io"}
			spec.IncludeClusterResources = ptr.To(true)
		})
		require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(limit), said(r.log(), "error"))
		require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKeyFromObject(class), class))
		assert.Equal(t, "loop.csi.stillpoint.io", class.Driver)
	})
}

// leaveOut has a backup take no snapshots of claims with a label.
func leaveOut(t *testing.T, c *cluster.Cluster, label, value string) func(*velerov1.BackupSpec) {
	t.Helper()
	name := policyFile(t, c, fmt.Sprintf("volumePolicies:\n- conditions: {pvcLabels: {%s: %s}}\n  action: {type: skip}\n", label, value))
	return func(spec *velerov1.BackupSpec) {
		spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: name}
	}
}

// volumes restores claims and classes. Their snapshots come with the claims.
func volumes(spec *velerov1.RestoreSpec) {
	spec.IncludedResources = []string{"persistentvolumeclaims", "volumesnapshotclasses.snapshot.storage.k8s.io"}
}

func className(annotate func(*corev1.PersistentVolumeClaim)) string {
	claim := &corev1.PersistentVolumeClaim{}
	annotate(claim)
	return claim.Annotations["velero.io/csi-volumesnapshot-class"]
}

// configure gives Velero's namespace a configuration for one test; its restore
// section is given.
func configure(t *testing.T, c *cluster.Cluster, section string) {
	t.Helper()
	configuration(t, c)("restore:\n  " + strings.ReplaceAll(section, "\n", "\n  ") + "\n")
}

// configuration gives Velero's namespace one for one test, which can be set
// again and again; what follows the version is given.
func configuration(t *testing.T, c *cluster.Cluster) (set func(text string)) {
	t.Helper()
	configMap := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: cluster.VeleroNamespace, Name: "e2e-restore",
			Labels: map[string]string{"velero.io/plugin-config": "", "stillpoint.io/stillpoint": "Configuration"},
		},
		Data: map[string]string{"config.yaml": "version: v1\n"},
	}
	require.NoError(t, c.Objects().Create(t.Context(), configMap))
	t.Cleanup(func() { assert.NoError(t, c.Objects().Delete(context.Background(), configMap)) })
	return func(text string) {
		t.Helper()
		configMap.Data["config.yaml"] = "version: v1\n" + text
		require.NoError(t, c.Objects().Update(t.Context(), configMap))
	}
}

// restored is a restore that has been asked for, into a namespace of its own.
type restored struct {
	t               *testing.T
	c               *cluster.Cluster
	name, namespace string
}

// restore asks for a restore, as `velero restore create` does.
func (b *backup) restore(t *testing.T, change func(*velerov1.RestoreSpec)) *restored {
	t.Helper()
	source := &velerov1.Backup{}
	require.NoError(t, b.c.Objects().Get(t.Context(), crclient.ObjectKey{Namespace: cluster.VeleroNamespace, Name: b.name}, source))
	r := &restored{t: t, c: b.c, name: "e2e-" + rand.String(6), namespace: b.c.Namespace(t, "e2e-restored")}
	object := &velerov1.Restore{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: r.name}}
	object.Spec.BackupName = b.name
	object.Spec.NamespaceMapping = map[string]string{source.Spec.IncludedNamespaces[0]: r.namespace}
	if change != nil {
		change(&object.Spec)
	}
	require.NoError(t, b.c.Objects().Create(t.Context(), object))
	t.Cleanup(func() { _ = b.c.Objects().Delete(context.Background(), object) })
	return r
}

// finished waits until a restore has ended and returns its phase.
func (r *restored) finished(limit time.Duration) velerov1.RestorePhase {
	r.t.Helper()
	found := &velerov1.Restore{}
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		require.NoError(r.t, r.c.Objects().Get(r.t.Context(), crclient.ObjectKey{Namespace: cluster.VeleroNamespace, Name: r.name}, found))
		switch found.Status.Phase {
		case velerov1.RestorePhaseCompleted, velerov1.RestorePhasePartiallyFailed, velerov1.RestorePhaseFailed, velerov1.RestorePhaseFailedValidation:
			return found.Status.Phase
		default:
		}
	}
	r.t.Fatalf("restore %s is %s after %s", r.name, found.Status.Phase, limit)
	return ""
}

// log returns what matters of the restore's log: our lines, warnings and errors.
func (r *restored) log() string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	text, err := r.c.Velero(ctx, "restore", "logs", r.name)
	require.NoError(r.t, err)
	var lines strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, "pluginName=stillpoint") || said(line, "error", "warning") != "" {
			lines.WriteString(line)
		}
	}
	return lines.String()
}

// refused checks that each object of the volume was refused for the same
// reason, and that nothing of it was made.
func (r *restored) refused(wants ...string) {
	r.t.Helper()
	errors := strings.ReplaceAll(said(r.log(), "error"), `\"`, `"`)
	for _, object := range []string{"VolumeSnapshotClass ", "VolumeSnapshotContent ", "VolumeSnapshot ", "claim "} {
		assert.True(r.t, slices.ContainsFunc(strings.Split(errors, "\n"), func(line string) bool {
			return strings.Contains(line, "stillpoint: "+object) &&
				!slices.ContainsFunc(wants, func(want string) bool { return !strings.Contains(line, want) })
		}), "no %sis refused for %q: %s", object, wants, errors)
	}
	assert.Empty(r.t, r.claims())
	r.leavesNothing()
}

// leavesNothing checks that there is no VolumeSnapshot and no content for one in
// the namespace that was restored.
func (r *restored) leavesNothing() {
	r.t.Helper()
	assert.Empty(r.t, r.kubectl("get", "volumesnapshots", "-o", "name"))
	assert.NotContains(r.t, r.kubectl("get", "volumesnapshotcontents", "-o", "jsonpath={.items[*].spec.volumeSnapshotRef.namespace}"), r.namespace)
}

func (r *restored) claims() []string {
	r.t.Helper()
	return strings.Fields(r.kubectl("get", "persistentvolumeclaims", "-o", "jsonpath={.items[*].metadata.name}"))
}

// watchContents follows the VolumeSnapshotContents that come into being from now
// on, and gives the first of a namespace as it was made: it does not stay.
func watchContents(t *testing.T, c *cluster.Cluster) func(namespace string) *snapshotv1.VolumeSnapshotContent {
	t.Helper()
	now := &snapshotv1.VolumeSnapshotContentList{}
	require.NoError(t, c.Objects().List(t.Context(), now, crclient.Limit(1)))
	watch, err := c.Objects().Watch(t.Context(), &snapshotv1.VolumeSnapshotContentList{}, &crclient.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: now.ResourceVersion}})
	require.NoError(t, err)
	t.Cleanup(watch.Stop)
	var made sync.Map
	go func() {
		for event := range watch.ResultChan() {
			if content, ok := event.Object.(*snapshotv1.VolumeSnapshotContent); ok {
				made.LoadOrStore(content.Spec.VolumeSnapshotRef.Namespace, content)
			}
		}
	}()
	return func(namespace string) *snapshotv1.VolumeSnapshotContent {
		found, _ := made.Load(namespace)
		content, _ := found.(*snapshotv1.VolumeSnapshotContent)
		return content
	}
}

func (r *restored) kubectl(args ...string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 100*time.Second)
	defer cancel()
	output, err := r.c.Kubectl(ctx, nil, append([]string{"-n", r.namespace}, args...)...)
	require.NoError(r.t, err)
	return output
}
