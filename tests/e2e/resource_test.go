package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"

	"stillpoint.io/stillpoint/tests/cluster"
)

// objectBlueprint is one whose commands are made of the annotated object.
func objectBlueprint(name, pod string) string {
	phase := func(name string) string {
		return `
    phases:
      - func: KubeExec
        name: ` + name + `
        args:
          namespace: "{{ .Object.metadata.namespace }}"
          pod: "` + pod + `"
          command: [sh, -c, "echo ` + name + ` {{ .Object.kind }} {{ .Object.metadata.name }} {{ .Options.word }} >>/run/journal"]`
	}
	return "apiVersion: cr.kanister.io/v1alpha1\nkind: Blueprint\nmetadata: {name: " + name + "}\nactions:\n  backupPrehook:" + phase("pre") + "\n  backupPosthook:" + phase("post") + "\n"
}

// idleClaim is one that no pod mounts.
func (a *app) idleClaim() {
	a.t.Helper()
	install(a.t, a.c, `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: idle, namespace: `+a.namespace+`}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
`)
	a.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/idle", "--timeout=60s")
}

// A custom resource is annotated, whose operator has made a StatefulSet and
// handed the annotations down to it and to a Service.
func testAnnotationOnACustomResource(t *testing.T, c *cluster.Cluster) {
	const resource, group = "databases." + databaseGroup, databaseGroup
	blueprint(t, c, objectBlueprint("e2e-database", "{{ .Object.spec.primary }}"))
	a := &app{t: t, c: c, namespace: c.Namespace(t, "e2e")}
	a.idleClaim() // which it does not stand for
	annotations := `{stillpoint.io/quiesce: "e2e-database,fsfreeze", option.stillpoint.io/word: hello}`
	install(t, c, strings.NewReplacer("GROUP", group, "NAMESPACE", a.namespace, "ANNOTATIONS", annotations).Replace(`
apiVersion: GROUP/v1
kind: Database
metadata: {namespace: NAMESPACE, name: db, annotations: ANNOTATIONS}
spec: {primary: db-0}
`))
	uid := a.kubectl("get", resource, "db", "-o", "jsonpath={.metadata.uid}")
	owner := "{apiVersion: " + group + "/v1, kind: Database, name: db, uid: " + uid + ", controller: true}"
	install(t, c, strings.NewReplacer("OWNER", owner, "NAMESPACE", a.namespace, "ANNOTATIONS", annotations, "IMAGE", cluster.Image).Replace(`
apiVersion: v1
kind: Service
metadata: {namespace: NAMESPACE, name: db, annotations: ANNOTATIONS, ownerReferences: [OWNER]}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {namespace: NAMESPACE, name: db, annotations: ANNOTATIONS, ownerReferences: [OWNER]}
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: db
          image: IMAGE
          command: [sleep, infinity]
          securityContext: {privileged: true}
          volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
`))
	a.kubectl("rollout", "status", "statefulset/db", "--timeout=90s")
	journal := func() string { return a.kubectl("exec", "db-0", "--", "cat", "/run/journal") }

	policy := policyFile(t, c, "volumePolicies:\n"+byStillpoint)
	table, code := runCheck(t, "--namespace", a.namespace, "--policy", policy, "--workload", "database/db")
	assert.Equal(t, 0, code, table)
	assert.Contains(t, table, "object     Database db, for data-db-0, data-db-1")
	assert.Contains(t, table, "asked for by Database "+a.namespace+"/db")
	assert.Contains(t, table, "The annotations of StatefulSet "+a.namespace+"/db only repeat those of Database "+a.namespace+"/db")
	assert.NotContains(t, table, "idle")

	b := startBackup(t, c, a.namespace, handOver(t, c, ""))
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	assert.Contains(t, b.log(), "Quiesced Database "+a.namespace+"/db ")
	assert.Contains(t, b.log(), "volumes data-db-0, data-db-1")
	require.Len(t, frozenFor(t, b.log()), 1)
	assert.Equal(t, "pre Database db hello\npost Database db hello\n", journal(), "once, and not for its copies")
	assert.False(t, a.frozen("data-db-0") || a.frozen("data-db-1"))
	assert.Eventually(t, func() bool { return a.events("db")["Thawed"] != "" }, 10*time.Second, 100*time.Millisecond)
}

// A ConfigMap stands for all claims of its namespace, those included that no pod
// mounts: Velero takes all of them in one item block, around one freeze.
func testAnnotationOnAConfigMap(t *testing.T, c *cluster.Cluster) {
	blueprint(t, c, objectBlueprint("e2e-namespace", "{{ .Object.data.pod }}"))
	a := newApp(t, c, shape{})
	a.deploy("other", shape{annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze"}})
	pod := strings.TrimSpace(a.kubectl("get", "pod", "-l", "app=app", "-o", "jsonpath={.items[0].metadata.name}"))
	a.idleClaim()
	a.kubectl("create", "configmap", "hooks", "--from-literal=pod="+pod)
	a.kubectl("annotate", "configmap", "hooks", "kanister.kasten.io/blueprint=e2e-namespace", "option.stillpoint.io/word=hi")

	for path, change := range map[string]func(*velerov1.BackupSpec){"group": handOver(t, c, ""), "around": nil} {
		t.Run(path, func(t *testing.T) {
			a.kubectl("exec", pod, "-c", "writer", "--", "rm", "-f", "/run/journal")
			b := startBackup(t, c, a.namespace, change)
			require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
			assert.Contains(t, b.log(), "Quiesced ConfigMap "+a.namespace+"/hooks and Deployment "+a.namespace+"/other ")
			assert.Contains(t, b.log(), "volumes app-data0, idle, other-data0")
			assert.Contains(t, b.log(), "blueprints e2e-namespace, fsfreeze")
			require.Len(t, frozenFor(t, b.log()), 1)
			assert.Equal(t, "pre ConfigMap hooks hi\npost ConfigMap hooks hi\n", a.kubectl("exec", pod, "-c", "writer", "--", "cat", "/run/journal"))
			assert.False(t, a.frozen("app-data0") || a.frozen("other-data0"))
		})
	}
}
