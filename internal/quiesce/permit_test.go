package quiesce

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"

	"stillpoint.io/stillpoint/internal/api"
)

// recipes lists the recipes that send passwords.
var recipes = []string{"mariadb", "mongodb", "mysql", "postgresql", "redis"}

// ownRecipe is an administrator's copy of a recipe under another name.
const ownRecipe = `
actions:
  backupPrehook:
    phases:
    - func: RunInPods
      name: save
      args: {command: [save, '{{ index .Options "host" }}']}
`

func option(key string) string { return api.AnnotationOptionPrefix + key }

// using returns a pod with a changed specification.
func using(change func(spec *corev1.PodSpec)) corev1.Pod {
	p := pod("db-0", "n1", volume{"db", "data", "/data", ""})
	change(&p.Spec)
	return p
}

func from(secret string) corev1.LocalObjectReference {
	return corev1.LocalObjectReference{Name: secret}
}

// planOf makes the plan for claim data, and reports whether it read a Secret.
func planOf(t *testing.T, objects ...[]runtime.Object) (plan *Plan, read bool, err error) {
	t.Helper()
	secret := []runtime.Object{&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "login"}, Data: map[string][]byte{"password": []byte("s3cret")}}}
	w := newWorld(nil, append(objects, claims("other"), blueprintsOf(map[string]string{"own": ownRecipe}), secret)...)
	kube, ok := w.Kube.(*fake.Clientset)
	require.True(t, ok)
	kube.PrependReactor("get", "secrets", func(kubetesting.Action) (bool, runtime.Object, error) {
		read = true
		return false, nil, nil
	})
	facts := w.facts(t)
	u, err := facts.Unit(facts.Claim("data"))
	require.NoError(t, err)
	plan, err = w.Plan(t.Context(), u, backupOf(time.Now()))
	return plan, read, err
}

func TestRecipesOnObjectsThatAreNoWorkloads(t *testing.T) {
	db := func() []runtime.Object {
		return statefulSet("db", nil, pod("db-0", "n1", volume{"db", "data", "/data", ""}))
	}
	for _, name := range recipes {
		for _, key := range []string{api.AnnotationQuiesce, api.AnnotationKanister} {
			for kind, object := range map[string][][]runtime.Object{
				"ConfigMap shop/x": {configMap("x", key, name), db()},
				"Database shop/x":  {custom("Database", "x", key, name), owned("Database", "x", db())},
			} {
				t.Run(fmt.Sprintf("%s, %s: %s", kind, key, name), func(t *testing.T) {
					_, read, err := planOf(t, append(object, namespace(), claims("data"))...)
					require.ErrorContains(t, err, fmt.Sprintf("%s: annotation %s: %q is not valid; valid: ", kind, key, name))
					assert.False(t, read)
				})
			}
		}
	}
	// A custom resource that is itself the controller of the pods is a workload.
	plan, _, err := planOf(t, namespace(), claims("data"), custom("Cluster", "x", api.AnnotationQuiesce, "redis"), owned("Cluster", "x", bare(pod("db-0", "n1", volume{"db", "data", "/data", ""}))))
	require.NoError(t, err)
	assert.Len(t, plan.Hooks, 1)
	// It is not a workload if another pod mounts its volumes.
	_, _, err = planOf(t, namespace(), claims("data"), custom("Cluster", "x", api.AnnotationQuiesce, "redis"), owned("Cluster", "x", bare(pod("db-0", "n1", volume{"db", "data", "/data", ""}))),
		bare(pod("victim", "n1", volume{"db", "data", "/data", ""})))
	require.ErrorContains(t, err, `Cluster shop/x: annotation stillpoint.io/quiesce: "redis" is not valid`)
	// An administrator's blueprint runs for such objects, but not with another host.
	plan, _, err = planOf(t, namespace(), claims("data"), configMap("x", api.AnnotationQuiesce, "own"), db())
	require.NoError(t, err)
	assert.Len(t, plan.Hooks, 1)
	_, _, err = planOf(t, namespace(), claims("data"), configMap("x", api.AnnotationQuiesce, "own", option("host"), "evil"), db())
	require.ErrorContains(t, err, `ConfigMap shop/x: annotation option.stillpoint.io/host: "evil" is not valid; valid: localhost, `)
}

func TestForeignHosts(t *testing.T) {
	db := func(a ...string) []runtime.Object {
		return statefulSet("db", a, pod("db-0", "n1", volume{"db", "data", "/data", ""}))
	}
	for _, name := range recipes {
		for _, host := range []string{"evil", "127.0.0.1,evil", "localhost.evil.example", "/tmp/evil"} {
			refused := func(object string, objects ...[]runtime.Object) {
				t.Run(fmt.Sprintf("%s of %s on %s", host, name, object), func(t *testing.T) {
					_, read, err := planOf(t, objects...)
					require.ErrorContains(t, err, fmt.Sprintf("%s: annotation option.stillpoint.io/host: %q is not valid; valid: localhost, 127.0.0.1 and ::1; ", object, host))
					assert.False(t, read)
				})
			}
			refused("PersistentVolumeClaim shop/data", namespace(), withAnnotations("data", api.AnnotationQuiesce, name, option("host"), host), db())
			refused("Namespace shop", namespace(api.AnnotationQuiesce, name, option("host"), host), claims("data"), db())
			refused("Namespace shop", namespace(option("host"), host), claims("data"), db(api.AnnotationQuiesce, name))
		}
		for place, objects := range map[string][][]runtime.Object{
			"the workload": {namespace(), claims("data"), db(api.AnnotationQuiesce, name, option("host"), "db.example.com")},
			"its pods": {namespace(), claims("data"), statefulSet("db", annotations{api.AnnotationQuiesce, name},
				annotatedPod(pod("db-0", "n1", volume{"db", "data", "/data", ""}), option("host"), "db.example.com"))},
			"the claim, the host itself": {namespace(), withAnnotations("data", api.AnnotationQuiesce, name, option("host"), "127.0.0.1"), db()},
		} {
			t.Run(name+" on "+place, func(t *testing.T) {
				_, _, err := planOf(t, objects...)
				require.NoError(t, err)
			})
		}
	}
}

func TestSecretsThatThePodDoesNotUse(t *testing.T) {
	key := &corev1.SecretKeySelector{LocalObjectReference: from("login"), Key: "password"}
	projected := []corev1.VolumeProjection{{ConfigMap: &corev1.ConfigMapProjection{}}, {Secret: &corev1.SecretProjection{LocalObjectReference: from("login")}}}
	container := func(change func(*corev1.Container)) func(*corev1.PodSpec) {
		return func(spec *corev1.PodSpec) { change(&spec.Containers[0]) }
	}
	add := func(source corev1.VolumeSource) func(*corev1.PodSpec) {
		return func(spec *corev1.PodSpec) {
			spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "x", VolumeSource: source})
		}
	}
	for name, test := range map[string]struct {
		change func(*corev1.PodSpec)
		used   string // the Secrets that the pod uses; "" if login is valid
	}{
		"env": {container(func(c *corev1.Container) {
			c.Env = []corev1.EnvVar{{Name: "A", Value: "b"}, {Name: "P", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: key}}}
		}), ""},
		"envFrom": {container(func(c *corev1.Container) {
			c.EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: from("login")}}}
		}), ""},
		"init container": {func(spec *corev1.PodSpec) {
			spec.InitContainers = []corev1.Container{{Name: "init", Env: []corev1.EnvVar{{Name: "P", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: key}}}}}
		}, ""},
		"volume":           {add(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "login"}}), ""},
		"projected":        {add(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: projected}}), ""},
		"nothing":          {func(*corev1.PodSpec) {}, "none"},
		"imagePullSecrets": {func(spec *corev1.PodSpec) { spec.ImagePullSecrets = []corev1.LocalObjectReference{from("login")} }, "none"},
		"of the driver":    {add(corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "x", NodePublishSecretRef: &corev1.LocalObjectReference{Name: "login"}}}), "none"},
		"another":          {add(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "tls"}}), "tls"},
		"ConfigMap its name": {container(func(c *corev1.Container) {
			c.EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: from("login")}}}
		}), "none"},
	} {
		for _, recipe := range recipes {
			t.Run(name+", "+recipe, func(t *testing.T) {
				_, read, err := planOf(t, namespace(), claims("data"), statefulSet("db", annotations{api.AnnotationQuiesce, recipe, option("secret"), "login"}, using(test.change)))
				if test.used == "" {
					require.NoError(t, err)
					return
				}
				require.ErrorContains(t, err, fmt.Sprintf(`StatefulSet shop/db: annotation option.stillpoint.io/secret: "login" is not valid; valid: a Secret that pod shop/db-0 uses in env, envFrom or volumes (%s)`, test.used))
				assert.False(t, read)
			})
		}
	}
}

func TestWhatGoesIntoAddresses(t *testing.T) {
	plan := func(t *testing.T, recipe, key, value string) (*Plan, error) {
		t.Helper()
		plan, _, err := planOf(t, namespace(), claims("data"), statefulSet("db", annotations{api.AnnotationQuiesce, recipe, option(key), value}, using(func(*corev1.PodSpec) {})))
		return plan, err
	}
	for _, recipe := range recipes {
		for _, port := range []string{"x@evil.example:27017", "0", "65536", "-1", " 6379", "6379/x?y", "+80", "http"} {
			_, err := plan(t, recipe, "port", port)
			require.ErrorContains(t, err, fmt.Sprintf("StatefulSet shop/db: annotation option.stillpoint.io/port: %q is not valid; valid: a port number from 1 to 65535", port), recipe)
		}
		_, err := plan(t, recipe, "port", "65535")
		require.NoError(t, err, recipe)
	}
	made, err := plan(t, "mongodb", "auth-database", "a/../b?authSource=c&x=$external#")
	require.NoError(t, err)
	assert.Equal(t, "a%2F..%2Fb%3FauthSource%3Dc%26x%3D%24external%23", made.Hooks[0].Pre[0].Calls[0].Env["OPTION_AUTH_DATABASE"])
	assert.NotContains(t, strings.Join(made.Hooks[0].Pre[0].Calls[0].Command, " "), "authSource")
}
