// Package cluster is how tests use the running test bed: a real one-node
// cluster with CSI snapshots and Velero. Several test packages, and several
// tests of one, may share it; each works in namespaces of its own.
//
// The bed is started with cmd/testbed, and tests run inside its network:
//
//	testbed up
//	go test -exec "testbed run --" ./...
package cluster

import (
	"context"
	"io"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster/bed"
)

const (
	// Image is for the applications of tests: busybox, dash, bash, util-linux's
	// fsfreeze, and the writer of cmd/writer.
	Image = bed.AppImage
	// MongoDBImage has a mongosh that writes down how it is called. It is one of
	// those that `testbed databases` imports.
	MongoDBImage = bed.MongoDBImage
	// VeleroNamespace is where Velero runs.
	VeleroNamespace = bed.VeleroNamespace
	// StorageClass has volumes that are file systems of their own, or block
	// devices. It is the default.
	StorageClass = "loop"
	// DirectoryClass has volumes that are directories of a shared file system.
	DirectoryClass = "loop-directory"
	// SnapshotClass is the VolumeSnapshotClass that Velero uses.
	SnapshotClass = "loop"
)

// Cluster is a connection to the running test bed.
type Cluster struct {
	bed     *bed.Bed
	config  *rest.Config
	typed   kubernetes.Interface
	objects client.WithWatch
}

// Connect connects to the test bed. A test that does not run inside of its
// network is skipped; inside, a bed that does not answer fails the test.
func Connect(t testing.TB) *Cluster {
	t.Helper()
	b, err := bed.Open(t.Logf)
	if err != nil {
		t.Skip("no test bed:", err)
	}
	if !b.Inside() {
		t.Skip("this test needs the test bed: start it with `testbed up` and run `go test -exec 'testbed run --'`")
	}
	c, err := connect(b)
	if err != nil {
		t.Fatal("connect to the test bed:", err)
	}
	if err := b.WaitReady(t.Context(), bed.APIServer); err != nil {
		t.Fatal("connect to the test bed:", err)
	}
	return c
}

func connect(b *bed.Bed) (*Cluster, error) {
	config, err := clientcmd.BuildConfigFromFlags("", b.Kubeconfig())
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 200, 400 // tests wait for things
	typed, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		scheme.AddToScheme, velerov1.AddToScheme, velerov2alpha1.AddToScheme, snapshotv1.AddToScheme,
	} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	objects, err := client.NewWithWatch(config, client.Options{Scheme: s})
	if err != nil {
		return nil, err
	}
	return &Cluster{bed: b, config: config, typed: typed, objects: objects}, nil
}

// RESTConfig is a copy of the administrator's connection.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.config) }

// Client is for the kinds of Kubernetes itself.
func (c *Cluster) Client() kubernetes.Interface { return c.typed }

// Objects is for these, Velero's and those of snapshots.
func (c *Cluster) Objects() client.WithWatch { return c.objects }

// Kubectl runs kubectl and returns what it prints; the error holds what it
// prints to standard error. It ends after two minutes where ctx sets no limit.
func (c *Cluster) Kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	return c.bed.Kubectl(ctx, stdin, args...)
}

// Velero runs the velero client, otherwise like Kubectl.
func (c *Cluster) Velero(ctx context.Context, args ...string) (string, error) {
	return c.bed.Velero(ctx, args...)
}

// InstallPlugin makes Velero run our plugin from this binary and waits until it
// does. It does nothing when that very plugin is installed.
func (c *Cluster) InstallPlugin(ctx context.Context, binary string) error {
	return c.bed.InstallPlugin(ctx, binary)
}

// SetVeleroVariable gives the Velero server an environment variable, or takes
// it away where value is empty, and waits until the server runs so. Whoever sets
// one takes it away again, also on failure: others share the cluster.
func (c *Cluster) SetVeleroVariable(ctx context.Context, name, value string) error {
	return c.bed.SetVeleroVariable(ctx, name, value)
}

// Request is one request to the API server.
type Request = bed.Request

// VeleroRequests are the requests of Velero's pods, and the plugins in them,
// that the API server received in this time. A watch is one request.
func (c *Cluster) VeleroRequests(from, to time.Time) ([]Request, error) {
	return c.bed.VeleroRequests(from, to)
}

// BackupDir is the directory in which the object store keeps a backup.
func (c *Cluster) BackupDir(name string) string { return c.bed.BackupDir(name) }

// cleanupLimit is how long the clean-up after a test may take. It does not
// depend on the test's context, which has ended by then.
const cleanupLimit = 90 * time.Second

// diagnosisLimit is how long it may take to say why that was not enough.
const diagnosisLimit = 10 * time.Second
