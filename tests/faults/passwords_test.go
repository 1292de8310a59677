package faults

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/tests/fake"
)

// password is one that a recipe may send only where the author of the annotations
// could send it himself.
const password = "Tr0ub4dor&3"

// clients answer as a database does and write down how they are called: the
// password in their environment, then their arguments.
var clients = map[string]string{
	"redis-cli": `printf '%s %s\n' "$REDISCLI_AUTH" "$*" >> FILE
case $* in
*PING*) echo PONG;;
*TIME*) echo 1700000009;;
*BGSAVE*) : > FILE.saved; echo 'Background saving scheduled';;
*INFO*) echo "rdb_bgsave_in_progress:0"; echo "rdb_last_bgsave_status:ok"; if [ -e FILE.saved ]; then echo "rdb_last_save_time:1700000009"; else echo "rdb_last_save_time:1700000001"; fi;;
esac`,
	"mongosh": `printf '%s %s\n' "$OPTION_PASSWORD" "$*" >> FILE`,
	"psql":    `printf '%s %s\n' "$PGPASSWORD" "$PGHOST" >> FILE`,
	"mariadb": `printf '%s %s\n' "$MYSQL_PWD" "$*" >> FILE`,
	"mysql":   `printf '%s %s\n' "$MYSQL_PWD" "$*" >> FILE`,
}

// database deploys a workload whose container has the clients. called returns how
// they were called.
func database(t *testing.T, bed *fake.Bed, app fake.App) (w *fake.Workload, called func() string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "called")
	w = bed.Deploy(app)
	for name, script := range clients {
		bed.Node.Container("shop", w.Pods[0].Name, "main").Program(name, "#!/bin/sh\n"+strings.ReplaceAll(script, "FILE", file)+"\n")
	}
	return w, func() string {
		content, _ := os.ReadFile(file)
		return string(content)
	}
}

// loginSecret is the Secret with the password.
func loginSecret(bed *fake.Bed) {
	bed.API.Put(bed.T, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "login"}, Data: map[string][]byte{"password": []byte(password)}})
}

// uses has a pod use the Secret.
func uses(pod *corev1.Pod) {
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "login", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "login"}}}},
	}}})
}

// pulls has the kubelet use the Secret, which the pod does not see.
func pulls(pod *corev1.Pod) {
	pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "login"}}
}

// 28: whoever may create a ConfigMap, or annotate a claim or a namespace, has no
// password sent anywhere, and no Secret read.
func TestPasswordsStayWhereTheyAre(t *testing.T) {
	t.Parallel()
	hosts := map[string]string{"option.stillpoint.io/host": "evil.example"}
	annotations := func(of ...map[string]string) map[string]string {
		all := map[string]string{}
		for _, some := range of {
			maps.Copy(all, some)
		}
		return all
	}
	for _, recipe := range []string{"redis", "mongodb", "mysql", "mariadb", "postgresql"} {
		ask := map[string]string{"stillpoint.io/quiesce": recipe}
		secret := map[string]string{"option.stillpoint.io/secret": "login"}
		for name, test := range map[string]struct {
			configMap, claim, namespace, workload map[string]string
			pod                                   func(*corev1.Pod)
			said                                  string
		}{
			"ConfigMap with a host":        {configMap: annotations(ask, hosts), said: `ConfigMap shop/attack: annotation stillpoint.io/quiesce: "` + recipe + `" is not valid; valid: `},
			"ConfigMap with a Secret":      {configMap: annotations(ask, secret), pod: uses, said: `ConfigMap shop/attack: annotation stillpoint.io/quiesce: "` + recipe + `" is not valid; valid: `},
			"ConfigMap in Kanister's word": {configMap: annotations(map[string]string{"kanister.kasten.io/blueprint": recipe}), said: `ConfigMap shop/attack: annotation kanister.kasten.io/blueprint: "` + recipe + `" is not valid; valid: `},
			"claim with a host":            {claim: annotations(ask, hosts, secret), pod: uses, said: `PersistentVolumeClaim shop/db-data0: annotation option.stillpoint.io/host: "evil.example" is not valid; valid: localhost, 127.0.0.1 and ::1; `},
			"namespace with a host":        {namespace: hosts, workload: annotations(ask, secret), pod: uses, said: `Namespace shop: annotation option.stillpoint.io/host: "evil.example" is not valid; valid: localhost, 127.0.0.1 and ::1; `},
			"a Secret for pulling images":  {workload: annotations(ask, secret), pod: pulls, said: `Deployment shop/db: annotation option.stillpoint.io/secret: "login" is not valid; valid: a Secret that pod shop/db-6d4f-a uses in env, envFrom or volumes (none)`},
			"a Secret of somebody else":    {claim: annotations(ask, secret), said: `PersistentVolumeClaim shop/db-data0: annotation option.stillpoint.io/secret: "login" is not valid; valid: `},
			"a port that is an address":    {workload: annotations(ask, map[string]string{"option.stillpoint.io/port": "x@evil.example:27017"}), said: `Deployment shop/db: annotation option.stillpoint.io/port: "x@evil.example:27017" is not valid; valid: a port number from 1 to 65535`},
		} {
			if recipe != "redis" && test.configMap == nil { // the rule is the same for all
				continue
			}
			t.Run(recipe+", "+name, func(t *testing.T) {
				t.Parallel()
				bed := fake.New(t)
				loginSecret(bed)
				bed.API.Put(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Annotations: test.namespace}})
				app, called := database(t, bed, fake.App{Annotations: test.workload, Pod: test.pod, Claim: func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) { claim.Annotations = test.claim }})
				if test.configMap != nil {
					bed.API.Put(t, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "attack", Annotations: test.configMap}})
				}
				bed.API.ForgetRequests()
				v := bed.Velero()
				v.Backup(bed.Backup(fake.WithPolicy), app)
				assert.Empty(t, called())
				for _, request := range bed.API.Requests() {
					assert.NotContains(t, request, "secrets shop/login")
				}
				assert.True(t, v.Said(logrus.ErrorLevel, test.said), v.Errors())
				assert.Empty(t, bed.Storage.Snapshots())
				code, said := checked(bed)
				assert.Equal(t, 1, code)
				assert.Contains(t, said, test.said)
			})
		}
	}
}

// What the workload's own annotations ask for still works, and a request for the
// Secret is seen, so that the test above can fail.
func TestPasswordsOfTheWorkloadAreUsed(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	loginSecret(bed)
	app, called := database(t, bed, fake.App{Pod: uses, Annotations: map[string]string{
		"stillpoint.io/quiesce": "redis", "option.stillpoint.io/secret": "login", "option.stillpoint.io/host": "db.example", "option.stillpoint.io/port": "6380",
	}})
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	require.Empty(t, v.Errors())
	assert.Len(t, bed.Storage.Snapshots(), 1)
	assert.Contains(t, called(), password+" -h db.example -p 6380 PING\n")
	assert.True(t, slices.ContainsFunc(bed.API.Requests(), func(request string) bool { return strings.Contains(request, "secrets shop/login") }), bed.API.Requests())
	assert.NotContains(t, fmt.Sprint(v.Lines(logrus.DebugLevel)), password)
}
