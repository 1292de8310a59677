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
	// pageLimit bounds one request for a page of a kind, and slowFailure is how
	// long a failure may take to be worth another try.
	pageLimit   = 30 * time.Second
	slowFailure = 5 * time.Second
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
	// partial reports that a kind could not be read.
	partial bool
}

// fresh reports whether a view is good enough for a freeze. A view without some
// kind is soon taken again, since the trouble may be over.
func (v *View) fresh(now time.Time) bool {
	life := viewLife
	if v.empty() && !v.partial {
		life = emptyLife
	}
	return now.Before(v.taken.Add(life))
}

// empty reports that nothing but workloads is annotated.
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
	Name string
	// Namespace is the only namespace in which it was not read, "" for all.
	Namespace string
	Reason    string
	// Broken reports that the API server cannot read it; otherwise it may not be
	// listed.
	Broken bool
}

func (u Unread) String() string {
	if u.Namespace != "" {
		return fmt.Sprintf("%s in namespace %s (%s)", u.Name, u.Namespace, u.Reason)
	}
	return fmt.Sprintf("%s (%s)", u.Name, u.Reason)
}

// everyKind is the Name of an Unread that stands for all kinds.
const everyKind = "all kinds"

// unreadIn identifies an Unread.
type unreadIn struct{ name, namespace string }

// Survey looks for annotated objects. What exists is asked for as rarely as can
// be: nearly all clusters have few such objects, or none. A kind that cannot be
// read is a warning and never an error: a backup must not fail because its
// annotations were looked for. It is safe for concurrent use.
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
	unread map[unreadIn]Unread
	told   map[string]bool
}

// NewSurvey returns a Survey of the annotations that ours says yes to. What
// cannot be looked at is told to log, once.
func NewSurvey(d discovery.DiscoveryInterface, m metadata.Interface, dyn dynamic.Interface, clock clock.PassiveClock, ours func(annotation string) bool, log logrus.FieldLogger) *Survey {
	return &Survey{
		discovery: d, metadata: m, dynamic: dyn, clock: clock, ours: ours, log: log,
		views: lru.New(viewsKept), unread: map[unreadIn]Unread{}, told: map[string]bool{},
	}
}

// Recent is a namespace as it was when it was first looked at.
func (s *Survey) Recent(ctx context.Context, namespace string) *View {
	s.mu.Lock()
	defer s.mu.Unlock()
	view := s.recent(ctx, namespace)
	if view.partial && !view.fresh(s.clock.Now()) {
		return s.look(ctx, namespace)
	}
	return view
}

// Now is a namespace as it was a few seconds ago at most; one where nothing but
// workloads was annotated, ten minutes.
func (s *Survey) Now(ctx context.Context, namespace string) *View {
	s.mu.Lock()
	defer s.mu.Unlock()
	view := s.recent(ctx, namespace)
	if view.fresh(s.clock.Now()) {
		return view
	}
	return s.look(ctx, namespace)
}

// Unread are the kinds that could not be looked at, sorted by name.
func (s *Survey) Unread() []Unread {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.unread), func(a, b Unread) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Namespace, b.Namespace))
	})
}

func (s *Survey) recent(ctx context.Context, namespace string) *View {
	s.know()
	if view := s.cached(namespace); view != nil {
		return view
	}
	if s.seen < oneByOne {
		s.seen++
		return s.look(ctx, namespace)
	}
	if s.all == nil {
		s.everywhere(ctx)
	}
	view, ok := s.all[namespace]
	if !ok {
		view = &View{taken: s.at, partial: s.kinds == nil}
	}
	if !view.empty() || s.scattered(ctx, namespace) {
		return s.look(ctx, namespace)
	}
	return view
}

// cached is the view of a namespace that was looked at by itself, nil for none.
func (s *Survey) cached(namespace string) *View {
	if view, ok := s.views.Get(namespace); ok {
		if view, ok := view.(*View); ok {
			return view
		}
	}
	return nil
}

// know asks for the kinds until the API server has told them.
func (s *Survey) know() {
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

// look looks at one namespace. Annotated objects of a kind that cannot be read
// now, and was read before, stay known.
func (s *Survey) look(ctx context.Context, namespace string) *View {
	view := &View{taken: s.clock.Now(), Owners: map[types.UID][]types.UID{}}
	known := map[types.UID]bool{}
	failed := s.list(ctx, s.kinds, namespace, func(k *kind, item *metav1.PartialObjectMetadata) {
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
func (s *Survey) everywhere(ctx context.Context) {
	s.at = s.clock.Now()
	all := map[string]*View{}
	s.list(ctx, s.kinds, metav1.NamespaceAll, func(k *kind, item *metav1.PartialObjectMetadata) {
		object, ok := s.annotated(k, item)
		if !ok {
			return
		}
		if all[item.Namespace] == nil {
			all[item.Namespace] = &View{taken: s.at}
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

// scattered looks at the kinds of one namespace that could not be listed
// everywhere, and may be in single namespaces. It reports whether the namespace
// is to be looked at by itself.
func (s *Survey) scattered(ctx context.Context, namespace string) bool {
	var kinds []*kind
	for _, k := range s.kinds {
		if k.scattered {
			kinds = append(kinds, k)
		}
	}
	found := false
	failed := s.list(ctx, kinds, namespace, func(_ *kind, item *metav1.PartialObjectMetadata) {
		found = found || len(s.among(item.Annotations)) > 0
	})
	return found || slices.Contains(slices.Collect(maps.Values(failed)), true)
}

// list lists kinds, some side by side, and hands each object to note. Kinds
// that cannot be listed are noted as unread. Those that the API server cannot
// read are returned, with whether another try may succeed.
func (s *Survey) list(ctx context.Context, kinds []*kind, namespace string, note func(*kind, *metav1.PartialObjectMetadata)) (failed map[schema.GroupVersionResource]bool) {
	var (
		mu    sync.Mutex
		wait  sync.WaitGroup
		slots = make(chan struct{}, atOnce)
	)
	failed = map[schema.GroupVersionResource]bool{}
	for _, k := range kinds {
		if k.hidden {
			if k.lost {
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
			if s.judge(k, namespace, err, s.clock.Since(start)) {
				failed[k.GroupVersionResource] = !k.lost
			}
		})
	}
	wait.Wait()
	s.tell()
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

// judge notes how a list went, and reports whether the API server cannot read
// the kind. One object that the API server cannot read fails the list of all:
// its conversion webhook is down, or it is a Secret that cannot be decrypted. A
// kind that cannot be listed everywhere is therefore listed in each namespace. A
// kind whose failure takes long is not asked for again: a backup has many
// namespaces.
func (s *Survey) judge(k *kind, namespace string, err error, took time.Duration) bool {
	name := k.GroupResource().String()
	in := unreadIn{name, namespace}
	everywhere := namespace == metav1.NamespaceAll
	switch {
	case err == nil:
		k.listed = true
		delete(s.unread, in)
		delete(s.unread, unreadIn{name: name})
	case apierrors.IsNotFound(err): // its definition is gone since
		k.hidden = true
	case apierrors.IsForbidden(err):
		if everywhere {
			k.scattered, k.hidden = k.listed, !k.listed
		}
		s.unread[unreadIn{name: name}] = Unread{Name: name, Reason: "it may not be listed"}
	case apierrors.IsMethodNotSupported(err), apierrors.IsNotAcceptable(err):
		k.hidden = true
		s.unread[unreadIn{name: name}] = Unread{Name: name, Reason: err.Error()}
	case took >= slowFailure:
		k.hidden, k.lost = true, true
		s.unread[unreadIn{name: name}] = Unread{Name: name, Reason: err.Error(), Broken: true}
		return true
	case everywhere:
		k.scattered = true // each namespace tells for itself
		return true
	default:
		s.unread[in] = Unread{Name: name, Namespace: namespace, Reason: err.Error(), Broken: true}
		return true
	}
	return false
}

// tell logs what could not be looked at, each once.
func (s *Survey) tell() {
	var forbidden, broken []string
	for _, in := range slices.SortedFunc(maps.Keys(s.unread), func(a, b unreadIn) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.namespace, b.namespace))
	}) {
		unread := s.unread[in]
		once := in.name + " " + unread.Reason // the namespaces that follow have the same trouble
		switch {
		case s.told[once]:
		case unread.Broken:
			broken = append(broken, unread.String())
		default:
			forbidden = append(forbidden, unread.Name)
		}
		s.told[once] = true
	}
	if len(forbidden) > 0 {
		s.log.Infof("Quiesce annotations are not looked for on objects of these kinds, which Stillpoint cannot list: %s", strings.Join(forbidden, ", "))
	}
	if len(broken) > 0 {
		s.log.Warnf("Quiesce annotations cannot be looked for on objects of these kinds, since the API server cannot read them: %s; what such objects ask for is not known, and not done", strings.Join(broken, ", "))
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
