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

// deed is a stand-in for tasks and for nodes: it fails as often as it is told to.
type deed struct {
	mu       sync.Mutex
	failures int
	err      error
	done     []string
}

func (d *deed) do(what string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failures > 0 {
		d.failures--
		return d.err
	}
	d.done = append(d.done, what)
	return nil
}

func (d *deed) Held(context.Context, *render.Task) error { return nil }

func (d *deed) Run(_ context.Context, task *render.Task) (map[string]any, error) {
	return nil, d.do(task.Func)
}

func (d *deed) Thaw(_ context.Context, node string, paths []string) error {
	return d.do(node + ":" + strings.Join(paths, ","))
}

// undoing is an Undoer over stand-ins, with an intent of a dead process.
type undoing struct {
	*Undoer
	host  *host
	tasks *deed
	nodes *deed
	kube  *fake.Clientset
}

const left = time.Millisecond // a limit that leaves one try

func newUndoing(t *testing.T, objects ...runtime.Object) *undoing {
	t.Helper()
	objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	u := &undoing{
		host:  newHost(),
		tasks: &deed{}, nodes: &deed{failures: 100, err: node.ErrOff}, kube: fake.NewClientset(objects...),
	}
	clients := &cluster.Clients{Kube: u.kube, VeleroNamespace: "velero"}
	u.Undoer = &Undoer{
		Journal: journal.New(clients, clock.RealClock{}), Kube: u.kube, Executor: u.host,
		Tasks: u.tasks, Nodes: u.nodes, Clock: clock.RealClock{},
	}
	return u
}

// owe opens an intent and returns it as another process lists it.
func (u *undoing) owe(t *testing.T, holder journal.Holder, undo ...journal.Undo) *journal.Entry {
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

func (u *undoing) list(t *testing.T) []journal.Entry {
	t.Helper()
	list, err := u.Journal.List(t.Context())
	require.NoError(t, err)
	return list
}

func (u *undoing) events(t *testing.T) []string {
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
	u, app := newUndoing(t), newApplication(t)
	first, last := app.call("db", "first"), app.call("side", "last")
	owed := u.owe(t, deadHolder,
		journal.Undo{Blueprint: "b", Phase: "first", Call: &first, Guarded: true},
		journal.Undo{Blueprint: "b", Phase: "up", Task: &render.Task{Func: "ScaleWorkload", Namespace: "shop"}},
		journal.Undo{Blueprint: "b", Phase: "last", Call: &last},
	)
	undone, err := u.Undo(t.Context(), owed, left)
	require.NoError(t, err)
	require.NoError(t, undone.Pending)
	assert.Empty(t, undone.Warnings)
	assert.Equal(t, []string{"first", "last"}, app.lines(t))
	assert.Equal(t, []string{"ScaleWorkload"}, u.tasks.done)
	assert.Empty(t, u.list(t))
	assert.Equal(t, []string{"Thawed: Released what backup nightly had quiesced"}, u.events(t))
}

// Failed steps stay in the journal and the next try repeats them; what was done
// is not done again.
func TestUndoKeepsWhatFails(t *testing.T) {
	u, app := newUndoing(t), newApplication(t)
	u.tasks.failures, u.tasks.err = 1, errors.New("deployment shop/db: conflict")
	call := app.call("db", "unlock")
	owed := u.owe(t, deadHolder,
		journal.Undo{Blueprint: "scale", Phase: "up", Task: &render.Task{Func: "ScaleWorkload", Namespace: "shop"}, ByHand: "run by hand: kubectl scale"},
		journal.Undo{Blueprint: "lock", Phase: "unlock", Call: &call},
	)
	undone, err := u.Undo(t.Context(), owed, left)
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

	undone, err = u.Undo(t.Context(), &kept[0], left)
	require.NoError(t, err)
	require.NoError(t, undone.Pending)
	assert.Equal(t, []string{"unlock"}, app.lines(t))
	assert.Empty(t, u.list(t))
}

// The pods of a session's tasks go with it, and no others.
func TestUndoClearsPods(t *testing.T) {
	pod := func(name, owner string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{api.LabelTask: owner}}}
	}
	for holder, want := range map[journal.Holder][]string{deadHolder: {"other"}, liveHolder: {"left", "other"}} {
		u := newUndoing(t, pod("left", "stillpoint-intent-x"), pod("other", "stillpoint-intent-y"))
		_, err := u.Undo(t.Context(), u.owe(t, holder), left)
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
	u := newUndoing(t)
	u.tasks.failures, u.tasks.err = 1, errors.New("conflict")
	undone, err := u.Undo(t.Context(), u.owe(t, deadHolder, journal.Undo{Task: &render.Task{Func: "KubeOps", Namespace: "shop"}}), 5*time.Second)
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
		left    string
		warning string
	}{
		"its guard has run it": {
			undo: journal.Undo{Call: exitWith("db", 3), Guarded: true}, holder: deadHolder,
			warning: "exit code 3 in container db of pod shop/db-0: what it printed is not shown, since it can hold secrets; its guard has run it before, or ended with its container",
		},
		"its guard has not run it": {
			undo: journal.Undo{Call: exitWith("db", 3), Guarded: true}, holder: liveHolder,
			left: "exit code 3 in container db of pod shop/db-0: what it printed is not shown, since it can hold secrets; no way to undo it by hand is known",
		},
		"no guard": {
			undo: journal.Undo{Call: exitWith("db", 3), ByHand: "run ***"}, holder: deadHolder,
			left: "exit code 3 in container db of pod shop/db-0: what it printed is not shown, since it can hold secrets; run ***",
		},
		"lost": {
			undo: journal.Undo{Unknown: "phase x needs the output of phase dump"}, holder: deadHolder,
			left: "phase x needs the output of phase dump; no way to undo it by hand is known",
		},
		"neither command nor task": {
			undo: journal.Undo{}, holder: deadHolder, left: "there is neither a command nor a task; no way to undo it by hand is known",
		},
		"task of which little is told": {
			undo: journal.Undo{Task: task("KubeTask")}, holder: deadHolder, err: errors.New("pod said hunter2"),
			left: "KubeTask failed (no reason of the API server's); its error is not shown, since it can hold secrets; no way to undo it by hand is known",
		},
		"namespace is gone": {
			undo: journal.Undo{Task: &render.Task{Func: "ScaleWorkload", Namespace: "gone"}}, holder: deadHolder, err: errors.New("not found"),
			warning: "namespace gone is gone, and what was quiesced with it",
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUndoing(t)
			u.tasks.failures, u.tasks.err = 100, test.err
			test.undo.Blueprint, test.undo.Phase = "b", "p"
			undone, err := u.Undo(t.Context(), u.owe(t, test.holder, test.undo), left)
			require.NoError(t, err)
			if test.left == "" {
				require.NoError(t, undone.Pending)
				require.Len(t, undone.Warnings, 1)
				assert.Equal(t, "blueprint b, phase p: "+test.warning, undone.Warnings[0])
				assert.Empty(t, u.list(t))
			} else {
				require.EqualError(t, undone.Pending, "StatefulSet shop/db MAY STILL BE QUIESCED by backup nightly: blueprint b, phase p: "+test.left)
				assert.Len(t, u.list(t), 1)
			}
			assert.NotContains(t, strings.Join(slices.Concat(u.events(t), undone.Warnings), " "), "hunter2")
		})
	}
}

// A file system is to be thawed for certain: its freeze outlives the container
// that a guard stood in.
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
		// frozen is what fsfreeze says.
		says    string
		node    *deed
		limit   time.Duration
		journal []string
		warning string
		left    string
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
			objects: []runtime.Object{claim}, broken: []string{"side"}, node: &deed{}, limit: 10 * time.Second,
			warning: "thawed on node node1, since the connection to the container was lost: container side of pod shop/db-0 is gone (Stillpoint needs sh, sleep and kill in the container)",
		},
		"the node is not to": {
			objects: []runtime.Object{claim}, broken: []string{"side"}, limit: 5 * time.Second,
			left: "container side of pod shop/db-0 is gone (Stillpoint needs sh, sleep and kill in the container); a thaw on the node is switched off: the key nodeThaw of the configuration switches it on; thaw it",
		},
		"it fails": {
			objects: []runtime.Object{claim}, says: "fsfreeze: Operation not permitted", journal: []string{"/data"},
			left: "exit code 1 in container side of pod shop/db-0: fsfreeze: Operation not permitted; thaw it",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndoing(t, test.objects...)
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
			owed := u.owe(t, deadHolder, journal.Undo{
				Blueprint: "fsfreeze", Phase: "thaw", Guarded: true, ByHand: "thaw it",
				Call:    &render.Call{Namespace: "shop", Pod: "db-0", Container: "side", Command: []string{"fsfreeze", "--unfreeze", "/data"}},
				Volumes: []journal.Volume{{Claim: "data", MountPath: "/data", Node: "node1", Path: path}},
			})
			undone, err := u.Undo(t.Context(), owed, max(test.limit, left))
			require.NoError(t, err)
			if test.left == "" {
				require.NoError(t, undone.Pending)
				assert.Empty(t, u.list(t))
			} else {
				require.ErrorContains(t, undone.Pending, test.left)
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
	u := newUndoing(t)
	log, said := logtest.NewNullLogger()
	messages := func() []string {
		var all []string
		for _, entry := range said.AllEntries() {
			all = append(all, entry.Level.String()+": "+entry.Message)
		}
		said.Reset()
		return all
	}
	u.AtBackup(t.Context(), log)
	assert.Empty(t, messages())
	assert.Len(t, u.kube.Actions(), 1)

	owed := u.owe(t, deadHolder, journal.Undo{Blueprint: "scale", Phase: "up", Task: &render.Task{Func: "ScaleWorkload", Namespace: "shop"}})
	u.AtBackup(t.Context(), log)
	assert.Equal(t, []string{"warning: Released StatefulSet shop/db, which backup nightly had quiesced since " + owed.Since.UTC().Format(time.RFC3339) + ": pod velero-0 is gone"}, messages())
	assert.Equal(t, []string{"ScaleWorkload"}, u.tasks.done)

	// Another backup is at work.
	u.owe(t, liveHolder, journal.Undo{Unknown: "x"})
	u.AtBackup(t.Context(), log)
	assert.Empty(t, messages())
	require.NoError(t, u.Journal.Close(t.Context(), "stillpoint-intent-x"))

	// What was tried just now is told of, and not tried again.
	u.owe(t, deadHolder, journal.Undo{Blueprint: "b", Phase: "p", Unknown: "the output is lost"})
	u.AtBackup(t.Context(), log)
	assert.Equal(t, []string{"warning: Pending undo failed: StatefulSet shop/db MAY STILL BE QUIESCED by backup nightly: blueprint b, phase p: the output is lost; no way to undo it by hand is known"}, messages())
	u.AtBackup(t.Context(), log)
	require.Len(t, u.list(t), 1)
	again := messages()
	require.Len(t, again, 1)
	assert.Contains(t, again[0], "warning: Pending undo is not due for another try: StatefulSet shop/db may still be quiesced by backup nightly since")
	require.NoError(t, u.Journal.Close(t.Context(), "stillpoint-intent-x"))
}

// What could not be released is nothing to warn of once its namespace is gone, and
// does not wait for the next try.
func TestAtBackupForgetsWhatVanished(t *testing.T) {
	u := newUndoing(t)
	log, said := logtest.NewNullLogger()
	u.tasks.failures, u.tasks.err = 100, errors.New("not found")
	owed := u.owe(t, deadHolder, journal.Undo{Blueprint: "scale", Phase: "up", Task: &render.Task{Func: "ScaleWorkload", Namespace: "shop"}})
	_, err := u.Undo(t.Context(), owed, left)
	require.NoError(t, err)
	u.AtBackup(t.Context(), log)
	require.Len(t, u.list(t), 1)
	require.Len(t, said.AllEntries(), 1)
	said.Reset()

	require.NoError(t, u.kube.CoreV1().Namespaces().Delete(t.Context(), "shop", metav1.DeleteOptions{}))
	u.AtBackup(t.Context(), log)
	assert.Empty(t, u.list(t))
	require.NotEmpty(t, said.AllEntries())
	for _, entry := range said.AllEntries() {
		assert.Equal(t, logrus.InfoLevel, entry.Level, entry.Message)
	}
	assert.Equal(t, "Dropped the pending undo of StatefulSet shop/db, which backup nightly had quiesced since "+owed.Since.UTC().Format(time.RFC3339)+": it is gone", said.LastEntry().Message)
}

// It makes no difference at which try.
func TestWhatVanishesBetweenTwoTriesIsNotReleased(t *testing.T) {
	t.Parallel()
	u := newUndoing(t)
	u.tasks.failures, u.tasks.err = 100, errors.New("not found")
	owed := u.owe(t, deadHolder, journal.Undo{Blueprint: "scale", Phase: "up", Task: &render.Task{Func: "ScaleWorkload", Namespace: "shop"}})
	time.AfterFunc(undoPause/2, func() {
		_ = u.kube.CoreV1().Namespaces().Delete(context.Background(), "shop", metav1.DeleteOptions{})
	})
	undone, err := u.Undo(t.Context(), owed, time.Minute)
	require.NoError(t, err)
	assert.NoError(t, undone.Pending)
	assert.True(t, undone.NothingLeft)
	assert.NotContains(t, u.events(t), "Thawed: Released what backup nightly had quiesced")
	assert.Equal(t, 99, u.tasks.failures)
}

// A process that releases is waited for.
func TestAtBackupWaits(t *testing.T) {
	u := newUndoing(t)
	log, said := logtest.NewNullLogger()
	owed := u.owe(t, deadHolder, journal.Undo{Unknown: "x"})
	require.NoError(t, u.Journal.Claim(t.Context(), owed, time.Now().Add(time.Minute)))
	time.AfterFunc(700*time.Millisecond, func() { _ = u.Journal.Close(context.Background(), owed.ID) })
	start := time.Now()
	u.AtBackup(t.Context(), log)
	assert.GreaterOrEqual(t, time.Since(start), 700*time.Millisecond)
	assert.Empty(t, u.list(t))
	assert.Empty(t, said.AllEntries())
}
