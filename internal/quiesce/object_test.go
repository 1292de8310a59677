package quiesce

import (
	"testing"
	"time"

	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	metadatafake "k8s.io/client-go/metadata/fake"
	clocktesting "k8s.io/utils/clock/testing"

	"stillpoint.io/stillpoint/internal/annotated"
	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/unit"
)

// custom returns an object of group db.example.com.
func custom(kind, name string, a ...string) []runtime.Object {
	o := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"replicas": int64(3)}}}
	o.SetAPIVersion("db.example.com/v1")
	o.SetKind(kind)
	o.SetNamespace("shop")
	o.SetName(name)
	m := metav1.ObjectMeta{}
	annotations(a).on(&m)
	o.SetAnnotations(m.Annotations)
	return []runtime.Object{o}
}

func configMap(name string, a ...string) []runtime.Object {
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Data: map[string]string{"user": "admin"}}
	annotations(a).on(&c.ObjectMeta)
	return []runtime.Object{c}
}

func service(name string, a ...string) []runtime.Object {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	annotations(a).on(&s.ObjectMeta)
	return []runtime.Object{s}
}

// bare returns a pod without a controller.
func bare(p corev1.Pod) []runtime.Object { return []runtime.Object{&p} }

// kindOf returns the kind of a typed or unstructured object.
func kindOf(o runtime.Object) schema.GroupVersionKind {
	if kind := o.GetObjectKind().GroupVersionKind(); kind.Kind != "" {
		return kind
	}
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		panic(err)
	}
	return kinds[0]
}

func uidOf(kind, name string) types.UID { return types.UID(kind + " " + name) }

// owned makes the first object owned by an object of the given kind and name.
func owned(kind, name string, objects []runtime.Object) []runtime.Object {
	m, err := meta.Accessor(objects[0])
	if err != nil {
		panic(err)
	}
	version := "db.example.com/v1"
	if kind == "ConfigMap" {
		version = "v1"
	}
	yes := true
	m.SetOwnerReferences(append(m.GetOwnerReferences(), metav1.OwnerReference{APIVersion: version, Kind: kind, Name: name, UID: uidOf(kind, name), Controller: &yes}))
	return objects
}

// world is a cluster with objects of any kind in namespace shop.
type world struct {
	*Planner
	survey *annotated.Survey
	log    *logrustest.Hook
}

func newWorld(answers map[string]string, lists ...[]runtime.Object) *world {
	var typed, custom, all []runtime.Object
	for _, list := range lists {
		for _, o := range list {
			m, err := meta.Accessor(o)
			if err != nil {
				panic(err)
			}
			kind := kindOf(o)
			m.SetUID(uidOf(kind.Kind, m.GetName()))
			owners := m.GetOwnerReferences()
			for i := range owners {
				owners[i].UID = uidOf(owners[i].Kind, owners[i].Name)
			}
			m.SetOwnerReferences(owners)
			content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
			if err != nil {
				panic(err)
			}
			full := &unstructured.Unstructured{Object: content}
			full.SetGroupVersionKind(kind)
			custom = append(custom, full)
			all = append(all, &metav1.PartialObjectMetadata{
				TypeMeta: metav1.TypeMeta{APIVersion: kind.GroupVersion().String(), Kind: kind.Kind},
				ObjectMeta: metav1.ObjectMeta{
					Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUID(), Annotations: m.GetAnnotations(), OwnerReferences: m.GetOwnerReferences(),
				},
			})
			if _, ok := o.(*unstructured.Unstructured); !ok {
				typed = append(typed, o)
			}
		}
	}
	w := &world{Planner: planner(answers, typed)}
	kube, ok := w.Kube.(*fake.Clientset)
	if !ok {
		panic("not a fake")
	}
	resources := func(version string, kinds ...string) {
		list := &metav1.APIResourceList{GroupVersion: version}
		for _, kind := range kinds {
			plural, _ := meta.UnsafeGuessKindToResource(schema.GroupVersionKind{Kind: kind})
			list.APIResources = append(list.APIResources, metav1.APIResource{
				Name: plural.Resource, Kind: kind, Namespaced: true, Verbs: metav1.Verbs{"get", "list"},
			})
		}
		kube.Resources = append(kube.Resources, list)
	}
	resources("v1", "Pod", "PersistentVolumeClaim", "ConfigMap", "Secret", "Service")
	resources("apps/v1", "Deployment", "StatefulSet", "ReplicaSet", "ControllerRevision")
	resources("db.example.com/v1", "Database", "Cluster")
	fakes := runtime.NewScheme()
	if err := metav1.AddMetaToScheme(fakes); err != nil {
		panic(err)
	}
	log, hook := logrustest.NewNullLogger()
	w.log = hook
	w.survey = annotated.NewSurvey(kube.Discovery(), metadatafake.NewSimpleMetadataClient(fakes, all...),
		dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
			blueprint.Resource:                                              "BlueprintList",
			{Version: "v1", Resource: "configmaps"}:                         "ConfigMapList",
			{Version: "v1", Resource: "secrets"}:                            "SecretList",
			{Version: "v1", Resource: "services"}:                           "ServiceList",
			{Group: "db.example.com", Version: "v1", Resource: "databases"}: "DatabaseList",
			{Group: "db.example.com", Version: "v1", Resource: "clusters"}:  "ClusterList",
		}, custom...), clocktesting.NewFakePassiveClock(time.Now()), unit.IsAnnotation, log)
	return w
}

func (w *world) facts(t *testing.T) *unit.Facts {
	t.Helper()
	facts, err := unit.Gather(t.Context(), w.Kube, w.survey, "shop", true)
	require.NoError(t, err)
	return facts
}

// TestUnitOfObjects covers the volumes that annotated objects stand for, and their units.
func TestUnitOfObjects(t *testing.T) {
	ask := []string{api.AnnotationQuiesce, "mongo"}
	db := func(a annotations) []runtime.Object {
		return statefulSet("db", a, pod("db-0", "n1", volume{"pg", "data-0", "/data", ""}), pod("db-1", "n2", volume{"pg", "data-1", "/data", ""}))
	}
	web := func(a annotations) []runtime.Object {
		return deployment("web", a, pod("web-a", "n1", volume{"web", "files", "/files", ""}))
	}
	for name, test := range map[string]struct {
		objects [][]runtime.Object
		of      string
		asked   bool
		name    string
		claims  []string
		onError unit.OnError
		text    string
	}{
		"a custom resource stands for the volumes of its workload": {
			objects: [][]runtime.Object{namespace(), claims("data-0", "data-1", "files"), custom("Database", "db", ask...), owned("Database", "db", db(nil)), web(nil)},
			of:      "data-0", asked: true, name: "Database shop/db", claims: []string{"data-0", "data-1"},
		},
		"and for no others": {
			objects: [][]runtime.Object{namespace(), claims("data-0", "data-1", "files"), custom("Database", "db", ask...), owned("Database", "db", db(nil)), web(nil)},
			of:      "files", name: "Deployment shop/web", claims: []string{"files"},
		},
		"any number of steps down": {
			objects: [][]runtime.Object{
				namespace(), claims("data-0", "data-1", "files"),
				custom("Cluster", "all", ask...), owned("Cluster", "all", custom("Database", "db")), owned("Database", "db", db(nil)), web(nil),
			},
			of: "data-1", asked: true, name: "Cluster shop/all", claims: []string{"data-0", "data-1"},
		},
		"two workloads of one custom resource are frozen together": {
			objects: [][]runtime.Object{
				namespace(), claims("data-0", "data-1", "files"), custom("Database", "db", ask...), owned("Database", "db", db(nil)), owned("Database", "db", web(nil)),
			},
			of: "files", asked: true, name: "Database shop/db", claims: []string{"data-0", "data-1", "files"},
		},
		"claims that it owns, whoever mounts them": {
			objects: [][]runtime.Object{
				namespace(), owned("Database", "db", claims("data-0")), claims("data-1", "files"), custom("Database", "db", ask...), db(nil), web(nil),
			},
			of: "data-0", asked: true, name: "Database shop/db", claims: []string{"data-0"},
		},
		"and not the others of the pod that does": {
			objects: [][]runtime.Object{
				namespace(), owned("Database", "db", claims("data-0")), claims("data-1", "files"), custom("Database", "db", ask...), db(nil), web(nil),
			},
			of: "data-1", name: "PersistentVolumeClaim shop/data-1", claims: []string{"data-1"},
		},
		"pods that it makes itself": {
			objects: [][]runtime.Object{
				namespace(), claims("data"), custom("Cluster", "pg", ask...), owned("Cluster", "pg", bare(pod("pg-1", "n1", volume{"pg", "data", "/data", ""}))),
			},
			of: "data", asked: true, name: "Cluster shop/pg", claims: []string{"data"},
		},
		"nothing runs, and its claims are known by the template": {
			objects: [][]runtime.Object{
				namespace(), claims("data-db-0", "data-db-1", "data-db-x", "files"), custom("Database", "db", ask...),
				owned("Database", "db", []runtime.Object{&appsv1.StatefulSet{
					ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"},
					Spec:       appsv1.StatefulSetSpec{VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}},
				}}), web(nil),
			},
			of: "data-db-1", asked: true, name: "Database shop/db", claims: []string{"data-db-0", "data-db-1"},
		},
		"a Deployment's too": {
			objects: [][]runtime.Object{
				namespace(), claims("files", "other"), custom("Database", "db", ask...),
				owned("Database", "db", []runtime.Object{&appsv1.Deployment{
					ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
					Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Volumes: []corev1.Volume{
						{Name: "x"}, {Name: "f", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "files"}}},
					}}}},
				}}),
			},
			of: "files", asked: true, name: "Database shop/db", claims: []string{"files"},
		},
		"an object that owns nothing stands for all claims": {
			objects: [][]runtime.Object{namespace(), claims("data-0", "data-1", "files", "idle"), configMap("hooks", ask...), db(nil), web(nil)},
			of:      "files", asked: true, name: "ConfigMap shop/hooks", claims: []string{"data-0", "data-1", "files", "idle"},
		},
		"all workloads that it joins are quiesced": {
			objects: [][]runtime.Object{
				namespace(), claims("data-0", "data-1", "files"), configMap("hooks", ask...), db(annotations{api.AnnotationQuiesce, "fsfreeze"}), web(annotations{api.AnnotationQuiesce, "redis"}),
			},
			of: "files", asked: true, name: "ConfigMap shop/hooks and Deployment shop/web and StatefulSet shop/db", claims: []string{"data-0", "data-1", "files"},
		},
		"no pod runs, and its hook does all the same": {
			objects: [][]runtime.Object{namespace(), claims("a", "b"), configMap("hooks", ask...)},
			of:      "b", asked: true, name: "ConfigMap shop/hooks", claims: []string{"a", "b"},
		},
		"a claim with its own annotation is its own": {
			objects: [][]runtime.Object{namespace(), claims("data-0", "data-1"), withAnnotations("files", api.AnnotationQuiesce, "fsfreeze"), configMap("hooks", ask...), db(nil), web(nil)},
			of:      "files", asked: true, name: "PersistentVolumeClaim shop/files", claims: []string{"files"},
		},
		"and the others go without it": {
			objects: [][]runtime.Object{namespace(), claims("data-0", "data-1"), withAnnotations("files", api.AnnotationQuiesce, "none"), configMap("hooks", ask...), db(nil), web(nil)},
			of:      "data-0", asked: true, name: "ConfigMap shop/hooks", claims: []string{"data-0", "data-1"},
		},
		"the object's hook comes before its workload's": {
			objects: [][]runtime.Object{
				namespace(), claims("data-0", "data-1"), custom("Database", "db", api.AnnotationQuiesce, "mongo", api.AnnotationOnQuiesceError, "continue"),
				owned("Database", "db", db(annotations{api.AnnotationQuiesce, "fsfreeze"})),
			},
			of: "data-0", asked: true, name: "Database shop/db and StatefulSet shop/db", claims: []string{"data-0", "data-1"},
		},
		"and an owner's before its own": {
			objects: [][]runtime.Object{
				namespace(), claims("data-0", "data-1"), configMap("a-hook", api.AnnotationQuiesce, "third"),
				custom("Database", "all", api.AnnotationQuiesce, "first"), owned("Database", "all", custom("Cluster", "part", api.AnnotationQuiesce, "second")), owned("Cluster", "part", db(nil)),
			},
			of: "data-0", asked: true, name: "ConfigMap shop/a-hook and Database shop/all and Cluster shop/part", claims: []string{"data-0", "data-1"},
		},
		"objects that share a volume": {
			objects: [][]runtime.Object{
				namespace(), owned("Database", "a", claims("one")), owned("Database", "b", owned("Database", "a", claims("two"))), owned("Database", "b", claims("three")),
				custom("Database", "a", ask...), custom("Database", "b", ask...),
			},
			of: "three", asked: true, name: "Database shop/a and Database shop/b", claims: []string{"one", "three", "two"},
		},
		"none": {
			objects: [][]runtime.Object{namespace(), claims("data-0", "data-1"), custom("Database", "db", api.AnnotationQuiesce, "none", api.AnnotationKanister, "mongo"), owned("Database", "db", db(nil))},
			of:      "data-0", name: "StatefulSet shop/db", claims: []string{"data-0", "data-1"},
		},
		"none of an object is not its workload's": {
			objects: [][]runtime.Object{namespace(api.AnnotationQuiesce, "fsfreeze"), claims("data-0", "data-1"), custom("Database", "db", api.AnnotationQuiesce, "none"), owned("Database", "db", db(nil))},
			of:      "data-0", asked: true, name: "StatefulSet shop/db", claims: []string{"data-0", "data-1"},
		},
		"unless it is the controller of the pods": {
			objects: [][]runtime.Object{
				namespace(api.AnnotationQuiesce, "fsfreeze"), claims("data"), custom("Cluster", "pg", api.AnnotationQuiesce, "none"),
				owned("Cluster", "pg", bare(pod("pg-1", "n1", volume{"pg", "data", "/data", ""}))),
			},
			of: "data", name: "Cluster shop/pg", claims: []string{"data"},
		},
		"the controller of the pods is named once": {
			objects: [][]runtime.Object{
				namespace(api.AnnotationQuiesce, "fsfreeze"), claims("data"), custom("Cluster", "pg", ask...),
				owned("Cluster", "pg", bare(pod("pg-1", "n1", volume{"pg", "data", "/data", ""}))),
			},
			of: "data", asked: true, name: "Cluster shop/pg", claims: []string{"data"},
		},
		"the namespace's default is for the workload, its other settings for both": {
			objects: [][]runtime.Object{
				namespace(api.AnnotationQuiesce, "fsfreeze", api.AnnotationOnQuiesceError, "continue"), claims("data-0", "data-1"), custom("Database", "db", ask...), owned("Database", "db", db(nil)),
			},
			of: "data-0", asked: true, name: "Database shop/db and StatefulSet shop/db", claims: []string{"data-0", "data-1"}, onError: unit.Continue,
		},
		"the strictest of object and workload": {
			objects: [][]runtime.Object{
				namespace(), claims("data-0", "data-1"), custom("Database", "db", api.AnnotationQuiesce, "mongo", api.AnnotationOnQuiesceError, "continue"),
				owned("Database", "db", db(annotations{api.AnnotationQuiesce, "fsfreeze", api.AnnotationOnQuiesceError, "fail"})),
			},
			of: "data-0", asked: true, name: "Database shop/db and StatefulSet shop/db", claims: []string{"data-0", "data-1"},
		},

		"a copy on the workload counts at its owner": {
			objects: [][]runtime.Object{namespace(), claims("data-0", "data-1"), custom("Database", "db", ask...), owned("Database", "db", db(ask))},
			of:      "data-0", asked: true, name: "Database shop/db", claims: []string{"data-0", "data-1"},
		},
		"and hides the namespace's default": {
			objects: [][]runtime.Object{namespace(api.AnnotationQuiesce, "fsfreeze"), claims("data-0", "data-1"), custom("Database", "db", ask...), owned("Database", "db", db(ask))},
			of:      "data-0", asked: true, name: "Database shop/db", claims: []string{"data-0", "data-1"},
		},
		"a copy of less": {
			objects: [][]runtime.Object{
				namespace(), claims("data-0", "data-1"), custom("Database", "db", api.AnnotationKanister, "mongo", api.AnnotationQuiesceTimeout, "5s", api.AnnotationOptionPrefix+"user", "x"),
				owned("Database", "db", db(annotations{api.AnnotationKanister, "mongo"})),
			},
			of: "data-0", asked: true, name: "Database shop/db", claims: []string{"data-0", "data-1"},
		},
		"other settings are no copy": {
			objects: [][]runtime.Object{
				namespace(), claims("data-0", "data-1"), custom("Database", "db", ask...), owned("Database", "db", db(annotations{api.AnnotationQuiesce, "mongo", api.AnnotationQuiesceTimeout, "5s"})),
			},
			of: "data-0", asked: true, name: "Database shop/db and StatefulSet shop/db", claims: []string{"data-0", "data-1"},
		},
		"a copy on the pods": {
			objects: [][]runtime.Object{
				namespace(), claims("data"), custom("Cluster", "pg", ask...),
				owned("Cluster", "pg", bare(annotatedPod(pod("pg-1", "n1", volume{"pg", "data", "/data", ""}), ask...))),
			},
			of: "data", asked: true, name: "Cluster shop/pg", claims: []string{"data"},
		},
		"a copy on a claim": {
			objects: [][]runtime.Object{
				namespace(), owned("Cluster", "pg", withAnnotations("data", ask...)), custom("Cluster", "pg", ask...),
				owned("Cluster", "pg", bare(annotatedPod(pod("pg-1", "n1", volume{"pg", "data", "/data", ""}), ask...))),
			},
			of: "data", asked: true, name: "Cluster shop/pg", claims: []string{"data"},
		},
		"a copy on a Service does not stand for all": {
			objects: [][]runtime.Object{
				namespace(), claims("data-0", "data-1", "files"), custom("Database", "db", ask...), owned("Database", "db", service("db", ask...)), owned("Database", "db", db(nil)), web(nil),
			},
			of: "files", name: "Deployment shop/web", claims: []string{"files"},
		},
		"nor does one further down": {
			objects: [][]runtime.Object{
				namespace(), claims("data-0", "data-1", "files"), custom("Database", "db", ask...), owned("Database", "db", custom("Cluster", "c")), owned("Cluster", "c", service("db", ask...)),
				owned("Database", "db", db(nil)), web(nil),
			},
			of: "files", name: "Deployment shop/web", claims: []string{"files"},
		},
		"what the deployment controller copies": {
			objects: [][]runtime.Object{
				namespace(), claims("files"),
				func() []runtime.Object {
					all := web(ask)
					m, _ := meta.Accessor(all[1])
					m.SetAnnotations(map[string]string{revision: "1", api.AnnotationQuiesce: "mongo"})
					return all
				}(),
				{&appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "x", Annotations: map[string]string{api.AnnotationQuiesce: "mongo"}}}},
			},
			of: "files", asked: true, name: "Deployment shop/web", claims: []string{"files"},
		},

		"its pods are finished": {
			objects: [][]runtime.Object{
				namespace(), claims("data", "files"), custom("Database", "load", ask...),
				owned("Database", "load", bare(func() corev1.Pod {
					p := pod("load-1", "n1", volume{"c", "data", "/data", ""})
					p.Status.Phase = corev1.PodSucceeded
					return p
				}())), web(nil),
			},
			of: "files", name: "Deployment shop/web", claims: []string{"files"},
		},
		"a workload without claims": {
			objects: [][]runtime.Object{
				namespace(), claims("files"), custom("Database", "cache", ask...),
				owned("Database", "cache", []runtime.Object{&appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cache"}}}), web(nil),
			},
			of: "files", name: "Deployment shop/web", claims: []string{"files"},
		},
		"settings without blueprints": {
			objects: [][]runtime.Object{namespace(), claims("data-0", "data-1"), custom("Database", "db", api.AnnotationQuiesceTimeout, "5s"), owned("Database", "db", db(nil))},
			of:      "data-0", name: "Database shop/db and StatefulSet shop/db", claims: []string{"data-0"},
			text: "Database shop/db: annotation stillpoint.io/quiesce-timeout has no effect without stillpoint.io/quiesce beside it",
		},
		"a value that is not valid": {
			objects: [][]runtime.Object{namespace(), claims("files"), configMap("hooks", api.AnnotationQuiesce, "mongo", api.AnnotationOnQuiesceError, "continue", api.AnnotationQuiesceTimeout, "x"), web(nil)},
			of:      "files", asked: true, name: "ConfigMap shop/hooks", claims: []string{"files"}, onError: unit.Continue,
			text: `ConfigMap shop/hooks: annotation stillpoint.io/quiesce-timeout: "x" is not valid; valid: a duration above 0 and up to 24h, such as 30s, 5m or 1m30s`,
		},
		"what stands on other objects is not ours": {
			objects: [][]runtime.Object{namespace(), claims("files"), configMap("hooks", "prometheus.io/scrape", "true"), web(nil)},
			of:      "files", name: "Deployment shop/web", claims: []string{"files"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			facts := newWorld(nil, test.objects...).facts(t)
			u, err := facts.Unit(facts.Claim(test.of))
			if test.text == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, test.text)
			}
			if test.onError == "" {
				test.onError = unit.Fail
			}
			assert.Equal(t, test.asked, u.Quiesced())
			assert.Equal(t, test.name, u.Name())
			assert.Equal(t, test.claims, names(u.Claims))
			assert.Equal(t, test.onError, u.OnError)
		})
	}
}

// The hooks of annotated objects are rendered with the object, and their file systems are
// frozen once.
func TestPlanOfObjects(t *testing.T) {
	can := answer(privileged, true, mounted("8:64", "/data"))
	w := newWorld(map[string]string{"db-0/pg": can, "db-1/pg": can},
		namespace(), claims("data-0", "data-1", "idle"), custom("Database", "db", api.AnnotationQuiesce, "pg,fsfreeze", api.AnnotationOptionPrefix+"user", "app"),
		owned("Database", "db", statefulSet("db", annotations{api.AnnotationQuiesce, "fsfreeze,set"},
			pod("db-0", "n1", volume{"pg", "data-0", "/data", ""}), pod("db-1", "n2", volume{"pg", "data-1", "/data", ""}))),
		blueprintsOf(map[string]string{
			"pg":  in("db-0", "{{ .Object.kind }} {{ .Object.spec.replicas }} {{ .Options.user }} {{ not .PVC }}"),
			"set": in("{{ index .StatefulSet.Pods 1 }}", "{{ .Object.kind }}"),
		}))
	facts := w.facts(t)
	u, err := facts.Unit(facts.Claim("data-1"))
	require.NoError(t, err)
	plan, err := w.Plan(t.Context(), u, backupOf(time.Now()))
	require.NoError(t, err)
	assert.Equal(t, []string{"pg", "set", "fsfreeze", "fsfreeze"}, plan.Blueprints())
	assert.Equal(t, []string{"db-0/pg: pre Database 3 app true", "db-1/pg: pre StatefulSet", "db-0/pg: fsfreeze /data", "db-1/pg: fsfreeze /data"}, commands(plan.Hooks, pres))
	assert.Equal(t, []string{"db-0/pg: post Database 3 app true", "db-1/pg: post StatefulSet", "db-0/pg: fsfreeze /data", "db-1/pg: fsfreeze /data"}, commands(plan.Hooks, posts))
	assert.Equal(t, []string{"Database shop/db", "StatefulSet shop/db"}, []string{u.Refs()[0].String(), u.Refs()[1].String()})
}

func TestAnnotatedSecretIsMasked(t *testing.T) {
	secret := func() []runtime.Object {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "login"}, Data: map[string][]byte{"password": []byte("s3cret")}}
		annotations{api.AnnotationQuiesce, "pg"}.on(&s.ObjectMeta)
		return []runtime.Object{s}
	}
	w := newWorld(nil, namespace(), claims("data"), secret(), bare(pod("db", "n1", volume{"pg", "data", "/data", ""})),
		blueprintsOf(map[string]string{"pg": in("db", `{{ .Object.data.password | b64dec }}`)}))
	facts := w.facts(t)
	u, err := facts.Unit(facts.Claim("data"))
	require.NoError(t, err)
	plan, err := w.Plan(t.Context(), u, backupOf(time.Now()))
	require.NoError(t, err)
	assert.Equal(t, []string{"db/pg: pre s3cret"}, commands(plan.Hooks, pres))
	assert.Equal(t, "password: ***", plan.Mask.Mask("password: s3cret"))
}
