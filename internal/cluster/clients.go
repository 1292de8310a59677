package cluster

import (
	"context"
	"fmt"

	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned"
	"github.com/spf13/pflag"
	"github.com/vmware-tanzu/velero/pkg/client"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
	"k8s.io/utils/clock"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// Requests per second that one plugin process may send. Velero's own default
// of 100 is for a server; a freeze must never wait for a client-side limiter.
const (
	clientQPS   = 200
	clientBurst = 400
)

// Clients reach one API server with the rights of Velero's service account.
type Clients struct {
	// Config is what exec streams are opened with.
	Config *rest.Config
	Kube   kubernetes.Interface
	// Objects is the client that Velero uses: it knows Velero's kinds, and Velero's
	// volume helpers require it.
	Objects crclient.WithWatch
	// Remembered is Objects with answers that may be a minute old, for objects that
	// do not change while a backup runs.
	Remembered crclient.Client
	Snapshots  versioned.Interface
	// Dynamic reads kinds without Go types, such as Blueprints.
	Dynamic dynamic.Interface
	// Metadata reads the metadata of objects of any kind.
	Metadata metadata.Interface
	// VeleroNamespace is where this plugin's Velero lives.
	VeleroNamespace string
}

// NewClients connects as Velero does: from KUBECONFIG or from the pod's
// service account. The namespace is VELERO_NAMESPACE, which `velero install`
// sets on the server, or else what Velero's client configuration says.
func NewClients() (*Clients, error) { return Connection{}.Open() }

// Connection says how to reach the API server; zero values are as in NewClients.
type Connection struct {
	// Kubeconfig is a file, Context the name of one of its contexts.
	Kubeconfig, Context string
	VeleroNamespace     string
	// Wrap intercepts all requests.
	Wrap transport.WrapperFunc
}

// AddFlags adds the flags by which a command's user chooses cluster and Velero.
func (c *Connection) AddFlags(set *pflag.FlagSet) {
	set.StringVar(&c.Kubeconfig, "kubeconfig", "", "`file` to find the API server by (default: KUBECONFIG, or the pod's service account)")
	set.StringVar(&c.Context, "context", "", "`name` of a context of the kubeconfig")
	set.StringVar(&c.VeleroNamespace, "velero-namespace", "", "`namespace` of Velero (default: VELERO_NAMESPACE, or Velero's client configuration, or velero)")
}

// Open makes the clients. It sends no request.
func (c Connection) Open() (*Clients, error) {
	defaults, err := client.LoadConfig()
	if err != nil {
		return nil, fmt.Errorf("load Velero's client configuration: %w", err)
	}
	factory := client.NewFactory("stillpoint", defaults)
	factory.SetClientQPS(clientQPS)
	factory.SetClientBurst(clientBurst)
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	factory.BindFlags(flags)
	for flag, value := range map[string]string{"kubeconfig": c.Kubeconfig, "kubecontext": c.Context, "namespace": c.VeleroNamespace} {
		if value == "" {
			continue
		}
		if err := flags.Set(flag, value); err != nil {
			return nil, fmt.Errorf("set %s %q: %w", flag, value, err)
		}
	}

	clients := &Clients{VeleroNamespace: factory.Namespace()}
	if clients.Config, err = factory.ClientConfig(); err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	if c.Wrap != nil {
		clients.Config.Wrap(c.Wrap)
	}
	if clients.Kube, err = kubernetes.NewForConfig(clients.Config); err != nil {
		return nil, fmt.Errorf("make the Kubernetes client: %w", err)
	}
	if clients.Dynamic, err = dynamic.NewForConfig(clients.Config); err != nil {
		return nil, fmt.Errorf("make the dynamic client: %w", err)
	}
	if clients.Metadata, err = metadata.NewForConfig(clients.Config); err != nil {
		return nil, fmt.Errorf("make the metadata client: %w", err)
	}
	if clients.Objects, err = factory.KubebuilderWatchClient(); err != nil {
		return nil, fmt.Errorf("make Velero's client: %w", err)
	}
	if c.Wrap != nil { // Velero's factory has no option for it
		clients.Objects, err = crclient.NewWithWatch(clients.Config, crclient.Options{Scheme: clients.Objects.Scheme()})
		if err != nil {
			return nil, fmt.Errorf("make Velero's client: %w", err)
		}
	}
	clients.Remembered = Remember(clients.Objects, clock.RealClock{})
	if clients.Snapshots, err = versioned.NewForConfig(clients.Config); err != nil {
		return nil, fmt.Errorf("make the snapshot client: %w", err)
	}
	return clients, nil
}

// Installation returns the UID of Velero's namespace. It identifies this Velero among
// others, in this cluster or in one that shares its bucket.
func (c *Clients) Installation(ctx context.Context) (string, error) {
	namespace := &corev1.Namespace{}
	if err := c.Remembered.Get(ctx, crclient.ObjectKey{Name: c.VeleroNamespace}, namespace); err != nil {
		return "", fmt.Errorf("get Velero's namespace %s: %w", c.VeleroNamespace, err)
	}
	return string(namespace.UID), nil
}
