package e2e

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/bracket"
	stillpoint "stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/quiesce"
	"stillpoint.io/stillpoint/internal/snapshotclass"
	"stillpoint.io/stillpoint/tests/cluster"
)

// deploy/rbac.yaml is enough: the bracket runs here as a service account that
// has these rights and no others, with the test in the place of Velero.
func TestRightsOfDeploySuffice(t *testing.T) {
	c := connect(t)
	name := "e2e-" + rand.String(5)
	rights, err := os.ReadFile(filepath.Join("..", "..", "deploy", "rbac.yaml"))
	require.NoError(t, err)
	manifest := strings.NewReplacer("name: stillpoint", "name: "+name, "name: velero\n", "name: "+name+"\n").Replace(string(rights))
	_, err = c.Kubectl(t.Context(), strings.NewReader(manifest), "apply", "-f", "-")
	require.NoError(t, err)
	_, err = c.Kubectl(t.Context(), nil, "-n", "velero", "create", "serviceaccount", name)
	require.NoError(t, err)
	t.Cleanup(func() {
		for _, kind := range []string{"clusterrole", "clusterrolebinding", "role", "rolebinding", "serviceaccount"} {
			_, err := c.Kubectl(context.Background(), nil, "-n", "velero", "delete", kind, name)
			assert.NoError(t, err)
		}
	})
	useAccount(t, c, name)
	clients, err := stillpoint.NewClients()
	require.NoError(t, err)
	var said bytes.Buffer
	log := logrus.New()
	log.SetOutput(&said)
	namespaces := quiesce.NewNamespaces(clients.Kube, clock.RealClock{})
	b := bracket.New(clients, namespaces, snapshotclass.NewCatalogue(clients, clock.RealClock{}), quiesce.NewReporter(clients.Kube), true, log)

	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze", "stillpoint.io/quiesce-timeout": "5s"}})
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
	a.writesWithin(recovery, "app-data0")
	require.NoError(t, b.Claim(t.Context(), claim, good))
	assert.NotContains(t, said.String(), "level=warning")
	assert.NotContains(t, said.String(), "forbidden")

	// Thawed at the deadline: the snapshot that comes after it is deleted.
	late := backupOf(name + "-late")
	require.NoError(t, b.Volume(t.Context(), volume, late))
	a.writesWithin(8*time.Second, "app-data0")
	snapshot(late)
	require.ErrorContains(t, b.Claim(t.Context(), claim, late), "not consistent")
	assert.NotContains(t, said.String(), "forbidden")
	assert.Eventually(t, func() bool {
		left, err := c.Kubectl(t.Context(), nil, "-n", a.namespace, "get", "volumesnapshot", "-o", "name")
		return err == nil && !strings.Contains(left, late.Name)
	}, 20*time.Second, 200*time.Millisecond)
	assert.Eventually(t, func() bool { return a.events("app")["Thawed"] != "" }, 5*time.Second, 50*time.Millisecond)
}

// useAccount has Velero's client configuration, and with it ours, be that of a
// service account.
func useAccount(t *testing.T, c *cluster.Cluster, name string) {
	t.Helper()
	token, err := c.Client().CoreV1().ServiceAccounts("velero").CreateToken(t.Context(), name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	require.NoError(t, err)
	admin := c.RESTConfig()
	kubeconfig := api.NewConfig()
	kubeconfig.Clusters["bed"] = &api.Cluster{Server: admin.Host, CertificateAuthorityData: admin.CAData, CertificateAuthority: admin.CAFile}
	kubeconfig.AuthInfos["account"] = &api.AuthInfo{Token: token.Status.Token}
	kubeconfig.Contexts["bed"] = &api.Context{Cluster: "bed", AuthInfo: "account", Namespace: corev1.NamespaceDefault}
	kubeconfig.CurrentContext = "bed"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, clientcmd.WriteToFile(*kubeconfig, file))
	t.Setenv("KUBECONFIG", file)
	t.Setenv("VELERO_NAMESPACE", cluster.VeleroNamespace)
}
