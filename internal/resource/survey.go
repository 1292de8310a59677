package resource

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/pager"
	"k8s.io/utils/clock"
	"k8s.io/utils/lru"

	"stillpoint.io/stillpoint/internal/workload"
)

const (
	// oneByOne is how many namespaces are looked at by themselves. From the next
	// one on, each kind is listed once for the whole cluster.
	oneByOne = 3
	// viewsKept is for how many namespaces the view is kept: Velero takes one
	// namespace after another.
	viewsKept = 16
	// viewLife is how long a view of a namespace is good enough for a freeze, and
	// emptyLife how long one is where nothing but workloads is annotated, as it is
	// nearly everywhere: to look again takes a request for each kind.
	viewLife  = 10 * time.Second
	emptyLife = 10 * time.Minute
	// atOnce is how many kinds are listed at the same time.
	atOnce = 8
	// listFrom is the number of objects of one kind from which on a list of the
	// namespace is cheaper than a request for each.
	listFrom = 4
)

// Object is one with annotations of ours.
type Object struct {
	workload.Ref
	Resource schema.GroupVersionResource
	// Names are what users may call its kind, in lower case.
	Names []string
	// Annotations are ours among the object's.
	Annotations map[string]string
}

// View is what a survey has seen of one namespace.
type View struct {
	// Annotated are sorted by kind and name. Pods, claims and what a workload
	// makes (ReplicaSets, Jobs) are not among them.
	Annotated []Object
	// Owners are the owner references of the namespace's objects, pods and
	// claims left out. Owners and Workloads are nil where nothing but workloads
	// is annotated.
	Owners map[types.UID][]types.UID
	// Workloads are all controllers of pods of the kinds that Kubernetes has.
	Workloads []workload.Ref

	taken time.Time
}

// empty tells that nothing but workloads is annotated.
func (v *View) empty() bool {
	return !slices.ContainsFunc(v.Annotated, func(o Object) bool { return !o.Known() })
}

func (v *View) sort() {
	byName := func(a, b workload.Ref) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) }
	slices.SortFunc(v.Annotated, func(a, b Object) int { return byName(a.Ref, b.Ref) })
	slices.SortFunc(v.Workloads, byName)
}

// Unread is a kind, or all kinds of a group, that could not be looked at.
type Unread struct {
	// Name is "secrets", "widgets.example.com", or a group's "example.com/v1".
	Name   string
	Reason string
	// Broken tells that the service behind it does not work; otherwise it may
	// not be listed.
	Broken bool
}

// Survey looks for annotated objects. What exists is asked for as rarely as can
// be: nearly all clusters have few such objects, or none. It is safe for
// concurrent use.
type Survey struct {
	discovery discovery.DiscoveryInterface
	metadata  metadata.Interface
	dynamic   dynamic.Interface
	clock     clock.PassiveClock
	ours      func(annotation string) bool
	log       logrus.FieldLogger

	mu    sync.Mutex
	kinds []*kind
	// views are of namespaces that were looked at by themselves, seen of how
	// many.
	views *lru.Cache
	seen  int
	// all are the views of namespaces with annotated objects when the whole
	// cluster was looked at, which was at that time; nil before. Who owns what
	// is not known of them.
	all    map[string]*View
	at     time.Time
	unread map[string]Unread
	told   map[string]bool
}

// NewSurvey returns a Survey of the annotations that ours says yes to. What
// cannot be looked at is told to log, once.
func NewSurvey(d discovery.DiscoveryInterface, m metadata.Interface, dyn dynamic.Interface, clock clock.PassiveClock, ours func(annotation string) bool, log logrus.FieldLogger) *Survey {
	return &Survey{
		discovery: d, metadata: m, dynamic: dyn, clock: clock, ours: ours, log: log,
		views: lru.New(viewsKept), unread: map[string]Unread{}, told: map[string]bool{},
	}
}

// Recent is a namespace as it was when it was first looked at.
func (s *Survey) Recent(ctx context.Context, namespace string) (*View, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recent(ctx, namespace)
}

// Now is a namespace as it was a few seconds ago at most; one where nothing but
// workloads was annotated, ten minutes.
func (s *Survey) Now(ctx context.Context, namespace string) (*View, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	view, err := s.recent(ctx, namespace)
	if err != nil {
		return nil, err
	}
	life := viewLife
	if view.empty() {
		life = emptyLife
	}
	if s.clock.Now().Before(view.taken.Add(life)) {
		return view, nil
	}
	return s.look(ctx, namespace)
}

// Unread are the kinds that could not be looked at, sorted by name.
func (s *Survey) Unread() []Unread {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.unread), func(a, b Unread) int { return cmp.Compare(a.Name, b.Name) })
}

func (s *Survey) recent(ctx context.Context, namespace string) (*View, error) {
	if err := s.know(); err != nil {
		return nil, err
	}
	if view, ok := s.views.Get(namespace); ok {
		if view, ok := view.(*View); ok {
			return view, nil
		}
	}
	if s.seen < oneByOne {
		s.seen++
		return s.look(ctx, namespace)
	}
	if s.all == nil {
		if err := s.everywhere(ctx); err != nil {
			return nil, err
		}
	}
	view, ok := s.all[namespace]
	if !ok {
		view = &View{taken: s.at}
	}
	more := !view.empty()
	if !more {
		var err error
		if more, err = s.scattered(ctx, namespace); err != nil {
			return nil, err
		}
	}
	if more {
		return s.look(ctx, namespace)
	}
	return view, nil
}

// know asks for the kinds, once.
func (s *Survey) know() error {
	if s.kinds != nil {
		return nil
	}
	kinds, broken, err := discover(s.discovery)
	if err != nil {
		return err
	}
	s.kinds = append([]*kind{}, kinds...)
	for group, err := range broken {
		s.unread[group] = Unread{Name: group, Reason: err.Error(), Broken: true}
	}
	return nil
}

// look looks at one namespace.
func (s *Survey) look(ctx context.Context, namespace string) (*View, error) {
	view := &View{taken: s.clock.Now(), Owners: map[types.UID][]types.UID{}}
	known := map[types.UID]bool{}
	err := s.list(ctx, s.kinds, namespace, func(k *kind, item *metav1.PartialObjectMetadata) {
		if known[item.UID] && item.UID != "" { // in another group, too
			return
		}
		known[item.UID] = true
		ref := refOf(k, item)
		for _, owner := range item.OwnerReferences {
			view.Owners[item.UID] = append(view.Owners[item.UID], owner.UID)
		}
		if ref.Known() {
			view.Workloads = append(view.Workloads, ref)
		}
		if object, ok := s.annotated(k, item); ok {
			view.Annotated = append(view.Annotated, object)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("look for annotated objects in namespace %s: %w", namespace, err)
	}
	if view.empty() {
		view.Owners, view.Workloads = nil, nil
	}
	view.sort()
	s.views.Add(namespace, view)
	return view, nil
}

func refOf(k *kind, item *metav1.PartialObjectMetadata) workload.Ref {
	return workload.Ref{APIVersion: k.apiVersion(), Kind: k.name, Namespace: item.Namespace, Name: item.Name, UID: item.UID}
}

// annotated is an object with annotations of ours, unless it is one that has
// copies of them from the workload that made it.
func (s *Survey) annotated(k *kind, item *metav1.PartialObjectMetadata) (Object, bool) {
	ours := s.among(item.Annotations)
	ref := refOf(k, item)
	if len(ours) == 0 || ref.Known() && (k.name == "ReplicaSet" || k.name == "Job") && len(item.OwnerReferences) > 0 {
		return Object{}, false
	}
	return Object{Ref: ref, Resource: k.GroupVersionResource, Names: k.others, Annotations: ours}, true
}

// among are the annotations that are ours.
func (s *Survey) among(annotations map[string]string) map[string]string {
	var found map[string]string
	for key, value := range annotations {
		if s.ours(key) {
			if found == nil {
				found = map[string]string{}
			}
			found[key] = value
		}
	}
	return found
}

// everywhere finds the annotated objects of all namespaces.
func (s *Survey) everywhere(ctx context.Context) error {
	s.at = s.clock.Now()
	all := map[string]*View{}
	err := s.list(ctx, s.kinds, metav1.NamespaceAll, func(k *kind, item *metav1.PartialObjectMetadata) {
		object, ok := s.annotated(k, item)
		if !ok {
			return
		}
		if all[item.Namespace] == nil {
			all[item.Namespace] = &View{taken: s.at}
		}
		all[item.Namespace].Annotated = append(all[item.Namespace].Annotated, object)
	})
	if err != nil {
		return fmt.Errorf("look for annotated objects in all namespaces: %w", err)
	}
	for _, view := range all {
		view.sort()
	}
	s.all = all
	return nil
}

// scattered looks at the kinds of one namespace that may not be listed
// everywhere, and may be in single namespaces.
func (s *Survey) scattered(ctx context.Context, namespace string) (bool, error) {
	var kinds []*kind
	for _, k := range s.kinds {
		if k.scattered {
			kinds = append(kinds, k)
		}
	}
	found := false
	err := s.list(ctx, kinds, namespace, func(_ *kind, item *metav1.PartialObjectMetadata) {
		found = found || len(s.among(item.Annotations)) > 0
	})
	if err != nil {
		return false, fmt.Errorf("look for annotated objects in namespace %s: %w", namespace, err)
	}
	return found, nil
}

// list lists kinds, some side by side, and hands each object to note. Kinds
// that cannot be listed are noted as unread.
func (s *Survey) list(ctx context.Context, kinds []*kind, namespace string, note func(*kind, *metav1.PartialObjectMetadata)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		mu    sync.Mutex
		wait  sync.WaitGroup
		slots = make(chan struct{}, atOnce)
	)
	for _, k := range kinds {
		if k.hidden {
			continue
		}
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			err := s.listKind(ctx, k, namespace, func(item *metav1.PartialObjectMetadata) {
				mu.Lock()
				defer mu.Unlock()
				note(k, item)
			})
			mu.Lock()
			defer mu.Unlock()
			if err := s.judge(k, namespace, err); err != nil {
				cancel(fmt.Errorf("list %s: %w", k.GroupResource(), err))
			}
		})
	}
	wait.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	s.tell()
	return nil
}

func (s *Survey) listKind(ctx context.Context, k *kind, namespace string, note func(*metav1.PartialObjectMetadata)) error {
	client := s.metadata.Resource(k.GroupVersionResource).Namespace(namespace)
	pages := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		return client.List(ctx, options)
	})
	return pages.EachListItem(ctx, metav1.ListOptions{}, func(item runtime.Object) error {
		if item, ok := item.(*metav1.PartialObjectMetadata); ok {
			note(item)
		}
		return nil
	})
}

// judge notes how a list went, and returns the errors that nobody can go on
// with. A kind that may not be listed, or whose own server or conversion is
// down, must not keep all others from being backed up: Velero has an error of
// its own for the latter.
func (s *Survey) judge(k *kind, namespace string, err error) error {
	name := k.GroupResource().String()
	switch {
	case err == nil:
		k.listed = true
		delete(s.unread, name)
	case apierrors.IsNotFound(err): // its definition is gone since
		k.hidden = true
	case apierrors.IsForbidden(err):
		if namespace == metav1.NamespaceAll {
			k.scattered, k.hidden = k.listed, !k.listed
		}
		s.unread[name] = Unread{Name: name, Reason: "it may not be listed"}
	case apierrors.IsMethodNotSupported(err), apierrors.IsNotAcceptable(err):
		k.hidden = true
		s.unread[name] = Unread{Name: name, Reason: err.Error()}
	case k.custom() && (apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err)):
		k.hidden = true
		s.unread[name] = Unread{Name: name, Reason: err.Error(), Broken: true}
	default:
		return err
	}
	return nil
}

// tell logs what could not be looked at, each once.
func (s *Survey) tell() {
	var forbidden, broken []string
	for _, name := range slices.Sorted(maps.Keys(s.unread)) {
		switch unread := s.unread[name]; {
		case s.told[name]:
		case unread.Broken:
			broken = append(broken, fmt.Sprintf("%s (%s)", name, unread.Reason))
		default:
			forbidden = append(forbidden, name)
		}
		s.told[name] = true
	}
	if len(forbidden) > 0 {
		s.log.Infof("Quiesce annotations are not looked for on objects of these kinds, which Stillpoint cannot list: %s", strings.Join(forbidden, ", "))
	}
	if len(broken) > 0 {
		s.log.Warnf("Quiesce annotations cannot be looked for on objects of these kinds, since the API server cannot read them: %s", strings.Join(broken, ", "))
	}
}

// Contents are objects in full, by their UIDs. Those that are gone, or were
// replaced, are not among them.
type Contents struct {
	Found map[types.UID]*unstructured.Unstructured
	// Failed are those that cannot be read.
	Failed map[types.UID]error
}

// Read gets objects of one namespace in full.
func (s *Survey) Read(ctx context.Context, objects []Object) *Contents {
	ofKind := map[schema.GroupVersionResource][]Object{}
	for _, object := range objects {
		ofKind[object.Resource] = append(ofKind[object.Resource], object)
	}
	contents := &Contents{Found: map[types.UID]*unstructured.Unstructured{}, Failed: map[types.UID]error{}}
	for resource, wanted := range ofKind {
		client := s.dynamic.Resource(resource).Namespace(wanted[0].Namespace)
		if len(wanted) >= listFrom {
			pages := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				return client.List(ctx, options)
			})
			err := pages.EachListItem(ctx, metav1.ListOptions{}, func(item runtime.Object) error {
				if item, ok := item.(*unstructured.Unstructured); ok && contains(wanted, item.GetUID()) {
					contents.Found[item.GetUID()] = item
				}
				return nil
			})
			for _, object := range wanted {
				if err != nil {
					contents.Failed[object.UID] = fmt.Errorf("list the %s of namespace %s: %w", resource.GroupResource(), object.Namespace, err)
				}
			}
			continue
		}
		for _, object := range wanted {
			item, err := client.Get(ctx, object.Name, metav1.GetOptions{})
			switch {
			case apierrors.IsNotFound(err):
			case err != nil:
				contents.Failed[object.UID] = fmt.Errorf("get %s: %w", object.Ref, err)
			case item.GetUID() == object.UID:
				contents.Found[object.UID] = item
			}
		}
	}
	return contents
}

func contains(objects []Object, uid types.UID) bool {
	return slices.ContainsFunc(objects, func(o Object) bool { return o.UID == uid })
}
