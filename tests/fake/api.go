package fake

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/rest"
)

// Request is a request to the API as faults see it.
type Request struct {
	// Verb is get, list, watch, create, update, patch, delete or exec.
	Verb                   string
	Resource               schema.GroupVersionResource
	Subresource            string
	Namespace, Name        string
	Object                 *unstructured.Unstructured // of create and update
	labels, fields, accept string
	// Limit is how many objects a list asks for, 0 for all.
	Limit int
}

// String is "create volumesnapshots shop/db", with "/status" after the resource
// for a subresource.
func (r Request) String() string {
	resource := r.Resource.Resource
	if r.Subresource != "" {
		resource += "/" + r.Subresource
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Verb, resource, strings.Trim(r.Namespace+"/"+r.Name, "/")))
}

// Fault decides what becomes of a request. It may wait. An error that is an
// apierrors.APIStatus is the answer; any other one is an internal error; nil lets
// the request pass.
type Fault func(r Request) error

// API is an API server that keeps its objects in memory. Lists, pages, watches,
// patches, status subresources, finalizers, preconditions and garbage collection
// behave as Kubernetes' do. There is neither admission nor defaulting: tests
// create complete objects.
type API struct {
	server *httptest.Server
	exec   func(http.ResponseWriter, *http.Request, Request)

	mu       sync.Mutex
	kinds    []Kind
	objects  map[schema.GroupVersionResource]map[types.NamespacedName]*unstructured.Unstructured
	version  int64
	history  []change
	changed  chan struct{} // closed, and made anew, with each change
	dropped  chan struct{} // closed to end all watches
	faults   map[int]Fault
	nextID   int
	requests []string
}

// change is an event of a watch.
type change struct {
	resource schema.GroupVersionResource
	version  int64
	kind     string // ADDED, MODIFIED, DELETED
	object   *unstructured.Unstructured
	before   *unstructured.Unstructured
}

// NewAPI starts an API server that ends with the test.
func NewAPI(t testing.TB) *API {
	a := &API{
		kinds:   slices.Clone(builtin),
		objects: map[schema.GroupVersionResource]map[types.NamespacedName]*unstructured.Unstructured{},
		changed: make(chan struct{}), dropped: make(chan struct{}),
		faults: map[int]Fault{},
	}
	a.server = httptest.NewServer(http.HandlerFunc(a.serve))
	t.Cleanup(func() {
		a.DropWatches()
		a.server.CloseClientConnections()
		a.server.Close()
	})
	return a
}

// Config connects to the server.
func (a *API) Config() *rest.Config { return &rest.Config{Host: a.server.URL, QPS: -1} }

// Inject adds a fault, and returns what takes it away.
func (a *API) Inject(fault Fault) (remove func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.nextID++
	id := a.nextID
	a.faults[id] = fault
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.faults, id)
	}
}

// Requests are all requests since the last call of ForgetRequests, in Request's
// words.
func (a *API) Requests() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.requests)
}

// ForgetRequests empties Requests.
func (a *API) ForgetRequests() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = nil
}

// DropWatches ends all open watches, as a restart of the API server does.
func (a *API) DropWatches() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.dropped)
	a.dropped = make(chan struct{})
}

// AddKind makes the server know one more kind.
func (a *API) AddKind(kind Kind) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kinds = append(a.kinds, kind)
}

// RemoveGroup makes the server forget all kinds of a group and their objects.
func (a *API) RemoveGroup(group string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kinds = slices.DeleteFunc(a.kinds, func(k Kind) bool { return k.Group == group })
	maps.DeleteFunc(a.objects, func(r schema.GroupVersionResource, _ map[types.NamespacedName]*unstructured.Unstructured) bool {
		return r.Group == group
	})
}

// Put stores objects as they are, their status, deletion timestamp and UID
// included; what an object lacks of UID, creation timestamp and namespace of a
// namespaced kind is filled in. It replaces an object of the same name.
func (a *API) Put(t testing.TB, objects ...runtime.Object) {
	t.Helper()
	for _, object := range objects {
		content, err := toUnstructured(object)
		if err != nil {
			t.Fatal(err)
		}
		a.mu.Lock()
		kind, ok := a.kindOf(content.GroupVersionKind())
		if !ok {
			a.mu.Unlock()
			t.Fatalf("the API does not know %s", content.GroupVersionKind())
		}
		if content.GetUID() == "" {
			content.SetUID(uuid.NewUUID())
		}
		if created := content.GetCreationTimestamp(); created.IsZero() {
			content.SetCreationTimestamp(metav1.NewTime(time.Now().Truncate(time.Second)))
		}
		a.store(kind.resource(), content)
		a.mu.Unlock()
	}
}

// add creates an object as a controller of the fake.
func (a *API) add(object runtime.Object) {
	content, err := toUnstructured(object)
	if err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	kind, _ := a.kindOf(content.GroupVersionKind())
	_, _ = a.create(Request{Verb: "create", Resource: kind.resource(), Namespace: content.GetNamespace(), Object: content})
}

// Get reads an object into a typed one of the same kind, name and namespace. It
// reports whether the object exists.
func (a *API) Get(t testing.TB, into runtime.Object) bool {
	t.Helper()
	wanted, err := toUnstructured(into)
	if err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	kind, ok := a.kindOf(wanted.GroupVersionKind())
	if !ok {
		t.Fatalf("the API does not know %s", wanted.GroupVersionKind())
	}
	found := a.objects[kind.resource()][nameOf(wanted)]
	if found == nil {
		return false
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(found.DeepCopy().Object, into); err != nil {
		t.Fatal(err)
	}
	return true
}

// All are the objects of a resource, by its plural name, sorted by namespace and
// name.
func (a *API) All(resource string) []unstructured.Unstructured {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []unstructured.Unstructured
	for r, objects := range a.objects {
		if r.Resource == resource {
			for _, object := range objects {
				all = append(all, *object.DeepCopy())
			}
		}
	}
	slices.SortFunc(all, byName)
	return all
}

func byName(a, b unstructured.Unstructured) int {
	return strings.Compare(a.GetNamespace()+"/"+a.GetName(), b.GetNamespace()+"/"+b.GetName())
}

// Update changes an object in place, its status included, as a controller would.
// It reports whether the object exists.
func (a *API) Update(resource, namespace, name string, change func(object *unstructured.Unstructured)) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for r, objects := range a.objects {
		if object := objects[types.NamespacedName{Namespace: namespace, Name: name}]; r.Resource == resource && object != nil {
			changed := object.DeepCopy()
			change(changed)
			a.storeOrRemove(r, changed)
			return true
		}
	}
	return false
}

// Delete deletes an object as a user would: what has finalizers stays until they
// are gone.
func (a *API) Delete(resource, namespace, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for r, objects := range a.objects {
		if object := objects[types.NamespacedName{Namespace: namespace, Name: name}]; r.Resource == resource && object != nil {
			a.remove(r, object)
		}
	}
}

// Changed is closed at the next change of any object.
func (a *API) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

func nameOf(object *unstructured.Unstructured) types.NamespacedName {
	return types.NamespacedName{Namespace: object.GetNamespace(), Name: object.GetName()}
}

// store keeps an object under a new version. The caller holds mu, as for all that
// follows.
func (a *API) store(r schema.GroupVersionResource, object *unstructured.Unstructured) {
	name := nameOf(object)
	if a.objects[r] == nil {
		a.objects[r] = map[types.NamespacedName]*unstructured.Unstructured{}
	}
	before, kind := a.objects[r][name], "ADDED"
	if before != nil {
		kind = "MODIFIED"
	}
	a.version++
	object.SetResourceVersion(fmt.Sprint(a.version))
	a.objects[r][name] = object
	a.tell(change{resource: r, version: a.version, kind: kind, object: object.DeepCopy(), before: before})
}

// storeOrRemove stores an object, or removes it when its last finalizer has gone
// after its deletion.
func (a *API) storeOrRemove(r schema.GroupVersionResource, object *unstructured.Unstructured) {
	if object.GetDeletionTimestamp() != nil && len(object.GetFinalizers()) == 0 {
		a.gone(r, object)
		return
	}
	a.store(r, object)
}

func (a *API) tell(c change) {
	a.history = append(a.history, c)
	close(a.changed)
	a.changed = make(chan struct{})
}

// remove deletes an object, or marks it while it has finalizers.
func (a *API) remove(r schema.GroupVersionResource, object *unstructured.Unstructured) {
	namespace := r.Group == "" && r.Resource == "namespaces"
	if len(object.GetFinalizers()) == 0 && !namespace {
		a.gone(r, object)
		return
	}
	if object.GetDeletionTimestamp() == nil {
		object = object.DeepCopy()
		now := metav1.NewTime(time.Now().Truncate(time.Second))
		object.SetDeletionTimestamp(&now)
		if namespace {
			_ = unstructured.SetNestedField(object.Object, "Terminating", "status", "phase")
		}
		a.store(r, object)
	}
	if namespace {
		for r, objects := range a.objects {
			for name, inside := range objects {
				if name.Namespace == object.GetName() {
					a.remove(r, inside)
				}
			}
		}
		a.emptied(object.GetName())
	}
}

var namespaces = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}

// emptied removes a namespace that is being deleted once nothing is left in it.
func (a *API) emptied(name string) {
	namespace := a.objects[namespaces][types.NamespacedName{Name: name}]
	if namespace == nil || namespace.GetDeletionTimestamp() == nil {
		return
	}
	for _, objects := range a.objects {
		for key := range objects {
			if key.Namespace == name {
				return
			}
		}
	}
	a.gone(namespaces, namespace)
}

// gone takes an object away, with what it owns.
func (a *API) gone(r schema.GroupVersionResource, object *unstructured.Unstructured) {
	name := nameOf(object)
	if a.objects[r][name] == nil {
		return
	}
	delete(a.objects[r], name)
	a.version++
	object = object.DeepCopy()
	object.SetResourceVersion(fmt.Sprint(a.version))
	a.tell(change{resource: r, version: a.version, kind: "DELETED", object: object, before: object})
	for r, objects := range a.objects {
		for _, owned := range objects {
			if slices.ContainsFunc(owned.GetOwnerReferences(), func(o metav1.OwnerReference) bool { return o.UID == object.GetUID() }) && !a.otherwiseOwned(owned, object.GetUID()) {
				a.remove(r, owned)
			}
		}
	}
	if name.Namespace != "" {
		a.emptied(name.Namespace)
	}
}

// otherwiseOwned reports whether an owner other than one exists.
func (a *API) otherwiseOwned(owned *unstructured.Unstructured, than types.UID) bool {
	for _, owner := range owned.GetOwnerReferences() {
		for _, objects := range a.objects {
			for _, object := range objects {
				if object.GetUID() == owner.UID && owner.UID != than {
					return true
				}
			}
		}
	}
	return false
}

// fault asks all faults about a request, in the order in which they were added.
func (a *API) fault(r Request) error {
	a.mu.Lock()
	a.requests = append(a.requests, r.String())
	var faults []Fault
	for _, id := range slices.Sorted(maps.Keys(a.faults)) {
		faults = append(faults, a.faults[id])
	}
	a.mu.Unlock()
	for _, fault := range faults {
		if err := fault(r); err != nil {
			return err
		}
	}
	return nil
}

func respond(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object)
}

func refuse(w http.ResponseWriter, err error) {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		status = apierrors.NewInternalError(err)
	}
	s := status.Status()
	s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	respond(w, int(s.Code), s)
}
