package annotated

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
	// singleNamespaces is the number of namespaces that are listed one by one. After them,
	// each kind is listed once for the whole cluster.
	singleNamespaces = 3
	// viewsKept is the number of views in the cache. Velero backs up one namespace after
	// another.
	viewsKept = 16
	// viewLife is how long a view of a namespace is current enough for a freeze. emptyLife
	// is the time for a view in which only workloads are annotated, which is the usual
	// case: a new view takes a request for each kind.
	viewLife  = 10 * time.Second
	emptyLife = 10 * time.Minute
	// parallelLists is the number of kinds that are listed at the same time.
	parallelLists = 8
	// listFrom is the number of objects of one kind from which one list of the namespace is
	// cheaper than a request for each.
	listFrom = 4
	// pageLimit is the timeout for one page of a kind. A kind whose list took slowFailure
	// to fail is not listed again.
	pageLimit   = 30 * time.Second
	slowFailure = 5 * time.Second
)

// Object is an object with quiesce annotations.
type Object struct {
	workload.Ref
	Resource schema.GroupVersionResource
	// Names are the names that users can use for its kind, in lower case.
	Names []string
	// Annotations are the quiesce annotations of the object.
	Annotations map[string]string
}

// View has the annotated objects of one namespace at one time.
type View struct {
	// Annotated are sorted by kind and name. Pods, claims and objects that a workload
	// creates (ReplicaSets, Jobs) are excluded.
	Annotated []Object
	// Owners are the owner references of the objects of the namespace, except pods and
	// claims. Owners and Workloads are nil if only workloads are annotated.
	Owners map[types.UID][]types.UID
	// Workloads are all controllers of pods of built-in kinds.
	Workloads []workload.Ref

	taken time.Time
	// partial is true if a kind could not be read.
	partial bool
}

// fresh reports whether a view is current enough for a freeze. A partial view expires soon,
// because the failure can be transient.
func (v *View) fresh(now time.Time) bool {
	life := viewLife
	if v.empty() && !v.partial {
		life = emptyLife
	}
	return now.Before(v.taken.Add(life))
}

// empty reports whether only workloads are annotated.
func (v *View) empty() bool {
	return !slices.ContainsFunc(v.Annotated, func(o Object) bool { return !o.Known() })
}

func (v *View) sort() {
	byName := func(a, b workload.Ref) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) }
	slices.SortFunc(v.Annotated, func(a, b Object) int { return byName(a.Ref, b.Ref) })
	slices.SortFunc(v.Workloads, byName)
}

// Unread is a kind, or a group, that could not be listed.
type Unread struct {
	// Name is "secrets", "widgets.example.com", or a group's "example.com/v1".
	Name string
	// Namespace is the namespace in which it was not read, or "" for all.
	Namespace string
	Reason    string
	// Broken is true if the API server cannot read it, and false if access is denied.
	Broken bool
}

func (u Unread) String() string {
	if u.Namespace != "" {
		return fmt.Sprintf("%s in namespace %s (%s)", u.Name, u.Namespace, u.Reason)
	}
	return fmt.Sprintf("%s (%s)", u.Name, u.Reason)
}

// everyKind is the Name of an Unread for all kinds.
const everyKind = "all kinds"

type unreadIn struct{ name, namespace string }

// Survey finds annotated objects. It sends as few requests as possible, because most
// clusters have few such objects or none. A kind that cannot be read is a warning and never
// an error: the search for annotations must not fail a backup. A Survey is safe for
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
	// views are the views of single namespaces, scanned is their number.
	views   *lru.Cache
	scanned int
	// all are the views of all namespaces with annotated objects, from cluster-wide lists
	// at allTaken; nil before. They have no Owners.
	all      map[string]*View
	allTaken time.Time
	unread   map[unreadIn]Unread
	logged   map[string]bool
}

// NewSurvey returns a Survey of the annotations for which ours returns true. It logs each
// kind that cannot be listed once.
func NewSurvey(d discovery.DiscoveryInterface, m metadata.Interface, dyn dynamic.Interface, clock clock.PassiveClock, ours func(annotation string) bool, log logrus.FieldLogger) *Survey {
	return &Survey{
		discovery: d, metadata: m, dynamic: dyn, clock: clock, ours: ours, log: log,
		views: lru.New(viewsKept), unread: map[unreadIn]Unread{}, logged: map[string]bool{},
	}
}

// Recent returns the first view of a namespace.
func (s *Survey) Recent(ctx context.Context, namespace string) *View {
	s.mu.Lock()
	defer s.mu.Unlock()
	view := s.recent(ctx, namespace)
	if view.partial && !view.fresh(s.clock.Now()) {
		return s.scan(ctx, namespace)
	}
	return view
}

// Now returns a view that is at most a few seconds old, or ten minutes if only workloads
// were annotated.
func (s *Survey) Now(ctx context.Context, namespace string) *View {
	s.mu.Lock()
	defer s.mu.Unlock()
	view := s.recent(ctx, namespace)
	if view.fresh(s.clock.Now()) {
		return view
	}
	return s.scan(ctx, namespace)
}

// Unread returns the kinds that could not be listed, sorted by name.
func (s *Survey) Unread() []Unread {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.unread), func(a, b Unread) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Namespace, b.Namespace))
	})
}

func (s *Survey) recent(ctx context.Context, namespace string) *View {
	s.discoverKinds()
	if view := s.cached(namespace); view != nil {
		return view
	}
	if s.scanned < singleNamespaces {
		s.scanned++
		return s.scan(ctx, namespace)
	}
	if s.all == nil {
		s.scanCluster(ctx)
	}
	view, ok := s.all[namespace]
	if !ok {
		view = &View{taken: s.allTaken, partial: s.kinds == nil}
	}
	if !view.empty() || s.needsScan(ctx, namespace) {
		return s.scan(ctx, namespace)
	}
	return view
}

// cached returns the view of a single namespace, or nil.
func (s *Survey) cached(namespace string) *View {
	if view, ok := s.views.Get(namespace); ok {
		if view, ok := view.(*View); ok {
			return view
		}
	}
	return nil
}

// discoverKinds discovers the kinds unless it has succeeded before.
func (s *Survey) discoverKinds() {
	if s.kinds != nil {
		return
	}
	kinds, broken, err := discover(s.discovery)
	if err != nil {
		s.unread[unreadIn{name: everyKind}] = Unread{Name: everyKind, Reason: err.Error(), Broken: true}
		return
	}
	delete(s.unread, unreadIn{name: everyKind})
	s.kinds = append([]*kind{}, kinds...)
	for group, err := range broken {
		s.unread[unreadIn{name: group}] = Unread{Name: group, Reason: err.Error(), Broken: true}
	}
}

// scan lists one namespace. Annotated objects of a kind that cannot be read now stay in the
// view if an earlier view has them.
func (s *Survey) scan(ctx context.Context, namespace string) *View {
	view := &View{taken: s.clock.Now(), Owners: map[types.UID][]types.UID{}}
	known := map[types.UID]bool{}
	failed := s.list(ctx, s.kinds, namespace, func(k *kind, item *metav1.PartialObjectMetadata) {
		if known[item.UID] && item.UID != "" { // also served in another group
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
	view.partial = s.kinds == nil || slices.Contains(slices.Collect(maps.Values(failed)), true)
	for _, before := range []*View{s.cached(namespace), s.all[namespace]} {
		if before == nil {
			continue
		}
		for _, object := range before.Annotated {
			if _, unread := failed[object.Resource]; !known[object.UID] && (unread || s.kinds == nil) {
				known[object.UID] = true
				view.Annotated = append(view.Annotated, object)
				view.Owners[object.UID] = before.Owners[object.UID]
			}
		}
	}
	if view.empty() {
		view.Owners, view.Workloads = nil, nil
	}
	view.sort()
	s.views.Add(namespace, view)
	return view
}

func refOf(k *kind, item *metav1.PartialObjectMetadata) workload.Ref {
	return workload.Ref{APIVersion: k.apiVersion(), Kind: k.name, Namespace: item.Namespace, Name: item.Name, UID: item.UID}
}

// annotated returns an item as an Object, and false if it has no quiesce annotations or
// only copies of those of the workload that created it.
func (s *Survey) annotated(k *kind, item *metav1.PartialObjectMetadata) (Object, bool) {
	ours := s.filter(item.Annotations)
	ref := refOf(k, item)
	if len(ours) == 0 || ref.Known() && (k.name == "ReplicaSet" || k.name == "Job") && len(item.OwnerReferences) > 0 {
		return Object{}, false
	}
	return Object{Ref: ref, Resource: k.GroupVersionResource, Names: k.aliases, Annotations: ours}, true
}

// filter returns the quiesce annotations.
func (s *Survey) filter(annotations map[string]string) map[string]string {
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

// scanCluster finds the annotated objects of all namespaces.
func (s *Survey) scanCluster(ctx context.Context) {
	s.allTaken = s.clock.Now()
	all := map[string]*View{}
	s.list(ctx, s.kinds, metav1.NamespaceAll, func(k *kind, item *metav1.PartialObjectMetadata) {
		object, ok := s.annotated(k, item)
		if !ok {
			return
		}
		if all[item.Namespace] == nil {
			all[item.Namespace] = &View{taken: s.allTaken}
		}
		all[item.Namespace].Annotated = append(all[item.Namespace].Annotated, object)
	})
	for _, view := range all {
		view.sort()
	}
	if s.kinds != nil {
		s.all = all
	}
}

// needsScan lists the kinds of one namespace that cannot be listed for the whole cluster.
// It reports whether the namespace must be scanned by itself.
func (s *Survey) needsScan(ctx context.Context, namespace string) bool {
	var kinds []*kind
	for _, k := range s.kinds {
		if k.perNamespace {
			kinds = append(kinds, k)
		}
	}
	found := false
	failed := s.list(ctx, kinds, namespace, func(_ *kind, item *metav1.PartialObjectMetadata) {
		found = found || len(s.filter(item.Annotations)) > 0
	})
	return found || slices.Contains(slices.Collect(maps.Values(failed)), true)
}

// list lists kinds in parallel and passes each object to note. It records the kinds that
// cannot be listed as unread. It returns those that the API server cannot read, with true
// if a retry can succeed.
func (s *Survey) list(ctx context.Context, kinds []*kind, namespace string, note func(*kind, *metav1.PartialObjectMetadata)) (failed map[schema.GroupVersionResource]bool) {
	var (
		mu    sync.Mutex
		wait  sync.WaitGroup
		slots = make(chan struct{}, parallelLists)
	)
	failed = map[schema.GroupVersionResource]bool{}
	for _, k := range kinds {
		if k.skipped {
			if k.unreadable {
				failed[k.GroupVersionResource] = false
			}
			continue
		}
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			start := s.clock.Now()
			err := s.listKind(ctx, k, namespace, func(item *metav1.PartialObjectMetadata) {
				mu.Lock()
				defer mu.Unlock()
				note(k, item)
			})
			mu.Lock()
			defer mu.Unlock()
			if s.recordList(k, namespace, err, s.clock.Since(start)) {
				failed[k.GroupVersionResource] = !k.unreadable
			}
		})
	}
	wait.Wait()
	s.logUnread()
	return failed
}

func (s *Survey) listKind(ctx context.Context, k *kind, namespace string, note func(*metav1.PartialObjectMetadata)) error {
	client := s.metadata.Resource(k.GroupVersionResource).Namespace(namespace)
	pages := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		ctx, cancel := context.WithTimeout(ctx, pageLimit)
		defer cancel()
		return client.List(ctx, options)
	})
	return pages.EachListItem(ctx, metav1.ListOptions{}, func(item runtime.Object) error {
		if item, ok := item.(*metav1.PartialObjectMetadata); ok {
			note(item)
		}
		return nil
	})
}

// recordList records the result of a list, and reports whether the API server cannot read
// the kind. One unreadable object, because its conversion webhook is down or it is a Secret
// that cannot be decrypted, fails the list of the whole cluster; the kind is then listed in
// each namespace. A kind whose list fails slowly is not listed again, because a backup can
// have many namespaces.
func (s *Survey) recordList(k *kind, namespace string, err error, took time.Duration) bool {
	name := k.GroupResource().String()
	in := unreadIn{name, namespace}
	everywhere := namespace == metav1.NamespaceAll
	switch {
	case err == nil:
		k.listed = true
		delete(s.unread, in)
		delete(s.unread, unreadIn{name: name})
	case apierrors.IsNotFound(err): // its definition was deleted
		k.skipped = true
	case apierrors.IsForbidden(err):
		if everywhere {
			k.perNamespace, k.skipped = k.listed, !k.listed
		}
		s.unread[unreadIn{name: name}] = Unread{Name: name, Reason: "it may not be listed"}
	case apierrors.IsMethodNotSupported(err), apierrors.IsNotAcceptable(err):
		k.skipped = true
		s.unread[unreadIn{name: name}] = Unread{Name: name, Reason: err.Error()}
	case took >= slowFailure:
		k.skipped, k.unreadable = true, true
		s.unread[unreadIn{name: name}] = Unread{Name: name, Reason: err.Error(), Broken: true}
		return true
	case everywhere:
		k.perNamespace = true // list it in each namespace
		return true
	default:
		s.unread[in] = Unread{Name: name, Namespace: namespace, Reason: err.Error(), Broken: true}
		return true
	}
	return false
}

// logUnread logs each kind that could not be listed once.
func (s *Survey) logUnread() {
	var forbidden, broken []string
	for _, in := range slices.SortedFunc(maps.Keys(s.unread), func(a, b unreadIn) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.namespace, b.namespace))
	}) {
		unread := s.unread[in]
		once := in.name + " " + unread.Reason // later namespaces have the same error
		switch {
		case s.logged[once]:
		case unread.Broken:
			broken = append(broken, unread.String())
		default:
			forbidden = append(forbidden, unread.Name)
		}
		s.logged[once] = true
	}
	if len(forbidden) > 0 {
		s.log.Infof("Quiesce annotations are not looked for on objects of these kinds, which Stillpoint cannot list: %s", strings.Join(forbidden, ", "))
	}
	if len(broken) > 0 {
		s.log.Warnf("Quiesce annotations cannot be looked for on objects of these kinds, since the API server cannot read them: %s; what such objects ask for is not known, and not done", strings.Join(broken, ", "))
	}
}

// Contents are whole objects, by UID. Objects that were deleted or replaced are missing.
type Contents struct {
	Found map[types.UID]*unstructured.Unstructured
	// Failed are the errors of objects that cannot be read.
	Failed map[types.UID]error
}

// Read gets whole objects of one namespace.
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
