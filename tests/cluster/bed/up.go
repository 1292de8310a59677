package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// snapshotKinds are the custom resources of snapshots, in plural.
var snapshotKinds = []string{"volumesnapshotclasses", "volumesnapshotcontents", "volumesnapshots"}

// Prepare does what must be done outside of the cluster's network: packages,
// builds, the network itself, and a clean-up of what a crash left, or of a
// cluster with another storage. Start goes on from there, inside.
func (b *Bed) Prepare(ctx context.Context, storage Storage) error {
	if err := CheckMachine(); err != nil {
		return err
	}
	unlock, err := b.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.installPackages(ctx); err != nil {
		return err
	}
	if err := b.settle(ctx, storage); err != nil {
		return err
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	// Without containerd or the network nothing that may be left is of use.
	_, err = os.Stat(b.halfDown())
	if b.Processes.PID(Containerd) == 0 || !b.haveNamespace() || err == nil {
		if err := b.tearDown(ctx); err != nil {
			return fmt.Errorf("clean up what an earlier run left: %w", err)
		}
		if err := b.makeDirs(); err != nil {
			return err
		}
	}
	if err := b.makePKI(); err != nil {
		return err
	}
	if err := b.writeConfig(); err != nil {
		return err
	}
	return b.makeNamespace()
}

// Start starts what is not running and waits until the cluster is of use. It
// must be called inside the cluster's network, after Prepare.
func (b *Bed) Start(ctx context.Context) error {
	unlock, err := b.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if !b.inside() {
		return errors.New("the test bed was taken down while it was being started")
	}
	if err := b.setUpNetwork(ctx); err != nil {
		return err
	}
	if err := b.makeCgroups(); err != nil {
		return err
	}
	if err := b.mountStore(ctx); err != nil {
		return err
	}
	newNode, imported, err := b.startContainers(ctx)
	if err != nil {
		return err
	}
	if err := b.startControlPlane(ctx); err != nil {
		return err
	}
	if newNode || slices.Contains(imported, veleroImage) || slices.Contains(imported, awsImage) {
		// Their containers died with the node, or are of another build.
		if err := b.removeVeleroPods(ctx); err != nil {
			return err
		}
	}
	if err := b.startNode(ctx); err != nil {
		return err
	}
	if err := b.startStorage(ctx); err != nil {
		return err
	}
	if err := b.installVelero(ctx); err != nil {
		return err
	}
	return b.sweepNamespaces(ctx)
}

// startContainers starts containerd and gives it the images.
func (b *Bed) startContainers(ctx context.Context) (started bool, imported []string, err error) {
	started, err = b.start(ctx, Containerd)
	if err != nil {
		return started, nil, err
	}
	err = waitFor(ctx, Containerd, 20*time.Second, func(ctx context.Context) error {
		_, err := b.ctr(ctx, "version")
		return err
	})
	if err != nil {
		return started, nil, b.withLog(err, Containerd)
	}
	imported, err = b.importImages(ctx)
	if len(imported) > 0 {
		b.Say("imported %s", strings.Join(imported, ", "))
	}
	return started, imported, err
}

func (b *Bed) startControlPlane(ctx context.Context) error {
	for _, name := range []string{Etcd, APIServer} {
		if _, err := b.start(ctx, name); err != nil {
			return err
		}
	}
	if err := b.WaitReady(ctx, APIServer); err != nil {
		return err
	}
	// Not before the API server is ready: it would exit, missing its roles.
	for _, name := range []string{ControllerManager, Scheduler} {
		if _, err := b.start(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// WaitReady waits until a component serves; it knows how to tell for the API
// server only and takes others to be ready when they run.
func (b *Bed) WaitReady(ctx context.Context, name string) error {
	if name != APIServer {
		return nil
	}
	err := waitFor(ctx, APIServer, time.Minute, func(ctx context.Context) error {
		client, err := b.client()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	return b.withLog(err, APIServer)
}

func (b *Bed) startNode(ctx context.Context) error {
	for _, name := range []string{CSIDriver, Kubelet, Proxy} {
		if err := b.StartComponent(ctx, name); err != nil {
			return err
		}
	}
	since := b.Processes.Started(Kubelet)
	err := waitFor(ctx, "the node", time.Minute, func(ctx context.Context) error {
		return b.nodeReady(ctx, since)
	})
	return b.withLog(err, Kubelet)
}

// nodeReady is nil when the node is ready, by word of the kubelet that was
// started at the given time and not of an earlier one.
func (b *Bed) nodeReady(ctx context.Context, since time.Time) error {
	client, err := b.client()
	if err != nil {
		return err
	}
	lease, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, nodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if lease.Spec.RenewTime == nil || lease.Spec.RenewTime.Time.Before(since) {
		return errors.New("the kubelet has not reported yet")
	}
	node, err := client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return nil
		} else if c.Type == corev1.NodeReady {
			return fmt.Errorf("node %s is not ready: %s", nodeName, c.Message)
		}
	}
	return fmt.Errorf("node %s is not ready", nodeName)
}

// startStorage starts the CSI sidecars and makes the storage classes.
func (b *Bed) startStorage(ctx context.Context) error {
	if _, err := b.start(ctx, S3); err != nil {
		return err
	}
	crds, err := filepath.EvalSymlinks(b.path("bin", "crds")) // kubectl does not walk into a link
	if err != nil {
		return fmt.Errorf("find the snapshot resources: %w", err)
	}
	if _, err := b.Kubectl(ctx, nil, "apply", "--server-side", "--force-conflicts", "-f", crds); err != nil {
		return err
	}
	wait := []string{"wait", "--for=condition=Established", "--timeout=30s"}
	for _, kind := range snapshotKinds {
		wait = append(wait, "crd/"+kind+".snapshot.storage.k8s.io")
	}
	if _, err := b.Kubectl(ctx, nil, wait...); err != nil {
		return err
	}
	for _, file := range []string{"storage.yaml", "external-storage.yaml"} {
		manifest, err := b.config(file)
		if err != nil {
			return err
		}
		if _, err := b.Kubectl(ctx, strings.NewReader(string(manifest)), "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
			return err
		}
	}
	if err := b.waitExternalStorage(ctx); err != nil {
		return err
	}
	for _, name := range []string{SnapshotController, CSIProvisioner, CSISnapshotter, ExternalController, ExternalProvisioner} {
		if _, err := b.start(ctx, name); err != nil {
			return err
		}
	}
	if err := b.mirror(ctx); err != nil {
		return err
	}
	err = waitFor(ctx, "the CSI driver at the kubelet", 30*time.Second, b.driverRegistered)
	return b.withLog(err, CSIDriver)
}

func (b *Bed) driverRegistered(ctx context.Context) error {
	client, err := b.client()
	if err != nil {
		return err
	}
	node, err := client.StorageV1().CSINodes().Get(ctx, nodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if len(node.Spec.Drivers) == 0 {
		return errors.New("it is not registered")
	}
	return nil
}

// StartComponent starts a component that does not run. With the CSI driver its
// sidecars are started again if they were there: without it they soon end.
func (b *Bed) StartComponent(ctx context.Context, name string) error {
	started, err := b.start(ctx, name)
	if err != nil || !started || name != CSIDriver {
		return err
	}
	for _, sidecar := range []string{CSIProvisioner, CSISnapshotter} {
		if !slices.Contains(b.Processes.Names(), sidecar) {
			continue
		}
		if err := b.Processes.Kill(ctx, sidecar); err != nil {
			return err
		}
		if _, err := b.start(ctx, sidecar); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bed) start(ctx context.Context, name string) (bool, error) {
	started, err := b.Processes.Start(ctx, b.spec(name))
	if started && err == nil {
		b.Say("started %s", name)
	}
	return started, err
}

// withLog adds the end of a component's log to an error.
func (b *Bed) withLog(err error, name string) error {
	if err == nil {
		return nil
	}
	const lines = 15
	content, _ := os.ReadFile(b.Processes.LogFile(name))
	all := strings.Split(strings.TrimSpace(string(content)), "\n")
	return fmt.Errorf("%w\nthe end of %s:\n%s", err, b.Processes.LogFile(name), strings.Join(all[max(0, len(all)-lines):], "\n"))
}

func (b *Bed) client() (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", b.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return kubernetes.NewForConfig(config)
}
