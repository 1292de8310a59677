package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// One pod has a volume with reclaim policy Retain, one that was made by hand and an
// ephemeral one; a further claim is protected for another snapshot. All of it comes
// back as it was at the backup, whose name is no label, after the cluster has lost it.
func testRestoreBringsTheDataBack(t *testing.T, c *cluster.Cluster) {
	d := &retainedApp{app: &app{t: t, c: c, namespace: c.Namespace(t, "e2e"), mounts: map[string]string{}}}
	slow := d.run(slowClass(t, c, map[string]string{"delay": "12s"}))
	name := "e2e-" + rand.String(6) + strings.Repeat("-long", 13)
	b := startBackupNamed(t, c, name, d.namespace, handOver(t, c, ""))
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit), b.log())
	assert.Contains(t, said(b.log(), "warning"), "The name of the backup is too long for a label")
	assert.Contains(t, b.log(), "claim "+d.namespace+"/static is restored with StorageClass ")
	assert.Equal(t, []string{"kubernetes.io/pvc-protection"}, b.claim(d.namespace, "guarded").Finalizers)
	// The same around Velero's own snapshot.
	own := startBackupNamed(t, c, name+"-own", d.namespace, func(spec *velerov1.BackupSpec) {
		spec.IncludedResources = []string{"persistentvolumeclaims", "persistentvolumes"}
		spec.LabelSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"e2e": "data"}}
	})
	require.Equal(t, velerov1.BackupPhaseCompleted, own.finished(limit), own.log())
	d.write("now")
	before := d.lose(slow)

	r := b.restore(t, nil)
	require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(limit), r.log())
	assert.Contains(t, r.log(), "as it was: claim "+r.namespace+"/data gets the data of the backup")
	r.kubectl("wait", "--for=condition=Ready", "pod/app", "--timeout=60s")
	for _, volume := range []string{"data", "static", "scratch"} {
		assert.Equal(t, "then\n", r.kubectl("exec", "app", "--", "cat", "/mnt/"+volume+"/marker"), volume)
	}
	// The finalizer went along, before: the claim could not be deleted.
	r.kubectl("delete", "persistentvolumeclaim", "guarded", "--timeout=30s")

	r = own.restore(t, nil)
	require.Equal(t, velerov1.RestorePhaseCompleted, r.finished(limit), r.log())
	r.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "persistentvolumeclaim/data", "--timeout=60s")
	assert.NotEqual(t, before, r.kubectl("get", "persistentvolumeclaim", "data", "-o", "jsonpath={.spec.volumeName}"))
}

// retainedApp is a pod with such volumes.
type retainedApp struct{ *app }

// run makes the pod, and a claim of which a slow snapshot is being taken, which it
// returns.
func (d *retainedApp) run(slowly func(*corev1.PersistentVolumeClaim)) *snapshotv1.VolumeSnapshot {
	d.t.Helper()
	spec := corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
	}
	create := func(object crclient.Object) { require.NoError(d.t, d.c.Objects().Create(d.t.Context(), object)) }
	for _, name := range []string{"data", "made", "guarded"} {
		create(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: d.namespace, Name: name, Labels: map[string]string{"e2e": name}}, Spec: spec})
	}
	d.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "persistentvolumeclaim", "--all", "--timeout=60s")
	// By hand: another object for a volume of the driver, without a StorageClass.
	made := d.retain("made")
	d.kubectl("delete", "persistentvolumeclaim", "made", "--timeout=30s")
	require.NoError(d.t, d.c.Objects().Delete(d.t.Context(), made.DeepCopy()))
	static := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: d.namespace, Labels: map[string]string{"e2e": d.namespace}, Annotations: made.Annotations},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: made.Spec.Capacity, AccessModes: made.Spec.AccessModes, PersistentVolumeSource: made.Spec.PersistentVolumeSource,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain, NodeAffinity: made.Spec.NodeAffinity, VolumeMode: made.Spec.VolumeMode,
		},
	}
	create(static)
	d.discard(static)
	byHand := spec.DeepCopy()
	byHand.StorageClassName, byHand.Selector = ptr.To(""), &metav1.LabelSelector{MatchLabels: static.Labels}
	create(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: d.namespace, Name: "static"}, Spec: *byHand})
	d.discard(d.retain("data"))

	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: d.namespace, Name: "app"}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: ptr.To(int64(1)),
		Containers:                    []corev1.Container{{Name: "app", Image: cluster.Image, Command: []string{"sleep", "infinity"}}},
		Volumes: []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
			VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: spec},
		}}}},
	}}
	for _, name := range []string{"data", "static"} {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}})
	}
	for _, volume := range pod.Spec.Volumes {
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: volume.Name, MountPath: "/mnt/" + volume.Name})
	}
	create(pod)
	d.kubectl("wait", "--for=condition=Ready", "pod/app", "--timeout=60s")
	d.write("then")

	chosen := &corev1.PersistentVolumeClaim{}
	slowly(chosen)
	slow := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: d.namespace, Name: "slow"},
		Spec: snapshotv1.VolumeSnapshotSpec{
			Source:                  snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: ptr.To("guarded")},
			VolumeSnapshotClassName: ptr.To(chosen.Annotations["velero.io/csi-volumesnapshot-class"]),
		},
	}
	create(slow)
	require.Eventually(d.t, func() bool {
		return strings.Contains(d.kubectl("get", "persistentvolumeclaim", "guarded", "-o", "jsonpath={.metadata.finalizers}"), "pvc-as-source-protection")
	}, 10*time.Second, 100*time.Millisecond)
	return slow
}

// retain gives the volume of a claim the reclaim policy Retain.
func (d *retainedApp) retain(claim string) *corev1.PersistentVolume {
	d.t.Helper()
	name := d.kubectl("get", "persistentvolumeclaim", claim, "-o", "jsonpath={.spec.volumeName}")
	d.kubectl("patch", "persistentvolume", name, "--type=merge", "-p", `{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`)
	volume := &corev1.PersistentVolume{}
	require.NoError(d.t, d.c.Objects().Get(d.t.Context(), crclient.ObjectKey{Name: name}, volume))
	return volume
}

// discard deletes a retained volume from the storage when the test ends.
func (d *retainedApp) discard(volume *corev1.PersistentVolume) {
	d.t.Cleanup(func() {
		again := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: volume.Name, Annotations: volume.Annotations}, Spec: *volume.Spec.DeepCopy()}
		again.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
		again.Spec.ClaimRef = &corev1.ObjectReference{Namespace: d.namespace, Name: "gone", UID: "gone"}
		_ = d.c.Objects().Create(context.Background(), again)
	})
}

func (d *retainedApp) write(text string) {
	d.t.Helper()
	d.kubectl("exec", "app", "--", "sh", "-c", "for v in data static scratch; do echo "+text+" > /mnt/$v/marker; done; sync")
}

// lose deletes what the API server knows of the app, and returns the name that the
// volume of claim data had. The storage keeps its volumes.
func (d *retainedApp) lose(slow *snapshotv1.VolumeSnapshot) string {
	d.t.Helper()
	volume := d.kubectl("get", "persistentvolumeclaim", "data", "-o", "jsonpath={.spec.volumeName}")
	d.kubectl("wait", "--for=jsonpath={.status.readyToUse}=true", "volumesnapshot.snapshot.storage.k8s.io/"+slow.Name, "--timeout=60s")
	d.kubectl("delete", "pod", "app", "--timeout=60s")
	d.kubectl("delete", "persistentvolumeclaim", "data", "static", "--timeout=60s")
	d.kubectl("delete", "persistentvolume", volume, d.namespace, "--timeout=60s")
	return volume
}
