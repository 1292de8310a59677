package bed

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"stillpoint.io/stillpoint/tests/cluster/process"
)

// Names of the components, as Kill and Start of package cluster take them.
const (
	Containerd         = "containerd"
	Etcd               = "etcd"
	APIServer          = "kube-apiserver"
	ControllerManager  = "kube-controller-manager"
	Scheduler          = "kube-scheduler"
	Kubelet            = "kubelet"
	Proxy              = "kube-proxy"
	CSIDriver          = "loopcsi"
	CSIProvisioner     = "csi-provisioner"
	CSISnapshotter     = "csi-snapshotter"
	SnapshotController = "snapshot-controller"
	S3                 = "versitygw"

	// ExternalController and ExternalProvisioner serve the snapshot API before
	// CSI's, for volumes of type hostPath.
	ExternalController  = "external-snapshot-controller"
	ExternalProvisioner = "external-snapshot-provisioner"
)

// startOrder lists the components as they are started.
var startOrder = []string{
	Containerd, Etcd, APIServer, ControllerManager, Scheduler, CSIDriver, Kubelet, Proxy,
	S3, SnapshotController, CSIProvisioner, CSISnapshotter, ExternalController, ExternalProvisioner,
}

// spec is how a component is started.
func (b *Bed) spec(name string) process.Spec {
	s := process.Spec{Name: name, Args: append([]string{b.path("bin", name)}, b.flags(name)...)}
	if file := b.configFile(name); file != "" {
		content, _ := os.ReadFile(file) // without it the component says itself what it misses
		s.Config = fmt.Sprintf("%x", sha256.Sum256(content))
	}
	if name == Containerd {
		containerd := findProgram("containerd")
		s.Args[0] = containerd
		// It looks for its shim and for runc in PATH.
		s.Env = []string{"PATH=" + strings.Join(append([]string{filepath.Dir(containerd)}, systemDirs...), string(os.PathListSeparator))}
	}
	return s
}

// configFile is the file that a component is configured with, "" for those
// that have flags only.
func (b *Bed) configFile(name string) string {
	switch name {
	case APIServer:
		return b.run("audit-policy.yaml")
	case Containerd:
		return b.run("containerd", "config.toml")
	case Kubelet:
		return b.run("kubelet.yaml")
	case Proxy:
		return b.run("kube-proxy.yaml")
	default:
		return ""
	}
}

func (b *Bed) flags(name string) []string {
	pki := func(file string) string { return b.run("pki", file) }
	kubeconfig := "--kubeconfig=" + b.run(name+".kubeconfig")
	asAdmin := "--kubeconfig=" + b.Kubeconfig()
	driver := "--csi-address=" + b.CSISocket()
	switch name {
	case Containerd:
		return []string{"--config", b.configFile(name)}
	case Etcd:
		return []string{
			"--name=" + nodeName, "--data-dir=" + b.data("etcd"), "--log-level=warn",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=" + nodeName + "=http://127.0.0.1:2380",
			"--unsafe-no-fsync", // the disk is the developer's, and the cluster is soon made anew
		}
	case APIServer:
		return []string{
			"--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--secure-port=6443", "--advertise-address=" + nodeIP,
			"--service-cluster-ip-range=" + serviceCIDR, "--allow-privileged=true",
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			"--client-ca-file=" + pki("ca.crt"), "--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
			"--kubelet-client-certificate=" + pki("apiserver-kubelet.crt"), "--kubelet-client-key=" + pki("apiserver-kubelet.key"),
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file=" + pki("service-account.key"), "--service-account-signing-key-file=" + pki("service-account.key"),
			"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy",
			"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + pki("front-proxy.crt"), "--proxy-client-key-file=" + pki("front-proxy.key"),
			// What is older than the last one or two files is of no use: megabytes.
			"--audit-policy-file=" + b.configFile(name), "--audit-log-path=" + b.auditLog(), "--audit-log-maxsize=64", "--audit-log-maxbackup=1",
		}
	case ControllerManager:
		return []string{
			kubeconfig, "--authentication-" + kubeconfig[2:], "--authorization-" + kubeconfig[2:],
			"--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials=true",
			"--service-account-private-key-file=" + pki("service-account.key"), "--root-ca-file=" + pki("ca.crt"),
		}
	case Scheduler:
		return []string{
			kubeconfig, "--authentication-" + kubeconfig[2:], "--authorization-" + kubeconfig[2:],
			"--bind-address=127.0.0.1", "--leader-elect=false",
			// When the scheduler misses that a claim's volume has come, it looks at the
			// pod again after 5 minutes by default. Uploads of Velero waited for that.
			"--pod-max-in-unschedulable-pods-duration=10s",
		}
	case Kubelet:
		return []string{
			kubeconfig, "--config=" + b.configFile(name), "--root-dir=" + b.KubeletDir(), "--cert-dir=" + b.data("kubelet-pki"),
			"--hostname-override=" + nodeName, "--node-ip=" + nodeIP,
		}
	case Proxy:
		return []string{"--config=" + b.configFile(name)}
	case CSIDriver:
		return []string{
			"-endpoint", b.CSISocket(), "-registration", b.csiRegistration(), "-name", b.storage.Driver(), "-node", nodeName, "-store", b.store(),
			"-s3-endpoint", s3Address, "-s3-bucket", exportBucket, "-s3-credentials", b.run("s3-credentials"),
		}
	case CSIProvisioner:
		return append([]string{asAdmin, driver, "--leader-election=false", "--default-fstype=ext4", "--extra-create-metadata=true"}, unthrottled...)
	case CSISnapshotter:
		return append([]string{asAdmin, driver, "--leader-election=false", "--extra-create-metadata=true"}, b.limits().flags()...)
	case SnapshotController:
		return append([]string{asAdmin, "--leader-election=false"}, b.limits().flags()...)
	case ExternalController, ExternalProvisioner:
		return []string{asAdmin, fmt.Sprintf("--group=%d", b.externalGroup())}
	case S3:
		return []string{"--access", s3User, "--secret", s3Secret, "--port", s3Address, "posix", b.ObjectStore()}
	default:
		panic("no component " + name)
	}
}
