package faults

import (
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/tests/fake"
)

// checked runs `stillpoint check` for namespace shop with the volume policy.
func checked(bed *fake.Bed) (code int, said string) {
	code, said, failed := bed.Command("check", "-n", "shop", "--policy", fake.Policy)
	return code, said + failed
}

func terminating(pod *corev1.Pod) {
	pod.DeletionTimestamp = ptr.To(metav1.NewTime(time.Now().Add(5 * time.Minute)))
	pod.DeletionGracePeriodSeconds = ptr.To(int64(300))
}

// waits has the first container of a pod wait for a restart.
func waits(reason string) func(pod *corev1.Pod) {
	return func(pod *corev1.Pod) {
		pod.Status.ContainerStatuses[0].Ready = false
		pod.Status.ContainerStatuses[0].RestartCount = 4
		pod.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
		pod.Status.ContainerStatuses[0].LastTerminationState = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1}}
	}
}

// initializes gives a pod an init container that runs and mounts its first volume.
func initializes(pod *corev1.Pod) {
	pod.Spec.InitContainers = []corev1.Container{{Name: "migrate", VolumeMounts: pod.Spec.Containers[0].VolumeMounts[:1]}}
	pod.Status.Phase = corev1.PodPending
	pod.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "migrate", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	pod.Status.ContainerStatuses[0] = corev1.ContainerStatus{Name: "main", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"}}}
}

// A pod that writes without a container in which a hook could run is in use: what
// was asked for is a failed quiesce, on both paths and in check.
func TestPodsThatCannotBeQuiescedAreInUse(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		pod  func(pod *corev1.Pod)
		want []string
	}{
		"7a terminating":                 {terminating, []string{"pod shop/db-0 is terminating", "claim data0-db-0", "container main: running"}},
		"7b in CrashLoopBackOff":         {waits("CrashLoopBackOff"), []string{"claim shop/data0-db-0 cannot be frozen", "pod db-0", "container main: CrashLoopBackOff"}},
		"7b between two starts":          {ended(1), []string{"claim shop/data0-db-0 cannot be frozen", "pod db-0", "container main: Error"}},
		"7b its image was pulled before": {waits("ImagePullBackOff"), []string{"claim shop/data0-db-0 cannot be frozen", "container main: ImagePullBackOff"}},
		"7c an init container writes":    {initializes, []string{"pod shop/db-0 is not running yet", "claim data0-db-0", "container migrate: running"}},
	} {
		for path, change := range map[string]func(*velerov1.Backup){"group": fake.WithPolicy, "around Velero's": func(*velerov1.Backup) {}} {
			t.Run(name+", "+path, func(t *testing.T) {
				t.Parallel()
				bed := fake.New(t)
				app := bed.Deploy(fake.App{Kind: "StatefulSet", Annotations: fsfreeze, Pod: test.pod})
				v := bed.Velero()
				r := v.Backup(bed.Backup(change), app)
				assert.Empty(t, bed.Storage.Snapshots(), "a snapshot that was not quiesced")
				said := v.Errors()
				if err := r.Dropped[app.Claims[0]]; err != nil {
					said = append(said, err.Error())
				}
				require.NotEmpty(t, said)
				for _, want := range test.want {
					assert.Contains(t, said[0], want)
				}
			})
		}
		t.Run(name+", continue", func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Kind: "StatefulSet", Pod: test.pod, Annotations: map[string]string{
				"stillpoint.io/quiesce": "fsfreeze", "stillpoint.io/on-quiesce-error": "continue",
			}})
			v := bed.Velero()
			v.Backup(bed.Backup(fake.WithPolicy), app)
			assert.Len(t, bed.Storage.Snapshots(), 1)
			assert.Empty(t, v.Errors())
			assert.True(t, v.Said(logrus.WarnLevel, append([]string{"Quiesce failed"}, test.want...)...), v.Lines(logrus.WarnLevel))
		})
		t.Run(name+", check", func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			bed.Deploy(fake.App{Kind: "StatefulSet", Annotations: fsfreeze, Pod: test.pod})
			code, said := checked(bed)
			assert.Equal(t, 1, code, said)
			for _, want := range test.want {
				assert.Contains(t, said, want)
			}
		})
	}
}

// ended has the first container of a pod have ended.
func ended(code int32) func(pod *corev1.Pod) {
	return func(pod *corev1.Pod) {
		reason := map[bool]string{true: "Completed", false: "Error"}[code == 0]
		pod.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason}}
	}
}

// What does not write is not in use, and is snapshotted as it is.
func TestPodsThatDoNotWriteAreNotInUse(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(pod *corev1.Pod){
		"succeeded": func(pod *corev1.Pod) { pod.Status.Phase = corev1.PodSucceeded; ended(0)(pod) },
		"not scheduled": func(pod *corev1.Pod) {
			pod.Status.Phase, pod.Spec.NodeName, pod.Status.ContainerStatuses = corev1.PodPending, "", nil
		},
		"its image cannot be pulled": func(pod *corev1.Pod) {
			pod.Status.Phase = corev1.PodPending
			pod.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}
		},
		"terminating, and its containers have ended": func(pod *corev1.Pod) { terminating(pod); ended(137)(pod) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Annotations: fsfreeze, Pod: change})
			v := bed.Velero()
			v.Backup(bed.Backup(fake.WithPolicy), app)
			assert.Empty(t, v.Errors())
			assert.Len(t, bed.Storage.Snapshots(), 1)
		})
	}
}

// 7a: the file system of a pod that terminates is frozen from another pod that
// mounts it, as in the rollout of a Deployment. What runs in the pods themselves
// would miss the one that terminates.
func TestFileSystemIsFrozenFromAnotherPod(t *testing.T) {
	t.Parallel()
	deploy := func(t *testing.T, recipe string) (*fake.Bed, *fake.Workload) {
		bed := fake.New(t)
		return bed, bed.Deploy(fake.App{Annotations: map[string]string{"stillpoint.io/quiesce": recipe}, Replicas: 2, Pod: func(pod *corev1.Pod) {
			if pod.Name == "db-6d4f-a" {
				terminating(pod)
			}
		}})
	}
	bed, app := deploy(t, "fsfreeze")
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.Empty(t, v.Errors())
	require.Len(t, bed.Storage.Snapshots(), 1)
	assert.True(t, bed.Storage.Snapshots()[0].Frozen)

	bed, app = deploy(t, "redis,fsfreeze")
	v = bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.True(t, v.Said(logrus.ErrorLevel, "blueprint redis", "pod shop/db-6d4f-a is terminating"), v.Errors())
	assert.Empty(t, bed.Storage.Snapshots())
}

// 7b: one pod of several that restarts is not passed over.
func TestOnePodOfSeveralRestarts(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Kind: "StatefulSet", Annotations: fsfreeze, Replicas: 2, Pod: func(pod *corev1.Pod) {
		if pod.Name == "db-1" {
			waits("CrashLoopBackOff")(pod)
		}
	}})
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.True(t, v.Said(logrus.ErrorLevel, "claim shop/data0-db-1 cannot be frozen", "pod db-1: container main: CrashLoopBackOff"), v.Errors())
	assert.Empty(t, bed.Storage.Snapshots())
}

// 7d: a pod that starts while the backup runs is seen, whatever was known of its
// namespace before.
func TestFactsAreNotOld(t *testing.T) {
	t.Parallel()
	for path, change := range map[string]func(*velerov1.Backup){"group": fake.WithPolicy, "around Velero's": func(*velerov1.Backup) {}} {
		for where, annotated := range map[string]fake.App{
			"annotation on the pod":        {Name: "late", Kind: "Pod", Annotations: fsfreeze},
			"annotation on the Deployment": {Name: "late", Annotations: fsfreeze},
		} {
			t.Run(path+", "+where, func(t *testing.T) {
				t.Parallel()
				bed := fake.New(t)
				first := bed.Deploy(fake.App{Name: "first"})
				annotated.Pod = func(pod *corev1.Pod) { pod.Status = corev1.PodStatus{Phase: corev1.PodPending} }
				annotated.Kind += map[bool]string{true: "", false: "Deployment"}[annotated.Kind != ""]
				late := bed.Deploy(annotated)
				backup, v := bed.Backup(change), bed.Velero()
				v.Backup(backup, first)
				require.Len(t, bed.Storage.Snapshots(), 1)

				pod := late.Pods[0]
				fake.Started(pod)
				bed.RunPod(pod)
				v.Backup(backup, late)
				require.Len(t, bed.Storage.Snapshots(), 2)
				for _, snapshot := range bed.Storage.Snapshots() {
					if snapshot.Volume != handleOf(bed, first.Claims[0]) {
						assert.True(t, snapshot.Frozen)
					}
				}
			})
		}
	}
}

// handleOf is the handle of a claim's volume.
func handleOf(bed *fake.Bed, claim string) string {
	object := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: claim}}
	bed.API.Get(bed.T, object)
	return "vol-" + string(object.UID)
}
