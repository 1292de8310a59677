package quiesce

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"stillpoint.io/stillpoint/internal/journal"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/unit"
	"stillpoint.io/stillpoint/internal/workload"
)

// lateEnd is a host that reports the end of a command late, so that only a thaw finds that
// a guard has ended.
type lateEnd struct{ *host }

func (h lateEnd) Exec(ctx context.Context, container podexec.Container, command []string, streams podexec.Streams) error {
	defer time.Sleep(5 * time.Second)
	return h.host.Exec(ctx, container, command, podexec.Streams{Stdin: streams.Stdin, Stdout: streams.Stdout, Stderr: streams.Stderr})
}

// pids returns the PIDs of a container's shells.
func (h *host) pids(container string) []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	var pids []int
	for _, cmd := range h.running[container] {
		pids = append(pids, cmd.Process.Pid)
	}
	return pids
}

func TestGuardThatThawedByItselfBreaksFreeze(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		session, err := Freeze(t.Context(), Tools{Executor: lateEnd{h}}, app.plan(), quiet())
		require.NoError(t, err)
		time.Sleep(200 * time.Millisecond) // until the guards are armed
		for _, pid := range h.pids("side") {
			_ = syscall.Kill(pid, syscall.SIGTERM) // as at its deadline
		}
		require.Eventually(t, func() bool { return len(app.lines(t)) == 3 }, 5*time.Second, 10*time.Millisecond)
		session.Thaw(t.Context())
		require.ErrorContains(t, session.Report().Broken, "it had run its post command by itself")
		require.NoError(t, session.Report().Stuck)
		assert.Equal(t, []string{"lock", "freeze", "thaw", "unlock"}, app.lines(t), "it is not run twice")
	})
}

func TestGuardLostBeforeThawBreaksFreeze(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		session, err := Freeze(t.Context(), Tools{Executor: h}, app.plan(), quiet())
		require.NoError(t, err)
		h.kill("side")
		h.mu.Lock()
		h.broken["side"] = false
		h.mu.Unlock()
		session.Thaw(t.Context())
		require.ErrorContains(t, session.Report().Broken, "was lost")
	})
}

func TestEndedHeldSessionBreaksFreeze(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		d := newDatabase(t)
		session, err := Freeze(t.Context(), Tools{Executor: lateEnd{h}}, d.plan(d.statement("begin", "held"), d.statement("end", "released")), quiet())
		require.NoError(t, err)
		pid := d.process(t)
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		gone(t, pid, 5*time.Second)
		session.Thaw(t.Context())
		require.ErrorContains(t, session.Report().Broken, "had ended before it was told to")
		require.NoError(t, session.Report().Stuck)
	})
}

// A connection ends only when the last process closes it.
func TestTimerHoldsNoDescriptorOfTheScript(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		d := newDatabase(t)
		plan := d.plan(d.statement("begin", "held"), d.statement("end", "released"))
		limit := 7000 + os.Getpid()%1000 + len(h.shell)*1000 + len(h.shell[0])*10000
		plan.QuiesceTimeout = time.Duration(limit) * time.Second
		session, err := Freeze(t.Context(), Tools{Executor: h}, plan, quiet())
		require.NoError(t, err)
		defer session.Thaw(t.Context())
		timers := func() (found []string) {
			all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, file := range all {
				if line, _ := os.ReadFile(file); strings.Contains(string(line), fmt.Sprintf("sleep\x00%d\x00", limit+1)) {
					found = append(found, filepath.Dir(file))
				}
			}
			return found
		}
		require.Eventually(t, func() bool { return len(timers()) == 1 }, 5*time.Second, 10*time.Millisecond)
		descriptors, err := filepath.Glob(timers()[0] + "/fd/[0-9]")
		require.NoError(t, err)
		for _, descriptor := range descriptors {
			to, err := os.Readlink(descriptor)
			require.NoError(t, err)
			assert.Equal(t, "/dev/null", to, descriptor)
		}
	})
}

// unwritable is a journal that cannot be written.
type unwritable struct{ Journal }

func (unwritable) Open(context.Context, *journal.Entry) error { return errors.New("forbidden") }

func TestFailedRecordEndsAllShells(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		_, err := Freeze(t.Context(), Tools{Executor: h, Journal: unwritable{}}, app.plan(), quiet())
		require.EqualError(t, err, "nothing was frozen: forbidden")
		for _, container := range []string{"db", "side"} {
			require.Len(t, h.pids(container), 2)
			for _, pid := range h.pids(container) {
				gone(t, pid, 5*time.Second)
			}
		}
		assert.Empty(t, app.lines(t))
	})
}

// A slow post command, such as the thaw of a Windows guest, is neither killed nor repeated,
// with or without a guard.
func TestPostCommandThatTakesLong(t *testing.T) {
	t.Parallel()
	for name, guarded := range map[string]bool{"with a guard": true, "without one": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, app := newHost(), newApplication(t)
			plan := app.plan()
			slow := app.call("side", "thaw")
			slow.Command[2] = fmt.Sprintf("echo begun >>%s; sleep %d; %s", app.journal, 2+int(ThawLimit/time.Second), slow.Command[2])
			plan.Hooks, plan.PrepareTimeout = plan.Hooks[1:], 30*time.Second
			plan.Hooks[0].Post = step("thaw", slow)
			session, err := Freeze(t.Context(), Tools{Executor: h}, plan, quiet())
			require.NoError(t, err)
			if !guarded {
				session.posts[0].targets[0].guard.close()
				session.posts[0].targets[0] = &target{post: session.posts[0], call: slow, unconditional: true}
				plan.rescue = noRescue{endsPods: true}
			}
			session.Thaw(t.Context())
			require.NoError(t, session.Report().Stuck)
			assert.Contains(t, app.lines(t), "thaw")
			if guarded {
				assert.Equal(t, []string{"freeze", "begun", "thaw"}, app.lines(t))
			}
		})
	}
}

// Velero may end the process right after the report.
func TestStillFrozenEventIsSentAtOnce(t *testing.T) {
	u := &unit.Unit{Parts: []unit.Part{{
		Workload: workload.Workload{Ref: workload.Ref{APIVersion: "apps/v1", Kind: "Deployment", Namespace: "shop", Name: "db"}},
		Settings: unit.Settings{Blueprints: []string{"fsfreeze"}},
	}}}
	stuck := stuckError{errors.New("Deployment shop/db MAY STILL BE FROZEN")}
	for name, report := range map[string]func(context.Context, *Reporter, logrus.FieldLogger){
		"at the thaw": func(ctx context.Context, r *Reporter, log logrus.FieldLogger) {
			r.Thawed(ctx, log, u, Report{Stuck: stuck}, "nightly")
		},
		"at a freeze that has failed": func(ctx context.Context, r *Reporter, log logrus.FieldLogger) {
			r.Failed(ctx, log, u, fmt.Errorf("quiesce: %w", errors.Join(errors.New("exit code 1"), errors.Join(stuck))), "nightly")
		},
	} {
		t.Run(name, func(t *testing.T) {
			kube := fake.NewClientset()
			refusals := 1
			kube.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
				if refusals--; refusals >= 0 {
					return true, nil, errors.New("the API server is busy")
				}
				return false, nil, nil
			})
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // the caller has stopped waiting
			report(ctx, NewReporter(kube), quiet())
			events, err := kube.CoreV1().Events("shop").List(t.Context(), metav1.ListOptions{})
			require.NoError(t, err)
			require.NotEmpty(t, events.Items)
			found := false
			for _, event := range events.Items {
				found = found || event.Reason == "StillFrozen" && event.Type == corev1.EventTypeWarning && strings.Contains(event.Message, "MAY STILL BE FROZEN")
			}
			assert.True(t, found, events.Items)
		})
	}
}

func TestGuardsThatAHookEndsItself(t *testing.T) {
	task := func(function string, args render.Args) *Hook {
		return &Hook{Pre: []*render.Step{{Phase: "p", Task: &render.Task{Func: function, Args: args, Namespace: "shop"}}}}
	}
	scale := func(kind, name string) *Hook {
		return task("ScaleWorkload", render.Args{"kind": kind, "name": name, "replicas": "0", "namespace": "shop"})
	}
	ops := func(verb, group, resource, name string) *Hook {
		return task("KubeOps", render.Args{"operation": verb, "namespace": "shop", "objectReference": map[string]any{"apiVersion": "v1", "group": group, "resource": resource, "name": name}})
	}
	own := pod("db-0", "n1", volume{"pg", "data", "/data", ""})
	own.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db"}}
	r := rescueFor(own)
	r.unit.Component.Workloads[0].Ref = workload.Ref{APIVersion: "apps/v1", Kind: "StatefulSet", Namespace: "shop", Name: "db"}
	for name, test := range map[string]struct {
		hook *Hook
		want bool
	}{
		"scales its workload":        {scale("StatefulSet", "db"), true},
		"scales another workload":    {scale("StatefulSet", "web"), false},
		"scales another kind":        {scale("Deployment", "db"), false},
		"patches its workload":       {ops("patch", "apps", "statefulsets", "db"), true},
		"deletes the pod":            {ops("delete", "", "pods", "db-0"), true},
		"deletes another pod":        {ops("delete", "", "pods", "db-1"), false},
		"patches a ConfigMap":        {ops("patch", "", "configmaps", "db"), false},
		"creates a pod of its name":  {ops("create", "", "pods", "db-0"), false},
		"runs a pod":                 {task("KubeTask", render.Args{}), false},
		"does nothing by the server": {&Hook{Pre: step("freeze", thaw("/data"))}, false},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, test.want, r.endsPod(test.hook, thaw("/data"))) })
	}
	assert.False(t, r.endsPod(scale("StatefulSet", "db"), render.Call{Namespace: "shop", Pod: "other"}))
}

// kernel is a replacement of fsfreeze whose freeze waits until the file stalled is removed,
// even if the program is killed.
type kernel struct{ dir string }

func newKernel(t *testing.T) kernel {
	t.Helper()
	k := kernel{t.TempDir()}
	script := fmt.Sprintf(`#!/bin/sh
cd %s
case $1$INNER in
--freeze)
	INNER=1 "$0" "$@" &
	wait
	;;
--freeze1)
	trap '' TERM HUP INT
	echo freeze >>journal
	while [ -e stalled ]; do sleep 0.05; done
	mkdir frozen
	;;
--unfreeze*)
	if rmdir frozen 2>/dev/null; then echo thawed >>journal; exit 0; fi
	echo "fsfreeze: $2: unfreeze failed: Invalid argument" >&2
	exit 1
	;;
esac
`, k.dir)
	require.NoError(t, os.WriteFile(filepath.Join(k.dir, "fsfreeze"), []byte(script), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(k.dir, "stalled"), nil, 0o600))
	t.Cleanup(func() { _ = os.Remove(filepath.Join(k.dir, "stalled")) })
	return k
}

func (k kernel) plan() *Plan {
	call := func(option string) render.Call {
		return render.Call{Namespace: "shop", Pod: "db-0", Container: "side", Command: []string{k.dir + "/fsfreeze", option, k.dir}} // never the real fsfreeze
	}
	return &Plan{
		rescue:         noRescue{},
		Name:           "StatefulSet shop/db",
		Hooks:          []Hook{{Blueprint: "fsfreeze", Pre: step("freeze", call("--freeze")), Post: step("thaw", call("--unfreeze"))}},
		PrepareTimeout: time.Second, QuiesceTimeout: 10 * time.Second,
	}
}

// ledger is a journal in memory.
type ledger struct {
	mu   sync.Mutex
	undo []journal.Undo
}

func (l *ledger) set(undo []journal.Undo) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.undo = undo
	return nil
}

func (l *ledger) Open(_ context.Context, i *journal.Entry) error   { return l.set(i.Undo) }
func (l *ledger) Update(_ context.Context, i *journal.Entry) error { return l.set(i.Undo) }
func (l *ledger) Close(context.Context, string) error              { return l.set(nil) }

// A freeze that may still be pending is reported, and keeps its guard and its record.
func TestFreezeThatCannotBeConfirmed(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		k, journal := newKernel(t), &ledger{}
		_, err := Freeze(t.Context(), Tools{Executor: h, Journal: journal, retryLimit: time.Second}, k.plan(), quiet())
		require.ErrorContains(t, err, "it has not ended at prepare-timeout 1s and can still complete")
		require.ErrorContains(t, err, "MAY STILL BE FROZEN")
		require.ErrorAs(t, err, &stuckError{})
		require.Len(t, journal.undo, 1)
		time.Sleep(4 * time.Second) // until the guard has tried to thaw
		require.NoError(t, os.Remove(filepath.Join(k.dir, "stalled")))
		assert.Eventually(t, func() bool {
			return slices.Equal(application{filepath.Join(k.dir, "journal")}.lines(t), []string{"freeze", "thawed"})
		}, 5*time.Second, 20*time.Millisecond)
	})
}

// The process that froze has ended when the kernel completes the freeze.
func TestGuardWaitsForAFreezeThatCompletesLate(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		k := newKernel(t)
		journal := application{filepath.Join(k.dir, "journal")}
		plan := k.plan()
		plan.PrepareTimeout = 20 * time.Second
		go func() { _, _ = Freeze(t.Context(), Tools{Executor: h, retryLimit: time.Millisecond}, plan, quiet()) }()
		require.Eventually(t, func() bool { return len(journal.lines(t)) == 1 }, 5*time.Second, 10*time.Millisecond)
		h.mu.Lock()
		h.broken["side"] = true
		h.mu.Unlock()
		h.disconnect()
		time.Sleep(6 * time.Second)
		require.NoError(t, os.Remove(filepath.Join(k.dir, "stalled")))
		assert.Eventually(t, func() bool { return slices.Equal(journal.lines(t), []string{"freeze", "thawed"}) }, 5*time.Second, 20*time.Millisecond)
		for _, pid := range h.pids("side") {
			gone(t, pid, 5*time.Second)
		}
	})
}
