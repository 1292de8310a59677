package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

// finalizers are those that Stillpoint's own VolumeSnapshots have from the beginning.
var finalizers = []string{
	"snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection", "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection",
}

// cutAll asks for snapshots of all claims at once and returns the time from the
// first request until a watch has shown the last of them cut. No backup that
// quiesces for its snapshots can be quicker. It deletes them again.
func (b *bench) cutAll(ctx context.Context, namespace string, claims []string) (took time.Duration, err error) {
	events, err := b.Objects().Watch(ctx, &snapshotv1.VolumeSnapshotContentList{})
	if err != nil {
		return 0, fmt.Errorf("watch the contents of snapshots: %w", err)
	}
	defer events.Stop()
	class := cluster.SnapshotClass
	snapshots := make([]client.Object, len(claims))
	for i := range claims {
		snapshots[i] = &snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "floor-" + claims[i], Finalizers: finalizers},
			Spec: snapshotv1.VolumeSnapshotSpec{
				Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claims[i]}, VolumeSnapshotClassName: &class,
			},
		}
	}
	cut := map[string]bool{} // by the snapshot's name
	defer func() {
		if err == nil {
			err = b.ready(ctx, snapshots)
		}
		// The controller deletes the contents. One that another deletes beside it can
		// stay in its memory for a quarter of an hour, and the VolumeSnapshot with it.
		err = errors.Join(err, b.DeleteAll(ctx, snapshots))
	}()

	began := time.Now()
	created := make(chan error, 1)
	go func() {
		created <- atOnce(len(snapshots), func(i int) error { return b.Objects().Create(ctx, snapshots[i]) })
	}()
	for len(cut) < len(claims) {
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("wait until the snapshots are cut, %d of %d are: %w", len(cut), len(claims), ctx.Err())
		case err := <-created:
			if err != nil {
				return 0, err
			}
			created = nil
		case event, open := <-events.ResultChan():
			if !open {
				return 0, errors.New("the watch on the contents of snapshots has ended")
			}
			content, ok := event.Object.(*snapshotv1.VolumeSnapshotContent)
			if ok && content.Spec.VolumeSnapshotRef.Namespace == namespace && content.Status != nil &&
				content.Status.SnapshotHandle != nil && content.Status.CreationTime != nil {
				cut[content.Spec.VolumeSnapshotRef.Name] = true
			}
		}
	}
	return time.Since(began), nil
}

// ready waits until snapshots are ready to use. The snapshot controllers take
// many minutes to delete one that goes just while they write of its cut.
func (b *bench) ready(ctx context.Context, snapshots []client.Object) error {
	return stage.Until(ctx, "the snapshots are ready to use", func(ctx context.Context) (bool, error) {
		for _, snapshot := range snapshots {
			found := &snapshotv1.VolumeSnapshot{}
			if err := b.Objects().Get(ctx, client.ObjectKeyFromObject(snapshot), found); err != nil {
				return false, err
			}
			if found.Status == nil || found.Status.ReadyToUse == nil || !*found.Status.ReadyToUse {
				return false, nil
			}
		}
		return true, nil
	})
}

// atOnce calls do for 0 to n-1 side by side.
func atOnce(n int, do func(i int) error) error {
	done := make(chan error, n)
	for i := range n {
		go func() { done <- do(i) }()
	}
	var errs []error
	for range n {
		errs = append(errs, <-done)
	}
	return errors.Join(errs...)
}
