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

// Facts are a view of one namespace, from which units are computed. They are safe for
// concurrent use.
type Facts struct {
	inventory *workload.Inventory
	namespace *corev1.Namespace
	claims    []corev1.PersistentVolumeClaim
	// objects are the annotated objects that can stand for claims. Owners come before the
	// objects that they own.
	objects []*Object
	// annotated are the annotated workloads.
	annotated []annotated.Object
	// line is nil without annotated objects.
	line   lineage
	unread error
}

// Unread returns an error that names the workloads whose annotations could not be read, and
// nil if all could be read.
func (f *Facts) Unread() error { return f.unread }

// Gather reads a namespace. The number of requests does not depend on the number of claims.
// The survey finds annotated objects; it may be nil. If now is true, the annotated objects
// are read again, and a workload that cannot be read is an error. Otherwise Unread returns
// that error.
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
	f.addObjects(view, templates, full)
	return err
}

// Claims returns all claims of the namespace.
func (f *Facts) Claims() []corev1.PersistentVolumeClaim { return f.claims }

// Claim returns the claim with a name, or nil.
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
	// factsKept is the number of namespaces in the cache. Velero backs up one namespace
	// after another.
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
	logged    sync.Map      // by text
}

type gathered struct {
	*Facts
	until time.Time
}

// NewNamespaces returns Namespaces. They log once which kinds cannot be listed, and which
// annotations have no effect.
func NewNamespaces(clients *cluster.Clients, clock clock.PassiveClock, log logrus.FieldLogger) *Namespaces {
	return &Namespaces{
		kube: clients.Kube, metadata: clients.Metadata, log: log,
		survey: annotated.NewSurvey(clients.Kube.Discovery(), clients.Metadata, clients.Dynamic, clock, IsAnnotation, log),
		clock:  clock,
		recent: lru.New(factsKept),
	}
}

// Unread returns the kinds that could not be searched for annotated objects.
func (n *Namespaces) Unread() []annotated.Unread { return n.survey.Unread() }

// Recent returns facts that are at most a minute old, for volumes that are not snapshotted
// yet.
func (n *Namespaces) Recent(ctx context.Context, namespace string) (*Facts, error) {
	defer n.gathering.Lock(namespace)()
	if last := n.last(namespace); last != nil {
		return last, nil
	}
	return n.gather(ctx, namespace, false)
}

// Current returns facts in which the pods are current. They are sufficient to find that a
// volume needs no quiesce, which is the result of most of Velero's calls. While no pod
// changes, Current sends one request for metadata.
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

// last returns recent facts, or nil.
func (n *Namespaces) last(namespace string) *Facts {
	if last, ok := n.recent.Get(namespace); ok {
		if last, ok := last.(gathered); ok && n.clock.Now().Before(last.until) {
			return last.Facts
		}
	}
	return nil
}

// Now returns current facts. It reads the annotated objects again.
func (n *Namespaces) Now(ctx context.Context, namespace string) (*Facts, error) {
	defer n.gathering.Lock(namespace)()
	return n.gather(ctx, namespace, true)
}

func (n *Namespaces) gather(ctx context.Context, namespace string, now bool) (*Facts, error) {
	var facts *Facts
	err := retry.OnError(gatherBackoff, isTransient, func() (err error) {
		facts, err = Gather(ctx, n.kube, n.survey, namespace, now)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, idle := range facts.Idle() {
		switch _, told := n.logged.LoadOrStore(idle.Text, nil); {
		case told:
		case idle.Warning:
			n.log.Warn(idle.Text)
		default:
			n.log.Info(idle.Text)
		}
	}
	if facts.unread != nil { // not cached: the next call gathers again
		n.log.Warnf("Quiesce annotations of workloads in namespace %s cannot be looked for: %v; what they ask for is not known, and not done", namespace, facts.unread)
		return facts, nil //nolint:nilerr // a failed search for annotations must not fail the backup
	}
	n.recent.Add(namespace, gathered{facts, n.clock.Now().Add(factsLife)})
	return facts, nil
}

// gatherBackoff limits the retries of transient errors of the API server.
var gatherBackoff = wait.Backoff{Steps: 4, Duration: 250 * time.Millisecond, Factor: 2}

// isTransient reports whether a retry can succeed.
func isTransient(err error) bool {
	return apierrors.IsTooManyRequests(err) || apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err)
}
