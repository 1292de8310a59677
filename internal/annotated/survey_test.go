package annotated

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"
	clocktesting "k8s.io/utils/clock/testing"
)

// scene is a cluster with a few kinds that counts the requests.
type scene struct {
	*Survey
	metadata *metadatafake.FakeMetadataClient
	dynamic  *dynamicfake.FakeDynamicClient
	clock    *clocktesting.FakeClock
	log      *logrustest.Hook
	// fail has errors by resource and namespace; the namespace of a cluster-wide list is
	// "".
	fail map[string]error
	slow time.Duration // duration of each failure
	mu   sync.Mutex
	sent []string
}

var listed = metav1.Verbs{"get", "list"}

func resources() []*metav1.APIResourceList {
	return []*metav1.APIResourceList{
		{GroupVersion: "v1", APIResources: []metav1.APIResource{
			{Name: "configmaps", Kind: "ConfigMap", ShortNames: []string{"cm"}, Namespaced: true, Verbs: listed},
			{Name: "pods", Kind: "Pod", Namespaced: true, Verbs: listed},
			{Name: "pods/log", Kind: "Pod", Namespaced: true, Verbs: listed},
			{Name: "events", Kind: "Event", Namespaced: true, Verbs: listed},
			{Name: "nodes", Kind: "Node", Verbs: listed},
			{Name: "bindings", Kind: "Binding", Namespaced: true, Verbs: metav1.Verbs{"create"}},
		}},
		{GroupVersion: "apps/v1", APIResources: []metav1.APIResource{
			{Name: "statefulsets", Kind: "StatefulSet", Namespaced: true, Verbs: listed},
			{Name: "replicasets", Kind: "ReplicaSet", Namespaced: true, Verbs: listed},
		}},
		{GroupVersion: "velero.io/v1", APIResources: []metav1.APIResource{{Name: "backups", Kind: "Backup", Namespaced: true, Verbs: listed}}},
		{GroupVersion: "example.com/v1", APIResources: []metav1.APIResource{{Name: "widgets", SingularName: "widget", Kind: "Widget", Namespaced: true, Verbs: listed}}},
	}
}

func thing(kind, namespace, name string, annotated bool, owners ...string) *metav1.PartialObjectMetadata {
	version := map[string]string{"ConfigMap": "v1", "StatefulSet": "apps/v1", "Widget": "example.com/v1"}[kind]
	o := &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: version, Kind: kind},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(kind + " " + name), Annotations: map[string]string{"other": "x"}},
	}
	if annotated {
		o.Annotations["ours/x"] = "yes"
	}
	for _, owner := range owners {
		o.OwnerReferences = append(o.OwnerReferences, metav1.OwnerReference{UID: types.UID(owner)})
	}
	return o
}

func newScene(objects ...*metav1.PartialObjectMetadata) *scene {
	scheme := runtime.NewScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		panic(err)
	}
	s := &scene{clock: clocktesting.NewFakeClock(time.Now()), fail: map[string]error{}}
	var parts, whole []runtime.Object
	for _, o := range objects {
		parts = append(parts, o)
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			panic(err)
		}
		content["spec"] = "full"
		whole = append(whole, &unstructured.Unstructured{Object: content})
	}
	s.metadata = metadatafake.NewSimpleMetadataClient(scheme, parts...)
	s.metadata.PrependReactor("list", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		resource := action.GetResource().Resource
		s.sent = append(s.sent, strings.TrimSuffix(resource+" in "+action.GetNamespace(), " in "))
		for _, key := range []string{resource, resource + " in " + action.GetNamespace()} {
			if err := s.fail[key]; err != nil {
				s.clock.Step(s.slow)
				return true, nil, err
			}
		}
		return false, nil, nil
	})
	s.dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		{Version: "v1", Resource: "configmaps"}:                    "ConfigMapList",
		{Group: "example.com", Version: "v1", Resource: "widgets"}: "WidgetList",
	}, whole...)
	kube := fake.NewClientset()
	kube.Resources = resources()
	log, hook := logrustest.NewNullLogger()
	s.log = hook
	s.Survey = NewSurvey(kube.Discovery(), s.metadata, s.dynamic, s.clock, func(key string) bool { return strings.HasPrefix(key, "ours/") }, log)
	return s
}

// requests returns the requests since the last call, sorted.
func (s *scene) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	sent := s.sent
	s.sent = nil
	slices.Sort(sent)
	return sent
}

func (s *scene) said() []string {
	var all []string
	for _, entry := range s.log.AllEntries() {
		all = append(all, entry.Level.String()+": "+entry.Message)
	}
	return all
}

func TestView(t *testing.T) {
	s := newScene(
		thing("Widget", "shop", "w", true), thing("StatefulSet", "shop", "db", false, "Widget w"), thing("ConfigMap", "shop", "cm", true, "Widget w", "x"),
		thing("ConfigMap", "shop", "plain", false), thing("Widget", "office", "o", false, "Widget w"),
	)
	view := s.Recent(t.Context(), "shop")
	var names []string
	for _, o := range view.Annotated {
		names = append(names, fmt.Sprintf("%s %s %s %s", o.APIVersion, o.Ref, o.Resource.Resource, o.Annotations))
	}
	assert.Equal(t, []string{"v1 ConfigMap shop/cm configmaps map[ours/x:yes]", "example.com/v1 Widget shop/w widgets map[ours/x:yes]"}, names)
	assert.Equal(t, map[types.UID][]types.UID{"StatefulSet db": {"Widget w"}, "ConfigMap cm": {"Widget w", "x"}}, view.Owners)
	require.Len(t, view.Workloads, 1)
	assert.Equal(t, "StatefulSet shop/db", view.Workloads[0].String())
	assert.Equal(t, []string{"configmap", "configmap.", "configmaps", "configmaps.", "cm", "cm."}, view.Annotated[0].Names)
	assert.Subset(t, view.Annotated[1].Names, []string{"widget", "widgets.example.com"})
	assert.Equal(t, []string{"configmaps in shop", "replicasets in shop", "statefulsets in shop", "widgets in shop"}, s.requests())

	view = s.Recent(t.Context(), "office")
	assert.Empty(t, view.Annotated)
	assert.Nil(t, view.Owners)
}

// The first namespaces are listed one by one, then the whole cluster is listed.
func TestRequestsDoNotGrowWithNamespaces(t *testing.T) {
	made := thing("StatefulSet", "n41", "made", true, "x")
	made.Kind, made.UID = "ReplicaSet", "made"
	s := newScene(thing("StatefulSet", "n40", "own", true), made, thing("Widget", "n50", "w", true), thing("Widget", "n60", "v", false), thing("StatefulSet", "n50", "db", false, "Widget w"))
	of := func(namespace string) []string {
		return []string{"configmaps in " + namespace, "replicasets in " + namespace, "statefulsets in " + namespace, "widgets in " + namespace}
	}
	for i := range singleNamespaces {
		s.Recent(t.Context(), fmt.Sprintf("n%d", i))
		assert.Equal(t, of(fmt.Sprintf("n%d", i)), s.requests())
	}
	for i := range 45 {
		view := s.Now(t.Context(), fmt.Sprintf("n%d", i))
		assert.Equal(t, i == 40, len(view.Annotated) == 1)
	}
	assert.Equal(t, []string{"configmaps", "replicasets", "statefulsets", "widgets"}, s.requests(), "annotated workloads need no second look")
	view := s.Recent(t.Context(), "n50")
	assert.Len(t, view.Annotated, 1)
	assert.Len(t, view.Owners, 1)
	assert.Equal(t, of("n50"), s.requests())
	s.Recent(t.Context(), "n50")
	assert.Empty(t, s.requests(), "remembered")
}

// A freeze needs a current view.
func TestNow(t *testing.T) {
	s := newScene(thing("Widget", "shop", "w", true))
	now := func(namespace string, want int) {
		t.Helper()
		view := s.Now(t.Context(), namespace)
		assert.Len(t, view.Annotated, want)
	}
	now("shop", 1)
	assert.Len(t, s.requests(), 4)
	s.clock.Step(time.Second)
	now("shop", 1)
	assert.Empty(t, s.requests(), "for the next freeze")
	s.clock.Step(viewLife)
	now("shop", 1)
	assert.Len(t, s.requests(), 4)

	now("office", 0)
	assert.Len(t, s.requests(), 4)
	s.clock.Step(viewLife)
	now("office", 0)
	assert.Empty(t, s.requests(), "nothing was annotated a while ago")
	s.clock.Step(emptyLife)
	require.NoError(t, s.metadata.Tracker().Add(thing("Widget", "office", "w2", true)))
	view := s.Recent(t.Context(), "office")
	assert.Empty(t, view.Annotated)
	now("office", 1)
	assert.Len(t, s.requests(), 4)
}

func forbidden(resource string) error {
	return apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", errors.New("no"))
}

// A kind that cannot be listed does not affect other kinds and is not an error.
func TestUnread(t *testing.T) {
	const broken = "warning: Quiesce annotations cannot be looked for on objects of these kinds, since the API server cannot read them: %s; " +
		"what such objects ask for is not known, and not done"
	inBoth := func(name, reason string) []Unread {
		return []Unread{{Name: name, Namespace: "office", Reason: reason, Broken: true}, {Name: name, Namespace: "shop", Reason: reason, Broken: true}}
	}
	unavailable := apierrors.NewServiceUnavailable("its server is down")
	for name, test := range map[string]struct {
		fail   map[string]error
		unread []Unread
		said   []string
	}{
		"forbidden": {
			fail: map[string]error{"configmaps": forbidden("configmaps")}, unread: []Unread{{Name: "configmaps", Reason: "it may not be listed"}},
			said: []string{"info: Quiesce annotations are not looked for on objects of these kinds, which Stillpoint cannot list: configmaps"},
		},
		"gone since": {fail: map[string]error{"widgets": apierrors.NewNotFound(schema.GroupResource{Resource: "widgets"}, "")}},
		"a server that has no metadata": {
			fail:   map[string]error{"widgets": apierrors.NewGenericServerResponse(406, "get", schema.GroupResource{Resource: "widgets"}, "", "no", 0, true)},
			unread: []Unread{{Name: "widgets.example.com", Reason: "no (get widgets)"}},
			said:   []string{"info: Quiesce annotations are not looked for on objects of these kinds, which Stillpoint cannot list: widgets.example.com"},
		},
		"down": {
			fail: map[string]error{"widgets": unavailable}, unread: inBoth("widgets.example.com", "its server is down"),
			said: []string{fmt.Sprintf(broken, "widgets.example.com in namespace shop (its server is down)")},
		},
		"a conversion that fails": {
			fail:   map[string]error{"widgets": apierrors.NewInternalError(errors.New("conversion webhook failed"))},
			unread: inBoth("widgets.example.com", "Internal error occurred: conversion webhook failed"),
			said:   []string{fmt.Sprintf(broken, "widgets.example.com in namespace shop (Internal error occurred: conversion webhook failed)")},
		},
		"an object of Kubernetes itself": {
			fail:   map[string]error{"configmaps in shop": apierrors.NewInternalError(errors.New("cannot decrypt"))},
			unread: []Unread{{Name: "configmaps", Namespace: "shop", Reason: "Internal error occurred: cannot decrypt", Broken: true}},
			said:   []string{fmt.Sprintf(broken, "configmaps in namespace shop (Internal error occurred: cannot decrypt)")},
		},
		"no time":   {fail: map[string]error{"configmaps": apierrors.NewTimeoutError("slow", 1)}, unread: inBoth("configmaps", "Timeout: slow"), said: []string{fmt.Sprintf(broken, "configmaps in namespace shop (Timeout: slow)")}},
		"throttled": {fail: map[string]error{"configmaps": apierrors.NewTooManyRequestsError("later")}, unread: inBoth("configmaps", "Too many requests: later"), said: []string{fmt.Sprintf(broken, "configmaps in namespace shop (Too many requests: later)")}},
		"no answer": {fail: map[string]error{"widgets": errors.New("connection refused")}, unread: inBoth("widgets.example.com", "connection refused"), said: []string{fmt.Sprintf(broken, "widgets.example.com in namespace shop (connection refused)")}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(thing("StatefulSet", "shop", "db", true))
			s.fail = test.fail
			for range 2 { // logged once
				assert.Len(t, s.Recent(t.Context(), "shop").Annotated, 1)
				s.Recent(t.Context(), "office")
			}
			assert.Equal(t, test.said, s.said())
			assert.ElementsMatch(t, test.unread, s.Unread())
		})
	}
}

// One object that cannot be read fails the list of the whole cluster, but then affects its
// own namespace only.
func TestUnreadInOneNamespace(t *testing.T) {
	s := newScene(thing("ConfigMap", "n8", "cm", true), thing("Widget", "n9", "w", true))
	secret := apierrors.NewInternalError(errors.New("cannot decrypt"))
	s.fail = map[string]error{"configmaps in ": secret, "configmaps in n9": secret}
	for i := range 12 {
		view := s.Recent(t.Context(), fmt.Sprintf("n%d", i))
		assert.Equal(t, i == 8 || i == 9, len(view.Annotated) == 1, i)
	}
	assert.Equal(t, []Unread{{Name: "configmaps", Namespace: "n9", Reason: "Internal error occurred: cannot decrypt", Broken: true}}, s.Unread())
	s.fail = nil
	s.clock.Step(viewLife)
	s.Recent(t.Context(), "n9")
	assert.Empty(t, s.Unread(), "read at the next look")
}

// Objects of an earlier view stay in the view if their kind cannot be read.
func TestUnreadAfterItWasSeen(t *testing.T) {
	for name, slow := range map[string]bool{"for a moment": false, "for long": true} {
		t.Run(name, func(t *testing.T) {
			s := newScene(thing("Widget", "shop", "w", true, "x"), thing("ConfigMap", "shop", "cm", false))
			require.Len(t, s.Recent(t.Context(), "shop").Annotated, 1)
			s.fail = map[string]error{"widgets": apierrors.NewServiceUnavailable("down")}
			if slow {
				s.slow = slowFailure
			}
			for range 3 {
				s.clock.Step(viewLife)
				view := s.Now(t.Context(), "shop")
				require.Len(t, view.Annotated, 1)
				assert.Equal(t, []types.UID{"x"}, view.Owners["Widget w"])
			}
			asked := slices.DeleteFunc(s.requests(), func(request string) bool { return request != "widgets in shop" })
			assert.Equal(t, slow, len(asked) == 2, "a kind that takes long to fail is asked for once more: %v", asked)
		})
	}
}

// If discovery fails, the next call tries again.
func TestNoDiscovery(t *testing.T) {
	s := newScene(thing("Widget", "shop", "w", true))
	working := s.discovery
	s.discovery = noDiscovery{}
	for _, namespace := range []string{"a", "b", "c", "d", "shop"} {
		assert.Empty(t, s.Recent(t.Context(), namespace).Annotated)
	}
	require.Len(t, s.Unread(), 1)
	assert.Equal(t, everyKind, s.Unread()[0].Name)
	assert.Len(t, s.said(), 1)
	s.discovery = working
	s.clock.Step(viewLife)
	assert.Len(t, s.Recent(t.Context(), "shop").Annotated, 1)
	assert.Empty(t, s.Unread())
}

type noDiscovery struct{ discovery.DiscoveryInterface }

func (noDiscovery) ServerGroups() (*metav1.APIGroupList, error) {
	return nil, apierrors.NewTooManyRequestsError("later")
}

// A kind that can be listed in some namespaces only is listed there.
func TestScattered(t *testing.T) {
	s := newScene(thing("Widget", "n7", "w", true), thing("ConfigMap", "n8", "cm", true))
	s.fail = map[string]error{"widgets in ": forbidden("widgets"), "configmaps": forbidden("configmaps")}
	for i := range 9 {
		s.Recent(t.Context(), fmt.Sprintf("n%d", i))
	}
	view := s.Recent(t.Context(), "n7")
	assert.Len(t, view.Annotated, 1)
	s.requests()
	s.Recent(t.Context(), "n10")
	assert.Equal(t, []string{"widgets in n10"}, s.requests(), "and one that may be listed nowhere is not asked for again")
}

// halfDiscovery fails for one group, as if its service were down.
type halfDiscovery struct{ discovery.DiscoveryInterface }

func (halfDiscovery) GroupsAndMaybeResources() (*metav1.APIGroupList, map[schema.GroupVersion]*metav1.APIResourceList, map[schema.GroupVersion]error, error) {
	groups, of := &metav1.APIGroupList{}, map[schema.GroupVersion]*metav1.APIResourceList{}
	for _, list := range resources() {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, nil, nil, err
		}
		of[version] = list
		found := metav1.GroupVersionForDiscovery{GroupVersion: list.GroupVersion, Version: version.Version}
		groups.Groups = append(groups.Groups, metav1.APIGroup{Name: version.Group, Versions: []metav1.GroupVersionForDiscovery{found}, PreferredVersion: found})
	}
	return groups, of, map[schema.GroupVersion]error{
		{Group: "metrics.k8s.io", Version: "v1beta1"}: errors.New("stale"), {Group: "down.example.com", Version: "v1"}: errors.New("stale"),
	}, nil
}

func TestBrokenGroup(t *testing.T) {
	s := newScene(thing("ConfigMap", "shop", "cm", true))
	s.discovery = halfDiscovery{}
	view := s.Recent(t.Context(), "shop")
	assert.Len(t, view.Annotated, 1)
	assert.Equal(t, []Unread{{Name: "down.example.com/v1", Reason: "stale", Broken: true}}, s.Unread(), "groups of metrics are excluded")
	assert.Equal(t, []string{"warning: Quiesce annotations cannot be looked for on objects of these kinds, since the API server cannot read them: down.example.com/v1 (stale); what such objects ask for is not known, and not done"}, s.said())
}

func TestRead(t *testing.T) {
	var objects []*metav1.PartialObjectMetadata
	for i := range listFrom {
		objects = append(objects, thing("Widget", "shop", fmt.Sprintf("w%d", i), true))
	}
	objects = append(objects, thing("ConfigMap", "shop", "cm", true))
	s := newScene(objects...)
	view := s.Recent(t.Context(), "shop")
	gone := view.Annotated[0]
	gone.Name, gone.UID = "gone", "gone"
	replaced := view.Annotated[0]
	replaced.UID = "another"
	contents := s.Read(t.Context(), append(view.Annotated, gone, replaced))
	assert.Empty(t, contents.Failed)
	assert.ElementsMatch(t, []types.UID{"ConfigMap cm", "Widget w0", "Widget w1", "Widget w2", "Widget w3"}, slices.Collect(maps.Keys(contents.Found)))
	assert.Equal(t, "full", contents.Found["Widget w1"].Object["spec"])
	var sent []string
	for _, action := range s.dynamic.Actions() {
		sent = append(sent, action.GetVerb()+" "+action.GetResource().Resource)
	}
	assert.ElementsMatch(t, []string{"get configmaps", "get configmaps", "get configmaps", "list widgets"}, sent)

	s.dynamic.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(corev1.Resource("x"), "cm", errors.New("no"))
	})
	contents = s.Read(t.Context(), view.Annotated)
	require.EqualError(t, contents.Failed["ConfigMap cm"], `get ConfigMap shop/cm: x "cm" is forbidden: no`)
	require.EqualError(t, contents.Failed["Widget w2"], `list the widgets.example.com of namespace shop: x "cm" is forbidden: no`)
}

// A view that was interrupted by its context is not cached as complete.
func TestEndedContext(t *testing.T) {
	s := newScene(thing("Widget", "shop", "w", true))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.Empty(t, s.Recent(ctx, "shop").Annotated)
	s.clock.Step(viewLife)
	assert.Len(t, s.Recent(t.Context(), "shop").Annotated, 1)
}
