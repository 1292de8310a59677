package quiesce

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
	"k8s.io/utils/lru"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/resource"
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
	objects []*object
	// annotated are the workloads among annotated objects.
	annotated []resource.Object
	// line is nil where there are no objects.
	line lineage
}

// Gather looks at a namespace. The number of its requests does not depend on
// how many claims there are. Annotated objects are those that survey knows; nil
// knows none. To freeze by, they must be as they are now.
func Gather(ctx context.Context, kube kubernetes.Interface, survey *resource.Survey, namespace string, now bool) (*Facts, error) {
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
	if survey == nil || len(facts.claims) == 0 {
		return facts, nil
	}
	return facts, facts.gatherObjects(ctx, kube, survey, now)
}

func (f *Facts) gatherObjects(ctx context.Context, kube kubernetes.Interface, survey *resource.Survey, now bool) error {
	look := survey.Recent
	if now {
		look = survey.Now
	}
	view, err := look(ctx, f.namespace.Name)
	if err != nil {
		return err
	}
	templates, err := templatesOf(ctx, kube, f.namespace.Name, view)
	if err != nil {
		return err
	}
	var full *resource.Contents
	if now {
		full = survey.Read(ctx, slices.DeleteFunc(slices.Clone(view.Annotated), func(o resource.Object) bool { return o.Known() }))
	}
	f.takeObjects(view, templates, full)
	return nil
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
	kube   kubernetes.Interface
	survey *resource.Survey
	clock  clock.PassiveClock

	mu     sync.Mutex
	recent *lru.Cache // namespace → gathered
}

type gathered struct {
	*Facts
	until time.Time
}

// NewNamespaces returns Namespaces. Kinds that cannot be looked at for annotated
// objects are told to log, once.
func NewNamespaces(clients *cluster.Clients, clock clock.PassiveClock, log logrus.FieldLogger) *Namespaces {
	return &Namespaces{
		kube:   clients.Kube,
		survey: resource.NewSurvey(clients.Kube.Discovery(), clients.Metadata, clients.Dynamic, clock, IsAnnotation, log),
		clock:  clock,
		recent: lru.New(factsKept),
	}
}

// Unread are the kinds that could not be looked at for annotated objects.
func (n *Namespaces) Unread() []resource.Unread { return n.survey.Unread() }

// Recent gives facts that are a minute old at most: enough to see that nothing
// is to be quiesced, which is what Velero's calls for most volumes come down to.
func (n *Namespaces) Recent(ctx context.Context, namespace string) (*Facts, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if last, ok := n.recent.Get(namespace); ok {
		if last, ok := last.(gathered); ok && n.clock.Now().Before(last.until) {
			return last.Facts, nil
		}
	}
	return n.gather(ctx, namespace, false)
}

// Now gathers afresh.
func (n *Namespaces) Now(ctx context.Context, namespace string) (*Facts, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gather(ctx, namespace, true)
}

func (n *Namespaces) gather(ctx context.Context, namespace string, now bool) (*Facts, error) {
	facts, err := Gather(ctx, n.kube, n.survey, namespace, now)
	if err != nil {
		return nil, err
	}
	n.recent.Add(namespace, gathered{facts, n.clock.Now().Add(factsLife)})
	return facts, nil
}
