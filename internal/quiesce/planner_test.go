package quiesce

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/function"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/unit"
)

const revision = "deployment.kubernetes.io/revision"

// annotations is a list of key, value, key, value.
type annotations []string

func (a annotations) on(meta *metav1.ObjectMeta) {
	for i := 0; i < len(a); i += 2 {
		metav1.SetMetaDataAnnotation(meta, a[i], a[i+1])
	}
}

func owner(kind, name string) []metav1.OwnerReference {
	yes := true
	return []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: name, Controller: &yes}}
}

// deployment returns a Deployment, its ReplicaSet of revision 1, and the pods of that.
func deployment(name string, a annotations, pods ...corev1.Pod) []runtime.Object {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Annotations: map[string]string{revision: "1"}}}
	a.on(&d.ObjectMeta)
	return append([]runtime.Object{d}, replicaSet(name, "1", pods...)...)
}

// replicaSet returns one revision of a Deployment.
func replicaSet(deployment, of string, pods ...corev1.Pod) []runtime.Object {
	name := deployment + "-" + of
	objects := []runtime.Object{&appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: name, OwnerReferences: owner("Deployment", deployment), Annotations: map[string]string{revision: of},
	}}}
	for i := range pods {
		pods[i].OwnerReferences = owner("ReplicaSet", name)
		objects = append(objects, &pods[i])
	}
	return objects
}

func statefulSet(name string, a annotations, pods ...corev1.Pod) []runtime.Object {
	s := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	a.on(&s.ObjectMeta)
	objects := []runtime.Object{s}
	for i := range pods {
		pods[i].OwnerReferences = owner("StatefulSet", name)
		objects = append(objects, &pods[i])
	}
	return objects
}

// namespace returns the application's namespace.
func namespace(a ...string) []runtime.Object {
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	annotations(a).on(&n.ObjectMeta)
	return []runtime.Object{n}
}

func claims(names ...string) []runtime.Object {
	var objects []runtime.Object
	for _, name := range names {
		c := claim(name)
		objects = append(objects, &c)
	}
	return objects
}

func withAnnotations(name string, a ...string) []runtime.Object {
	c := claim(name)
	annotations(a).on(&c.ObjectMeta)
	return []runtime.Object{&c}
}

// blueprintsOf returns a ConfigMap of blueprints.
func blueprintsOf(texts map[string]string) []runtime.Object {
	return []runtime.Object{&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "blueprints", Labels: map[string]string{api.LabelBlueprint: ""}},
		Data:       texts,
	}}
}

// in returns a blueprint that runs a pre command and a post command in one container.
func in(pod, command string) string {
	phase := func(name string) string {
		return fmt.Sprintf("{func: KubeExec, name: %s, args: {namespace: '{{ .Namespace.Name }}', pod: '%s', command: [%s, '%s']}}", name, pod, name, command)
	}
	return fmt.Sprintf("actions:\n  backupPrehook: {phases: [%s]}\n  backupPosthook: {phases: [%s]}\n", phase("pre"), phase("post"))
}

func planner(answers map[string]string, objects ...[]runtime.Object) *Planner {
	var all []runtime.Object
	for _, o := range objects {
		all = append(all, o...)
	}
	kube := fake.NewClientset(all...)
	dynamic := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{blueprint.Resource: "BlueprintList"})
	return &Planner{
		Kube: kube, Executor: &prober{answers: answers}, Finder: blueprint.NewFinder(kube, dynamic, "velero", nil),
		Warn: func(string, ...any) {}, Driver: noProfile, Clock: clock.RealClock{}, Tasks: &function.Tasks{},
	}
}

func backupOf(started time.Time) *velerov1.Backup {
	backup := &velerov1.Backup{}
	backup.Name, backup.Status.StartTimestamp = "nightly", &metav1.Time{Time: started}
	return backup
}

// unitOf returns the unit of a claim in namespace shop.
func (p *Planner) unitOf(t *testing.T, claim string) (*unit.Unit, error) {
	t.Helper()
	facts, err := unit.Gather(t.Context(), p.Kube, nil, "shop", true)
	require.NoError(t, err)
	return facts.Unit(facts.Claim(claim))
}

func names(of []corev1.PersistentVolumeClaim) []string {
	var names []string
	for _, c := range of {
		names = append(names, c.Name)
	}
	return names
}

func TestUnit(t *testing.T) {
	for name, test := range map[string]struct {
		objects [][]runtime.Object
		of      string
		without string // a claim that the backup excludes
		asked   bool
		name    string
		claims  []string
		onError unit.OnError
		text    string
	}{
		"nothing is asked for": {
			objects: [][]runtime.Object{namespace(), claims("data"), deployment("db", nil, pod("db-a", "n1", volume{"pg", "data", "/data", ""}))},
			of:      "data", name: "Deployment shop/db", claims: []string{"data"}, onError: unit.Fail,
		},
		"no pod runs": {
			objects: [][]runtime.Object{namespace(api.AnnotationQuiesce, "fsfreeze"), claims("data")},
			of:      "data", name: "PersistentVolumeClaim shop/data", claims: []string{"data"}, onError: unit.Fail,
		},
		"no pod runs, though the claim asks": {
			objects: [][]runtime.Object{namespace(), withAnnotations("data", api.AnnotationQuiesce, "fsfreeze")},
			of:      "data", name: "PersistentVolumeClaim shop/data", claims: []string{"data"}, onError: unit.Fail,
		},
		"all volumes of the workload": {
			objects: [][]runtime.Object{
				namespace(), claims("wal", "data", "other"),
				deployment("db", annotations{api.AnnotationQuiesce, "fsfreeze"}, pod("db-a", "n1", volume{"pg", "wal", "/wal", ""}, volume{"pg", "data", "/data", ""})),
				deployment("web", annotations{api.AnnotationQuiesce, "fsfreeze"}, pod("web-a", "n1", volume{"web", "other", "/data", ""})),
			},
			of: "wal", asked: true, name: "Deployment shop/db", claims: []string{"data", "wal"}, onError: unit.Fail,
		},
		"but those that the backup leaves out": {
			objects: [][]runtime.Object{
				namespace(), claims("wal", "data"),
				deployment("db", annotations{api.AnnotationQuiesce, "fsfreeze"}, pod("db-a", "n1", volume{"pg", "wal", "/wal", ""}, volume{"pg", "data", "/data", ""})),
			},
			of: "wal", without: "data", asked: true, name: "Deployment shop/db", claims: []string{"wal"}, onError: unit.Fail,
		},
		"the namespace's default": {
			objects: [][]runtime.Object{
				namespace(api.AnnotationQuiesce, "fsfreeze", api.AnnotationOnQuiesceError, "continue"), claims("data-db-0", "data-db-1"),
				statefulSet("db", nil, pod("db-0", "n1", volume{"pg", "data-db-0", "/data", ""}), pod("db-1", "n2", volume{"pg", "data-db-1", "/data", ""})),
			},
			of: "data-db-1", asked: true, name: "StatefulSet shop/db", claims: []string{"data-db-0", "data-db-1"}, onError: unit.Continue,
		},
		"none on the workload": {
			objects: [][]runtime.Object{
				namespace(api.AnnotationQuiesce, "fsfreeze"), claims("data"),
				deployment("db", annotations{api.AnnotationQuiesce, "none"}, pod("db-a", "n1", volume{"pg", "data", "/data", ""})),
			},
			of: "data", name: "Deployment shop/db", claims: []string{"data"}, onError: unit.Fail,
		},
		"the pods' own annotations": {
			objects: [][]runtime.Object{
				namespace(), claims("data"),
				deployment("db", nil, annotatedPod(pod("db-a", "n1", volume{"pg", "data", "/data", ""}), api.AnnotationQuiesce, "fsfreeze", "prometheus.io/scrape", "true")),
			},
			of: "data", asked: true, name: "Deployment shop/db", claims: []string{"data"}, onError: unit.Fail,
		},
		"a bare pod": {
			objects: [][]runtime.Object{namespace(), claims("data"), {ptr(annotatedPod(pod("db", "n1", volume{"pg", "data", "/data", ""}), api.AnnotationKanister, "mongo"))}},
			of:      "data", asked: true, name: "Pod shop/db", claims: []string{"data"}, onError: unit.Fail,
		},
		"a claim with its own annotation": {
			objects: [][]runtime.Object{
				namespace(), claims("data"), withAnnotations("wal", api.AnnotationQuiesce, "fsfreeze", api.AnnotationOnQuiesceError, "continue"),
				deployment("db", annotations{api.AnnotationQuiesce, "fsfreeze"}, pod("db-a", "n1", volume{"pg", "wal", "/wal", ""}, volume{"pg", "data", "/data", ""})),
			},
			of: "wal", asked: true, name: "PersistentVolumeClaim shop/wal", claims: []string{"wal"}, onError: unit.Continue,
		},
		"and without it": {
			objects: [][]runtime.Object{
				namespace(), claims("data"), withAnnotations("wal", api.AnnotationQuiesce, "fsfreeze", api.AnnotationOnQuiesceError, "continue"),
				deployment("db", annotations{api.AnnotationQuiesce, "fsfreeze"}, pod("db-a", "n1", volume{"pg", "wal", "/wal", ""}, volume{"pg", "data", "/data", ""})),
			},
			of: "data", asked: true, name: "Deployment shop/db", claims: []string{"data"}, onError: unit.Fail,
		},
		"a claim that wants none": {
			objects: [][]runtime.Object{
				namespace(), claims("data"), withAnnotations("cache", api.AnnotationQuiesce, "none"),
				deployment("db", annotations{api.AnnotationQuiesce, "fsfreeze"}, pod("db-a", "n1", volume{"pg", "cache", "/c", ""}, volume{"pg", "data", "/data", ""})),
			},
			of: "cache", name: "PersistentVolumeClaim shop/cache", claims: []string{"cache"}, onError: unit.Fail,
		},
		"two Deployments share a claim": {
			objects: [][]runtime.Object{
				namespace(), claims("shared", "a", "b"),
				deployment("a", annotations{api.AnnotationQuiesce, "fsfreeze", api.AnnotationOnQuiesceError, "continue"}, pod("a-1", "n1", volume{"c", "shared", "/s", ""}, volume{"c", "a", "/a", ""})),
				deployment("b", annotations{api.AnnotationQuiesce, "redis", api.AnnotationOnQuiesceError, "continue"}, pod("b-1", "n1", volume{"c", "shared", "/s", ""}, volume{"c", "b", "/b", ""})),
			},
			of: "a", asked: true, name: "Deployment shop/a and Deployment shop/b", claims: []string{"a", "b", "shared"}, onError: unit.Continue,
		},
		"the strictest of two": {
			objects: [][]runtime.Object{
				namespace(), claims("shared"),
				deployment("a", annotations{api.AnnotationQuiesce, "fsfreeze", api.AnnotationOnQuiesceError, "continue"}, pod("a-1", "n1", volume{"c", "shared", "/s", ""})),
				deployment("b", annotations{api.AnnotationQuiesce, "redis", api.AnnotationOnQuiesceError, "fail"}, pod("b-1", "n1", volume{"c", "shared", "/s", ""})),
			},
			of: "shared", asked: true, name: "Deployment shop/a and Deployment shop/b", claims: []string{"shared"}, onError: unit.Fail,
		},
		"the strictest of two, the first": {
			objects: [][]runtime.Object{
				namespace(), claims("shared"),
				deployment("a", annotations{api.AnnotationQuiesce, "fsfreeze"}, pod("a-1", "n1", volume{"c", "shared", "/s", ""})),
				deployment("b", annotations{api.AnnotationQuiesce, "redis", api.AnnotationOnQuiesceError, "continue"}, pod("b-1", "n1", volume{"c", "shared", "/s", ""})),
			},
			of: "shared", asked: true, name: "Deployment shop/a and Deployment shop/b", claims: []string{"shared"}, onError: unit.Fail,
		},
		"one that is not quiesced has no say": {
			objects: [][]runtime.Object{
				namespace(), claims("shared", "a", "b"),
				deployment("a", nil, pod("a-1", "n1", volume{"c", "shared", "/s", ""}, volume{"c", "a", "/a", ""})),
				deployment("b", annotations{api.AnnotationQuiesce, "redis", api.AnnotationOnQuiesceError, "continue"}, pod("b-1", "n1", volume{"c", "shared", "/s", ""}, volume{"c", "b", "/b", ""})),
				deployment("c", nil, pod("c-1", "n1", volume{"c", "shared", "/s", ""})),
			},
			of: "b", asked: true, name: "Deployment shop/b", claims: []string{"b", "shared"}, onError: unit.Continue,
		},
		"nor is its own volume quiesced": {
			objects: [][]runtime.Object{
				namespace(), claims("shared", "a", "b"),
				deployment("a", nil, pod("a-1", "n1", volume{"c", "shared", "/s", ""}, volume{"c", "a", "/a", ""})),
				deployment("b", annotations{api.AnnotationQuiesce, "redis"}, pod("b-1", "n1", volume{"c", "shared", "/s", ""}, volume{"c", "b", "/b", ""})),
			},
			of: "a", name: "PersistentVolumeClaim shop/a", claims: []string{"a"}, onError: unit.Fail,
		},
		"settings on a claim without quiesce": {
			objects: [][]runtime.Object{
				namespace(), withAnnotations("data", api.AnnotationQuiesceTimeout, "1m", api.AnnotationOnQuiesceError, "continue", api.AnnotationOptionPrefix+"user", "x"),
				deployment("db", annotations{api.AnnotationQuiesce, "fsfreeze"}, pod("db-a", "n1", volume{"pg", "data", "/data", ""})),
			},
			of: "data", name: "PersistentVolumeClaim shop/data", claims: []string{"data"}, onError: unit.Fail,
			text: "PersistentVolumeClaim shop/data: annotation option.stillpoint.io/user has no effect without stillpoint.io/quiesce beside it; to set it for all volumes of the workload, annotate the workload",
		},
		"a typing error on a claim": {
			objects: [][]runtime.Object{namespace(), withAnnotations("data", "stillpoint.io/quiesced", "fsfreeze"), deployment("db", nil, pod("db-a", "n1", volume{"pg", "data", "/data", ""}))},
			of:      "data", name: "PersistentVolumeClaim shop/data", claims: []string{"data"}, onError: unit.Fail,
			text: "PersistentVolumeClaim shop/data: unknown annotation stillpoint.io/quiesced; known: stillpoint.io/quiesce, stillpoint.io/prepare-timeout, stillpoint.io/quiesce-timeout, stillpoint.io/on-quiesce-error and option.stillpoint.io/<key>",
		},
		"one claim's error is not the other's": {
			objects: [][]runtime.Object{
				namespace(), claims("wal"), withAnnotations("data", api.AnnotationQuiesceTimeout, "1m"),
				deployment("db", annotations{api.AnnotationQuiesce, "fsfreeze"}, pod("db-a", "n1", volume{"pg", "data", "/data", ""}, volume{"pg", "wal", "/wal", ""})),
			},
			of: "wal", asked: true, name: "Deployment shop/db", claims: []string{"wal"}, onError: unit.Fail,
		},
		"pods that disagree": {
			objects: [][]runtime.Object{
				namespace(), claims("data"),
				deployment("db", nil, annotatedPod(pod("db-a", "n1", volume{"pg", "data", "/data", ""}), api.AnnotationQuiesce, "fsfreeze")),
				replicaSet("db", "2", annotatedPod(pod("db-b", "n1", volume{"pg", "data", "/data", ""}), api.AnnotationQuiesce, "fsfreeze", api.AnnotationQuiesceTimeout, "10s")),
			},
			of: "data", name: "Deployment shop/db", claims: []string{"data"}, onError: unit.Fail,
			text: "Deployment shop/db: pods db-a and db-b, which are of different revisions, have different quiesce annotations; wait for the rollout to end",
		},
		"an invalid value under continue": {
			objects: [][]runtime.Object{
				namespace(api.AnnotationOnQuiesceError, "continue"), claims("data"),
				deployment("db", annotations{api.AnnotationQuiesce, "fsfreeze", api.AnnotationQuiesceTimeout, "soon"}, pod("db-a", "n1", volume{"pg", "data", "/data", ""})),
			},
			of: "data", asked: true, name: "Deployment shop/db", claims: []string{"data"}, onError: unit.Continue,
			text: `Deployment shop/db: annotation stillpoint.io/quiesce-timeout: "soon" is not valid; valid: a duration above 0 and up to 24h, such as 30s, 5m or 1m30s`,
		},
		"an invalid name": {
			objects: [][]runtime.Object{
				namespace(), claims("data"),
				deployment("db", annotations{api.AnnotationQuiesce, "fs freeze", api.AnnotationOnQuiesceError, "continue"}, pod("db-a", "n1", volume{"pg", "data", "/data", ""})),
			},
			of: "data", name: "Deployment shop/db", claims: []string{"data"}, onError: unit.Continue,
			text: `Deployment shop/db: annotation stillpoint.io/quiesce: "fs freeze" is not valid; valid: none, or names of blueprints with commas between them, such as postgresql,fsfreeze`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := planner(nil, test.objects...)
			u, err := p.unitOf(t, test.of)
			require.NoError(t, u.KeepClaims(func(c corev1.PersistentVolumeClaim) (bool, error) { return c.Name != test.without, nil }))
			if test.text == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, test.text)
			}
			assert.Equal(t, test.asked, u.Quiesced())
			assert.Equal(t, test.name, u.Name())
			assert.Equal(t, test.claims, names(u.Claims))
			assert.Equal(t, test.onError, u.OnError)
		})
	}

	t.Run("the namespace is gone", func(t *testing.T) {
		_, err := unit.Gather(t.Context(), planner(nil, claims("data")).Kube, nil, "shop", true)
		require.EqualError(t, err, `get namespace shop: namespaces "shop" not found`)
	})

	t.Run("without quiesce all volumes of the workload are taken together", func(t *testing.T) {
		u, err := planner(nil, namespace(), claims("wal", "data", "other"), withAnnotations("own", api.AnnotationQuiesce, "fsfreeze"),
			deployment("db", nil, pod("db-a", "n1", volume{"pg", "wal", "/wal", ""}, volume{"pg", "data", "/data", ""}, volume{"pg", "own", "/own", ""}))).unitOf(t, "wal")
		require.NoError(t, err)
		assert.False(t, u.Quiesced())
		assert.Equal(t, []string{"data", "wal"}, names(u.Claims))
	})

	t.Run("the backup cannot be asked", func(t *testing.T) {
		p := planner(nil, namespace(api.AnnotationQuiesce, "fsfreeze"), claims("data", "wal"), deployment("db", nil, pod("db-a", "n1", volume{"pg", "data", "/data", ""}, volume{"pg", "wal", "/wal", ""})))
		u, err := p.unitOf(t, "data")
		require.NoError(t, err)
		require.EqualError(t, u.KeepClaims(func(corev1.PersistentVolumeClaim) (bool, error) { return false, errors.New("no answer") }), "no answer")
	})
}

func ptr[T any](value T) *T { return &value }

func annotatedPod(p corev1.Pod, a ...string) corev1.Pod {
	annotations(a).on(&p.ObjectMeta)
	return p
}

func TestAsked(t *testing.T) {
	for name, test := range map[string]struct {
		namespace, deployment annotations
		asked                 bool
	}{
		"nothing":      {nil, nil, false},
		"workload":     {nil, annotations{api.AnnotationQuiesce, "fsfreeze"}, true},
		"namespace":    {annotations{api.AnnotationKanister, "mongo"}, nil, true},
		"none":         {annotations{api.AnnotationKanister, "mongo"}, annotations{api.AnnotationQuiesce, "none"}, false},
		"not valid":    {nil, annotations{api.AnnotationQuiesceTimeout, "x"}, true},
		"other things": {nil, annotations{api.AnnotationQuiesceTimeout, "1m"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := planner(nil, namespace(test.namespace...), claims("data"), deployment("db", test.deployment, pod("db-a", "n1", volume{"pg", "data", "/data", ""})))
			facts, err := unit.Gather(t.Context(), p.Kube, nil, "shop", true)
			require.NoError(t, err)
			unit, asked := facts.QuiescedWith(ptr(pod("db-a", "n1", volume{"pg", "data", "/data", ""})))
			assert.Equal(t, "Deployment shop/db", unit.String())
			assert.Equal(t, test.asked, asked)
		})
	}
}

// commands returns a plan's commands as "pod/container: command", in the order of the pre
// commands.
func commands(hooks []Hook, steps func(Hook) []*render.Step) []string {
	var all []string
	for _, hook := range hooks {
		for _, step := range steps(hook) {
			for _, call := range step.Calls {
				all = append(all, fmt.Sprintf("%s/%s: %s %s", call.Pod, call.Container, call.Command[0], call.Command[len(call.Command)-1]))
			}
		}
	}
	return all
}

func pres(h Hook) []*render.Step  { return h.Pre }
func posts(h Hook) []*render.Step { return h.Post }

func TestPlan(t *testing.T) {
	can := answer(privileged, true, mounted("8:16", "/a"), mounted("8:32", "/b"), mounted("8:48", "/s"), mounted("8:64", "/data"))
	started := time.Date(2026, 11, 21, 3, 0, 0, 42, time.FixedZone("CET", 3600))
	for name, test := range map[string]struct {
		objects   [][]runtime.Object
		of        string
		name      string
		hooks     []string
		pre, post []string
		prepare   time.Duration
		quiesce   time.Duration
		text      string
	}{
		"the file systems of all workloads go last": {
			objects: [][]runtime.Object{
				namespace(), claims("shared", "a", "b"),
				deployment("a", annotations{api.AnnotationQuiesce, "redis,fsfreeze", api.AnnotationQuiesceTimeout, "20s"}, pod("a-1", "n1", volume{"c", "shared", "/s", ""}, volume{"c", "a", "/a", ""})),
				deployment("b", annotations{api.AnnotationQuiesce, "fsfreeze,mongo", api.AnnotationPrepareTimeout, "1m", api.AnnotationQuiesceTimeout, "40s"}, pod("b-1", "n1", volume{"c", "shared", "/s", ""}, volume{"c", "b", "/b", ""})),
				blueprintsOf(map[string]string{"redis": in("{{ index .Deployment.Pods 0 }}", "redis"), "mongo": in("{{ index .Deployment.Pods 0 }}", "mongo")}),
			},
			of: "b", name: "Deployment shop/a and Deployment shop/b",
			hooks: []string{"redis", "mongo", "fsfreeze", "fsfreeze"},
			pre:   []string{"a-1/c: pre redis", "b-1/c: pre mongo", "a-1/c: fsfreeze /a", "a-1/c: fsfreeze /s", "b-1/c: fsfreeze /b"},
			post:  []string{"a-1/c: post redis", "b-1/c: post mongo", "a-1/c: fsfreeze /a", "a-1/c: fsfreeze /s", "b-1/c: fsfreeze /b"},
			// The shortest timeouts apply.
			prepare: time.Minute, quiesce: 20 * time.Second,
		},
		"only pods of the current revision": {
			objects: [][]runtime.Object{
				namespace(), claims("shared"),
				deployment("a", annotations{api.AnnotationQuiesce, "redis", revision, "2"}, pod("old", "n1", volume{"c", "shared", "/s", ""})),
				replicaSet("a", "2", pod("z-new", "n1", volume{"c", "shared", "/s", ""})),
				blueprintsOf(map[string]string{"redis": in("{{ index .Deployment.Pods 0 }}", "{{ len .Deployment.Pods }} {{ index .Deployment.Containers 0 }} {{ .Deployment.PersistentVolumeClaims }}")}),
			},
			of: "shared", name: "Deployment shop/a", hooks: []string{"redis"},
			pre:     []string{"z-new/c: pre 1 [c] map[z-new:map[shared:/s]]"},
			post:    []string{"z-new/c: post 1 [c] map[z-new:map[shared:/s]]"},
			prepare: 5 * time.Minute, quiesce: 30 * time.Second,
		},
		"but file systems in all pods that run": {
			objects: [][]runtime.Object{
				namespace(), claims("a", "b"),
				deployment("a", annotations{api.AnnotationQuiesce, "fsfreeze", revision, "2"}, pod("old", "n1", volume{"c", "a", "/a", ""})),
				replicaSet("a", "2", pod("z-new", "n1", volume{"c", "b", "/b", ""})),
			},
			of: "b", name: "Deployment shop/a", hooks: []string{"fsfreeze"},
			pre:     []string{"old/c: fsfreeze /a", "z-new/c: fsfreeze /b"},
			post:    []string{"old/c: fsfreeze /a", "z-new/c: fsfreeze /b"},
			prepare: 5 * time.Minute, quiesce: 30 * time.Second,
		},
		"what templates of a StatefulSet see": {
			objects: [][]runtime.Object{
				namespace(), claims("data-db-0", "data-db-1"),
				statefulSet("db", annotations{api.AnnotationQuiesce, "pg", api.AnnotationOptionPrefix + "user", "app"},
					pod("db-0", "n1", volume{"pg", "data-db-0", "/data", ""}), pod("db-1", "n2", volume{"pg", "data-db-1", "/data", ""})),
				blueprintsOf(map[string]string{"pg": in("{{ index .StatefulSet.Pods 1 }}", "{{ .Object.kind }} {{ .Object.metadata.name }} {{ .Options.user }} {{ .Time }} {{ not .PVC }} {{ not .Deployment }}")}),
			},
			of: "data-db-0", name: "StatefulSet shop/db", hooks: []string{"pg"},
			pre:     []string{"db-1/pg: pre StatefulSet db app 2026-11-21T02:00:00.000000042Z true true"},
			post:    []string{"db-1/pg: post StatefulSet db app 2026-11-21T02:00:00.000000042Z true true"},
			prepare: 5 * time.Minute, quiesce: 30 * time.Second,
		},
		"what templates of the namespace's default see": {
			objects: [][]runtime.Object{
				namespace(api.AnnotationQuiesce, "pg"), claims("data"),
				deployment("db", nil, pod("db-1", "n1", volume{"pg", "data", "/data", ""})),
				blueprintsOf(map[string]string{"pg": in("{{ index .Deployment.Pods 0 }}", "{{ .Object.kind }} {{ .Object.metadata.name }}")}),
			},
			of: "data", name: "Deployment shop/db", hooks: []string{"pg"},
			pre: []string{"db-1/pg: pre Namespace shop"}, post: []string{"db-1/pg: post Namespace shop"},
			prepare: 5 * time.Minute, quiesce: 30 * time.Second,
		},
		"what templates of a claim see, whose freeze is its own": {
			objects: [][]runtime.Object{
				namespace(api.AnnotationQuiesceTimeout, "7s"), claims("a"), withAnnotations("b", api.AnnotationQuiesce, "pg,fsfreeze"),
				deployment("db", annotations{api.AnnotationQuiesce, "fsfreeze"}, pod("db-1", "n1", volume{"pg", "a", "/a", ""}, volume{"pg", "b", "/b", ""})),
				blueprintsOf(map[string]string{"pg": in("db-1", "{{ .Object.kind }} {{ .PVC.Name }}")}),
			},
			of: "b", name: "PersistentVolumeClaim shop/b", hooks: []string{"pg", "fsfreeze"},
			pre:     []string{"db-1/pg: pre PersistentVolumeClaim b", "db-1/pg: fsfreeze /b"},
			post:    []string{"db-1/pg: post PersistentVolumeClaim b", "db-1/pg: fsfreeze /b"},
			prepare: 5 * time.Minute, quiesce: 7 * time.Second,
		},
		"an unknown blueprint": {
			objects: [][]runtime.Object{namespace(api.AnnotationQuiesce, "fsfreze"), claims("data"), deployment("db", nil, pod("db-1", "n1", volume{"pg", "data", "/data", ""}))},
			of:      "data",
			text: `Deployment shop/db: blueprint fsfreze, which Namespace shop names: blueprint "fsfreze" is not found; there are: Blueprints in namespace shop: none; ` +
				`ConfigMaps in namespace velero with label stillpoint.io/blueprint: none; built in: fsfreeze, mariadb, mongodb, mysql, postgresql, redis, scale-down`,
		},
		"a file system that is not frozen": {
			objects: [][]runtime.Object{namespace(), claims("data"), statefulSet("db", annotations{api.AnnotationQuiesce, "fsfreeze"}, pod("db-9", "n1", volume{"pg", "data", "/data", ""}))},
			of:      "data",
			text: "StatefulSet shop/db: blueprint fsfreeze, which StatefulSet shop/db names: blueprint fsfreeze (built in): action backupPrehook: phase freeze: function FreezeFileSystems: " +
				"claim shop/data cannot be frozen from any container: exec in container pg of pod shop/db-9: exit code 127 (Stillpoint needs sh in the container): sh: not found",
		},
		"a freeze that is thawed elsewhere": {
			objects: [][]runtime.Object{
				namespace(), claims("a", "b"),
				deployment("db", annotations{api.AnnotationQuiesce, "own"}, pod("db-1", "n1", volume{"pg", "a", "/a", ""}, volume{"pg", "b", "/b", ""})),
				blueprintsOf(map[string]string{"own": "actions:\n  backupPrehook: {phases: [{func: FreezeFileSystems, name: stop}]}\n  backupPosthook: {phases: [{func: ThawFileSystems, name: go, args: {paths: /a /b}}]}\n"}),
			},
			of: "a",
			text: "Deployment shop/db: blueprint own, which Deployment shop/db names: phase stop freezes /a in container pg of pod shop/db-1, and backupPosthook does not thaw it: " +
				"it needs a phase with func ThawFileSystems and the same args",
		},
	} {
		t.Run(name, func(t *testing.T) {
			answers := map[string]string{}
			for _, c := range []string{"a-1/c", "b-1/c", "old/c", "z-new/c", "db-0/pg", "db-1/pg"} {
				answers[c] = can
			}
			p := planner(answers, test.objects...)
			u, err := p.unitOf(t, test.of)
			require.NoError(t, err)
			plan, err := p.Plan(t.Context(), u, backupOf(started))
			if test.text != "" {
				require.EqualError(t, err, test.text)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, test.name, plan.Name)
			assert.Equal(t, test.hooks, plan.Blueprints())
			assert.Equal(t, test.pre, commands(plan.Hooks, pres))
			assert.Equal(t, test.post, commands(plan.Hooks, posts))
			assert.Equal(t, test.prepare, plan.PrepareTimeout)
			assert.Equal(t, test.quiesce, plan.QuiesceTimeout)
			assert.Equal(t, u.OnError, plan.OnError)
		})
	}
}

func TestWarningsOfABlueprintAreLogged(t *testing.T) {
	p := planner(nil, namespace(api.AnnotationQuiesce, "pg"), claims("data"), deployment("db", nil, pod("db-1", "n1", volume{"pg", "data", "/data", ""})),
		blueprintsOf(map[string]string{"pg": in("db-1", "x") + "color: red\n"}))
	var warned []string
	p.Warn = func(format string, args ...any) { warned = append(warned, fmt.Sprintf(format, args...)) }
	u, err := p.unitOf(t, "data")
	require.NoError(t, err)
	_, err = p.Plan(t.Context(), u, backupOf(time.Now()))
	require.NoError(t, err)
	assert.Equal(t, []string{`Blueprint pg (ConfigMap velero/blueprints (key pg)): blueprint pg (ConfigMap velero/blueprints (key pg)): unknown field "color" is ignored`}, warned)
}
