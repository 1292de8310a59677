package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/journal"
	"stillpoint.io/stillpoint/internal/node"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/workload"
)

// fakeTasks stands in for tasks and nodes. It fails as often as configured.
type fakeTasks struct {
	mu       sync.Mutex
	failures int
	err      error
	done     []string
}

func (d *fakeTasks) do(what string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failures > 0 {
		d.failures--
		return d.err
	}
	d.done = append(d.done, what)
	return nil
}

func (d *fakeTasks) Held(context.Context, *render.Task) error { return nil }

func (d *fakeTasks) Run(_ context.Context, task *render.Task) (map[string]any, error) {
	return nil, d.do(task.Func)
}

func (d *fakeTasks) Thaw(_ context.Context, node string, paths []string) error {
	return d.do(node + ":" + strings.Join(paths, ","))
}

// fixture is an Undoer with fakes, and an entry of a dead process.
type fixture struct {
	*Undoer
	host  *host
	tasks *fakeTasks
	nodes *fakeTasks
	kube  *fake.Clientset
}

const oneTry = time.Millisecond // a limit for one try

func newFixture(t *testing.T, objects ...runtime.Object) *fixture {
	t.Helper()
	objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	u := &fixture{
		host:  newHost(),
		tasks: &fakeTasks{}, nodes: &fakeTasks{failures: 100, err: node.ErrOff}, kube: fake.NewClientset(objects...),
	}
	clients := &cluster.Clients{Kube: u.kube, VeleroNamespace: "velero"}
	u.Undoer = &Undoer{
		Journal: journal.New(clients, clock.RealClock{}), Kube: u.kube, Executor: u.host,
		Tasks: u.tasks, Nodes: u.nodes, Clock: clock.RealClock{},
	}
	return u
}

// open opens an entry and returns it as another process lists it.
func (u *fixture) open(t *testing.T, holder journal.Holder, undo ...journal.Undo) *journal.Entry {
	t.Helper()
	require.NoError(t, u.Journal.Open(t.Context(), &journal.Entry{
		ID: "stillpoint-intent-x", Backup: "nightly", Name: "StatefulSet shop/db", Namespace: "shop", Holder: holder, Undo: undo,
		Objects: []workload.Ref{{APIVersion: "apps/v1", Kind: "StatefulSet", Namespace: "shop", Name: "db"}},
	}))
	list, err := u.Journal.List(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 1)
	return &list[0]
}

func (u *fixture) list(t *testing.T) []journal.Entry {
	t.Helper()
	list, err := u.Journal.List(t.Context())
	require.NoError(t, err)
	return list
}

func (u *fixture) events(t *testing.T) []string {
	t.Helper()
	list, err := u.kube.CoreV1().Events("shop").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	var found []string
	for _, event := range list.Items {
		found = append(found, event.Reason+": "+event.Message)
	}
	return found
}

var (
	deadHolder = journal.Holder{Pod: "velero-0", PodUID: "0", PID: 7}
	liveHolder = journal.Here()
)

func exitWith(container string, code int) *render.Call {
	return &render.Call{Namespace: "shop", Pod: "db-0", Container: container, Command: []string{"sh", "-c", fmt.Sprintf("echo the password is hunter2; exit %d", code)}}
}

func TestUndoInOrder(t *testing.T) {
	u, app := newFixture(t), newApplication(t)
	first, last := app.call("db", "first"), app.call("side", "last")
	entry := u.open(t, deadHolder,
		journal.Undo{Blueprint: "b", Phase: "first", Call: &first, Guarded: true},
		journal.Undo{Blueprint: "b", Phase: "up", Task: &render.Task{Func: "ScaleWorkload", Namespace: "shop"}},
		journal.Undo{Blueprint: "b", Phase: "last", Call: &last},
	)
	undone, err := u.Undo(t.Context(), entry, oneTry)
	require.NoError(t, err)
	require.NoError(t, undone.Pending)
	assert.Empty(t, undone.Warnings)
	assert.Equal(t, []string{"first", "last"}, app.lines(t))
	assert.Equal(t, []string{"ScaleWorkload"}, u.tasks.done)
	assert.Empty(t, u.list(t))
	assert.Equal(t, []string{"Thawed: Released what backup nightly had quiesced"}, u.events(t))
}

// The next try repeats the failed steps only.
func TestUndoKeepsWhatFails(t *testing.T) {
	u, app := newFixture(t), newApplication(t)
	u.tasks.failures, u.tasks.err = 1, errors.New("deployment shop/db: conflict")
	call := app.call("db", "unlock")
	entry := u.open(t, deadHolder,
		journal.Undo{Blueprint: "scale", Phase: "up", Task: &render.Task{Func: "ScaleWorkload", Namespace: "shop"}, ByHand: "run by hand: kubectl scale"},
		journal.Undo{Blueprint: "lock", Phase: "unlock", Call: &call},
	)
	undone, err := u.Undo(t.Context(), entry, oneTry)
	require.NoError(t, err)
	const failure = "blueprint scale, phase up: deployment shop/db: conflict; run by hand: kubectl scale"
	require.EqualError(t, undone.Pending, "StatefulSet shop/db MAY STILL BE QUIESCED by backup nightly: "+failure)
	assert.Equal(t, []string{"StillFrozen: " + undone.Pending.Error()}, u.events(t))
	kept := u.list(t)
	require.Len(t, kept, 1)
	assert.Equal(t, failure, kept[0].Failure)
	require.Len(t, kept[0].Undo, 1)
	gone, err := u.Journal.HolderGone(t.Context(), &kept[0])
	require.NoError(t, err)
	assert.Equal(t, "the last try has failed", gone, "others may try at once")
	assert.False(t, kept[0].Due(time.Now()), "but do not by themselves")

	undone, err = u.Undo(t.Context(), &kept[0], oneTry)
	require.NoError(t, err)
	require.NoError(t, undone.Pending)
	assert.Equal(t, []string{"unlock"}, app.lines(t))
	assert.Empty(t, u.list(t))
}

// Undo deletes the task pods of the session only.
func TestUndoClearsPods(t *testing.T) {
	pod := func(name, owner string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{api.LabelTask: owner}}}
	}
	for holder, want := range map[journal.Holder][]string{deadHolder: {"other"}, liveHolder: {"left", "other"}} {
		u := newFixture(t, pod("left", "stillpoint-intent-x"), pod("other", "stillpoint-intent-y"))
		_, err := u.Undo(t.Context(), u.open(t, holder), oneTry)
		require.NoError(t, err)
		pods, err := u.kube.CoreV1().Pods("shop").List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		var names []string
		for _, pod := range pods.Items {
			names = append(names, pod.Name)
		}
		assert.Equal(t, want, names)
	}
}

func TestUndoTriesAgain(t *testing.T) {
	t.Parallel()
	u := newFixture(t)
	u.tasks.failures, u.tasks.err = 1, errors.New("conflict")
	undone, err := u.Undo(t.Context(), u.open(t, deadHolder, journal.Undo{Task: &render.Task{Func: "KubeOps", Namespace: "shop"}}), 5*time.Second)
	require.NoError(t, err)
	require.NoError(t, undone.Pending)
	assert.Equal(t, []string{"KubeOps"}, u.tasks.done)
}

func TestUndoFailures(t *testing.T) {
	task := func(function string) *render.Task {
		return &render.Task{Func: function, Namespace: "shop", Args: render.Args{"command": "hunter2"}}
	}
	for name, test := range map[string]struct {
		undo    journal.Undo
		holder  journal.Holder
		err     error // of tasks
		pending string
		warning string
	}{
		"its guard has run it": {
			undo: journal.Undo{Call: exitWith("db", 3), Guarded: true}, holder: deadHolder,
			warning: "exit code 3 in container db of pod shop/db-0: what it printed is not shown, since it can hold secrets; its guard has run it before, or ended with its container",
		},
		"its guard has not run it": {
			undo: journal.Undo{Call: exitWith("db", 3), Guarded: true}, holder: liveHolder,
			pending: "exit code 3 in container db of pod shop/db-0: what it printed is not shown, since it can hold secrets; no way to undo it by hand is known",
		},
		"no guard": {
			undo: journal.Undo{Call: exitWith("db", 3), ByHand: "run ***"}, holder: deadHolder,
			pending: "exit code 3 in container db of pod shop/db-0: what it printed is not shown, since it can hold secrets; run ***",
		},
		"lost": {
			undo: journal.Undo{Unknown: "phase x needs the output of phase dump"}, holder: deadHolder,
			pending: "phase x needs the output of phase dump; no way to undo it by hand is known",
		},
		"neither command nor task": {
			undo: journal.Undo{}, holder: deadHolder, pending: "there is neither a command nor a task; no way to undo it by hand is known",
		},
		"task of which little is told": {
			undo: journal.Undo{Task: task("KubeTask")}, holder: deadHolder, err: errors.New("pod said hunter2"),
			pending: "KubeTask failed (no reason of the API server's); its error is not shown, since it can hold secrets; no way to undo it by hand is known",
		},
		"namespace is gone": {
			undo: journal.Undo{Task: &render.Task{Func: "ScaleWorkload", Namespace: "gone"}}, holder: deadHolder, err: errors.New("not found"),
			warning: "namespace gone is gone, and what was quiesced with it",
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := newFixture(t)
			u.tasks.failures, u.tasks.err = 100, test.err
			test.undo.Blueprint, test.undo.Phase = "b", "p"
			undone, err := u.Undo(t.Context(), u.open(t, test.holder, test.undo), oneTry)
			require.NoError(t, err)
			if test.pending == "" {
				require.NoError(t, undone.Pending)
				require.Len(t, undone.Warnings, 1)
				assert.Equal(t, "blueprint b, phase p: "+test.warning, undone.Warnings[0])
				assert.Empty(t, u.list(t))
			} else {
				require.EqualError(t, undone.Pending, "StatefulSet shop/db MAY STILL BE QUIESCED by backup nightly: blueprint b, phase p: "+test.pending)
				assert.Len(t, u.list(t), 1)
			}
			assert.NotContains(t, strings.Join(slices.Concat(u.events(t), undone.Warnings), " "), "hunter2")
		})
	}
}

// The thaw of a file system must succeed: the freeze outlives the guard and its container.
func TestUndoFileSystem(t *testing.T) {
	t.Parallel()
	pod := func(name, path string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		p.Spec.Containers = []corev1.Container{{Name: "main-" + name, VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: path}}}}
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main-" + name, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
		return p
	}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data"}}
	const path = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/pv/mount"
	for name, test := range map[string]struct {
		objects []runtime.Object
		broken  []string
		// frozen is the result of fsfreeze.
		says    string
		node    *fakeTasks
		limit   time.Duration
		journal []string
		warning string
		pending string
	}{
		"in its container": {objects: []runtime.Object{claim}, journal: []string{"/data"}},
		"not frozen":       {objects: []runtime.Object{claim}, says: "fsfreeze: /data: unfreeze failed: Invalid argument", journal: []string{"/data", "/data"}},
		"elsewhere": {
			objects: []runtime.Object{claim, pod("db-1", "/mnt")}, broken: []string{"side"}, journal: []string{"/mnt"},
			warning: "thawed from container main-db-1 of pod shop/db-1, since the connection to the container was lost: container side of pod shop/db-0 is gone (Stillpoint needs sh, sleep and kill in the container)",
		},
		"the claim is gone": {
			broken:  []string{"side"},
			warning: "blueprint fsfreeze, phase thaw: its claims are gone, and their file systems with them",
		},
		"on the node": {
			objects: []runtime.Object{claim}, broken: []string{"side"}, node: &fakeTasks{}, limit: 10 * time.Second,
			warning: "thawed on node node1, since the connection to the container was lost: container side of pod shop/db-0 is gone (Stillpoint needs sh, sleep and kill in the container)",
		},
		"the node is not to": {
			objects: []runtime.Object{claim}, broken: []string{"side"}, limit: 5 * time.Second,
			pending: "container side of pod shop/db-0 is gone (Stillpoint needs sh, sleep and kill in the container); a thaw on the node is switched off: the key nodeThaw of the configuration switches it on; thaw it",
		},
		"it fails": {
			objects: []runtime.Object{claim}, says: "fsfreeze: Operation not permitted", journal: []string{"/data"},
			pending: "exit code 1 in container side of pod shop/db-0: fsfreeze: Operation not permitted; thaw it",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newFixture(t, test.objects...)
			if test.node != nil {
				u.nodes, u.Nodes = test.node, test.node
			}
			for _, container := range test.broken {
				u.host.broken[container] = true
			}
			u.host.path = t.TempDir()
			executed := filepath.Join(u.host.path, "journal")
			script := fmt.Sprintf("#!/bin/sh\necho \"$2\" >>%s; [ -z '%s' ] || { echo '%s' >&2; exit 1; }\n", executed, test.says, test.says)
			require.NoError(t, os.WriteFile(filepath.Join(u.host.path, "fsfreeze"), []byte(script), 0o755))
			entry := u.open(t, deadHolder, journal.Undo{
				Blueprint: "fsfreeze", Phase: "thaw", Guarded: true, ByHand: "thaw it",
				Call:    &render.Call{Namespace: "shop", Pod: "db-0", Container: "side", Command: []string{"fsfreeze", "--unfreeze", "/data"}},
				Volumes: []journal.Volume{{Claim: "data", MountPath: "/data", Node: "node1", Path: path}},
			})
			undone, err := u.Undo(t.Context(), entry, max(test.limit, oneTry))
			require.NoError(t, err)
			if test.pending == "" {
				require.NoError(t, undone.Pending)
				assert.Empty(t, u.list(t))
			} else {
				require.ErrorContains(t, undone.Pending, test.pending)
			}
			if test.warning == "" {
				assert.Empty(t, undone.Warnings)
			} else {
				assert.Equal(t, []string{test.warning}, undone.Warnings)
			}
			assert.Equal(t, test.journal, application{executed}.lines(t))
			if test.node != nil {
				assert.Equal(t, []string{"node1:" + path}, test.node.done)
			}
		})
	}
}

func TestAtBackup(t *testing.T) {
	u := newFixture(t)
	log, logged := logtest.NewNullLogger()
	messages := func() []string {
		var all []string
		for _, entry := range logged.AllEntries() {
			all = append(all, entry.Level.String()+": "+entry.Message)
		}
		logged.Reset()
		return all
	}
	u.AtBackup(t.Context(), log)
	assert.Empty(t, messages())
	assert.Len(t, u.kube.Actions(), 1)

	entry := u.open(t, deadHolder, journal.Undo{Blueprint: "scale", Phase: "up", Task: &render.Task{Func: "ScaleWorkload", Namespace: "shop"}})
	u.AtBackup(t.Context(), log)
	assert.Equal(t, []string{"warning: Released StatefulSet shop/db, which backup nightly had quiesced since " + entry.Since.UTC().Format(time.RFC3339) + ": pod velero-0 is gone"}, messages())
	assert.Equal(t, []string{"ScaleWorkload"}, u.tasks.done)

	// Another backup is running.
	u.open(t, liveHolder, journal.Undo{Unknown: "x"})
	u.AtBackup(t.Context(), log)
	assert.Empty(t, messages())
	require.NoError(t, u.Journal.Close(t.Context(), "stillpoint-intent-x"))

	// An entry that failed just now is logged and not tried again.
	u.open(t, deadHolder, journal.Undo{Blueprint: "b", Phase: "p", Unknown: "the output is lost"})
	u.AtBackup(t.Context(), log)
	assert.Equal(t, []string{"warning: Pending undo failed: StatefulSet shop/db MAY STILL BE QUIESCED by backup nightly: blueprint b, phase p: the output is lost; no way to undo it by hand is known"}, messages())
	u.AtBackup(t.Context(), log)
	require.Len(t, u.list(t), 1)
	again := messages()
	require.Len(t, again, 1)
	assert.Contains(t, again[0], "warning: Pending undo is not due for another try: StatefulSet shop/db may still be quiesced by backup nightly since")
	require.NoError(t, u.Journal.Close(t.Context(), "stillpoint-intent-x"))
}

// An entry is not a warning if its namespace is gone, and it is due at once.
func TestAtBackupForgetsWhatVanished(t *testing.T) {
	u := newFixture(t)
	log, logged := logtest.NewNullLogger()
	u.tasks.failures, u.tasks.err = 100, errors.New("not found")
	entry := u.open(t, deadHolder, journal.Undo{Blueprint: "scale", Phase: "up", Task: &render.Task{Func: "ScaleWorkload", Namespace: "shop"}})
	_, err := u.Undo(t.Context(), entry, oneTry)
	require.NoError(t, err)
	u.AtBackup(t.Context(), log)
	require.Len(t, u.list(t), 1)
	require.Len(t, logged.AllEntries(), 1)
	logged.Reset()

	require.NoError(t, u.kube.CoreV1().Namespaces().Delete(t.Context(), "shop", metav1.DeleteOptions{}))
	u.AtBackup(t.Context(), log)
	assert.Empty(t, u.list(t))
	require.NotEmpty(t, logged.AllEntries())
	for _, entry := range logged.AllEntries() {
		assert.Equal(t, logrus.InfoLevel, entry.Level, entry.Message)
	}
	assert.Equal(t, "Dropped the pending undo of StatefulSet shop/db, which backup nightly had quiesced since "+entry.Since.UTC().Format(time.RFC3339)+": it is gone", logged.LastEntry().Message)
}

// The result is the same at every try.
func TestWhatVanishesBetweenTwoTriesIsNotReleased(t *testing.T) {
	t.Parallel()
	u := newFixture(t)
	u.tasks.failures, u.tasks.err = 100, errors.New("not found")
	entry := u.open(t, deadHolder, journal.Undo{Blueprint: "scale", Phase: "up", Task: &render.Task{Func: "ScaleWorkload", Namespace: "shop"}})
	time.AfterFunc(undoPause/2, func() {
		_ = u.kube.CoreV1().Namespaces().Delete(context.Background(), "shop", metav1.DeleteOptions{})
	})
	undone, err := u.Undo(t.Context(), entry, time.Minute)
	require.NoError(t, err)
	assert.NoError(t, undone.Pending)
	assert.True(t, undone.NothingLeft)
	assert.NotContains(t, u.events(t), "Thawed: Released what backup nightly had quiesced")
	assert.Equal(t, 99, u.tasks.failures)
}

// AtBackup waits for another process that completes an entry.
func TestAtBackupWaits(t *testing.T) {
	u := newFixture(t)
	log, logged := logtest.NewNullLogger()
	entry := u.open(t, deadHolder, journal.Undo{Unknown: "x"})
	require.NoError(t, u.Journal.Claim(t.Context(), entry, time.Now().Add(time.Minute)))
	time.AfterFunc(700*time.Millisecond, func() { _ = u.Journal.Close(context.Background(), entry.ID) })
	start := time.Now()
	u.AtBackup(t.Context(), log)
	assert.GreaterOrEqual(t, time.Since(start), 700*time.Millisecond)
	assert.Empty(t, u.list(t))
	assert.Empty(t, logged.AllEntries())
}
