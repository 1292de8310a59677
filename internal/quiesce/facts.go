package quiesce

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
	"k8s.io/utils/lru"

	"stillpoint.io/stillpoint/internal/workload"
)

// Facts are what groups are made from: one namespace, as it was when it was
// looked at. They are safe for concurrent use.
type Facts struct {
	inventory *workload.Inventory
	namespace *corev1.Namespace
	claims    []corev1.PersistentVolumeClaim
}

// Gather looks at a namespace. The number of its requests does not depend on
// how many claims there are.
func Gather(ctx context.Context, kube kubernetes.Interface, namespace string) (*Facts, error) {
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
	return facts, nil
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
	kube  kubernetes.Interface
	clock clock.PassiveClock

	mu     sync.Mutex
	recent *lru.Cache // namespace → gathered
}

type gathered struct {
	*Facts
	until time.Time
}

// NewNamespaces returns Namespaces.
func NewNamespaces(kube kubernetes.Interface, clock clock.PassiveClock) *Namespaces {
	return &Namespaces{kube: kube, clock: clock, recent: lru.New(factsKept)}
}

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
	return n.gather(ctx, namespace)
}

// Now gathers afresh.
func (n *Namespaces) Now(ctx context.Context, namespace string) (*Facts, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gather(ctx, namespace)
}

func (n *Namespaces) gather(ctx context.Context, namespace string) (*Facts, error) {
	facts, err := Gather(ctx, n.kube, namespace)
	if err != nil {
		return nil, err
	}
	n.recent.Add(namespace, gathered{facts, n.clock.Now().Add(factsLife)})
	return facts, nil
}
