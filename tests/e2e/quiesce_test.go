package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// limit is how long a backup without data movement may take here.
const limit = 2 * time.Minute

func TestOneVolumeIsFrozenForItsSnapshotOnly(t *testing.T) {
	c := connect(t)
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}})
	a.stall("app")
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit))

	log := b.log()
	assert.Empty(t, said(log, "error", "warning"))
	assert.Contains(t, log, "Quiesced Deployment "+a.namespace+"/app")
	assert.Contains(t, log, "Thawed Deployment "+a.namespace+"/app")
	require.Len(t, frozenFor(t, log), 1)
	stall := a.stall("app")
	t.Logf("frozen for %s, writer stalled for %s", frozenFor(t, log)[0], stall)
	assert.Less(t, stall, time.Second, "Velero's poll of 5s must not be waited for")
	assert.Positive(t, stall)
	assert.False(t, a.frozen("app-data0"))
	assert.Eventually(t, func() bool {
		events := a.events("app")
		return events["Quiesced"] != "" && events["Thawed"] != ""
	}, 10*time.Second, 100*time.Millisecond)
}

func TestVolumesOfAWorkloadAreHeldTogether(t *testing.T) {
	c := connect(t)
	a := newApp(t, c, shape{volumes: 2, annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}})
	b := startBackup(t, c, a.namespace, nil)
	a.awaitFrozen(b, "app-data0") // while Velero polls for the first volume
	assert.False(t, a.writing("app-data1"), "both are frozen at once")
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit))
	log := b.log()
	require.Len(t, frozenFor(t, log), 1, "frozen once")
	assert.Contains(t, log, "2 volumes cut")
	assert.False(t, a.frozen("app-data0") || a.frozen("app-data1"))
}

func testApplicationGoesBeforeItsFileSystem(t *testing.T, c *cluster.Cluster) {
	blueprint(t, c, execBlueprint("e2e-journal", "sidecar", "echo pre >/run/journal; fsfreeze --freeze /mnt/data0 && fsfreeze --unfreeze /mnt/data0 && echo unfrozen-at-pre >>/run/journal",
		"fsfreeze --freeze /mnt/data0 && fsfreeze --unfreeze /mnt/data0 && echo unfrozen-at-post >>/run/journal"))
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze, e2e-journal"}})
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	assert.Contains(t, b.log(), "blueprints e2e-journal, fsfreeze")
	assert.Equal(t, "pre\nunfrozen-at-pre\nunfrozen-at-post\n", a.kubectl("exec", "deployment/app", "-c", "sidecar", "--", "cat", "/run/journal"))
}

func testTwoPodsOnOneVolumeFreezeItOnce(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{replicas: 2, annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}})
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	require.Len(t, frozenFor(t, b.log()), 1)
	assert.False(t, a.frozen("app-data0"))
}

func testAnnotationOfNamespaceIsTheDefaultOfItsWorkloads(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{})
	a.deploy("other", shape{annotations: map[string]string{"stillpoint.io/quiesce": "none"}})
	a.kubectl("annotate", "namespace", a.namespace, "stillpoint.io/quiesce=fsfreeze")
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	assert.Contains(t, b.log(), "Thawed Deployment "+a.namespace+"/app")
	assert.NotContains(t, b.log(), "Thawed Deployment "+a.namespace+"/other")
}

func testAnnotationOfClaimIsItsOwn(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{volumes: 2})
	a.kubectl("annotate", "pvc", "app-data1", "stillpoint.io/quiesce=fsfreeze")
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	assert.Contains(t, b.log(), "Thawed PersistentVolumeClaim "+a.namespace+"/app-data1")
	require.Len(t, frozenFor(t, b.log()), 1)
}

// With --include-cluster-resources=true Velero calls for every
// PersistentVolume there is.
func testForeignVolumesAreNeverFrozen(t *testing.T, c *cluster.Cluster) {
	foreign := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}})
	a := newApp(t, c, shape{})
	foreign.stall("app")
	b := startBackup(t, c, a.namespace, func(spec *velerov1.BackupSpec) { spec.IncludeClusterResources = ptr.To(true) })
	require.Contains(t, []velerov1.BackupPhase{velerov1.BackupPhaseCompleted, velerov1.BackupPhasePartiallyFailed}, b.finished(limit))
	assert.NotContains(t, b.log(), "Quiesced")
	assert.Empty(t, foreign.events("app"))
}

// Velero calls for no PersistentVolume when it leaves them out, so there is no
// moment to freeze at; it snapshots all the same.
func testSnapshotWithoutAFreezeIsAnError(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}})
	b := startBackup(t, c, a.namespace, func(spec *velerov1.BackupSpec) { spec.IncludeClusterResources = ptr.To(false) })
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	assert.Contains(t, said(b.log(), "error"), "leaves out persistentvolumes")
	assert.NotContains(t, b.log(), "Quiesced")
	assert.Eventually(t, func() bool {
		return strings.TrimSpace(a.kubectl("get", "volumesnapshot", "-o", "name")) == ""
	}, 20*time.Second, 200*time.Millisecond)
}

func testVolumesThatVeleroSkipsAreNeverFrozen(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}})
	for name, change := range map[string]func(*velerov1.BackupSpec){
		"snapshots off":    func(spec *velerov1.BackupSpec) { spec.SnapshotVolumes = ptr.To(false) },
		"claims left out":  func(spec *velerov1.BackupSpec) { spec.ExcludedResources = []string{"persistentvolumeclaims"} },
		"another label":    func(spec *velerov1.BackupSpec) { spec.LabelSelector = labelled("tier", "none") },
		"a policy to skip": func(spec *velerov1.BackupSpec) { spec.ResourcePolicy = skipPolicy(t, a) },
	} {
		t.Run(name, func(t *testing.T) {
			b := startBackup(t, c, a.namespace, func(spec *velerov1.BackupSpec) {
				spec.IncludeClusterResources = ptr.To(true)
				change(spec)
			})
			b.finished(limit)
			assert.NotContains(t, b.log(), "Quiesced Deployment "+a.namespace)
			assert.False(t, a.frozen("app-data0"))
		})
	}
	assert.Empty(t, a.events("app"))
}

func labelled(key, value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}

// skipPolicy is a volume policy that takes all volumes out.
func skipPolicy(t *testing.T, a *app) *corev1.TypedLocalObjectReference {
	t.Helper()
	policy := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", GenerateName: "e2e-skip-"},
		Data:       map[string]string{"policy.yaml": "version: v1\nvolumePolicies:\n- conditions: {csi: {}}\n  action: {type: skip}\n"},
	}
	require.NoError(t, a.c.Objects().Create(t.Context(), policy))
	t.Cleanup(func() { _ = a.c.Objects().Delete(context.Background(), policy) })
	return &corev1.TypedLocalObjectReference{Kind: "configmap", Name: policy.Name}
}

func testNoRunningPodMeansNothingToQuiesce(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}})
	a.kubectl("scale", "deployment/app", "--replicas=0")
	a.kubectl("wait", "--for=delete", "pod", "-l", "app=app", "--timeout=60s")
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	assert.NotContains(t, b.log(), "Quiesced")
}

// A restore from a quiesced snapshot has every line whole, and no line that
// was written later.
func testWhatIsRestoredIsWhatWasThereAtTheFreeze(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}})
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	into := a.namespace + "-restored"
	c.Adopt(t, into)
	restore := &velerov1.Restore{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: b.name},
		Spec:       velerov1.RestoreSpec{BackupName: b.name, NamespaceMapping: map[string]string{a.namespace: into}},
	}
	require.NoError(t, c.Objects().Create(t.Context(), restore))
	require.Eventually(t, func() bool {
		err := c.Objects().Get(t.Context(), crclient.ObjectKeyFromObject(restore), restore)
		return err == nil && restore.Status.Phase == velerov1.RestorePhaseCompleted
	}, limit, 200*time.Millisecond)
	restored := &app{t: t, c: c, namespace: into}
	restored.kubectl("rollout", "status", "deployment/app", "--timeout=90s")
	// The writer goes on in the same file: lines have two fields, a number and a time.
	torn := restored.kubectl("exec", "deployment/app", "-c", "sidecar", "--", "sh", "-c", `awk 'NF != 2 || $1 !~ /^[0-9]+$/' /mnt/data0/log | wc -l`)
	assert.Equal(t, "0\n", torn)
}

// Kasten K10's users have their blueprints as objects.
func testBlueprintObject(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{annotations: map[string]string{"kanister.kasten.io/blueprint": "own"}})
	install(t, c, strings.Replace(execBlueprint("own", "sidecar", "fsfreeze --freeze /mnt/data0", "fsfreeze --unfreeze /mnt/data0"),
		"metadata:", "metadata:\n  namespace: "+a.namespace, 1))
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	assert.Contains(t, b.log(), "blueprints own;")
	require.Len(t, frozenFor(t, b.log()), 1)
	assert.False(t, a.frozen("app-data0"))
}

// Every kind of workload, two pods of a StatefulSet with a volume each being
// the one where freezing together matters.
func testKindsOfWorkloads(t *testing.T, c *cluster.Cluster) {
	a := &app{t: t, c: c, namespace: c.Namespace(t, "e2e"), mounts: map[string]string{}}
	const pod = `
      terminationGracePeriodSeconds: 1
      containers:
        - name: app
          image: ` + cluster.Image + `
          command: [sleep, infinity]
          securityContext: {privileged: true}
          volumeMounts: [{name: data, mountPath: /data}]`
	claim := func(name string) string {
		return `
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: ` + name + `}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}`
	}
	controller := func(kind, name, spec, volumes string) string {
		return `
---
apiVersion: apps/v1
kind: ` + kind + `
metadata: {name: ` + name + `, annotations: {stillpoint.io/quiesce: fsfreeze}}
spec:
  selector: {matchLabels: {app: ` + name + `}}` + spec + `
  template:
    metadata: {labels: {app: ` + name + `}}
    spec:` + pod + volumes
	}
	mounted := func(name string) string {
		return `
      volumes: [{name: data, persistentVolumeClaim: {claimName: ` + name + `}}]`
	}
	bare := strings.ReplaceAll(pod+mounted("bare"), "\n      ", "\n  ")
	manifest := claim("daemon") + claim("replica") + claim("bare") +
		controller("DaemonSet", "daemon", "", mounted("daemon")) +
		controller("ReplicaSet", "replica", "\n  replicas: 1", mounted("replica")) +
		controller("StatefulSet", "set", `
  replicas: 2
  serviceName: set
  podManagementPolicy: Parallel
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}`, "") + `
---
apiVersion: v1
kind: Pod
metadata: {name: bare, annotations: {stillpoint.io/quiesce: fsfreeze}}
spec:` + bare
	_, err := c.Kubectl(t.Context(), strings.NewReader(manifest), "-n", a.namespace, "apply", "-f", "-")
	require.NoError(t, err)
	a.kubectl("rollout", "status", "statefulset/set", "--timeout=90s")
	a.kubectl("rollout", "status", "daemonset/daemon", "--timeout=90s")
	a.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s")

	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	for _, workload := range []string{"DaemonSet %s/daemon", "ReplicaSet %s/replica", "StatefulSet %s/set", "Pod %s/bare"} {
		name := strings.ReplaceAll(workload, "%s", a.namespace)
		assert.Equal(t, 1, strings.Count(b.log(), "Thawed "+name), name)
	}
	assert.Contains(t, b.log(), "volumes data-set-0, data-set-1")
}
