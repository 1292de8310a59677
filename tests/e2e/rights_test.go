package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/util"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/around"
	"stillpoint.io/stillpoint/internal/cleanup"
	stillpoint "stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/decision"
	"stillpoint.io/stillpoint/internal/group"
	"stillpoint.io/stillpoint/internal/journal"
	"stillpoint.io/stillpoint/internal/location/csi"
	"stillpoint.io/stillpoint/internal/location/externalstorage"
	"stillpoint.io/stillpoint/internal/node"
	"stillpoint.io/stillpoint/internal/quiesce"
	"stillpoint.io/stillpoint/internal/recovery"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/restore"
	"stillpoint.io/stillpoint/internal/snapshot"
	"stillpoint.io/stillpoint/internal/unit"
	"stillpoint.io/stillpoint/internal/upload"
	"stillpoint.io/stillpoint/internal/workload"
	"stillpoint.io/stillpoint/plugins/snapshotter"
	"stillpoint.io/stillpoint/tests/cluster"
)

// deploy/rbac.yaml is enough: around, group, check and restore run here as a
// service account that has these rights and no others, with the test in the
// place of Velero.
func TestRightsOfDeploySuffice(t *testing.T) {
	c := connect(t)
	clients, log, said := restricted(t, c)
	namespaces := unit.NewNamespaces(clients, clock.RealClock{}, log)
	reporter := quiesce.NewReporter(clients.Kube)
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze", "stillpoint.io/quiesce-timeout": "5s"}})
	defer a.unretain()
	decisions := decision.New(clients, namespaces, decision.Server{CSI: true, Poll: time.Second}, clock.RealClock{})
	t.Run("around", func(t *testing.T) {
		aroundRights(t, c, a, aroundProcess{around.New(clients, namespaces, decisions, reporter, log), decisions}, said)
	})
	a.deploy("grouped", shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}, volumes: 3})
	t.Run("groups", func(t *testing.T) {
		groupRights(t, c, a, func() groupProcess {
			namespaces := unit.NewNamespaces(clients, clock.RealClock{}, log)
			decisions := decision.New(clients, namespaces, decision.Server{CSI: true, Poll: time.Second}, clock.RealClock{})
			return groupProcess{group.New(clients, namespaces, decisions, reporter, log), decisions}
		}, upload.NewTracker(clients, decisions.Settings, clock.RealClock{}, log), said)
	})
	t.Run("check", func(t *testing.T) {
		table, code := runCheck(t, "--namespace", a.namespace)
		assert.Equal(t, 0, code, table)
		table, _ = runCheck(t) // all namespaces
		assert.NotContains(t, table, "forbidden")
	})
	t.Run("objects of blueprints", func(t *testing.T) {
		for kind, role := range map[string]string{"Secret": "stillpoint-secrets", "ConfigMap": "stillpoint-configmaps"} {
			table, code := readRights(t, c, a, "grouped", kind)
			assert.Equal(t, 1, code, table)
			assert.Contains(t, table, "get "+kind+" "+a.namespace+"/rights: ")
			assert.Contains(t, table, "bind ClusterRole "+role+" of deploy/rbac.yaml in namespace "+a.namespace)
			assert.NotContains(t, table, loot)
		}
	})
	t.Run("thaw", func(t *testing.T) {
		thawRights(t, a, clients)
		assert.NotContains(t, said.String(), "forbidden")
	})
	t.Run("restore", func(t *testing.T) {
		configure(t, c, "drivers:\n- {from: old.csi, to: loop.csi.stillpoint.io}\n- {from: lost.csi, to: nowhere.csi}")
		r := restore.NewRestorer(clients, clock.RealClock{}, log)
		restoreRights(t, r)
		takeBackRights(t, c, a, r)
		guardRights(t, c, a, r)
		bringBackRights(t, c, a, r)
		assert.NotContains(t, said.String(), "forbidden")
	})
	t.Run("deletion of backups", func(t *testing.T) {
		backup := &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: "e2e-deleted", UID: "e2e-deleted"}}
		installation, err := clients.Installation(t.Context())
		require.NoError(t, err)
		vs := a.snapshot("deleted", cluster.SnapshotClass, snapshot.Origin{Installation: installation, Backup: backup.Name, BackupUID: string(backup.UID)})
		require.NoError(t, cleanup.New(clients, clock.RealClock{}).DeletedBackup(t.Context(), backup, log))
		assert.True(t, apierrors.IsNotFound(c.Objects().Get(t.Context(), crclient.ObjectKeyFromObject(vs), vs)))
	})
}

// restricted makes an account with the rights of deploy/rbac.yaml, and clients
// for it.
func restricted(t *testing.T, c *cluster.Cluster) (*stillpoint.Clients, logrus.FieldLogger, *bytes.Buffer) {
	t.Helper()
	return granted(t, c, func(rights string) string { return rights })
}

// granted makes an account with what change makes of the rights in
// deploy/rbac.yaml.
func granted(t *testing.T, c *cluster.Cluster, change func(rights string) string) (*stillpoint.Clients, logrus.FieldLogger, *bytes.Buffer) {
	t.Helper()
	name := "e2e-" + rand.String(5)
	rights, err := os.ReadFile(filepath.Join("..", "..", "deploy", "rbac.yaml"))
	require.NoError(t, err)
	manifest := strings.NewReplacer("name: stillpoint", "name: "+name, "name: velero\n", "name: "+name+"\n").Replace(change(string(rights)))
	_, err = c.Kubectl(t.Context(), strings.NewReader(manifest), "apply", "-f", "-")
	require.NoError(t, err)
	_, err = c.Kubectl(t.Context(), nil, "-n", "velero", "create", "serviceaccount", name)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := c.Kubectl(context.Background(), nil, "-n", "velero", "delete", "serviceaccount", name)
		assert.NoError(t, err)
		_, err = c.Kubectl(context.Background(), strings.NewReader(manifest), "delete", "--ignore-not-found", "-f", "-")
		assert.NoError(t, err)
	})
	useAccount(t, c, name)
	clients, err := stillpoint.NewClients()
	require.NoError(t, err)
	said := &bytes.Buffer{}
	log := logrus.New()
	log.SetOutput(said)
	return clients, log, said
}

// settingsOf reads the configuration as a plugin does.
func settingsOf(clients *stillpoint.Clients) func(context.Context) (*config.Config, error) {
	return func(ctx context.Context) (*config.Config, error) {
		return config.Load(ctx, clients.Kube, clients.VeleroNamespace)
	}
}

// owe records what a dead process is owed, as its session would.
func (a *app) owe(clients *stillpoint.Clients, undo ...journal.Undo) *journal.Entry {
	a.t.Helper()
	book := journal.New(clients, clock.RealClock{})
	i := &journal.Entry{
		Name: "Deployment " + a.namespace + "/app", Namespace: a.namespace, Backup: "e2e-rights",
		Holder:  journal.Holder{Pod: "velero-gone", PodUID: "1", PID: 7},
		Objects: []workload.Ref{{APIVersion: "apps/v1", Kind: "Deployment", Namespace: a.namespace, Name: "app"}},
	}
	require.NoError(a.t, book.Open(a.t.Context(), i))
	a.t.Cleanup(func() { _ = book.Close(context.Background(), i.ID) })
	i.Undo = undo
	require.NoError(a.t, book.Update(a.t.Context(), i))
	return i
}

// release completes what is owed, as the start of a plugin does.
func (a *app) release(clients *stillpoint.Clients, owed *journal.Entry) *recovery.Result {
	a.t.Helper()
	undoer := recovery.NewUndoer(clients, settingsOf(clients), clock.RealClock{})
	abandoned, err := undoer.Journal.Abandoned(a.t.Context())
	require.NoError(a.t, err)
	for i := range abandoned {
		if abandoned[i].ID == owed.ID {
			undone, err := undoer.Undo(a.t.Context(), &abandoned[i], 5*time.Second)
			require.NoError(a.t, err)
			return undone
		}
	}
	a.t.Fatalf("%s is not abandoned", owed.ID)
	return nil
}

// thawRights scales up what a dead process has scaled down. Pods are not made
// without being allowed.
func thawRights(t *testing.T, a *app, clients *stillpoint.Clients) {
	t.Helper()
	a.kubectl("scale", "deployment/grouped", "--replicas=0")
	owed := a.owe(clients, journal.Undo{Blueprint: "scale-down", Phase: "up", Task: &render.Task{
		Func: "ScaleWorkload", Namespace: a.namespace, Kind: "Deployment", Name: "grouped", Args: map[string]any{"replicas": 1, "waitForReady": true},
	}})
	table, code := runThaw(t)
	assert.Equal(t, 0, code)
	assert.Contains(t, table, owed.ID)
	undone := a.release(clients, owed)
	require.NoError(t, undone.Pending)
	assert.Equal(t, "1", a.kubectl("get", "deployment/grouped", "-o", "jsonpath={.status.readyReplicas}"))
	assert.Contains(t, a.events("app")["Thawed"], "Released what backup e2e-rights had quiesced")

	configuration(t, a.c)(a.nodeThaw())
	err := node.New(clients, settingsOf(clients)).Thaw(t.Context(), "node1", []string{"/var/lib/kubelet/pods/x"})
	assert.True(t, apierrors.IsForbidden(err), err)
}

// readRights checks a backup of a Deployment whose blueprint reads an object of this
// kind.
func readRights(t *testing.T, c *cluster.Cluster, a *app, deployment, kind string) (table string, code int) {
	t.Helper()
	name := "e2e-" + rand.String(5)
	blueprint(t, c, strings.NewReplacer("NAME", name, "KIND", kind).Replace(`
apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata: {name: NAME}
actions:
  backupPrehook:
    phases:
      - func: KubeExec
        name: read
        objects:
          it: {kind: KIND, name: rights, namespace: "{{ .Deployment.Namespace }}"}
        args:
          namespace: "{{ .Deployment.Namespace }}"
          pod: "{{ index .Deployment.Pods 0 }}"
          container: sidecar
          command: [test, "{{ index .Phases.read.KINDs.it.Data \"key\" | toString }}"]
`))
	create := map[string][]string{"Secret": {"create", "secret", "generic", "rights"}, "ConfigMap": {"create", "configmap", "rights"}}
	a.kubectl(append(create[kind], "--from-literal=key="+loot)...)
	a.kubectl("annotate", "--overwrite", "deployment/"+deployment, "stillpoint.io/quiesce="+name)
	defer a.kubectl("annotate", "--overwrite", "deployment/"+deployment, "stillpoint.io/quiesce=fsfreeze")
	return runCheck(t, "--namespace", a.namespace, "--workload", "deployment/"+deployment)
}

// What deploy/rbac.yaml has at its end, for those who switch it on, is enough for
// what it says; and commands in containers can be allowed in one namespace only.
func TestRightsThatAreSwitchedOn(t *testing.T) {
	c := connect(t)
	a := newApp(t, c, shape{})
	clients, log, said := granted(t, c, func(rights string) string {
		all := regexp.MustCompile(`(?m)^#( {2,}\S|[^ \n])`).ReplaceAllString(rights, "$1")
		require.Contains(t, all, "\n  namespace: shop\n")
		const everywhere = "kind: ClusterRoleBinding\nmetadata:\n  name: stillpoint-exec\n"
		require.Contains(t, all, everywhere)
		all = strings.Replace(all, everywhere, "kind: RoleBinding\nmetadata:\n  name: stillpoint-exec\n  namespace: shop\n", 1)
		return strings.ReplaceAll(all, "\n  namespace: shop\n", "\n  namespace: "+a.namespace+"\n")
	})
	t.Run("objects of blueprints", func(t *testing.T) {
		for _, kind := range []string{"Secret", "ConfigMap"} {
			table, code := readRights(t, c, a, "app", kind)
			assert.Equal(t, 0, code, table)
			assert.NotContains(t, table, "forbidden")
		}
		for _, right := range []authorizationv1.ResourceAttributes{{Resource: "secrets"}, {Resource: "configmaps"}, {Resource: "pods", Subresource: "exec"}} {
			for namespace, allowed := range map[string]bool{a.namespace: true, corev1.NamespaceDefault: false} {
				right.Namespace, right.Verb = namespace, "get"
				review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &right}}
				review, err := clients.Kube.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), review, metav1.CreateOptions{})
				require.NoError(t, err)
				assert.Equal(t, allowed, review.Status.Allowed, right)
			}
		}
	})
	t.Run("thaw on the node", func(t *testing.T) {
		configuration(t, c)(a.nodeThaw())
		claim, err := c.Client().CoreV1().PersistentVolumeClaims(a.namespace).Get(t.Context(), "app-data0", metav1.GetOptions{})
		require.NoError(t, err)
		uid := a.kubectl("get", "pod", "-l", "app=app", "-o", "jsonpath={.items[0].metadata.uid}")
		path := "/var/lib/kubelet/pods/" + uid + "/volumes/kubernetes.io~csi/" + claim.Spec.VolumeName
		thawer := node.New(clients, settingsOf(clients))
		require.ErrorIs(t, thawer.Thaw(t.Context(), "node1", []string{path + "/mount"}), node.ErrNotFrozen)
		require.ErrorContains(t, thawer.Thaw(t.Context(), "node1", []string{path}), "nothing is mounted at ")
		noNodePods(t, c)
	})
	t.Run("tasks", func(t *testing.T) {
		pod := func(confinedTo string) *render.Task {
			return &render.Task{
				Func: "KubeTask", Namespace: a.namespace, ConfinedTo: confinedTo, Owner: "e2e",
				Args: map[string]any{"namespace": a.namespace, "image": cluster.Image, "command": []any{"true"}},
			}
		}
		left := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: "left", Labels: map[string]string{}}}
		left.Spec.Containers = []corev1.Container{{Name: "x", Image: cluster.Image, Command: []string{"sleep", "infinity"}}}
		left.Spec.TerminationGracePeriodSeconds = ptr.To(int64(0))
		owed := a.owe(clients, journal.Undo{Blueprint: "b", Phase: "task", Task: pod("")}, journal.Undo{Blueprint: "b", Phase: "tenant", Task: pod(a.namespace)})
		left.Labels[api.LabelTask] = owed.ID
		require.NoError(t, c.Objects().Create(t.Context(), left))
		undone := a.release(clients, owed)
		require.ErrorContains(t, undone.Pending, "phase tenant: KubeTask failed (Forbidden)", "its ServiceAccount may not")
		assert.NotContains(t, undone.Pending.Error(), "phase task")
		a.kubectl("wait", "--for=delete", "pod/left", "--timeout=10s")

		a.kubectl("create", "rolebinding", "e2e", "--clusterrole=edit", "--serviceaccount="+a.namespace+":default")
		undone = a.release(clients, owed)
		require.NoError(t, undone.Pending)
	})
	namespaces := unit.NewNamespaces(clients, clock.RealClock{}, log)
	decisions := decision.New(clients, namespaces, decision.Server{}, clock.RealClock{})
	quiescer := around.New(clients, namespaces, decisions, quiesce.NewReporter(clients.Kube), log)
	t.Run("location of stillpoint.io/csi", func(t *testing.T) {
		a.kubectl("annotate", "deployment/app", "stillpoint.io/quiesce=fsfreeze")
		tracker := upload.NewTracker(clients, decisions.Settings, clock.RealClock{}, log)
		locationRights(t, a, "stillpoint.io/csi", csi.New(clients, quiescer, decisions, log), "app-data0", func(claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) {
			operation, err := tracker.Located(t.Context(), claim, backup)
			require.NoError(t, err)
			require.Eventually(t, func() bool {
				progress, err := tracker.Progress(t.Context(), operation, backup)
				return err == nil && progress.Completed && progress.Err == ""
			}, 20*time.Second, 200*time.Millisecond)
			a.noSnapshots()
			assert.Len(t, a.stored("app-data0"), 1)
		})
		assert.Contains(t, said.String(), "Thawed Deployment "+a.namespace+"/app")
		assert.Empty(t, a.stored("app-data0"))
		assert.NotContains(t, said.String(), "forbidden")
	})
	t.Run("location of stillpoint.io/external-storage", func(t *testing.T) {
		host := newHostApp(t, c, 1, nil)
		locationRights(t, host.app, "stillpoint.io/external-storage", externalstorage.New(clients, quiescer, log), "data0", nil)
		boundVolume(t, c, host.namespace, "restored")
		objects, data := external(t, c)
		assert.Empty(t, objects)
		assert.Empty(t, data)
		assert.NotContains(t, said.String(), "forbidden")
	})
}

// locationRights does with a VolumeSnapshotter what Velero does in a backup, a
// restore and the deletion of the backup. settle is what comes after the backup.
func locationRights(t *testing.T, a *app, of string, provider snapshotter.Provider, name string, settle func(*corev1.PersistentVolumeClaim, *velerov1.Backup)) {
	t.Helper()
	through := location(t, a.c, of, nil)
	// Velero passes over a backup that has failed, and does not tidy it away.
	backup := &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: "e2e-" + rand.String(6)}}
	backup.Spec.IncludedNamespaces = []string{a.namespace}
	through(&backup.Spec)
	backup.Status.Phase = velerov1.BackupPhaseFailedValidation
	require.NoError(t, a.c.Objects().Create(t.Context(), backup))
	t.Cleanup(func() { _ = a.c.Objects().Delete(context.Background(), backup) })
	claim, err := a.c.Client().CoreV1().PersistentVolumeClaims(a.namespace).Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	volume := volumeOf(t, a.c, a.namespace, name)

	require.NoError(t, provider.Init(nil))
	id, err := provider.VolumeID(t.Context(), volume)
	require.NoError(t, err)
	require.NotEmpty(t, id)
	_, err = provider.VolumeInfo(t.Context(), id)
	require.NoError(t, err)
	taken, err := provider.Create(t.Context(), id, map[string]string{"velero.io/backup": backup.Name, "velero.io/pv": volume.Name})
	require.NoError(t, err)
	if settle != nil {
		settle(claim, backup)
	}

	made, err := provider.Restore(t.Context(), taken, "")
	require.NoError(t, err)
	item := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: volume.Name}, Spec: *volume.Spec.DeepCopy()}
	item.Spec.ClaimRef = &corev1.ObjectReference{Namespace: a.namespace, Name: "restored"}
	item.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	adopted, err := provider.Adopt(t.Context(), item, made)
	require.NoError(t, err)
	require.NoError(t, a.c.Objects().Create(t.Context(), adopted))
	require.NoError(t, a.c.Objects().Create(t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: "restored"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: claim.Spec.AccessModes, StorageClassName: claim.Spec.StorageClassName,
			VolumeName: adopted.Name, Resources: claim.Spec.Resources,
		},
	}))
	a.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/restored", "--timeout=60s")
	noTraces(t, a.c)
	require.NoError(t, provider.Delete(t.Context(), taken))
	noTraces(t, a.c)
}

// aroundProcess and groupProcess call an executor as the plugin does.
type aroundProcess struct {
	*around.Freezes
	decisions *decision.Decisions
}

func (p aroundProcess) Claim(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) error {
	d, err := p.decisions.For(backup).Called(ctx, claim)
	if err != nil {
		return err
	}
	return p.Freezes.Claim(ctx, d, claim, backup)
}

type groupProcess struct {
	*group.Groups
	decisions *decision.Decisions
}

func (p groupProcess) Claim(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (*group.Answer, error) {
	d, err := p.decisions.For(backup).Called(ctx, claim)
	if err != nil {
		return nil, err
	}
	return p.Groups.Claim(ctx, d, claim, backup), nil
}

func aroundRights(t *testing.T, c *cluster.Cluster, a *app, b aroundProcess, said *bytes.Buffer) {
	t.Helper()
	name := "e2e-" + rand.String(5)
	claim, err := c.Client().CoreV1().PersistentVolumeClaims(a.namespace).Get(t.Context(), "app-data0", metav1.GetOptions{})
	require.NoError(t, err)
	volume, err := c.Client().CoreV1().PersistentVolumes().Get(t.Context(), claim.Spec.VolumeName, metav1.GetOptions{})
	require.NoError(t, err)
	pods, err := c.Client().CoreV1().Pods(a.namespace).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	backupOf := func(name string) *velerov1.Backup {
		return &velerov1.Backup{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: name, UID: types.UID(name)},
			Spec:       velerov1.BackupSpec{IncludedNamespaces: []string{a.namespace}, SnapshotMoveData: ptr.To(true)},
		}
	}
	snapshot := func(backup *velerov1.Backup) {
		require.NoError(t, c.Objects().Create(t.Context(), &snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: backup.Name, Labels: map[string]string{velerov1.BackupNameLabel: backup.Name}},
			Spec: snapshotv1.VolumeSnapshotSpec{
				VolumeSnapshotClassName: ptr.To(cluster.SnapshotClass),
				Source:                  snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim.Name},
			},
		}))
	}

	good := backupOf(name + "-good")
	assert.Empty(t, b.Related(t.Context(), &pods.Items[0], good))
	require.NoError(t, b.Volume(t.Context(), volume, good))
	assert.False(t, a.writing("app-data0"))
	snapshot(good)
	a.writesWithin(thawTime, "app-data0")
	require.NoError(t, b.Claim(t.Context(), claim, good))
	assert.NotContains(t, said.String(), "level=warning")
	assert.NotContains(t, said.String(), "forbidden")

	// Thawed at the deadline: the snapshot that comes after it is deleted.
	late := backupOf(name + "-late")
	require.NoError(t, b.Volume(t.Context(), volume, late))
	a.writesWithin(8*time.Second, "app-data0")
	snapshot(late)
	metav1.SetMetaDataAnnotation(&claim.ObjectMeta, velerov1.VolumeSnapshotLabel, late.Name) // as Velero's action does
	require.ErrorContains(t, b.Claim(t.Context(), claim, late), "not consistent")
	assert.NotContains(t, said.String(), "forbidden")
	assert.Eventually(t, func() bool {
		left, err := c.Kubectl(t.Context(), nil, "-n", a.namespace, "get", "volumesnapshot", "-o", "name")
		return err == nil && !strings.Contains(left, late.Name)
	}, 20*time.Second, 200*time.Millisecond)
	assert.Eventually(t, func() bool { return a.events("app")["Thawed"] != "" }, 5*time.Second, 50*time.Millisecond)

	// Another plugin has brought the claim into the backup.
	brought := backupOf(name + "-brought")
	brought.Spec.LabelSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "nothing"}}
	require.NoError(t, b.Volume(t.Context(), volume, brought))
	assert.True(t, a.writing("app-data0"))
	snapshotted := claim.DeepCopy()
	metav1.SetMetaDataAnnotation(&snapshotted.ObjectMeta, velerov1.VolumeSnapshotLabel, brought.Name)
	require.ErrorContains(t, b.Claim(t.Context(), snapshotted, brought), "the backup's label selector does not match it")
}

// groupRights takes a group in one process, goes on in a second one and clears
// up in a third, as after two deaths of the plugin.
func groupRights(t *testing.T, c *cluster.Cluster, a *app, process func() groupProcess, tracker *upload.Tracker, said *bytes.Buffer) {
	t.Helper()
	claim := func(i int) *corev1.PersistentVolumeClaim {
		found, err := c.Client().CoreV1().PersistentVolumeClaims(a.namespace).Get(t.Context(), fmt.Sprintf("grouped-data%d", i), metav1.GetOptions{})
		require.NoError(t, err)
		return found
	}
	// Velero passes over a backup that has failed, and does not tidy it away.
	backupOf := func(move bool) *velerov1.Backup {
		backup := &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: "e2e-" + rand.String(6)}}
		handOver(t, c, "")(&backup.Spec)
		backup.Spec.IncludedNamespaces = []string{a.namespace}
		backup.Spec.SnapshotMoveData, backup.Spec.DataMover = &move, "e2e-nobody"
		backup.Status.Phase = velerov1.BackupPhaseFailedValidation
		require.NoError(t, c.Objects().Create(t.Context(), backup))
		t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), backup) })
		return backup
	}
	left := func() []string {
		list := &snapshotv1.VolumeSnapshotList{}
		require.NoError(t, c.Objects().List(t.Context(), list, crclient.InNamespace(a.namespace)))
		var of []string
		for _, vs := range list.Items {
			if source := vs.Spec.Source.PersistentVolumeClaimName; vs.DeletionTimestamp == nil && strings.HasPrefix(*source, "grouped-") {
				of = append(of, *source)
			}
		}
		return of
	}

	backup := backupOf(false)
	first, err := process().Claim(t.Context(), claim(0), backup)
	require.NoError(t, err)
	require.Len(t, first.Additional, 1, said)
	require.NotEmpty(t, first.Operation)
	assert.ElementsMatch(t, []string{"grouped-data0", "grouped-data1", "grouped-data2"}, left())
	a.writesWithin(thawTime, "grouped-data0", "grouped-data1", "grouped-data2")

	said.Reset()
	second, err := process().Claim(t.Context(), claim(1), backup)
	require.NoError(t, err)
	require.Len(t, second.Additional, 1, said)
	assert.Contains(t, said.String(), "Going on from the snapshots that an earlier plugin process took")
	assert.NotContains(t, said.String(), "Quiesced")

	for _, answer := range []*group.Answer{first, second} { // as Velero's action for VolumeSnapshots does
		_, err := c.Kubectl(t.Context(), nil, "-n", a.namespace, "annotate", "volumesnapshot", answer.Additional[0].Name, velerov1.VolumeSnapshotHandleAnnotation+"=x")
		require.NoError(t, err)
	}
	require.NoError(t, process().DeleteUnclaimed(t.Context(), backup))
	progress, err := tracker.Progress(t.Context(), first.Operation, backup)
	require.NoError(t, err)
	assert.True(t, progress.Completed, progress.Description)
	assert.ElementsMatch(t, []string{"grouped-data0", "grouped-data1"}, left())
	records, err := c.Client().CoreV1().ConfigMaps(cluster.VeleroNamespace).List(t.Context(), metav1.ListOptions{LabelSelector: "stillpoint.io/backup-uid=" + string(backup.UID)})
	require.NoError(t, err)
	assert.Empty(t, records.Items)

	moved := backupOf(true)
	answer, err := process().Claim(t.Context(), claim(0), moved)
	require.NoError(t, err)
	require.Len(t, answer.Update, 1, said)
	upload := &velerov2alpha1.DataUpload{}
	key := crclient.ObjectKey{Namespace: cluster.VeleroNamespace, Name: answer.Update[0].Name}
	for range 2 { // it can be repeated
		require.NoError(t, tracker.Cancel(t.Context(), answer.Operation, moved))
	}
	require.NoError(t, c.Objects().Get(t.Context(), key, upload))
	assert.True(t, upload.Spec.Cancel)
	progress, err = tracker.Progress(t.Context(), answer.Operation, moved)
	require.NoError(t, err)
	assert.False(t, progress.Completed)
	upload.Status.Phase = velerov2alpha1.DataUploadPhaseCanceled
	require.NoError(t, c.Objects().Update(t.Context(), upload))
	progress, err = tracker.Progress(t.Context(), answer.Operation, moved)
	require.NoError(t, err)
	assert.True(t, progress.Completed, progress.Description)
	assert.Contains(t, progress.Description, "the local snapshot stays: data mover e2e-nobody may keep")
	assert.NotContains(t, said.String(), "forbidden")
}

// restoreRights maps contents of other drivers.
func restoreRights(t *testing.T, r *restore.Restorer) {
	t.Helper()
	content := func(driver string) restore.Item {
		object := &unstructured.Unstructured{}
		object.SetUnstructuredContent(map[string]any{
			"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": map[string]any{"name": driver},
			"spec": map[string]any{"driver": driver, "volumeSnapshotRef": map[string]any{"namespace": "shop", "name": driver}},
		})
		return restore.Item{Object: object, BackedUp: object.DeepCopy(), Restore: &velerov1.Restore{}}
	}
	mapped := content("old.csi")
	require.NoError(t, r.Content(t.Context(), mapped))
	driver, _, err := unstructured.NestedString(mapped.Object.Object, "spec", "driver")
	require.NoError(t, err)
	assert.Equal(t, "loop.csi.stillpoint.io", driver)
	require.ErrorContains(t, r.Content(t.Context(), content("lost.csi")), "nowhere.csi")
}

// takeBackRights has a claim come from a VolumeSnapshot, as Velero's own actions
// leave it.
func takeBackRights(t *testing.T, c *cluster.Cluster, a *app, r *restore.Restorer) {
	t.Helper()
	backup := &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: "e2e-" + rand.String(6)}}
	backup.Status.Phase = velerov1.BackupPhaseFailedValidation
	require.NoError(t, c.Objects().Create(t.Context(), backup))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), backup) })
	of := &velerov1.Restore{ObjectMeta: metav1.ObjectMeta{UID: types.UID(rand.String(10))}, Spec: velerov1.RestoreSpec{BackupName: backup.Name}}
	name := util.GenerateSha256FromRestoreUIDAndVsName(string(of.UID), "lent")
	original := a.snapshot("original", cluster.SnapshotClass, snapshot.Origin{})
	made := &snapshotv1.VolumeSnapshotContent{}
	require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Name: *original.Status.BoundVolumeSnapshotContentName}, made))
	require.NoError(t, c.Objects().Create(t.Context(), &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: made.Spec.Driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
			Source:            snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: made.Status.SnapshotHandle},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: a.namespace, Name: name},
		},
	}))
	require.NoError(t, c.Objects().Create(t.Context(), &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: name},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: &name}},
	}))
	item := claimItem(a.namespace, of, map[string]any{velerov1.VolumeSnapshotLabel: "lent"})
	require.NoError(t, unstructured.SetNestedField(item.Object.Object, map[string]any{"kind": "VolumeSnapshot", "name": name}, "spec", "dataSource"))
	operation, err := r.Claim(t.Context(), item)
	require.NoError(t, err)
	progress, err := r.Progress(t.Context(), operation, of)
	require.NoError(t, err)
	assert.True(t, progress.Completed, progress.Description)
	assert.Contains(t, progress.Description, "are removed")
	assert.Contains(t, a.stored("app-data0"), *made.Status.SnapshotHandle)
	require.NoError(t, r.Cancel(t.Context(), operation, of))
}

// guardRights has a claim of a backup that moves data and has none of it.
func guardRights(t *testing.T, c *cluster.Cluster, a *app, r *restore.Restorer) {
	t.Helper()
	backup := &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: "e2e-" + rand.String(6)}}
	backup.Spec.SnapshotMoveData = ptr.To(true)
	backup.Status.Phase = velerov1.BackupPhaseFailedValidation
	require.NoError(t, c.Objects().Create(t.Context(), backup))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), backup) })
	of := &velerov1.Restore{ObjectMeta: metav1.ObjectMeta{Name: backup.Name, UID: types.UID(rand.String(10))}}
	of.Spec.BackupName, of.Spec.NamespaceMapping = backup.Name, map[string]string{a.namespace: "e2e-nowhere"}
	_, err := r.Claim(t.Context(), claimItem(a.namespace, of, nil))
	require.ErrorContains(t, err, "but has no DataUpload of the claim)")

	// And of a DataUpload that has left nothing.
	result := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: backup.Name, Labels: map[string]string{
			velerov1.RestoreUIDLabel: string(of.UID), velerov1.PVCNamespaceNameLabel: a.namespace + ".app-data0",
			velerov1.ResourceUsageLabel: string(velerov1.VeleroResourceUsageDataUploadResult),
		}},
		Data: map[string]string{string(of.UID): "{}"},
	}
	download := &velerov2alpha1.DataDownload{
		ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: backup.Name, Labels: map[string]string{
			velerov1.AsyncOperationIDLabel: "dd-" + string(of.UID) + ".claim",
		}},
		Spec: velerov2alpha1.DataDownloadSpec{DataMover: "e2e-nobody", TargetVolume: velerov2alpha1.TargetVolumeSpec{PVC: "x", PV: "x", Namespace: "x"}},
	}
	for _, object := range []crclient.Object{result, download} {
		require.NoError(t, c.Objects().Create(t.Context(), object))
		t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), object) })
	}
	_, err = r.Claim(t.Context(), claimItem(a.namespace, of, map[string]any{velerov1.DataUploadNameAnnotation: "velero/gone"}))
	require.ErrorContains(t, err, "its DataUpload velero/gone was not completed")
	require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKeyFromObject(download), download))
	assert.True(t, download.Spec.Cancel)
}

// bringBackRights deletes a volume that was restored as it was, and gives a claim its
// owner back.
func bringBackRights(t *testing.T, c *cluster.Cluster, a *app, r *restore.Restorer) {
	t.Helper()
	name := "e2e-" + rand.String(6)
	backup := &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: name}}
	backup.Status.Phase = velerov1.BackupPhaseFailedValidation
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{velerov1.RestoreNameLabel: name}},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "loop.csi.stillpoint.io", VolumeHandle: name}},
			ClaimRef:               &corev1.ObjectReference{Namespace: "e2e-nowhere", Name: "app-data0"},
		},
	}
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: name, Labels: map[string]string{velerov1.RestoreNameLabel: name}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: volume.Spec.AccessModes, StorageClassName: ptr.To("none"),
			Resources: corev1.VolumeResourceRequirements{Requests: volume.Spec.Capacity},
		},
	}
	for _, object := range []crclient.Object{backup, volume, claim} {
		require.NoError(t, c.Objects().Create(t.Context(), object))
		t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), object) })
	}
	of := &velerov1.Restore{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
	of.Spec.BackupName, of.Spec.NamespaceMapping = name, map[string]string{a.namespace: "e2e-nowhere"}
	item := claimItem(a.namespace, of, map[string]any{velerov1.VolumeSnapshotLabel: "x"})
	source := map[string]any{"kind": "VolumeSnapshot", "name": util.GenerateSha256FromRestoreUIDAndVsName(name, "x")}
	require.NoError(t, unstructured.SetNestedField(item.Object.Object, source, "spec", "dataSource"))
	_, err := r.Claim(t.Context(), item)
	require.ErrorContains(t, err, "its VolumeSnapshot "+a.namespace+"/x")
	assert.True(t, apierrors.IsNotFound(c.Objects().Get(t.Context(), crclient.ObjectKeyFromObject(volume), volume)))

	of.Spec.NamespaceMapping = nil
	item = claimItem(a.namespace, of, nil)
	item.BackedUp.SetName(name)
	pods := &corev1.PodList{}
	require.NoError(t, c.Objects().List(t.Context(), pods, crclient.InNamespace(a.namespace)))
	item.BackedUp.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pods.Items[0].Name, UID: "x"}})
	operation, err := restore.Orphan(item)
	require.NoError(t, err)
	progress, err := r.Adopt(t.Context(), operation, of)
	require.NoError(t, err)
	assert.Contains(t, progress.Description, "is owned by Pod "+pods.Items[0].Name+" again")
}

// claimItem is a claim of a restore, as the backup has it and otherwise empty.
func claimItem(namespace string, of *velerov1.Restore, annotations map[string]any) restore.Item {
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "PersistentVolumeClaim",
		"metadata": map[string]any{"namespace": namespace, "name": "app-data0", "uid": "claim", "annotations": annotations},
		"spec":     map[string]any{"volumeName": "gone"},
	}}
	return restore.Item{Object: object, BackedUp: object.DeepCopy(), Restore: of}
}

// useAccount has Velero's client configuration, and with it ours, be that of a
// service account.
func useAccount(t *testing.T, c *cluster.Cluster, name string) {
	t.Helper()
	token, err := c.Client().CoreV1().ServiceAccounts("velero").CreateToken(t.Context(), name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	require.NoError(t, err)
	admin := c.RESTConfig()
	kubeconfig := clientcmdapi.NewConfig()
	kubeconfig.Clusters["bed"] = &clientcmdapi.Cluster{Server: admin.Host, CertificateAuthorityData: admin.CAData, CertificateAuthority: admin.CAFile}
	kubeconfig.AuthInfos["account"] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	kubeconfig.Contexts["bed"] = &clientcmdapi.Context{Cluster: "bed", AuthInfo: "account", Namespace: corev1.NamespaceDefault}
	kubeconfig.CurrentContext = "bed"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, clientcmd.WriteToFile(*kubeconfig, file))
	t.Setenv("KUBECONFIG", file)
	t.Setenv("VELERO_NAMESPACE", cluster.VeleroNamespace)
}

// unretain has the storage's snapshots go with their objects, as those of a backup that
// is none are not swept for minutes.
func (a *app) unretain() {
	a.t.Helper()
	contents := &snapshotv1.VolumeSnapshotContentList{}
	require.NoError(a.t, a.c.Objects().List(a.t.Context(), contents))
	for i := range contents.Items {
		if content := &contents.Items[i]; content.Spec.VolumeSnapshotRef.Namespace == a.namespace {
			before := content.DeepCopy()
			content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentDelete
			assert.NoError(a.t, a.c.Objects().Patch(a.t.Context(), content, crclient.MergeFrom(before)))
		}
	}
}
