package e2e

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"

	"stillpoint.io/stillpoint/tests/cluster"
)

// loot is what nobody in another namespace may see.
const loot = "loot-of-the-victim"

// victim is a namespace with something in it that others want.
func victim(t *testing.T, c *cluster.Cluster) *app {
	t.Helper()
	v := &app{t: t, c: c, namespace: c.Namespace(t, "e2e-victim")}
	v.kubectl("create", "secret", "generic", "ledger", "--from-literal=password="+loot)
	v.kubectl("create", "configmap", "ledger", "--from-literal=state=untouched")
	v.kubectl("create", "deployment", "ledger", "--image="+cluster.Image, "--", "sh", "-c", "trap exit TERM; sleep infinity & wait")
	v.kubectl("rollout", "status", "deployment/ledger", "--timeout=60s")
	return v
}

// untouched tells whether all of it is as it was.
func (a *app) untouched() {
	a.t.Helper()
	assert.Equal(a.t, "untouched", a.kubectl("get", "configmap", "ledger", "-o", "jsonpath={.data.state}"))
	assert.Equal(a.t, "1", a.kubectl("get", "deployment", "ledger", "-o", "jsonpath={.status.readyReplicas}"))
	assert.Contains(a.t, a.kubectl("get", "secret", "-o", "name"), "secret/ledger")
	assert.Equal(a.t, 1, strings.Count(a.kubectl("get", "pods", "-o", "name"), "pod/"))
	assert.NotContains(a.t, a.kubectl("get", "configmap,rolebinding", "-o", "name"), "intruder")
	_, err := a.c.Kubectl(a.t.Context(), nil, "-n", a.namespace, "exec", "deployment/ledger", "--", "test", "!", "-e", "/tmp/intruder")
	assert.NoError(a.t, err)
}

// silent tells that nothing which people read of a namespace has the loot in it,
// nor the credentials of Velero's object store.
func (a *app) silent(since time.Time, more ...string) {
	a.t.Helper()
	credentials := strings.TrimSpace(a.velero("get", "secret", "cloud-credentials", "-o", "jsonpath={.data.cloud}"))
	require.NotEmpty(a.t, credentials)
	read := append(more,
		a.kubectl("get", "events", "-o", "yaml"),
		a.velero("logs", "deploy/velero", "--all-containers", fmt.Sprintf("--since-time=%s", since.UTC().Format(time.RFC3339))),
		a.velero("get", "secret", "-l", "stillpoint.io/intent", "-o", "yaml"),
	)
	for _, text := range read {
		assert.NotContains(a.t, text, loot)
		assert.NotContains(a.t, text, credentials)
		assert.NotContains(a.t, text, "aws_secret_access_key")
	}
}

func (a *app) velero(args ...string) string {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), 30*time.Second)
	defer cancel()
	output, err := a.c.Kubectl(ctx, nil, append([]string{"-n", cluster.VeleroNamespace}, args...)...)
	require.NoError(a.t, err)
	return output
}

// Whoever may write blueprints and annotations in one namespace tries to reach
// another one. Each attack is refused when the plan is made.
func testAttacksOnAnotherNamespace(t *testing.T, c *cluster.Cluster) {
	began := time.Now()
	v := victim(t, c)
	a := newApp(t, c, shape{annotations: map[string]string{"kanister.kasten.io/blueprint": "attack"}})
	pod := strings.TrimSpace(v.kubectl("get", "pods", "-o", "jsonpath={.items[0].metadata.name}"))
	own := `args: {namespace: "{{ .Deployment.Namespace }}", pod: "{{ index .Deployment.Pods 0 }}", command: [sh, -c, "echo {{ toJson .Secrets }} {{ toJson .Phases }}"]}`
	for name, attack := range map[string]struct {
		phase, action, annotation string
		wants                     string
	}{
		"a pod":                 {phase: `{func: KubeExec, name: p, args: {namespace: VICTIM, pod: POD, command: [touch, /tmp/intruder]}}`},
		"pods by an option":     {phase: `{func: KubeExecAll, name: p, args: {namespace: "{{ .Options.ns }}", pods: POD, containers: app, command: [touch, /tmp/intruder]}}`, annotation: "option.stillpoint.io/ns=VICTIM"},
		"a pod by a path":       {phase: `{func: KubeExec, name: p, args: {namespace: "{{ .Deployment.Namespace }}", pod: ../../VICTIM/pods/POD, command: [touch, /tmp/intruder]}}`, wants: "../../"},
		"a task":                {phase: `{func: KubeTask, name: p, args: {namespace: VICTIM, image: x, command: [x]}}`},
		"an object":             {phase: `{func: KubeOps, name: p, args: {operation: create, namespace: "{{ .Deployment.Namespace }}", spec: "{apiVersion: v1, kind: ConfigMap, metadata: {name: intruder, namespace: VICTIM}}"}}`},
		"an object by a value":  {phase: `{func: KubeOps, name: p, args: {operation: create, namespace: "{{ .Deployment.Namespace }}", spec: "{apiVersion: v1, kind: ConfigMap, metadata: {name: intruder{{ .Options.more }}}}"}}`, annotation: "option.stillpoint.io/more=, namespace: VICTIM", wants: "one scalar"},
		"a patch":               {phase: `{func: KubeOps, name: p, args: {operation: patch, spec: "{data: {state: touched}}", objectReference: {apiVersion: v1, resource: configmaps, name: ledger, namespace: VICTIM}}}`},
		"a deletion":            {phase: `{func: KubeOps, name: p, args: {operation: delete, objectReference: {apiVersion: v1, resource: secrets, name: ledger, namespace: VICTIM}}}`},
		"a deletion by a path":  {phase: `{func: KubeOps, name: p, args: {operation: delete, objectReference: {apiVersion: v1, resource: secrets, name: ../../VICTIM/secrets/ledger, namespace: "{{ .Deployment.Namespace }}"}}}`, wants: "../../"},
		"a deletion of all":     {phase: `{func: KubeOps, name: p, args: {operation: delete, objectReference: {apiVersion: v1, resource: namespaces, name: VICTIM}}}`},
		"rights":                {phase: `{func: KubeOps, name: p, args: {operation: create, spec: "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: e2e-intruder}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}"}}`},
		"replicas":              {phase: `{func: ScaleWorkload, name: p, args: {namespace: VICTIM, kind: deployment, name: ledger, replicas: 0}}`},
		"a wait":                {phase: `{func: WaitV2, name: p, args: {timeout: 1s, conditions: {anyOf: [{condition: '{{ eq (index .data "password") "x" }}', objectReference: {apiVersion: v1, resource: secrets, name: ledger, namespace: VICTIM}}]}}}`},
		"a secret":              {phase: `{func: KubeExec, name: p, objects: {x: {kind: Secret, name: ledger, namespace: VICTIM}}, ` + own + `}`},
		"Velero's secret":       {phase: `{func: KubeExec, name: p, objects: {x: {kind: Secret, name: cloud-credentials, namespace: velero}}, ` + own + `}`},
		"a secret by an option": {phase: `{func: KubeExec, name: p, ` + own + `}`, action: "secretNames: [x], ", annotation: "option.stillpoint.io/secret.x=../../VICTIM/secrets/ledger", wants: "../../"},
		"the environment":       {phase: `{func: KubeExec, name: '{{ env "PATH" }}', args: {namespace: "{{ .Deployment.Namespace }}", pod: "{{ index .Deployment.Pods 0 }}", command: ['{{ env "AWS_SHARED_CREDENTIALS_FILE" }}']}}`, wants: "refused"},
		"memory":                {phase: `{func: KubeExec, name: p, args: {namespace: "{{ .Deployment.Namespace }}", pod: x, command: ['{{ $x := repeat 1000000 "x" }}{{ printf (repeat 10000 "%[1]s") $x }}']}}`, wants: "too much memory"},
	} {
		t.Run(name, func(t *testing.T) {
			names := strings.NewReplacer("VICTIM", v.namespace, "POD", pod)
			install(t, c, fmt.Sprintf("{apiVersion: cr.kanister.io/v1alpha1, kind: Blueprint, metadata: {name: attack, namespace: %s}, actions: {backupPrehook: {%sphases: [%s]}}}",
				a.namespace, attack.action, names.Replace(attack.phase)))
			if attack.annotation != "" {
				key, value, _ := strings.Cut(names.Replace(attack.annotation), "=")
				a.kubectl("annotate", "deployment", "app", key+"="+value)
				defer a.kubectl("annotate", "deployment", "app", key+"-")
			}
			said, code := runCheck(t, "--namespace", a.namespace, "--output", "json")
			assert.Equal(t, 1, code, said)
			assert.Contains(t, said, "attack")
			if attack.wants == "" {
				attack.wants = "out of reach"
			}
			assert.Contains(t, said, attack.wants)
			assert.NotContains(t, said, loot)
			assert.NotContains(t, said, "aws_")
		})
	}

	// What a tenant's annotation can name is not another tenant's blueprint.
	install(t, c, strings.Replace(execBlueprint("theirs", "app", "true", "true"), "metadata:", "metadata:\n  namespace: "+v.namespace, 1))
	for _, blueprint := range []string{"theirs", v.namespace + "/theirs", "../" + v.namespace + "/theirs"} {
		a.kubectl("annotate", "--overwrite", "deployment", "app", "kanister.kasten.io/blueprint="+blueprint)
		said, code := runCheck(t, "--namespace", a.namespace)
		assert.Equal(t, 1, code, said)
	}
	// One's own fsfreeze is one's own, and no wider for its name.
	install(t, c, strings.Replace(execBlueprint("fsfreeze", "app", "true", "true"), "metadata:", "metadata:\n  namespace: "+a.namespace, 1))
	a.kubectl("annotate", "deployment", "app", "kanister.kasten.io/blueprint-", "stillpoint.io/quiesce=fsfreeze")
	said, _ := runCheck(t, "--namespace", a.namespace)
	assert.Contains(t, said, "Blueprint "+a.namespace+"/fsfreeze")
	a.silent(began)
	v.untouched()
}

// What is known only when a phase has run is refused then; what a tenant may do
// in the own namespace ends where the rights of its account end; and what an
// administrator shares cannot be steered elsewhere. One backup, three workloads.
func testAttacksWhileABackupRuns(t *testing.T, c *cluster.Cluster) {
	began := time.Now()
	v := victim(t, c)
	journal := `{func: KubeExec, name: undo, args: {namespace: "{{ .Deployment.Namespace }}", pod: "{{ index .Deployment.Pods 0 }}", container: sidecar, command: [sh, -c, "echo undone >>/run/journal"]}}`
	find := `{func: KubeExec, name: find, args: {namespace: "{{ .Deployment.Namespace }}", pod: "{{ index .Deployment.Pods 0 }}", container: sidecar, command: [sh, -c, 'echo "###Phase-output###: {\"key\":\"ns\",\"value\":\"` + v.namespace + `\"}"']}}`
	create := func(namespace string) string {
		return `{func: KubeOps, name: create, args: {operation: create, namespace: "` + namespace + `", spec: "{apiVersion: v1, kind: ConfigMap, metadata: {name: intruder}}"}}`
	}
	blueprint(t, c, `{metadata: {name: e2e-shared}, actions: {backupPrehook: {phases: [`+create("{{ .Options.ns }}")+`]}, backupPosthook: {phases: [`+journal+`]}}}`)
	option := map[string]string{"stillpoint.io/quiesce": "e2e-shared", "option.stillpoint.io/ns": v.namespace}
	a := newApp(t, c, shape{annotations: map[string]string{"kanister.kasten.io/blueprint": "late"}})
	own := func(name, phases string) {
		install(t, c, `{apiVersion: cr.kanister.io/v1alpha1, kind: Blueprint, metadata: {name: `+name+`, namespace: `+a.namespace+`}, actions: {backupPrehook: {phases: [`+phases+`]}, backupPosthook: {phases: [`+journal+`]}}}`)
	}
	own("late", find+", "+create("{{ .Phases.find.Output.ns }}"))
	own("rights", `{func: KubeOps, name: bind, args: {operation: create, spec: "{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: intruder}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}, subjects: [{kind: ServiceAccount, name: default}]}"}}`)
	a.deploy("rights", shape{annotations: map[string]string{"kanister.kasten.io/blueprint": "rights"}})
	a.deploy("steered", shape{annotations: option})

	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(2*limit), b.log())
	errors := said(b.log(), "error")
	for _, want := range []string{
		"blueprint late, phase create", fmt.Sprintf(`namespace \"%s\" is out of reach`, v.namespace),
		"rolebindings.rbac.authorization.k8s.io is forbidden", "e2e-shared",
	} {
		assert.Contains(t, errors, want)
	}
	assert.Equal(t, "undone\n", a.kubectl("exec", "deployment/app", "-c", "sidecar", "--", "cat", "/run/journal"), "what had begun was not undone")
	assert.NotContains(t, a.kubectl("get", "rolebinding,configmap", "-o", "name"), "intruder")
	a.silent(began, b.log())
	v.untouched()
}

// A recipe's password is in the environment of its client alone: in no list of
// processes while it runs, and in no request.
func testPasswordIsInNoListOfProcesses(t *testing.T, c *cluster.Cluster) {
	blueprint(t, c, `
metadata: {name: e2e-hold}
actions:
  backupPrehook:
    phases:
      - func: HoldSession
        name: hold
        objects: {login: {kind: Secret, name: login, namespace: '{{ .Object.metadata.namespace }}'}}
        args:
          container: sidecar
          env: {PASSWORD: '{{ index .Phases.hold.Secrets.login.Data "password" | toString }}'}
          command: [sh, -c, 'printf %s "$PASSWORD" >/run/given; while read -r line; do eval "$line"; done']
          begin: "echo 'stillpoint: held'\n"
          end: "echo 'stillpoint: released'\n"
  backupPosthook:
    phases:
      - {func: ReleaseSession, name: release, args: {phase: hold}}
`)
	a := newApp(t, c, shape{annotations: map[string]string{"stillpoint.io/quiesce": "e2e-hold"}})
	a.kubectl("create", "secret", "generic", "login", "--from-literal=password="+loot+"'$x")
	began := time.Now()
	var listed, environments int
	done := make(chan struct{})
	go func() {
		defer close(done)
		for time.Since(began) < limit {
			arguments, with := processesWith(loot)
			listed, environments = listed+arguments, environments+with
			if environments > 0 && with == 0 {
				return // it has come and gone
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	<-done
	assert.Positive(t, environments, "the client was never seen, so that nothing is proven")
	assert.Zero(t, listed, "the password stands in a list of processes")
	assert.Equal(t, loot+"'$x", a.kubectl("exec", "deployment/app", "-c", "sidecar", "--", "cat", "/run/given"))
	requests, err := c.VeleroRequests(began, time.Now())
	require.NoError(t, err)
	execs := 0
	for _, request := range requests {
		uri, err := url.QueryUnescape(request.URI)
		require.NoError(t, err)
		assert.NotContains(t, uri, loot)
		if request.Resource == "pods/exec" {
			execs++
		}
	}
	assert.Positive(t, execs)
	a.silent(began, b.log())
}

// processesWith counts the processes of this machine, which is the node, with a
// text in their arguments and in their environment.
func processesWith(text string) (arguments, environments int) {
	lists, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, 0
	}
	for _, list := range lists {
		line, _ := os.ReadFile(list)
		// kubectl has made the Secret of it.
		if strings.Contains(string(line), text) && !strings.Contains(string(line), "kubectl") {
			arguments++
		}
		environ, _ := os.ReadFile(filepath.Join(filepath.Dir(list), "environ"))
		if strings.Contains(string(environ), "PASSWORD="+text) {
			environments++
		}
	}
	return arguments, environments
}
