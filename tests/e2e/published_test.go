package e2e

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"

	"stillpoint.io/stillpoint/tests/cluster"
)

// install applies a manifest.
func install(t *testing.T, c *cluster.Cluster, manifest string) {
	t.Helper()
	_, err := c.Kubectl(t.Context(), strings.NewReader(manifest), "apply", "--filename", "-")
	require.NoError(t, err)
}

// kind makes a custom resource, until the test ends. Velero looks every five minutes
// which kinds there are, and until then its backups fail for one that has gone:
// whoever calls this has Velero start anew afterwards.
func kind(t *testing.T, c *cluster.Cluster, group, version, kind, plural string) {
	t.Helper()
	name := plural + "." + group
	install(t, c, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: `+name+`}
spec:
  group: `+group+`
  names: {kind: `+kind+`, listKind: `+kind+`List, plural: `+plural+`, singular: `+strings.ToLower(kind)+`}
  scope: Namespaced
  versions:
    - name: `+version+`
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`)
	t.Cleanup(func() {
		_, err := c.Kubectl(context.Background(), nil, "delete", "crd", name, "--timeout=30s")
		assert.NoError(t, err)
	})
	_, err := c.Kubectl(t.Context(), nil, "wait", "--for=condition=Established", "crd/"+name, "--timeout=30s")
	require.NoError(t, err)
}

func kanisterKind(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	kind(t, c, "cr.kanister.io", "v1alpha1", "Blueprint", "blueprints")
}

// databaseGroup is of Databases, a custom resource as an operator brings it along.
const databaseGroup = "e2e.stillpoint.io"

func databaseKind(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	kind(t, c, databaseGroup, "v1", "Database", "databases")
}

// A hook for every pod of a StatefulSet at once, with a password, as it is
// published for replica sets; what it puts out is undone by.
func testPublishedLockOfAllPods(t *testing.T, c *cluster.Cluster) {
	blueprint(t, c, `
metadata: {name: e2e-lock-all}
actions:
  backupPrehook:
    kind: StatefulSet
    outputArtifacts:
      lock: {keyValue: {token: "{{ .Phases.token.Output.token }}", owner: "{{ .StatefulSet.Name }}"}}
    phases:
      - func: KubeExec
        name: token
        args:
          namespace: "{{ .StatefulSet.Namespace }}"
          pod: "{{ index .StatefulSet.Pods 0 }}"
          command: [sh, -c, 'echo "###Phase-output###: {\"key\":\"token\",\"value\":\"t-42\"}"']
      - func: KubeExecAll
        name: lock
        objects:
          root: {kind: Secret, name: '{{ index .Object.metadata.labels "app.kubernetes.io/instance" }}-root', namespace: '{{ .StatefulSet.Namespace }}'}
        args:
          namespace: "{{ .StatefulSet.Namespace }}"
          pods: "{{ range .StatefulSet.Pods }} {{.}}{{end}}"
          containers: "db"
          command: [sh, -c, 'printf "lock %s %s\n" "{{ .Phases.token.Output.token }}" "{{ index .Phases.lock.Secrets.root.Data "password" | toString }}" >>/data/journal']
  backupPosthook:
    kind: StatefulSet
    inputArtifactNames: [lock]
    phases:
      - func: KubeExecAll
        name: unlock
        args:
          namespace: "{{ .StatefulSet.Namespace }}"
          pods: "{{ range .StatefulSet.Pods }} {{.}}{{end}}"
          containers: "db"
          command: [sh, -c, 'echo "unlock {{ .ArtifactsIn.lock.KeyValue.token }} of {{ .ArtifactsIn.lock.KeyValue.owner }}" >>/data/journal']
`)
	a := &app{t: t, c: c, namespace: c.Namespace(t, "e2e")}
	install(t, c, `
apiVersion: v1
kind: Secret
metadata: {name: shop-root, namespace: `+a.namespace+`}
stringData: {password: very-secret-word}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: db
  namespace: `+a.namespace+`
  labels: {app.kubernetes.io/instance: shop}
  annotations: {kanister.kasten.io/blueprint: e2e-lock-all, stillpoint.io/quiesce-timeout: 60s}
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
        - {name: db, image: `+cluster.Image+`, command: [sleep, infinity], volumeMounts: [{name: data, mountPath: /data}]}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
`)
	a.kubectl("rollout", "status", "statefulset/db", "--timeout=90s")
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	for _, pod := range []string{"db-0", "db-1"} {
		assert.Equal(t, "lock t-42 very-secret-word\nunlock t-42 of db\n", a.kubectl("exec", pod, "--", "cat", "/data/journal"))
	}
	assert.NotContains(t, b.log(), "very-secret-word")
}

// The workload itself is taken down, and comes back with as many pods as it had.
func testPublishedDownAndUp(t *testing.T, c *cluster.Cluster) {
	blueprint(t, c, `
metadata: {name: e2e-down}
actions:
  backupPrehook:
    type: Deployment
    outputArtifacts:
      before: {keyValue: {replicas: "{{ .Phases.down.Output.originalReplicaCount }}"}}
    phases:
      - func: ScaleWorkload
        name: down
        args: {namespace: '{{ index .Object.metadata "namespace" | toString  }}', kind: '{{ index .Object "kind" | toString  }}', name: '{{ .Object.metadata.name }}', replicas: 0}
  backupPosthook:
    phases:
      - func: ScaleWorkload
        name: up
        args: {namespace: '{{ .Object.metadata.namespace }}', kind: '{{ .Object.kind | lower }}', replicas: "{{ .ArtifactsIn.before.KeyValue.replicas }}"}
`)
	a := newApp(t, c, shape{annotations: map[string]string{"kanister.kasten.io/blueprint": "e2e-down", "stillpoint.io/quiesce-timeout": "60s"}, replicas: 2})
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	a.kubectl("rollout", "status", "deployment/app", "--timeout=60s")
	assert.Equal(t, "2", a.kubectl("get", "deployment", "app", "-o", "jsonpath={.spec.replicas}"))
	assert.Contains(t, b.log(), "Thawed Deployment "+a.namespace+"/app")
}

// An operator's hook: it stands on a custom resource, is the blueprint of the
// namespace itself, and so has no more rights than the account which it names.
// Its session is kept in a pod that it makes.
func testPublishedHookOfAnOperator(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{})
	install(t, c, strings.ReplaceAll(strings.ReplaceAll(`
apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata: {name: operator, namespace: NAMESPACE}
actions:
  backupPrehook:
    outputArtifacts:
      was: {keyValue: {mode: "{{ .Phases.ask.Output.mode }}"}}
    phases:
      - func: KubeTask
        name: ask
        args:
          namespace: '{{ .Object.metadata.namespace }}'
          image: IMAGE
          podOverride: {terminationGracePeriodSeconds: 1}
          command: [sh, -c, 'echo "###Phase-output###: {\"key\":\"mode\",\"value\":\"{{ .Object.spec.mode }}\"}"']
      - func: KubeOps
        name: pause
        args:
          operation: patch
          objectReference: {apiVersion: v1, group: e2e.stillpoint.io, resource: databases, name: '{{ .Object.metadata.name }}', namespace: '{{ .Object.metadata.namespace }}'}
          spec: |
            spec: {mode: paused}
      - func: WaitV2
        name: paused
        args:
          timeout: 30s
          conditions:
            anyOf:
              - condition: '{{ if eq $.spec.mode "paused" }}true{{ else }}false{{ end }}'
                objectReference: {apiVersion: v1, group: e2e.stillpoint.io, resource: databases, name: '{{ .Object.metadata.name }}', namespace: '{{ .Object.metadata.namespace }}'}
      - func: KubeOps
        name: session
        args:
          operation: create
          namespace: '{{ .Object.metadata.namespace }}'
          spec: |-
            apiVersion: v1
            kind: Pod
            metadata:
              name: {{ .Object.metadata.name }}-session
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 1
              containers:
                - {name: session, image: IMAGE, command: [sleep, infinity]}
      - func: WaitV2
        name: ready
        args:
          timeout: 60s
          conditions:
            anyOf:
              - condition: '{{ $ready := false }}{{ range $c := $.status.conditions }}{{ if and (eq .type "ContainersReady") (eq .status "True") }}{{ $ready = true }}{{ end }}{{ end }}{{ $ready }}'
                objectReference: {apiVersion: v1, resource: pods, name: '{{ .Object.metadata.name }}-session', namespace: '{{ .Object.metadata.namespace }}'}
      - func: KubeExec
        name: begin
        args: {namespace: '{{ .Object.metadata.namespace }}', pod: '{{ .Object.metadata.name }}-session', command: [touch, /tmp/begun]}
  backupPosthook:
    inputArtifactNames: [was]
    phases:
      - func: KubeExec
        name: end
        args: {namespace: '{{ .Object.metadata.namespace }}', pod: '{{ .Object.metadata.name }}-session', command: [test, -e, /tmp/begun]}
      - func: KubeOps
        name: remove
        args: {operation: delete, objectReference: {apiVersion: v1, resource: pods, name: '{{ .Object.metadata.name }}-session', namespace: '{{ .Object.metadata.namespace }}'}}
      - func: KubeOps
        name: resume
        args:
          operation: patch
          objectReference: {apiVersion: v1, group: e2e.stillpoint.io, resource: databases, name: '{{ .Object.metadata.name }}', namespace: '{{ .Object.metadata.namespace }}'}
          spec: |
            spec: {mode: "{{ .ArtifactsIn.was.KeyValue.mode }}"}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: hooks, namespace: NAMESPACE}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: hooks, namespace: NAMESPACE}
rules:
  - {apiGroups: [""], resources: [pods, pods/log], verbs: [create, get, list, delete]}
  - {apiGroups: [e2e.stillpoint.io], resources: [databases], verbs: [get, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: hooks, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: hooks}
subjects: [{kind: ServiceAccount, name: hooks, namespace: NAMESPACE}]
---
apiVersion: e2e.stillpoint.io/v1
kind: Database
metadata:
  name: main
  namespace: NAMESPACE
  annotations:
    kanister.kasten.io/blueprint: operator
    option.stillpoint.io/service-account: hooks
    stillpoint.io/quiesce-timeout: 60s
spec: {mode: busy}
`, "IMAGE", cluster.Image), "NAMESPACE", a.namespace))
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	assert.Contains(t, b.log(), "blueprints operator")
	assert.Equal(t, "busy", a.kubectl("get", "databases", "main", "-o", "jsonpath={.spec.mode}"))
	pods := a.kubectl("get", "pods", "-o", "name")
	assert.NotContains(t, pods, "main-session")
	assert.NotContains(t, pods, "kanister-job-")
}
