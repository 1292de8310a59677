package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/soak"
	"stillpoint.io/stillpoint/tests/stage"
)

// The soak, with two backups of each database.
func TestDatabases(t *testing.T) {
	c := connect(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	results, err := soak.Run(t.Context(), onStage(t, c), soak.Options{
		Backups: 2, Databases: soak.Databases(), Ways: []string{"stillpoint"}, Seed: seed,
	})
	require.NoError(t, err)
	t.Logf("\n%s", soak.Report(results))
	require.Len(t, results, len(soak.Databases()))
	for _, result := range results {
		assert.Equal(t, 2, result.Intact, result.Database)
	}
}

// lines are a timeline that goes into the test's log.
type lines struct{ t *testing.T }

func (l lines) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

func onStage(t *testing.T, c *cluster.Cluster) *stage.Stage {
	t.Helper()
	return &stage.Stage{Cluster: c, Timeline: stage.NewTimeline(lines{t})}
}

// database sets up one of the soak's databases in a namespace of its own.
func database(t *testing.T, c *cluster.Cluster, name string) *app {
	t.Helper()
	namespace := "e2e-" + rand.String(5)
	c.Adopt(t, namespace)
	require.NoError(t, soak.SetUp(t.Context(), onStage(t, c), name, namespace))
	return &app{t: t, c: c, namespace: namespace}
}

// quiesceBy asks for recipes, with options and nothing that was asked for before.
func (a *app) quiesceBy(workload, recipes string, options ...string) {
	a.t.Helper()
	args := []string{"annotate", "--overwrite", workload, "stillpoint.io/quiesce=" + recipes}
	for _, name := range []string{"secret", "host", "mode", "lock-timeout"} {
		args = append(args, "option.stillpoint.io/"+name+"-")
	}
	a.kubectl(args...)
	if len(options) > 0 {
		for i := range options {
			options[i] = "option.stillpoint.io/" + options[i]
		}
		a.kubectl(append([]string{"annotate", "--overwrite", workload}, options...)...)
	}
}

// What keeps a recipe from its work is said in the words of the database, and
// nothing is frozen then.
func TestRecipes(t *testing.T) {
	c := connect(t)
	const db = "statefulset/db"
	policy := policyFile(t, c, "volumePolicies:\n"+byStillpoint)
	backUp := func(t *testing.T, a *app) (velerov1.BackupPhase, string) {
		t.Helper()
		b := startBackup(t, c, a.namespace, func(spec *velerov1.BackupSpec) {
			spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: policy}
		})
		phase := b.finished(limit)
		return phase, b.log()
	}
	refused := func(t *testing.T, a *app, want ...string) {
		t.Helper()
		phase, log := backUp(t, a)
		require.Equal(t, velerov1.BackupPhasePartiallyFailed, phase, log)
		for _, text := range want {
			assert.Contains(t, said(log, "error"), text)
		}
		assert.NotContains(t, log, "Quiesced")
	}
	taken := func(t *testing.T, a *app) {
		t.Helper()
		phase, log := backUp(t, a)
		require.Equal(t, velerov1.BackupPhaseCompleted, phase, log)
		require.Len(t, frozenFor(t, log), 1, log)
	}

	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		a := database(t, c, "postgresql")
		a.kubectl("create", "secret", "generic", "wrong", "--from-literal=password=not-the-one")
		a.quiesceBy(db, "postgresql,fsfreeze", "secret=wrong")
		refused(t, a, `option.stillpoint.io/secret: \"wrong\" is not valid`)
		a.kubectl("patch", "secret", "db", "--type=merge", "--patch", `{"stringData": {"wrong": "not-the-one"}}`)
		a.quiesceBy(db, "postgresql,fsfreeze", "secret=db", "secret-key=wrong")
		refused(t, a, `password authentication failed for user \"postgres\"`)
		a.quiesceBy(db, "postgresql,fsfreeze", "host=/nosuch")
		refused(t, a, "Is the server running locally")
		a.quiesceBy(db, "mysql,fsfreeze")
		refused(t, a, "there is neither mysql nor mariadb in this container; option.stillpoint.io/database-container names another")
		a.quiesceBy(db, "postgresql,fsfreeze", "secret=db", "secret-key=password", "mode=checkpoint")
		taken(t, a)
	})

	// The recipe for MySQL, on the server that there is.
	t.Run("MySQL", func(t *testing.T) {
		t.Parallel()
		a := database(t, c, "mariadb")
		a.quiesceBy(db, "mysql,fsfreeze", "lock-timeout=2")
		client := []string{"exec", "db-0", "--container", "mariadb", "--", "sh", "-c"}
		a.kubectl(append(client, `MYSQL_PWD=$MARIADB_ROOT_PASSWORD mariadb --user=root bank --execute='UPDATE account SET balance = balance + SLEEP(60) WHERE id = 1' > /dev/null 2>&1 < /dev/null &`)...)
		time.Sleep(time.Second)
		refused(t, a, "Lock wait timeout exceeded")
		// Nothing waits for what was refused.
		a.kubectl(append(client, `MYSQL_PWD=$MARIADB_ROOT_PASSWORD timeout 5 mariadb --user=root bank --execute='UPDATE account SET balance = balance WHERE id = 2; KILL USER root@localhost' || true`)...)
		a.quiesceBy(db, "mysql,fsfreeze", "secret=db")
		taken(t, a)
	})
}

// The MongoDB lock that people have, unchanged, and the built-in recipe, with a
// mongosh that writes down how it is called: there is no MongoDB to be had here.
func testMongoDBLock(t *testing.T, c *cluster.Cluster) {
	document, err := os.ReadFile("../../internal/function/testdata/mongodb-hooks.yaml")
	require.NoError(t, err)
	blueprint(t, c, string(document))
	a := &app{t: t, c: c, namespace: c.Namespace(t, "e2e")}
	const password = `it$ "secret"`
	require.NoError(t, c.Objects().Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: "mongo"},
		StringData: map[string]string{"mongodb-root-password": password},
	}))
	_, err = c.Kubectl(t.Context(), strings.NewReader(strings.ReplaceAll(mongo, "NAMESPACE", a.namespace)), "apply", "--filename", "-")
	require.NoError(t, err)
	a.kubectl("rollout", "status", "statefulset/mongo", "--timeout=90s")
	calls := func(kubectl func(...string) string) []string {
		return strings.Split(strings.TrimSpace(kubectl("exec", "mongo-0", "--", "cat", "/data/calls")), "\n")
	}

	b := startBackup(t, c, a.namespace, handOver(t, c, ""))
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	assert.NotContains(t, b.log(), password)
	called := calls(a.kubectl)
	require.Len(t, called, 2)
	assert.Contains(t, called[0], "[--username=root] [--password="+password+"] [--eval=db.fsyncLock()]")
	assert.Contains(t, called[1], "[--username=root] [--password="+password+"] [--eval=db.fsyncUnlock()]")

	// The snapshot was taken between the two.
	r := b.restore(t, nil)
	require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(limit), r.log())
	r.kubectl("rollout", "status", "statefulset/mongo", "--timeout=90s")
	assert.Len(t, calls(r.kubectl), 1)
	r.kubectl("exec", "mongo-0", "--", "test", "-d", "/data/lock")

	// The recipe does the same in one session, with the password in no list of
	// processes.
	a.kubectl("annotate", "statefulset/mongo", "kanister.kasten.io/blueprint-", "stillpoint.io/quiesce=mongodb",
		"option.stillpoint.io/secret=mongo", "option.stillpoint.io/secret-key=mongodb-root-password")
	b = startBackup(t, c, a.namespace, handOver(t, c, ""))
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	called = calls(a.kubectl)
	require.Len(t, called, 3)
	assert.NotContains(t, called[2], "secret")
	a.kubectl("exec", "mongo-0", "--", "test", "!", "-e", "/data/lock")
}

// mongo is laid out as bitnami's chart has it.
const mongo = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: NAMESPACE}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 64Mi}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: mongo
  namespace: NAMESPACE
  annotations: {kanister.kasten.io/blueprint: mongo-hooks}
spec:
  serviceName: mongo
  selector: {matchLabels: {app: mongo}}
  template:
    metadata: {labels: {app: mongo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: mongodb
          image: ` + cluster.MongoDBImage + `
          command: [sleep, infinity]
          env:
            - {name: MONGOSH_PASSWORD, valueFrom: {secretKeyRef: {name: mongo, key: mongodb-root-password}}}
          volumeMounts: [{name: data, mountPath: /data}]
      volumes:
        - {name: data, persistentVolumeClaim: {claimName: data}}
`

// What cannot be quiesced is not there while it is snapshotted, and comes back.
func testScaleDown(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "scale-down"}, volumes: 2})
	b := startBackup(t, c, a.namespace, handOver(t, c, ""))
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	require.Len(t, frozenFor(t, b.log()), 1, b.log())
	a.kubectl("rollout", "status", "deployment/app", "--timeout=90s")
	assert.Equal(t, "1", a.kubectl("get", "deployment/app", "--output=jsonpath={.spec.replicas}"))
	assert.Equal(t, 2, strings.Count(b.describe(), "Snapshot Content Name: snapcontent-"))
}
