package cluster_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/cluster/loopcsi"
)

func ready(s *snapshotv1.VolumeSnapshot) bool {
	return s.Status.ReadyToUse != nil && *s.Status.ReadyToUse
}

// contentOf is the content that a snapshot is bound to.
func contentOf(t *testing.T, c *cluster.Cluster, s *snapshotv1.VolumeSnapshot) *snapshotv1.VolumeSnapshotContent {
	t.Helper()
	content := &snapshotv1.VolumeSnapshotContent{}
	require.NoError(t, c.Objects().Get(t.Context(), client.ObjectKey{Name: *s.Status.BoundVolumeSnapshotContentName}, content))
	return content
}

// stored finds a snapshot in the storage.
func stored(t *testing.T, c *cluster.Cluster, handle string) (cluster.StoredSnapshot, bool) {
	t.Helper()
	all, err := c.Snapshots(t.Context())
	require.NoError(t, err)
	i := slices.IndexFunc(all, func(s cluster.StoredSnapshot) bool { return s.ID == handle })
	if i < 0 {
		return cluster.StoredSnapshot{}, false
	}
	return all[i], true
}

// static makes a VolumeSnapshot of a snapshot that only its handle is known of,
// as a restore does.
func static(t *testing.T, c *cluster.Cluster, ns, handle string, policy snapshotv1.DeletionPolicy) *snapshotv1.VolumeSnapshot {
	t.Helper()
	content := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: ns + "-static"},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: loopcsi.Name, DeletionPolicy: policy,
			Source:            snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: &handle},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: ns, Name: "static"},
		},
	}
	require.NoError(t, c.Objects().Create(t.Context(), content))
	t.Cleanup(func() { require.NoError(t, client.IgnoreNotFound(c.Objects().Delete(context.Background(), content))) })
	s := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "static"},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: &content.Name}},
	}
	require.NoError(t, c.Objects().Create(t.Context(), s))
	return s
}

// read starts a pod with a claim made from a snapshot and returns what the file
// in it holds.
func read(t *testing.T, c *cluster.Cluster, s *snapshotv1.VolumeSnapshot, file string) string {
	t.Helper()
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "restored"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
			DataSource:  &corev1.TypedLocalObjectReference{APIGroup: ptr.To("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: s.Name},
		},
	}
	require.NoError(t, c.Objects().Create(t.Context(), claim))
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "app"},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "app", Image: cluster.Image, Command: []string{"sleep", "infinity"},
				VolumeMounts: []corev1.VolumeMount{{Name: "restored", MountPath: "/restored"}},
			}},
			Volumes: []corev1.Volume{{Name: "restored", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name},
			}}},
		},
	}
	require.NoError(t, c.Objects().Create(t.Context(), pod))
	_, err := c.Kubectl(t.Context(), nil, "wait", "-n", s.Namespace, "--for=condition=Ready", "--timeout=60s", "pod/app")
	require.NoError(t, err)
	return exec(t, c, s.Namespace, "cat", "/restored/"+file)
}

func TestExportedSnapshotOutlivesItsCut(t *testing.T) {
	t.Parallel()
	c := cluster.Connect(t)
	ns := app(t, c)
	exec(t, c, ns, "sh", "-c", "echo kept > /data/kept && sync")
	s := snapshot(t, c, ns, map[string]string{"export": "s3", "delete-local": "true"}, ready)
	handle := *contentOf(t, c, s).Status.SnapshotHandle
	require.True(t, strings.HasPrefix(handle, "s3:"), handle)
	require.Eventually(t, func() bool {
		s, found := stored(t, c, handle)
		require.True(t, found)
		require.True(t, s.Remote)
		return s.Ready && s.Size == 0
	}, 10*time.Second, 50*time.Millisecond, "the cut is still there")

	elsewhere := c.Namespace(t, "bed")
	require.Equal(t, "kept\n", read(t, c, static(t, c, elsewhere, handle, snapshotv1.VolumeSnapshotContentRetain), "kept"))

	require.NoError(t, c.Objects().Delete(t.Context(), s))
	require.Eventually(t, func() bool {
		_, found := stored(t, c, handle)
		return !found
	}, 20*time.Second, 100*time.Millisecond, "deleted is deleted, in the bucket too")
}

func TestExportSurvivesAnOutage(t *testing.T) { // of S3 and of the driver: not parallel
	c := cluster.Connect(t)
	ns := app(t, c)
	t.Cleanup(func() {
		for _, component := range []string{cluster.S3, cluster.CSIDriver} {
			require.NoError(t, c.Start(context.Background(), component))
		}
	})
	require.NoError(t, c.Kill(t.Context(), cluster.S3))
	s := snapshot(t, c, ns, map[string]string{"export": "s3"}, func(s *snapshotv1.VolumeSnapshot) bool {
		return s.Status.CreationTime != nil
	})
	require.False(t, ready(s))
	require.NoError(t, c.Kill(t.Context(), cluster.CSIDriver))
	require.NoError(t, c.Start(t.Context(), cluster.CSIDriver))
	require.NoError(t, c.Start(t.Context(), cluster.S3))
	require.Eventually(t, func() bool {
		require.NoError(t, c.Objects().Get(t.Context(), client.ObjectKeyFromObject(s), s))
		return ready(s)
	}, 40*time.Second, 100*time.Millisecond)
	found, is := stored(t, c, *contentOf(t, c, s).Status.SnapshotHandle)
	require.True(t, is)
	require.Positive(t, found.Size, "the cut stays")
}

func TestStaticContentIsReadyOnlyWithItsSnapshot(t *testing.T) {
	t.Parallel()
	c := cluster.Connect(t)
	s := static(t, c, c.Namespace(t, "bed"), "snapshot-nowhere", snapshotv1.VolumeSnapshotContentRetain)
	require.Eventually(t, func() bool {
		require.NoError(t, c.Objects().Get(t.Context(), client.ObjectKeyFromObject(s), s))
		return s.Status != nil && s.Status.Error != nil && strings.Contains(*s.Status.Error.Message, "snapshot-nowhere")
	}, 20*time.Second, 100*time.Millisecond)
	require.False(t, ready(s))
}

func TestDeletionFailsUntilItIsAllowed(t *testing.T) {
	t.Parallel()
	c := cluster.Connect(t)
	s := snapshot(t, c, app(t, c), map[string]string{"failDelete": "the array is busy"}, ready)
	handle := *contentOf(t, c, s).Status.SnapshotHandle
	t.Cleanup(func() { require.NoError(t, c.AllowDelete(context.Background(), handle)) })
	require.NoError(t, c.Objects().Delete(t.Context(), s))
	time.Sleep(2 * time.Second)
	_, found := stored(t, c, handle)
	require.True(t, found)
	require.NoError(t, c.AllowDelete(t.Context(), handle))
	require.Eventually(t, func() bool {
		_, found := stored(t, c, handle)
		return !found
	}, 5*time.Second, 100*time.Millisecond)
}

// That the namespace goes is looked at by its own clean-up.
func TestNamespaceIsDeletedWhileASnapshotIsCut(t *testing.T) {
	t.Parallel()
	c := cluster.Connect(t)
	for range 3 { // the fault that this is about does not always show
		snapshot(t, c, app(t, c), map[string]string{"delay": "2s"}, func(*snapshotv1.VolumeSnapshot) bool { return true })
	}
}
