package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
)

// thawer returns a Thawer for an API server that gives each pod the status.
func thawer(t *testing.T, settings *config.NodeThaw, status corev1.PodStatus, there ...runtime.Object) (*Thawer, *fake.Clientset) {
	t.Helper()
	kube := fake.NewClientset(there...)
	kube.PrependReactor("create", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		create, ok := action.(clienttesting.CreateAction)
		require.True(t, ok)
		pod, ok := create.GetObject().(*corev1.Pod)
		require.True(t, ok)
		pod.Name, pod.Status = pod.GenerateName+"x", status
		return false, nil, nil
	})
	return New(&cluster.Clients{Kube: kube, VeleroNamespace: "velero"}, func(context.Context) (*config.Config, error) {
		return &config.Config{NodeThaw: settings}, nil
	}), kube
}

func TestThaw(t *testing.T) {
	ended := func(phase corev1.PodPhase, code int32, message string) corev1.PodStatus {
		return corev1.PodStatus{Phase: phase, ContainerStatuses: []corev1.ContainerStatus{{
			Name: "thaw", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Message: message}},
		}}}
	}
	for name, test := range map[string]struct {
		status corev1.PodStatus
		err    string
	}{
		"thawed":           {status: ended(corev1.PodSucceeded, 0, "")},
		"beside a sidecar": {status: ended(corev1.PodRunning, 0, "")},
		"no such path":     {status: ended(corev1.PodFailed, 1, "nothing is mounted at /p\n"), err: "exit code 1: nothing is mounted at /p"},
		"refused":          {status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "OutOfpods", Message: "Node is full"}, err: "OutOfpods: Node is full"},
		"no image": {status: corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{
			Name: "thaw", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "not found"}},
		}}}, err: "ErrImagePull: not found: context deadline exceeded"},
		"no kubelet": {err: "it has not started: context deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			left := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "left", Labels: map[string]string{api.LabelNodeThaw: ""}}}
			left.Status.Phase = corev1.PodFailed
			thawer, kube := thawer(t, &config.NodeThaw{Image: "stillpoint:1"}, test.status, left)
			err := thawer.Thaw(ctx, "node1", []string{"/p", "/q"})
			if test.err == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, "thaw /p, /q on node node1: pod velero/stillpoint-thaw-x: "+test.err)
			}
			pods, err := kube.CoreV1().Pods("velero").List(t.Context(), metav1.ListOptions{})
			require.NoError(t, err)
			assert.Empty(t, pods.Items, "also deletes the pod of an earlier process")
		})
	}
}

// A journal entry can be older than the configuration.
func TestThawWhereTheKubeletIs(t *testing.T) {
	ended := corev1.PodStatus{Phase: corev1.PodSucceeded}
	thawer, kube := thawer(t, &config.NodeThaw{Image: "stillpoint:1", KubeletDirectory: "/data/kubelet"}, ended)
	require.NoError(t, thawer.Thaw(t.Context(), "node1", []string{"/var/lib/kubelet/pods/1/mount", "/data/kubelet/pods/2/mount"}))
	for _, action := range kube.Actions() {
		if create, ok := action.(clienttesting.CreateAction); ok {
			pod, ok := create.GetObject().(*corev1.Pod)
			require.True(t, ok)
			assert.Equal(t, []string{"thaw-volumes", "/data/kubelet/pods/1/mount", "/data/kubelet/pods/2/mount"}, pod.Spec.Containers[0].Args)
		}
	}
}

func TestThawIsOff(t *testing.T) {
	thawer, kube := thawer(t, nil, corev1.PodStatus{})
	require.ErrorIs(t, thawer.Thaw(t.Context(), "node1", []string{"/p"}), ErrOff)
	assert.Empty(t, kube.Actions())
}

// The whole pod is compared, because administrators must allow it.
func TestPod(t *testing.T) {
	pod, err := yaml.Marshal(podOf("velero", &config.NodeThaw{Image: "example.com/stillpoint:1", KubeletDirectory: "/data/kubelet"}, "node1", []string{"/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/pv1/mount"}))
	require.NoError(t, err)
	const golden = "testdata/pod.yaml"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		require.NoError(t, os.WriteFile(golden, pod, 0o600))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), string(pod), "set UPDATE_GOLDEN=1 to accept")
}

// A second call would undo the freeze of another program.
func TestThawIsOneCall(t *testing.T) {
	for name, test := range map[string]struct {
		answers []error
		thawed  bool
		err     string
	}{
		"frozen":         {answers: []error{nil, nil}, thawed: true},
		"frozen twice":   {answers: []error{nil, nil, unix.EINVAL}, thawed: true},
		"not frozen":     {answers: []error{unix.EINVAL, nil}},
		"no file system": {answers: []error{unix.ENOTTY, nil}, err: "ioctl FITHAW /p: inappropriate ioctl for device"},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			thawed, err := thawOnce("/p", func() error { calls++; return test.answers[calls-1] })
			assert.Equal(t, test.thawed, thawed)
			assert.Equal(t, 1, calls)
			if test.err != "" {
				assert.EqualError(t, err, test.err)
			} else {
				assert.NoError(t, err)
			}
		})
	}
}

func TestExitCodeTellsWhatWasFrozen(t *testing.T) {
	frozen := map[string]bool{"/a": true}
	thaw := func(path string) (bool, error) {
		if path == "/bad" {
			return false, errors.New("no")
		}
		return frozen[path], nil
	}
	for code, paths := range map[int][]string{0: {"/a"}, 3: {"/a", "/b"}, 1: {"/b", "/bad", "/a"}} {
		assert.Equal(t, code, thawVolumes(paths, thaw, io.Discard, io.Discard), paths)
	}
	thawer, _ := thawer(t, &config.NodeThaw{Image: "stillpoint:1"}, corev1.PodStatus{Phase: corev1.PodFailed, ContainerStatuses: []corev1.ContainerStatus{{
		Name: container, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 3}},
	}}})
	assert.ErrorIs(t, thawer.Thaw(t.Context(), "node1", []string{"/a", "/b"}), ErrNotFrozen)
}

// Directories of this machine are no mounts and are not thawed.
func TestThawVolumes(t *testing.T) {
	var stdout, stderr bytes.Buffer
	assert.Equal(t, 2, ThawVolumes(nil, &stdout, &stderr))
	assert.Equal(t, "no paths are given\n", stderr.String())

	stderr.Reset()
	directory := t.TempDir()
	gone := filepath.Join(directory, "gone")
	assert.Equal(t, 1, ThawVolumes([]string{directory, gone}, &stdout, &stderr))
	assert.Equal(t, "nothing is mounted at "+directory+"\nstat "+gone+": no such file or directory\n", stderr.String())
	assert.Empty(t, stdout.String())
}
