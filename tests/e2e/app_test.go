// Package e2e runs Stillpoint as its users do: a stock Velero on a real
// cluster, annotated workloads, and `velero backup`.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// app is a Deployment that writes to each of its volumes every 5 ms, with a
// privileged sidecar that sleeps.
type app struct {
	t         *testing.T
	c         *cluster.Cluster
	namespace string
	// mounts are where the host has the volumes, by claim.
	mounts map[string]string
}

// shape is what tests change about an app.
type shape struct {
	annotations  map[string]string // of the Deployment
	volumes      int               // default 1
	claim        func(*corev1.PersistentVolumeClaim)
	bound        func(namespace, claim string) // before a pod uses it
	pod          func(*corev1.PodSpec)
	unprivileged bool
	replicas     int32
}

func newApp(t *testing.T, c *cluster.Cluster, s shape) *app {
	t.Helper()
	a := &app{t: t, c: c, namespace: c.Namespace(t, "e2e"), mounts: map[string]string{}}
	a.deploy("app", s)
	return a
}

// deploy adds a Deployment of that shape to the app's namespace and waits until
// it writes.
func (a *app) deploy(name string, s shape) {
	a.t.Helper()
	a.create(name, s)
	a.ready(name)
}

// create adds a Deployment of that shape to the app's namespace.
func (a *app) create(name string, s shape) {
	a.t.Helper()
	s.volumes = max(1, s.volumes)
	s.replicas = max(1, s.replicas)
	writer := corev1.Container{
		Name: "writer", Image: cluster.Image,
		Command: []string{"writer", "--interval", "5ms", "--report", "/run/report.json"},
	}
	sidecar := corev1.Container{
		Name: "sidecar", Image: cluster.Image, Command: []string{"sleep", "infinity"},
		SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(!s.unprivileged)},
	}
	pod := corev1.PodSpec{TerminationGracePeriodSeconds: ptr.To(int64(1))}
	for i := range s.volumes {
		claim := &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: fmt.Sprintf("%s-data%d", name, i)},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
			},
		}
		if s.claim != nil {
			s.claim(claim)
		}
		require.NoError(a.t, a.c.Objects().Create(a.t.Context(), claim))
		if s.bound != nil {
			a.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/"+claim.Name, "--timeout=60s")
			s.bound(a.namespace, claim.Name)
		}
		path := fmt.Sprintf("/mnt/data%d", i)
		if claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock {
			sidecar.VolumeDevices = append(sidecar.VolumeDevices, corev1.VolumeDevice{Name: claim.Name, DevicePath: "/dev/data"})
			writer.Command = []string{"sleep", "infinity"}
		} else {
			mount := corev1.VolumeMount{Name: claim.Name, MountPath: path}
			writer.VolumeMounts = append(writer.VolumeMounts, mount)
			sidecar.VolumeMounts = append(sidecar.VolumeMounts, mount)
			writer.Command = append(writer.Command, path)
		}
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name},
		}})
	}
	pod.Containers = []corev1.Container{writer, sidecar}
	if s.pod != nil {
		s.pod(&pod)
	}
	labels := map[string]string{"app": name}
	require.NoError(a.t, a.c.Objects().Create(a.t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: name, Annotations: s.annotations},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(s.replicas),
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod},
		},
	}))
}

// ready waits until a Deployment writes.
func (a *app) ready(name string) {
	a.t.Helper()
	a.kubectl("rollout", "status", "deployment/"+name, "--timeout=90s")
	deployment := &appsv1.Deployment{}
	require.NoError(a.t, a.c.Objects().Get(a.t.Context(), crclient.ObjectKey{Namespace: a.namespace, Name: name}, deployment))
	for _, volume := range deployment.Spec.Template.Spec.Volumes {
		if volume.PersistentVolumeClaim == nil {
			continue
		}
		mount, err := a.c.VolumeMount(a.t.Context(), a.namespace, volume.Name)
		require.NoError(a.t, err)
		a.mounts[volume.Name] = mount
	}
}

func (a *app) kubectl(args ...string) string {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), 100*time.Second)
	defer cancel()
	output, err := a.c.Kubectl(ctx, nil, append([]string{"-n", a.namespace}, args...)...)
	require.NoError(a.t, err)
	return output
}

// stall is the longest time that one write took since the last call, and ends
// the count.
func (a *app) stall(deployment string) time.Duration {
	a.t.Helper()
	time.Sleep(300 * time.Millisecond) // the report comes every 200 ms
	var reports []struct {
		Dir                string
		LongestStallMillis float64
	}
	require.NoError(a.t, json.Unmarshal([]byte(a.kubectl("exec", "deployment/"+deployment, "-c", "writer", "--", "cat", "/run/report.json")), &reports))
	a.kubectl("exec", "deployment/"+deployment, "-c", "writer", "--", "sh", "-c", "kill -USR1 1")
	longest := 0.0
	for _, report := range reports {
		longest = max(longest, report.LongestStallMillis)
	}
	return time.Duration(longest * float64(time.Millisecond))
}

// frozen tries to freeze, so it is for when nobody else does: at the end.
func (a *app) frozen(claim string) bool {
	a.t.Helper()
	frozen, err := a.c.Frozen(a.t.Context(), a.namespace, claim)
	require.NoError(a.t, err)
	return frozen
}

// writing tells whether the log on a volume grew within 200 ms, seen from the
// host: nothing that is looked at there changes a freeze.
func (a *app) writing(claim string) bool {
	a.t.Helper()
	log := filepath.Join(a.mounts[claim], "log")
	before, err := os.Stat(log)
	require.NoError(a.t, err)
	for range 20 {
		time.Sleep(10 * time.Millisecond)
		after, err := os.Stat(log)
		require.NoError(a.t, err)
		if after.Size() > before.Size() {
			return true
		}
	}
	return false
}

// writesWithin waits until the application writes to its volumes again.
func (a *app) writesWithin(limit time.Duration, claims ...string) {
	a.t.Helper()
	deadline := time.Now().Add(limit)
	for _, claim := range claims {
		for !a.writing(claim) {
			if time.Now().After(deadline) {
				a.t.Fatalf("claim %s is still frozen after %s", claim, limit)
			}
		}
	}
}

// awaitFrozen waits until a backup has frozen a volume. That nothing is written is
// not enough: a busy machine can do that, too.
func (a *app) awaitFrozen(b *backup, claim string) {
	a.t.Helper()
	told := "Quiesced for backup " + b.name
	for deadline := time.Now().Add(30 * time.Second); a.events("app")["Quiesced"] != told || a.writing(claim); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			a.t.Fatalf("claim %s was not frozen within 30s", claim)
		}
	}
}

// events are the messages of Stillpoint's events on a workload, by reason.
func (a *app) events(name string) map[string]string {
	a.t.Helper()
	list, err := a.c.Client().CoreV1().Events(a.namespace).List(a.t.Context(), metav1.ListOptions{})
	require.NoError(a.t, err)
	found := map[string]string{}
	for _, event := range list.Items {
		if event.Source.Component == "stillpoint" && event.InvolvedObject.Name == name {
			found[event.Reason] = event.Message
		}
	}
	return found
}

// passingName is one for a VolumeSnapshotClass of one test. It comes after the bed's
// own: Velero restores with the first class of a driver, and what another test restores
// is never ready when that class goes before the sidecar has looked.
func passingName() string { return "passing-" + rand.String(5) }

// slowClass makes a VolumeSnapshotClass whose driver takes its time, or fails;
// claims name it by Velero's own annotation.
func slowClass(t *testing.T, c *cluster.Cluster, parameters map[string]string) (annotate func(*corev1.PersistentVolumeClaim)) {
	t.Helper()
	class := &snapshotv1.VolumeSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{Name: passingName()},
		Driver:     "loop.csi.stillpoint.io", DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
		Parameters: parameters,
	}
	existing := &snapshotv1.VolumeSnapshotClass{}
	require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Name: cluster.SnapshotClass}, existing))
	class.Driver = existing.Driver
	require.NoError(t, c.Objects().Create(t.Context(), class))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), class) })
	return func(claim *corev1.PersistentVolumeClaim) {
		if claim.Annotations == nil {
			claim.Annotations = map[string]string{}
		}
		claim.Annotations["velero.io/csi-volumesnapshot-class"] = class.Name
	}
}

// blueprint puts a blueprint into a ConfigMap beside Velero, for one test.
func blueprint(t *testing.T, c *cluster.Cluster, document string) {
	t.Helper()
	configMap := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: cluster.VeleroNamespace, Name: "e2e-" + rand.String(5),
			Labels: map[string]string{"stillpoint.io/blueprint": ""},
		},
		Data: map[string]string{"blueprint.yaml": document},
	}
	require.NoError(t, c.Objects().Create(t.Context(), configMap))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), configMap) })
}

// execBlueprint is a blueprint of one command before and one after.
func execBlueprint(name, container, pre, post string) string {
	phase := func(name, command string) string {
		return fmt.Sprintf(`
    phases:
      - func: KubeExec
        name: %s
        args:
          namespace: "{{ .Deployment.Namespace }}"
          pod: "{{ index .Deployment.Pods 0 }}"
          container: %s
          command: [sh, -c, %q]`, name, container, command)
	}
	return strings.Join([]string{
		"apiVersion: cr.kanister.io/v1alpha1", "kind: Blueprint", "metadata:", "  name: " + name, "actions:",
		"  backupPrehook:" + phase("pre", pre), "  backupPosthook:" + phase("post", post), "",
	}, "\n")
}
