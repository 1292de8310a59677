package unit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/clock"
	"k8s.io/utils/lru"

	"stillpoint.io/stillpoint/internal/annotated"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/workload"
)

// Facts are what groups are made from: one namespace, as it was when it was
// looked at. They are safe for concurrent use.
type Facts struct {
	inventory *workload.Inventory
	namespace *corev1.Namespace
	claims    []corev1.PersistentVolumeClaim
	// objects are those that stand for claims, or would if there were any;
	// owners come before what they own.
	objects []*Object
	// annotated are the workloads among annotated objects.
	annotated []annotated.Object
	// line is nil where there are no objects.
	line lineage
	// unread says which workloads could not be read.
	unread error
}

// Unread says which workloads of the namespace could not be read, and why; nil
// if all were. What their annotations ask for is not known.
func (f *Facts) Unread() error { return f.unread }

// Gather looks at a namespace. The number of its requests does not depend on
// how many claims there are. Annotated objects are those that survey knows; nil
// knows none. To freeze by, they must be as they are now, and a workload that
// cannot be read is an error; otherwise it is noted as unread.
func Gather(ctx context.Context, kube kubernetes.Interface, survey *annotated.Survey, namespace string, now bool) (*Facts, error) {
	facts := &Facts{}
	var err error
	if facts.namespace, err = kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); err != nil {
		return nil, fmt.Errorf("get namespace %s: %w", namespace, err)
	}
	if facts.inventory, err = workload.Take(ctx, kube, namespace); err != nil {
		return nil, err
	}
	claims, err := kube.CoreV1().PersistentVolumeClaims(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the claims of namespace %s: %w", namespace, err)
	}
	facts.claims = claims.Items
	facts.unread = facts.inventory.Unread()
	if survey != nil && len(facts.claims) > 0 {
		facts.unread = errors.Join(facts.unread, facts.gatherObjects(ctx, kube, survey, now))
	}
	if now && facts.unread != nil {
		return nil, facts.unread
	}
	return facts, nil
}

func (f *Facts) gatherObjects(ctx context.Context, kube kubernetes.Interface, survey *annotated.Survey, now bool) error {
	look := survey.Recent
	if now {
		look = survey.Now
	}
	view := look(ctx, f.namespace.Name)
	templates, err := templatesOf(ctx, kube, f.namespace.Name, view)
	var full *annotated.Contents
	if now {
		full = survey.Read(ctx, slices.DeleteFunc(slices.Clone(view.Annotated), func(o annotated.Object) bool { return o.Known() }))
	}
	f.takeObjects(view, templates, full)
	return err
}

// Claims are all claims of the namespace.
func (f *Facts) Claims() []corev1.PersistentVolumeClaim { return f.claims }

// Claim is the claim of that name, nil when there is none.
func (f *Facts) Claim(name string) *corev1.PersistentVolumeClaim {
	i := slices.IndexFunc(f.claims, func(c corev1.PersistentVolumeClaim) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &f.claims[i]
}

const (
	// factsLife is how long facts count as recent.
	factsLife = time.Minute
	// factsKept is for how many namespaces facts are kept: Velero takes one
	// namespace after another.
	factsKept = 16
)

// Namespaces gathers facts of namespaces. It is safe for concurrent use.
type Namespaces struct {
	kube     kubernetes.Interface
	metadata metadata.Interface
	survey   *annotated.Survey
	clock    clock.PassiveClock
	log      logrus.FieldLogger

	gathering cluster.Keyed // by namespace
	recent    *lru.Cache    // namespace → gathered
	told      sync.Map      // text → nothing
}

type gathered struct {
	*Facts
	until time.Time
}

// NewNamespaces returns Namespaces. They log once which kinds cannot be looked at for
// annotated objects, and which annotations are not acted on.
func NewNamespaces(clients *cluster.Clients, clock clock.PassiveClock, log logrus.FieldLogger) *Namespaces {
	return &Namespaces{
		kube: clients.Kube, metadata: clients.Metadata, log: log,
		survey: annotated.NewSurvey(clients.Kube.Discovery(), clients.Metadata, clients.Dynamic, clock, IsAnnotation, log),
		clock:  clock,
		recent: lru.New(factsKept),
	}
}

// Unread are the kinds that could not be looked at for annotated objects.
func (n *Namespaces) Unread() []annotated.Unread { return n.survey.Unread() }

// Recent gives facts that are a minute old at most: enough for what is not
// snapshotted yet.
func (n *Namespaces) Recent(ctx context.Context, namespace string) (*Facts, error) {
	defer n.gathering.Lock(namespace)()
	if last := n.last(namespace); last != nil {
		return last, nil
	}
	return n.gather(ctx, namespace, false)
}

// Current gives facts that hold now as far as pods are concerned: enough to see that
// nothing is to be quiesced, which is what Velero's calls for most volumes come down
// to. While no pod changes it takes one request, for metadata.
func (n *Namespaces) Current(ctx context.Context, namespace string) (*Facts, error) {
	defer n.gathering.Lock(namespace)()
	if last := n.last(namespace); last != nil {
		pods, err := n.metadata.Resource(corev1.SchemeGroupVersion.WithResource("pods")).Namespace(namespace).List(ctx, metav1.ListOptions{})
		if err == nil && !slices.ContainsFunc(pods.Items, func(pod metav1.PartialObjectMetadata) bool {
			return last.inventory.Changed(pod.UID, pod.ResourceVersion)
		}) {
			return last, nil
		}
	}
	return n.gather(ctx, namespace, false)
}

// last are the facts that count as recent, nil if there are none.
func (n *Namespaces) last(namespace string) *Facts {
	if last, ok := n.recent.Get(namespace); ok {
		if last, ok := last.(gathered); ok && n.clock.Now().Before(last.until) {
			return last.Facts
		}
	}
	return nil
}

// Now gathers afresh.
func (n *Namespaces) Now(ctx context.Context, namespace string) (*Facts, error) {
	defer n.gathering.Lock(namespace)()
	return n.gather(ctx, namespace, true)
}

func (n *Namespaces) gather(ctx context.Context, namespace string, now bool) (*Facts, error) {
	var facts *Facts
	err := retry.OnError(gatherAgain, passing, func() (err error) {
		facts, err = Gather(ctx, n.kube, n.survey, namespace, now)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, idle := range facts.Idle() {
		switch _, told := n.told.LoadOrStore(idle.Text, nil); {
		case told:
		case idle.Warning:
			n.log.Warn(idle.Text)
		default:
			n.log.Info(idle.Text)
		}
	}
	if facts.unread != nil { // the next call tries again
		n.log.Warnf("Quiesce annotations of workloads in namespace %s cannot be looked for: %v; what they ask for is not known, and not done", namespace, facts.unread)
		return facts, nil //nolint:nilerr // nothing that looks for annotations fails a backup
	}
	n.recent.Add(namespace, gathered{facts, n.clock.Now().Add(factsLife)})
	return facts, nil
}

// gatherAgain is how long a moment's trouble of the API server is waited out.
var gatherAgain = wait.Backoff{Steps: 4, Duration: 250 * time.Millisecond, Factor: 2}

// passing reports whether an error is one that may be gone at the next try.
func passing(err error) bool {
	return apierrors.IsTooManyRequests(err) || apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err)
}
