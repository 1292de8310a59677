package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/wait"

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

func (c *Cluster) cleanUp(t testing.TB, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupLimit)
	defer cancel()
	if err := c.deleteNamespace(ctx, name); err != nil {
		t.Errorf("clean up: %v", err)
	}
}

// deleteNamespace thaws again and again while it waits: a pod with a blocked
// writer cannot be killed, and something may still be freezing.
func (c *Cluster) deleteNamespace(ctx context.Context, name string) error {
	if err := c.thawNamespace(ctx, name); err != nil {
		return err
	}
	now := int64(0)
	err := c.typed.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete namespace %s: %w", name, err)
	}
	// No test needs its pods' goodbye.
	err = c.typed.CoreV1().Pods(name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete the pods of namespace %s: %w", name, err)
	}
	for {
		_, err := c.typed.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err := c.thawNamespace(ctx, name); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("delete namespace %s: %w", name, errors.Join(ctx.Err(), err))
		case <-time.After(200 * time.Millisecond):
		}
	}
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
