package faults

import (
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/uuid"

	"stillpoint.io/stillpoint/tests/fake"
)

const preHook, postHook, oldHook = "pre.hook.backup.velero.io/command", "post.hook.backup.velero.io/command", "hook.backup.velero.io/command"

// hooks are Velero's own, as its documentation has them.
var hooks = map[string]string{preHook: `["/sbin/fsfreeze", "--freeze", "/data0", "s3cret"]`, postHook: `["/sbin/fsfreeze", "--unfreeze", "/data0"]`}

func hooked(annotations map[string]string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Annotations = annotations }
}

// specHooks are hooks of a Backup for the pods with label app=db.
func specHooks(change ...func(*velerov1.BackupResourceHookSpec)) func(*velerov1.Backup) {
	exec := func(words ...string) []velerov1.BackupResourceHook {
		return []velerov1.BackupResourceHook{{Exec: &velerov1.ExecHook{Command: words}}}
	}
	spec := velerov1.BackupResourceHookSpec{
		Name: "freeze-db", LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
		PreHooks: exec("fsfreeze", "--freeze", "/data0"), PostHooks: exec("fsfreeze", "--unfreeze", "/data0"),
	}
	for _, f := range change {
		f(&spec)
	}
	return func(backup *velerov1.Backup) { backup.Spec.Hooks.Resources = []velerov1.BackupResourceHookSpec{spec} }
}

// A Velero that works on item blocks (processing of a backup and actions of Velero
// 1.18: pkg/backup/backup.go, pkg/itemblock/actions): pods first, with their claims
// and what the plugin relates, then the claims that are left. run runs the hooks of
// a block's pods.
func inBlocks(bed *fake.Bed, v *fake.Velero, backup *velerov1.Backup, run func(pod *corev1.Pod, pre bool)) (*fake.Result, [][]string) {
	v.Begin()
	r := fake.NewResult()
	claims := func(pod *corev1.Pod) []string { // of generic ephemeral volumes it knows nothing
		var names []string
		for _, volume := range pod.Spec.Volumes {
			if volume.PersistentVolumeClaim != nil {
				names = append(names, volume.PersistentVolumeClaim.ClaimName)
			}
		}
		return names
	}
	objects := map[velero.ResourceIdentifier]*unstructured.Unstructured{}
	pods := map[string]*corev1.Pod{}
	var order []velero.ResourceIdentifier
	for _, resource := range []string{"pods", "persistentvolumeclaims"} {
		for _, object := range bed.API.All(resource) {
			id := velero.ResourceIdentifier{GroupResource: kuberesource.Pods, Namespace: object.GetNamespace(), Name: object.GetName()}
			id.Resource = resource
			objects[id], order = &object, append(order, id)
			if resource == "pods" {
				pods[id.Name] = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: id.Namespace, Name: id.Name}}
				bed.API.Get(bed.T, pods[id.Name])
			}
		}
	}
	done := map[velero.ResourceIdentifier]bool{}
	var block []velero.ResourceIdentifier
	var add func(id velero.ResourceIdentifier)
	add = func(id velero.ResourceIdentifier) {
		if done[id] || objects[id] == nil {
			return
		}
		done[id], block = true, append(block, id)
		of := func(resource, name string) velero.ResourceIdentifier {
			other := id
			other.Resource, other.Name = resource, name
			return other
		}
		if id.Resource == "pods" {
			for _, name := range claims(pods[id.Name]) {
				add(of("persistentvolumeclaims", name))
			}
		} else {
			for name, pod := range pods {
				if slices.Contains(claims(pod), id.Name) {
					add(of("pods", name))
				}
			}
		}
		related, err := v.Pods.GetRelatedItems(objects[id], backup)
		require.NoError(bed.T, err)
		for _, other := range related {
			add(other)
		}
	}
	var blocks [][]string
	for _, id := range order {
		if block = nil; done[id] {
			continue
		}
		add(id)
		var names []string
		for _, pre := range []bool{true, false} {
			for _, item := range block {
				if item.Resource == "pods" {
					run(pods[item.Name], pre)
				}
			}
			for _, item := range block {
				if pre && item.Resource != "pods" {
					v.BackUpClaim(backup, item.Namespace, item.Name, r)
				}
			}
		}
		for _, item := range block {
			names = append(names, item.Name)
		}
		blocks = append(blocks, names)
	}
	v.Progress(backup, r)
	return r, blocks
}

// claimOf makes a claim of that name, which no pod mounts yet.
func claimOf(bed *fake.Bed, name string) {
	bed.Deploy(fake.App{Name: name, Kind: "Pod", Claim: func(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
		claim.Name, volume.Spec.ClaimRef.Name = name, name
	}})
	bed.API.Delete("pods", "shop", name)
}

// daemonSet is one with a generic ephemeral volume in each pod.
func daemonSet(bed *fake.Bed, annotations map[string]string) {
	set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: uuid.NewUUID()}}
	bed.API.Put(bed.T, set)
	for _, name := range []string{"db-x", "db-y", "db-z"} {
		claimOf(bed, name+"-data0")
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop", Name: name, UID: uuid.NewUUID(), Labels: map[string]string{"app": "db"}, Annotations: annotations,
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("DaemonSet"))},
			},
			Spec: corev1.PodSpec{
				NodeName:   fake.NodeName,
				Containers: []corev1.Container{{Name: "main", VolumeMounts: []corev1.VolumeMount{{Name: "data0", MountPath: "/data0"}}}},
				Volumes:    []corev1.Volume{{Name: "data0", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}},
			},
		}
		fake.Started(pod)
		bed.RunPod(pod)
	}
}

// Where nothing of ours is asked for, Velero's own hooks run around the volumes of
// their pods, also if a volume policy hands these to Stillpoint.
func TestVelerosHooksRunAroundTheirVolumes(t *testing.T) {
	t.Parallel()
	set := func(annotations map[string]string) func(*fake.Bed) {
		return func(bed *fake.Bed) {
			bed.Deploy(fake.App{Kind: "StatefulSet", Replicas: 3, Pod: hooked(annotations)})
		}
	}
	for name, test := range map[string]struct {
		deploy func(*fake.Bed)
		backup func(*velerov1.Backup)
	}{
		"annotations":       {set(hooks), func(*velerov1.Backup) {}},
		"an old annotation": {set(map[string]string{oldHook: "/freeze"}), func(*velerov1.Backup) {}},
		"spec.hooks of the backup": {
			func(bed *fake.Bed) { bed.Deploy(fake.App{Kind: "StatefulSet", Replicas: 3}) }, specHooks(),
		},
		"a DaemonSet with ephemeral volumes": {func(bed *fake.Bed) { daemonSet(bed, hooks) }, func(*velerov1.Backup) {}},
		"ephemeral volumes and spec.hooks":   {func(bed *fake.Bed) { daemonSet(bed, nil) }, specHooks()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			test.deploy(bed)
			v := bed.Velero()
			_, blocks := inBlocks(bed, v, bed.Backup(fake.WithPolicy, test.backup), func(pod *corev1.Pod, pre bool) {
				claim := pod.Name + "-data0"
				if pod.Spec.Volumes[0].PersistentVolumeClaim != nil {
					claim = pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName
				}
				fs := bed.Node.FileSystem("shop", claim)
				if pre {
					require.NoError(t, fs.Freeze())
				} else {
					require.NoError(t, fs.Thaw())
				}
			})
			assert.Empty(t, v.Errors())
			assert.Len(t, blocks, 3, "%v", blocks) // hooks of one pod do not last for all
			require.Len(t, bed.Storage.Snapshots(), 3)
			for _, snapshot := range bed.Storage.Snapshots() {
				assert.True(t, snapshot.Frozen, "cut between the hooks")
			}
		})
	}
}

// Without hooks all volumes of a workload are snapshotted at once.
func TestVolumesWithoutHooksAreTakenTogether(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Kind: "StatefulSet", Replicas: 3})
	v := bed.Velero()
	v.Begin()
	v.BackUpClaim(bed.Backup(fake.WithPolicy, specHooks(func(spec *velerov1.BackupResourceHookSpec) {
		spec.LabelSelector.MatchLabels["app"] = "other"
	})), "shop", app.Claims[0], fake.NewResult())
	assert.Len(t, bed.API.All("volumesnapshots"), 3)
}

// What is frozen together is in one block, claims of ephemeral volumes included.
func TestEphemeralVolumesAreFrozenWithTheirPods(t *testing.T) {
	t.Parallel()
	for path, change := range paths {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			claimOf(bed, "db-scratch")
			bed.Deploy(fake.App{Name: "aaa", Kind: "Pod"}) // comes between in the order of the alphabet
			bed.Deploy(fake.App{Kind: "Pod", Annotations: fsfreeze, Pod: func(pod *corev1.Pod) {
				pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}})
				pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "scratch", MountPath: "/scratch"})
			}})
			v := bed.Velero()
			_, blocks := inBlocks(bed, v, bed.Backup(change), func(*corev1.Pod, bool) {})
			assert.Empty(t, v.Errors())
			assert.Equal(t, [][]string{{"aaa", "aaa-data0"}, {"db", "db-data0", "db-scratch"}}, blocks)
			frozen := slices.DeleteFunc(bed.Storage.Snapshots(), func(s fake.Snapshot) bool { return !s.Frozen })
			assert.Len(t, frozen, 2)
		})
	}
}

// What else quiesces the same pods is named by check, and by the backup before the
// freeze. A hook's command may have a password, and is not shown.
func TestOtherFreezersAreNamed(t *testing.T) {
	t.Parallel()
	k10 := func(bed *fake.Bed) {
		bed.API.AddKind(fake.Kind{Group: "config.kio.kasten.io", Version: "v1alpha1", Kind: "Policy", Resource: "policies", Namespaced: true})
	}
	noop := func(*velerov1.Backup) {}
	for name, test := range map[string]struct {
		pod    map[string]string // annotations
		labels map[string]string
		app    map[string]string // annotations of the Deployment
		backup func(*velerov1.Backup)
		before func(*fake.Bed)
		words  []string // nil where nothing is to be told
		// fails reports that the freeze fails, as foretold.
		fails bool
	}{
		"annotations":       {pod: hooks, backup: noop, words: []string{"Velero runs hooks in db-6d4f-a (annotation " + preHook + ", which freezes file systems"}},
		"a post hook alone": {pod: map[string]string{postHook: "x"}, backup: noop, words: []string{"annotation " + postHook}},
		"an old annotation": {pod: map[string]string{oldHook: "x"}, backup: noop, words: []string{"annotation " + oldHook}},
		"spec.hooks":        {backup: specHooks(), words: []string{`spec.hooks of the backup, "freeze-db", which freezes file systems`}},
		"spec.hooks for pods": {
			backup: specHooks(func(s *velerov1.BackupResourceHookSpec) { s.IncludedResources = []string{"po"} }), words: []string{"freeze-db"},
		},
		"spec.hooks for other resources":  {backup: specHooks(func(s *velerov1.BackupResourceHookSpec) { s.IncludedResources = []string{"deployments"} })},
		"spec.hooks for other namespaces": {backup: specHooks(func(s *velerov1.BackupResourceHookSpec) { s.ExcludedNamespaces = []string{"sh*"} })},
		"spec.hooks for other pods":       {backup: specHooks(func(s *velerov1.BackupResourceHookSpec) { s.LabelSelector.MatchLabels["app"] = "web" })},
		"an annotation goes before spec.hooks": {
			pod: map[string]string{preHook: "x", postHook: "y"}, backup: specHooks(), words: []string{"annotation " + preHook},
		},
		"KubeVirt": {
			pod:    map[string]string{preHook: `["/usr/bin/virt-freezer", "--freeze", "--name", "vm", "--namespace", "shop"]`},
			labels: map[string]string{"kubevirt.io": "virt-launcher"}, backup: noop, words: []string{"which freezes file systems, for KubeVirt"},
		},
		"K10": {
			app: map[string]string{"kanister.kasten.io/blueprint": "fsfreeze"}, before: k10, backup: noop,
			words: []string{"Kasten K10 is installed and runs blueprint fsfreeze", "Deployment shop/db"},
		},
		"K10 that is gone": {app: map[string]string{"kanister.kasten.io/blueprint": "fsfreeze"}, backup: noop},
		"K10's blueprint beside fsfreeze": {
			app:    map[string]string{"kanister.kasten.io/blueprint": "freeze-hooks", "stillpoint.io/quiesce": "fsfreeze"},
			before: kanister, backup: noop, words: []string{"phase pre of blueprint freeze-hooks runs fsfreeze", "Name one of the two"}, fails: true,
		},
		"none": {backup: noop},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			if test.before != nil {
				test.before(bed)
			}
			annotations := test.app
			if annotations == nil {
				annotations = fsfreeze
			}
			app := bed.Deploy(fake.App{Annotations: annotations, Pod: func(pod *corev1.Pod) {
				pod.Annotations = test.pod
				for key, value := range test.labels {
					pod.Labels[key] = value
				}
			}})
			backup := bed.Backup(fake.WithPolicy, test.backup)
			bed.API.Put(t, &velerov1.Schedule{
				ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "nightly"},
				Spec:       velerov1.ScheduleSpec{Template: backup.Spec, Schedule: "@daily"},
			})
			_, said, _ := bed.Command("check", "-n", "shop", "--schedule", "nightly")
			if test.fails {
				for _, word := range test.words {
					assert.Contains(t, said, word)
				}
				return
			}
			v := bed.Velero()
			v.Backup(backup, app)
			warned := strings.Join(v.Lines(logrus.WarnLevel), "\n")
			if test.words == nil {
				assert.NotContains(t, said, "Quiesced twice")
				assert.NotContains(t, warned, "Quiesced twice")
				return
			}
			for _, word := range test.words {
				assert.Contains(t, said, "WARNING: Quiesced twice")
				assert.Contains(t, said, word)
				assert.Contains(t, warned, word)
			}
			assert.NotContains(t, said+warned, "s3cret")
			lines := v.Lines(logrus.InfoLevel)
			first := func(begin string) int {
				return slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, begin) })
			}
			assert.Less(t, first("Quiesced twice"), first("Quiescing"), "%v", lines)
		})
	}
}
