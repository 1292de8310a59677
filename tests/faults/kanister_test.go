package faults

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/tests/fake"
)

// blueprint puts a document into Velero's namespace, as one without Kanister's CRD has it.
func blueprint(t *testing.T, bed *fake.Bed, document string) {
	t.Helper()
	bed.API.Put(t, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "blueprints", Labels: map[string]string{"stillpoint.io/blueprint": ""}},
		Data:       map[string]string{"mine.yaml": document},
	})
}

// k10 is the annotation that users of Kasten K10 have already.
var k10 = map[string]string{"kanister.kasten.io/blueprint": "mine"}

// 38a: a blueprint with backup and restore actions only has nothing to run. It fails
// nothing, and the backup says what to do.
func TestBlueprintWithoutHooksFailsNothing(t *testing.T) {
	t.Parallel()
	const onlyBackups = "{metadata: {name: mine}, actions: {backup: {phases: []}, restore: {phases: []}, delete: {phases: []}}}"
	want := []string{"Nothing is quiesced by blueprint mine", "Deployment shop/db", "neither backupPrehook nor backupPosthook", "backup, delete, restore", "stillpoint.io/quiesce", "postgresql", "remove"}
	for path, change := range map[string]func(*velerov1.Backup){"group": fake.WithPolicy, "around Velero's": func(*velerov1.Backup) {}} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			blueprint(t, bed, onlyBackups)
			app := bed.Deploy(fake.App{Annotations: k10})
			v := bed.Velero()
			r := v.Backup(bed.Backup(change), app)
			assert.Empty(t, r.Dropped)
			assert.Empty(t, v.Errors())
			assert.Len(t, bed.Storage.Snapshots(), 1)
			assert.True(t, v.Said(logrus.WarnLevel, want...), v.Lines(logrus.WarnLevel))
			assert.Empty(t, bed.Events("Quiesced"), "nothing was quiesced")
			assert.False(t, v.Said(logrus.InfoLevel, "Quiesced"))

			code, said := checked(bed)
			assert.Zero(t, code, said)
			for _, word := range want {
				assert.Contains(t, said, word)
			}
		})
	}
	t.Run("location", func(t *testing.T) {
		t.Parallel()
		bed := fake.New(t)
		blueprint(t, bed, onlyBackups)
		app := bed.Deploy(fake.App{Annotations: k10})
		l := bed.Locating(nil)
		backup := bed.Backup()
		l.Begin()
		volume := bed.API.All("persistentvolumes")[0]
		id, err := l.Snapshotter.GetVolumeID(&volume)
		require.NoError(t, err)
		require.Len(t, app.Claims, 1)
		_, err = l.Snapshotter.CreateSnapshot(id, "", map[string]string{"velero.io/backup": backup.Name, "velero.io/pv": volume.GetName()})
		require.NoError(t, err)
		assert.Len(t, bed.Storage.Snapshots(), 1)
	})
	t.Run("beside one that has hooks", func(t *testing.T) {
		t.Parallel()
		bed := fake.New(t)
		blueprint(t, bed, onlyBackups)
		app := bed.Deploy(fake.App{Annotations: map[string]string{"kanister.kasten.io/blueprint": "mine", "stillpoint.io/quiesce": "fsfreeze"}})
		v := bed.Velero()
		v.Backup(bed.Backup(fake.WithPolicy), app)
		assert.Empty(t, v.Errors())
		require.Len(t, bed.Storage.Snapshots(), 1)
		assert.True(t, bed.Storage.Snapshots()[0].Frozen)
		assert.True(t, v.Said(logrus.WarnLevel, want...))
	})
	// Who has misspelled a hook wants it to run.
	t.Run("a hook that is misspelled", func(t *testing.T) {
		t.Parallel()
		bed := fake.New(t)
		blueprint(t, bed, "{metadata: {name: mine}, actions: {backup: {phases: []}, backupPreHook: {phases: []}}}")
		app := bed.Deploy(fake.App{Annotations: k10})
		v := bed.Velero()
		v.Backup(bed.Backup(fake.WithPolicy), app)
		assert.NotEmpty(t, v.Errors())
		assert.Empty(t, bed.Storage.Snapshots())
	})
}

// 38b: .DeploymentConfig is the DeploymentConfig, wherever the annotation stands, with
// the pods of its current deployment.
func TestTemplatesSeeDeploymentConfig(t *testing.T) {
	t.Parallel()
	for name, annotated := range map[string]int{"on the DeploymentConfig": 0, "on the pod": -1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			bed.API.AddKind(openshift)
			bed.API.Put(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
			blueprint(t, bed, `
metadata: {name: mine}
actions:
  backupPrehook:
    phases:
      - func: KubeExec
        name: pre
        args:
          namespace: '{{ .DeploymentConfig.Namespace }}'
          pod: '{{ index .DeploymentConfig.Pods 0 }}'
          command: [touch, '/tmp/{{ .DeploymentConfig.Name }}']
`)
			app := chained(t, bed, annotated, [2]string{"apps.openshift.io/v1", "DeploymentConfig"}, [2]string{"v1", "ReplicationController"})
			kind := map[bool]string{true: "pods", false: "deploymentconfigs"}[annotated < 0]
			bed.API.Update(kind, "shop", map[bool]string{true: "db-x", false: "db"}[annotated < 0], annotate(k10))
			code, said := checked(bed)
			assert.Zero(t, code, said)
			assert.Contains(t, said, "db-x/main: touch /tmp/db")
			v := bed.Velero()
			v.Backup(bed.Backup(fake.WithPolicy), app)
			assert.Empty(t, v.Errors())
		})
	}
}

// 38d: actions that K10 runs and Stillpoint does not are named.
func TestDroppedActionsAreNamed(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	blueprint(t, bed, "{metadata: {name: mine}, actions: {backupPrehook: {phases: []}, restorePrehook: {phases: []}, restorePosthook: {phases: []}, delete: {phases: []}}}")
	app := bed.Deploy(fake.App{Annotations: k10})
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.Empty(t, v.Errors())
	want := []string{"blueprint mine (ConfigMap velero/blueprints (key mine.yaml))", "actions that do not run here: delete, restorePosthook, restorePrehook", "Velero's restore hooks"}
	assert.True(t, v.Said(logrus.WarnLevel, want...), v.Lines(logrus.WarnLevel))
	_, said := checked(bed)
	for _, word := range want {
		assert.Contains(t, said, word)
	}
}

// 38f: an operator annotates the one pod of its cluster that is to be backed up. That
// pod is quiesced, and the others are snapshotted as they are.
func TestOnePodOfAClusterIsAnnotated(t *testing.T) {
	t.Parallel()
	for name, chain := range map[string][][2]string{
		"pods of a custom resource": {{"apps.kruise.io/v1alpha1", "CloneSet"}},
		"pods of a StatefulSet":     {{"apps/v1", "StatefulSet"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			bed.API.AddKind(kruise)
			bed.API.Put(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
			first := chained(t, bed, -1, chain...)
			second := bed.Deploy(fake.App{Kind: "Pod", Name: "db-y", Pod: func(pod *corev1.Pod) {
				owner := first.Pods[0].OwnerReferences[0]
				owner.Controller = ptr.To(true)
				pod.OwnerReferences = []metav1.OwnerReference{owner}
				pod.Annotations = k10
			}})
			blueprint(t, bed, `
metadata: {name: mine}
actions:
  backupPrehook:
    phases: [{func: KubeExec, name: pre, args: {namespace: '{{ .Namespace.Name }}', pod: db-y, command: [fsfreeze, --freeze, /data0]}}]
  backupPosthook:
    phases: [{func: KubeExec, name: post, args: {namespace: '{{ .Namespace.Name }}', pod: db-y, command: [fsfreeze, --unfreeze, /data0]}}]
`)
			code, said := checked(bed)
			assert.Zero(t, code, said)
			v := bed.Velero()
			v.Backup(bed.Backup(fake.WithPolicy), first, second)
			assert.Empty(t, v.Errors())
			require.Len(t, bed.Storage.Snapshots(), 2)
			for _, snapshot := range bed.Storage.Snapshots() {
				assert.Equal(t, snapshot.Volume == handleOf(bed, second.Claims[0]), snapshot.Frozen)
			}
		})
	}
}

// 38c: a pod that cannot be made is an error of the plan, which check makes, too.
func TestTaskPodThatCannotBeMade(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ args, want string }{
		"KubeTask in kasten-io":               {"func: KubeTask, args: {namespace: kasten-io, image: app:1, command: ['true']}", `namespace "kasten-io" does not exist`},
		"MultiContainerRun in kasten-io":      {"func: MultiContainerRun, args: {namespace: kasten-io, backgroundImage: i, backgroundCommand: [c], outputImage: i, outputCommand: [c]}", `namespace "kasten-io" does not exist`},
		"KubeOps in kasten-io":                {"func: KubeOps, args: {operation: create, namespace: kasten-io, spec: '{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}'}", `namespace "kasten-io" does not exist`},
		"with an account that does not exist": {"func: KubeTask, args: {image: app:1, command: ['true'], podOverride: {serviceAccountName: k10-k10}}", `namespace shop has no such ServiceAccount`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			blueprint(t, bed, "{metadata: {name: mine}, actions: {backupPrehook: {phases: [{name: task, "+test.args+"}]}}}")
			bed.Deploy(fake.App{Annotations: k10})
			code, said := checked(bed)
			assert.Equal(t, 1, code)
			assert.Contains(t, said, test.want)
		})
	}
}

// 38e: a spec of several documents, or of kind List, creates all of them, and the
// output is the last one's reference.
func TestKubeOpsCreatesSeveralObjects(t *testing.T) {
	t.Parallel()
	const first, second = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: first}\ndata: {of: '{{ .Object.metadata.name }}'}\n", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: second, namespace: shop}\n"
	for name, spec := range map[string]string{
		"documents": "---\n" + first + "---\n" + second,
		"a List":    "apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(strings.TrimSpace(first), "\n", "\n  ") + "\n- " + strings.ReplaceAll(strings.TrimSpace(second), "\n", "\n  ") + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			text, err := json.Marshal(spec)
			require.NoError(t, err)
			blueprint(t, bed, `{metadata: {name: mine}, actions: {backupPrehook: {phases: [
				{func: KubeOps, name: make, args: {operation: create, namespace: shop, spec: `+string(text)+`}},
				{func: KubeExec, name: tell, args: {namespace: shop, pod: db-6d4f-a, command: [sh, -c, 'echo "###Phase-output###: {\"key\": \"a\", \"value\": \"b\"}"; exit {{ if eq .Phases.make.Output.name "second" }}0{{ else }}1{{ end }}']}}]}}}`)
			app := bed.Deploy(fake.App{Annotations: k10})
			code, said := checked(bed)
			assert.Zero(t, code, said)
			assert.Contains(t, said, "create ConfigMap shop/first, create ConfigMap shop/second")
			v := bed.Velero()
			v.Backup(bed.Backup(fake.WithPolicy), app)
			assert.Empty(t, v.Errors())
			var made []string
			for _, object := range bed.API.All("configmaps") {
				if object.GetNamespace() == "shop" {
					made = append(made, object.GetName())
				}
			}
			assert.Equal(t, []string{"first", "second"}, made)
		})
	}
}

// A value of an annotation adds no document.
func TestAnnotationAddsNoDocument(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	blueprint(t, bed, `{metadata: {name: mine}, actions: {backupPrehook: {phases: [
		{func: KubeOps, name: make, args: {operation: create, namespace: shop, spec: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: first}\n{{ .Options.more }}"}}]}}}`)
	app := bed.Deploy(fake.App{Annotations: map[string]string{
		"kanister.kasten.io/blueprint": "mine", "option.stillpoint.io/more": "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: evil}\n",
	}})
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.True(t, v.Said(logrus.ErrorLevel, "may fill one scalar only"), v.Errors())
}

// 38g: `kubectl get blueprints -o yaml` prints a List.
func TestBlueprintsInAList(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"List", "BlueprintList"} {
		bed := fake.New(t)
		blueprint(t, bed, `
apiVersion: v1
kind: `+kind+`
items:
- apiVersion: cr.kanister.io/v1alpha1
  kind: Blueprint
  metadata: {name: other}
  actions: {backupPrehook: {phases: []}}
- apiVersion: cr.kanister.io/v1alpha1
  kind: Blueprint
  metadata: {name: mine, namespace: kasten-io}
  actions:
    backupPrehook: {phases: [{func: FreezeFileSystems, name: freeze, args: {}}]}
    backupPosthook: {phases: [{func: ThawFileSystems, name: thaw, args: {}}]}
`)
		app := bed.Deploy(fake.App{Annotations: k10})
		v := bed.Velero()
		v.Backup(bed.Backup(fake.WithPolicy), app)
		assert.Empty(t, v.Errors())
		require.Len(t, bed.Storage.Snapshots(), 1)
		assert.True(t, bed.Storage.Snapshots()[0].Frozen)
	}
}
