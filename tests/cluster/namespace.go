package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/wait"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster/bed"
)

// Namespace makes a namespace for a test, its name beginning with prefix. When
// the test ends its volumes are thawed and it is deleted.
func (c *Cluster) Namespace(t testing.TB, prefix string) string {
	t.Helper()
	name := prefix + "-" + rand.String(5)
	ns := &corev1.Namespace{ObjectMeta: bed.TestNamespace(name)}
	if _, err := c.typed.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatalf("make namespace %s: %v", name, err)
	}
	t.Cleanup(func() { c.cleanUp(t, name) })
	// A pod made before its service account is refused.
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		_, err := c.typed.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		t.Fatalf("wait for the service account of namespace %s: %v", name, err)
	}
	return name
}

// Adopt has a namespace that a test did not make itself, but Velero for it,
// deleted when the test ends. It need not exist.
func (c *Cluster) Adopt(t testing.TB, name string) {
	t.Helper()
	t.Cleanup(func() { c.cleanUp(t, name) })
}

// deletions are those of namespaces whose tests have ended. Nobody waits for them
// but the last: pods and volumes take their time, and the next test need not.
var deletions struct {
	sync.WaitGroup
	mu     sync.Mutex
	failed []error
}

// Main is what the TestMain of a package calls whose tests make namespaces. It
// waits until these are gone; one that stays fails the package. Then it calls after,
// which puts back what the tests had in common.
func Main(m *testing.M, after ...func() error) {
	code := m.Run()
	deletions.Wait()
	for _, call := range after {
		if err := call(); err != nil {
			deletions.failed = append(deletions.failed, err)
		}
	}
	for _, err := range deletions.failed {
		fmt.Fprintf(os.Stderr, "--- FAIL: clean up: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

// DeleteNamespace thaws the volumes of a namespace, deletes it and waits until it
// is gone. It need not exist.
func (c *Cluster) DeleteNamespace(ctx context.Context, name string) error {
	ours, err := c.beginDeletion(ctx, name)
	if err != nil {
		return err
	}
	return c.awaitDeletion(ctx, name, ours)
}

// cleanUp begins the deletion of a namespace, which Main waits for.
func (c *Cluster) cleanUp(t testing.TB, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupLimit)
	ours, err := c.beginDeletion(ctx, name)
	if err != nil {
		cancel()
		t.Errorf("clean up: %v", err)
		return
	}
	deletions.Go(func() {
		defer cancel()
		err := c.awaitDeletion(ctx, name, ours)
		if err == nil {
			return
		}
		diagnosis, cancel := context.WithTimeout(context.Background(), diagnosisLimit)
		defer cancel()
		deletions.mu.Lock()
		defer deletions.mu.Unlock()
		deletions.failed = append(deletions.failed, fmt.Errorf("%s: %w; what is left in namespace %s:\n%s", t.Name(), err, name, c.leftIn(diagnosis, name)))
	})
}

// leftIn describes what keeps a namespace.
func (c *Cluster) leftIn(ctx context.Context, name string) string {
	var left []string
	say := func(format string, args ...any) { left = append(left, fmt.Sprintf(format, args...)) }
	ns, err := c.typed.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	for _, condition := range ns.Status.Conditions {
		if condition.Status == corev1.ConditionTrue {
			say("%s: %s", condition.Type, condition.Message)
		}
	}
	pods := &corev1.PodList{}
	claims := &corev1.PersistentVolumeClaimList{}
	snapshots := &snapshotv1.VolumeSnapshotList{}
	for kind, list := range map[string]crclient.ObjectList{"pods": pods, "claims": claims, "VolumeSnapshots": snapshots} {
		if err := c.objects.List(ctx, list, crclient.InNamespace(name)); err != nil {
			say("%s: %v", kind, err)
		}
	}
	for i := range pods.Items {
		say("pod %s%s: %s", pods.Items[i].Name, terminating(&pods.Items[i]), pods.Items[i].Status.Phase)
	}
	for i := range claims.Items {
		claim := &claims.Items[i]
		say("claim %s%s: %s, volume %s", claim.Name, terminating(claim), claim.Status.Phase, claim.Spec.VolumeName)
	}
	for i := range snapshots.Items {
		say("%s", c.describeSnapshot(ctx, &snapshots.Items[i]))
	}
	return strings.Join(left, "\n")
}

// beginDeletion thaws the volumes of a namespace and has it deleted. It returns
// the VolumeSnapshots that were alive until then.
func (c *Cluster) beginDeletion(ctx context.Context, name string) (ours map[types.UID]bool, err error) {
	if err := c.thawNamespace(ctx, name); err != nil {
		return nil, err
	}
	ours, err = c.liveSnapshots(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("delete namespace %s: %w", name, err)
	}
	now := int64(0)
	err = c.typed.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("delete namespace %s: %w", name, err)
	}
	// No test needs its pods' goodbye.
	err = c.typed.CoreV1().Pods(name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("delete the pods of namespace %s: %w", name, err)
	}
	return ours, nil
}

// awaitDeletion thaws again and again while it waits: a pod with a blocked writer
// cannot be killed, and something may still be freezing. The API server may be
// away, if the next test has killed it.
func (c *Cluster) awaitDeletion(ctx context.Context, name string, ours map[types.UID]bool) error {
	for rounds := 1; ; rounds++ {
		_, err := c.typed.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if len(ours) > 0 && rounds%wakeRounds == 0 {
			err = errors.Join(err, c.wakeContentsOf(ctx, ours))
		}
		err = errors.Join(err, c.thawNamespace(ctx, name))
		select {
		case <-ctx.Done():
			return fmt.Errorf("delete namespace %s: %w", name, errors.Join(ctx.Err(), err))
		case <-time.After(deletionPoll):
		}
	}
}

const (
	// deletionPoll lies between two looks at a namespace that is being deleted.
	deletionPoll = time.Second
	// wakeRounds are the looks after which contents are woken.
	wakeRounds = 2
)

// liveSnapshots are the UIDs of the VolumeSnapshots that nobody has deleted yet.
func (c *Cluster) liveSnapshots(ctx context.Context, namespace string) (map[types.UID]bool, error) {
	list := &snapshotv1.VolumeSnapshotList{}
	if err := c.objects.List(ctx, list, crclient.InNamespace(namespace)); err != nil {
		return nil, err
	}
	live := map[types.UID]bool{}
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp == nil {
			live[list.Items[i].UID] = true
		}
	}
	return live, nil
}

// wakeContentsOf ends a fault of csi-snapshotter: a snapshot that is deleted
// while it is cut it forgets (external-snapshotter issue 1258). That is for the
// snapshots that go with the namespace; who deletes one in a test answers for
// it, and is found out by what then stays.
func (c *Cluster) wakeContentsOf(ctx context.Context, snapshots map[types.UID]bool) error {
	list := &snapshotv1.VolumeSnapshotContentList{}
	if err := c.objects.List(ctx, list); err != nil {
		return err
	}
	for i := range list.Items {
		content := &list.Items[i]
		if content.DeletionTimestamp == nil || !snapshots[content.Spec.VolumeSnapshotRef.UID] {
			continue
		}
		if err := c.wake(ctx, content); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) thawNamespace(ctx context.Context, name string) error {
	claims, err := c.typed.CoreV1().PersistentVolumeClaims(name).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("thaw the volumes of namespace %s: %w", name, err)
	}
	for i := range claims.Items {
		claim := &claims.Items[i]
		_, err := c.Thaw(ctx, name, claim.Name)
		// A claim without a volume of ours, or one that is not mounted, cannot be frozen.
		if err != nil && !errors.Is(err, errNoVolume) && !errors.Is(err, fs.ErrNotExist) && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}
