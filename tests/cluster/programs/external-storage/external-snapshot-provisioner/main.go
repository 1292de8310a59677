// Command external-snapshot-provisioner makes PersistentVolumes of the snapshots
// of external-storage, the API before CSI's, that are of volumes of type
// hostPath. It decides as the original provisioner does, whose package is a
// program and cannot be called.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"syscall"

	"github.com/kubernetes-incubator/external-storage/snapshot/pkg/apis/crd/v1"
	"github.com/kubernetes-incubator/external-storage/snapshot/pkg/client"
	"github.com/kubernetes-incubator/external-storage/snapshot/pkg/volume/hostpath"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/controller"
)

const (
	name = "volumesnapshot.external-storage.k8s.io/snapshot-promoter"
	// identityAnnotation is how the provisioner knows the volumes that it made.
	identityAnnotation = "snapshotProvisionerIdentity"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "`file` to find the API server by")
	group := flag.Int("group", 0, "`id` of the group that the data in /tmp belongs to")
	if err := flag.Set("logtostderr", "true"); err != nil {
		fail("set logtostderr", err)
	}
	flag.Parse()
	// The provisioner's library has a logger, and flags, of its own.
	library := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(library)
	if err := library.Set("logtostderr", "true"); err != nil {
		fail("set logtostderr", err)
	}
	if err := syscall.Setregid(*group, *group); err != nil {
		fail("change the group", err)
	}

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		fail("find the API server", err)
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		fail("connect", err)
	}
	version, err := kube.Discovery().ServerVersion()
	if err != nil {
		fail("ask the API server for its version", err)
	}
	snapshots, _, err := client.NewClient(config)
	if err != nil {
		fail("connect", err)
	}
	controller.NewProvisionController(kube, name, provisioner{snapshots}, version.GitVersion).Run(wait.NeverStop)
}

// provisioner makes and deletes volumes.
type provisioner struct{ snapshots *rest.RESTClient }

// Provision makes the volume of a claim that names a snapshot of its namespace.
func (p provisioner) Provision(options controller.VolumeOptions) (*corev1.PersistentVolume, error) {
	claim := options.PVC
	from := claim.Annotations[client.SnapshotPVCAnnotation]
	if from == "" {
		return nil, fmt.Errorf("claim %s/%s has no annotation %s", claim.Namespace, claim.Name, client.SnapshotPVCAnnotation)
	}
	var snapshot v1.VolumeSnapshot
	err := p.snapshots.Get().Resource(v1.VolumeSnapshotResourcePlural).Namespace(claim.Namespace).Name(from).Do().Into(&snapshot)
	if err != nil {
		return nil, fmt.Errorf("get VolumeSnapshot %s/%s: %v", claim.Namespace, from, err)
	}
	if snapshot.Spec.SnapshotDataName == "" {
		return nil, fmt.Errorf("VolumeSnapshot %s/%s has no VolumeSnapshotData", claim.Namespace, from)
	}
	var data v1.VolumeSnapshotData
	err = p.snapshots.Get().Resource(v1.VolumeSnapshotDataResourcePlural).Name(snapshot.Spec.SnapshotDataName).Do().Into(&data)
	if err != nil {
		return nil, fmt.Errorf("get VolumeSnapshotData %s: %v", snapshot.Spec.SnapshotDataName, err)
	}
	source, labels, err := hostpath.RegisterPlugin().SnapshotRestore(&data, claim, options.PVName, options.Parameters)
	if err != nil {
		return nil, fmt.Errorf("make a volume of VolumeSnapshotData %s: %v", data.Metadata.Name, err)
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName, Labels: labels, Annotations: map[string]string{identityAnnotation: name}},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: options.PersistentVolumeReclaimPolicy,
			AccessModes:                   claim.Spec.AccessModes,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			PersistentVolumeSource:        *source,
		},
	}, nil
}

// Delete deletes a volume that Provision made.
func (p provisioner) Delete(volume *corev1.PersistentVolume) error {
	switch volume.Annotations[identityAnnotation] {
	case "":
		return errors.New("the volume has no annotation " + identityAnnotation)
	case name:
		return hostpath.RegisterPlugin().VolumeDelete(volume)
	default:
		return &controller.IgnoredError{Reason: "another provisioner made the volume"}
	}
}

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "external-snapshot-provisioner: %s: %v\n", what, err)
	os.Exit(1)
}
