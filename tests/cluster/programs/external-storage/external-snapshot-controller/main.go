// Command external-snapshot-controller runs the snapshot controller of
// external-storage, the API before CSI's, for volumes of type hostPath. The
// custom resources must be there: the API by which the original makes them is not.
package main

import (
	"flag"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/kubernetes-incubator/external-storage/snapshot/pkg/client"
	controller "github.com/kubernetes-incubator/external-storage/snapshot/pkg/controller/snapshot-controller"
	"github.com/kubernetes-incubator/external-storage/snapshot/pkg/volume"
	"github.com/kubernetes-incubator/external-storage/snapshot/pkg/volume/hostpath"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "`file` to find the API server by")
	group := flag.Int("group", 0, "`id` of the group that the data in /tmp belongs to")
	// The log is a file of its own here: glog would write others into /tmp.
	if err := flag.Set("logtostderr", "true"); err != nil {
		fail("set logtostderr", err)
	}
	flag.Parse()
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
	snapshots, scheme, err := client.NewClient(config)
	if err != nil {
		fail("connect", err)
	}
	plugins := map[string]volume.Plugin{hostpath.GetPluginName(): hostpath.RegisterPlugin()}
	controller.NewSnapshotController(snapshots, scheme, kube, &plugins, time.Minute).Run(make(chan struct{}))
	select {} // Run returns when its loops have begun
}

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "external-snapshot-controller: %s: %v\n", what, err)
	os.Exit(1)
}
