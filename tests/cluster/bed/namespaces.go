package bed

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/tests/cluster/process"
)

const (
	// testLabel is on every namespace that a test made.
	testLabel = "testbed.stillpoint.io/test"
	// testProcess is an annotation that names the process the test runs in, in
	// the form of process.Self. When that has ended the namespace is a leftover.
	testProcess = "testbed.stillpoint.io/process"
)

// TestNamespace is the metadata of a namespace for a test of this process.
func TestNamespace(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:        name,
		Labels:      map[string]string{testLabel: "true"},
		Annotations: map[string]string{testProcess: process.Self()},
	}
}

// sweepNamespaces deletes the namespaces of test processes that have ended
// without doing so. It does not wait for it.
func (b *Bed) sweepNamespaces(ctx context.Context) error {
	client, err := b.client()
	if err != nil {
		return err
	}
	list, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: testLabel})
	if err != nil {
		return fmt.Errorf("list the namespaces of tests: %w", err)
	}
	for i := range list.Items {
		ns := &list.Items[i]
		if ns.DeletionTimestamp != nil || process.Lives(ns.Annotations[testProcess]) {
			continue
		}
		b.Say("deleting namespace %s, its test has ended", ns.Name)
		if err := client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}); err != nil {
			return fmt.Errorf("delete namespace %s: %w", ns.Name, err)
		}
	}
	return nil
}
