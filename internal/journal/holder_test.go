package journal

import (
	"encoding/base64"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestFactsGone(t *testing.T) {
	pod := func(change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "velero-1", UID: "1"}}
		p.Status.Phase = corev1.PodRunning
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "velero", State: corev1.ContainerState{
			Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(noon.Add(-time.Hour))},
		}}}
		if change != nil {
			change(p)
		}
		return p
	}
	inPod := Holder{Pod: "velero-1", PodUID: "1", Host: "velero-1", PID: 7, Started: 70}
	beside := Holder{Pod: "velero-1", PodUID: "1", Host: "velero-1", PID: 8, Started: 80}
	otherPod := Holder{Pod: "velero-2", PodUID: "2", Host: "velero-2", PID: 7, Started: 70}
	machine := Holder{Host: "laptop", PID: 7, Started: 70}
	running := map[int]uint64{7: 70}
	later := map[int]uint64{7: 99}
	for name, test := range map[string]struct {
		holder, here Holder
		processes    map[int]uint64
		pod          *corev1.Pod
		until        time.Time
		want         string
	}{
		"the process itself":          {holder: inPod, here: inPod, processes: running},
		"no holder":                   {here: inPod, want: "the last try has failed"},
		"beside it":                   {holder: inPod, here: beside, processes: running},
		"killed":                      {holder: inPod, here: beside, want: "process 7 of pod velero-1 has ended"},
		"another with its number":     {holder: inPod, here: beside, processes: later, want: "process 7 of pod velero-1 has ended"},
		"same number in another pod":  {holder: inPod, here: otherPod, processes: running, pod: pod(nil)},
		"its start is not known":      {holder: Holder{Pod: "velero-1", PodUID: "1", PID: 7}, here: beside},
		"time is over":                {holder: inPod, here: inPod, processes: running, until: noon.Add(-time.Second), want: "process 7 of pod velero-1 was to be done with it at 2026-03-01T11:59:59Z"},
		"before its end":              {holder: inPod, here: inPod, processes: running, until: noon.Add(time.Second)},
		"no pod":                      {holder: inPod, here: machine, want: "pod velero-1 is gone"},
		"another of its name":         {holder: inPod, here: machine, pod: pod(func(p *corev1.Pod) { p.UID = types.UID("9") }), want: "pod velero-1 is gone"},
		"pod is being deleted":        {holder: inPod, here: machine, pod: pod(func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: noon} }), want: "pod velero-1 is being deleted"},
		"pod has ended":               {holder: inPod, here: machine, pod: pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), want: "pod velero-1 has ended"},
		"container was started again": {holder: inPod, here: machine, pod: pod(func(p *corev1.Pod) { p.Status.ContainerStatuses[0].State.Running.StartedAt = metav1.NewTime(noon) }), want: "the container of pod velero-1 was started anew"},
		"container is being started":  {holder: inPod, here: machine, pod: pod(func(p *corev1.Pod) { p.Status.ContainerStatuses[0].State.Running = nil }), want: "the container of pod velero-1 was started anew"},
		"one of its containers runs on": {holder: inPod, here: machine, pod: pod(func(p *corev1.Pod) {
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: "x"})
		})},
		"no word of containers":         {holder: inPod, here: machine, pod: pod(func(p *corev1.Pod) { p.Status.ContainerStatuses = nil })},
		"on this machine":               {holder: machine, here: machine, processes: running},
		"killed on this machine":        {holder: machine, here: machine, want: "process 7 of host laptop has ended"},
		"on another machine":            {holder: machine, here: Holder{Host: "desktop"}},
		"on another machine, seen here": {holder: machine, here: inPod},
	} {
		t.Run(name, func(t *testing.T) {
			f := facts{now: noon, here: test.here, pod: test.pod, started: func(pid int) (uint64, bool) {
				ticks, ok := test.processes[pid]
				return ticks, ok
			}}
			assert.Equal(t, test.want, f.holderGone(&Entry{Holder: test.holder, Since: noon.Add(-time.Minute), Until: test.until}))
		})
	}
}

func TestStarted(t *testing.T) {
	ticks, lives := started(os.Getpid())
	require.True(t, lives)
	assert.Positive(t, ticks)
	assert.Equal(t, Here().Started, ticks)

	// A program name that looks like the next fields.
	script := t.TempDir() + "/a) Z 1"
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\nread x\n"), 0o755))
	command := exec.Command(script)
	stdin, err := command.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, command.Start())
	after, lives := started(command.Process.Pid)
	assert.True(t, lives)
	assert.GreaterOrEqual(t, after, ticks)
	require.NoError(t, stdin.Close())
	assert.Eventually(t, func() bool { _, lives := started(command.Process.Pid); return !lives }, 5*time.Second, 10*time.Millisecond, "a zombie")
	_ = command.Wait()
	_, lives = started(command.Process.Pid)
	assert.False(t, lives)
}

func TestPodOf(t *testing.T) {
	token := func(claims string) []byte {
		return []byte("e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln")
	}
	name, uid := podOf(token(`{"iss": "x", "kubernetes.io": {"namespace": "velero", "pod": {"name": "velero-1", "uid": "1-2"}}}`))
	assert.Equal(t, "velero-1", name)
	assert.Equal(t, types.UID("1-2"), uid)
	for _, other := range [][]byte{nil, []byte("a.b.c"), []byte("a.b"), token("{}"), token("no")} {
		name, uid := podOf(other)
		assert.Empty(t, name)
		assert.Empty(t, uid)
	}
}
