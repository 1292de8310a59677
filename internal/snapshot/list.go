package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
)

// Of selects the objects that an installation has marked.
func Of(installation string) labels.Selector {
	return labels.SelectorFromSet(labels.Set{api.LabelInstallation: installation})
}

// List lists the VolumeSnapshots of a namespace, or of all, that a selector matches; ""
// matches all.
func List(ctx context.Context, client versioned.Interface, namespace, selector string) ([]snapshotv1.VolumeSnapshot, error) {
	where := "VolumeSnapshots of namespace " + namespace
	if namespace == metav1.NamespaceAll {
		where = "VolumeSnapshots of all namespaces"
	}
	return served(cluster.All[snapshotv1.VolumeSnapshot](ctx, where, selector, cluster.Typed(client.SnapshotV1().VolumeSnapshots(namespace).List)))
}

// Contents lists the VolumeSnapshotContents that a selector matches; "" matches
// all.
func Contents(ctx context.Context, client versioned.Interface, selector string) ([]snapshotv1.VolumeSnapshotContent, error) {
	return served(cluster.All[snapshotv1.VolumeSnapshotContent](ctx, "VolumeSnapshotContents", selector, cluster.Typed(client.SnapshotV1().VolumeSnapshotContents().List)))
}

// served returns an empty list for a NotFound error, which means that the cluster does
// not have the CustomResourceDefinitions of snapshots.
func served[T any](all []T, err error) ([]T, error) {
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return all, err
}

// Pair is a VolumeSnapshot with the content that names it, or one of them where the
// other does not exist.
type Pair struct {
	Snapshot *snapshotv1.VolumeSnapshot
	Content  *snapshotv1.VolumeSnapshotContent
}

// Pairs pairs VolumeSnapshots and contents by the VolumeSnapshot that the content names.
// The reverse reference is not reliable, because a tenant can create a VolumeSnapshot
// that names any content.
func Pairs(snapshots []snapshotv1.VolumeSnapshot, contents []snapshotv1.VolumeSnapshotContent) []Pair {
	byKey := map[types.NamespacedName]*Pair{}
	var all []*Pair
	for i := range snapshots {
		vs := &snapshots[i]
		pair := &Pair{Snapshot: vs}
		byKey[types.NamespacedName{Namespace: vs.Namespace, Name: vs.Name}] = pair
		all = append(all, pair)
	}
	for i := range contents {
		content := &contents[i]
		of := content.Spec.VolumeSnapshotRef
		pair := byKey[types.NamespacedName{Namespace: of.Namespace, Name: of.Name}]
		switch {
		case pair == nil || (of.UID != "" && of.UID != pair.Snapshot.UID):
			all = append(all, &Pair{Content: content})
		case of.UID == "" && ptr.Deref(pair.Snapshot.Spec.Source.VolumeSnapshotContentName, "") != content.Name:
			// The VolumeSnapshot refers to another content.
			all = append(all, &Pair{Content: content})
		case pair.Content == nil:
			pair.Content = content
		}
	}
	pairs := make([]Pair, len(all))
	for i, pair := range all {
		pairs[i] = *pair
	}
	return pairs
}

// Marked lists and pairs the objects that a selector matches. It adds the
// VolumeSnapshots in Velero's namespace without Stillpoint's labels, since a data
// mover's copies there have only the annotations.
func Marked(ctx context.Context, client versioned.Interface, selector labels.Selector, velero string) ([]Pair, error) {
	contents, err := Contents(ctx, client, selector.String())
	if err != nil {
		return nil, err
	}
	marked, err := List(ctx, client, metav1.NamespaceAll, selector.String())
	if err != nil {
		return nil, err
	}
	copies, err := List(ctx, client, velero, "!"+api.LabelInstallation)
	return Pairs(slices.Concat(marked, copies), contents), err
}

// Objects returns the existing objects of a pair, the VolumeSnapshot first.
func (p Pair) Objects() (all []metav1.Object) {
	if p.Snapshot != nil {
		all = append(all, p.Snapshot)
	}
	if p.Content != nil {
		all = append(all, p.Content)
	}
	return all
}

// Created returns the creation time of the pair's first object.
func (p Pair) Created() time.Time { return p.Objects()[0].GetCreationTimestamp().Time }

// Target returns the target to delete a pair, including the storage's snapshot. A
// content that was never bound has no UID of a VolumeSnapshot. The target then has the
// content's UID, which matches no VolumeSnapshot, so a new VolumeSnapshot of that name
// stays.
func (p Pair) Target() Target {
	if p.Snapshot == nil {
		of := p.Content.Spec.VolumeSnapshotRef
		return Target{Namespace: of.Namespace, Name: of.Name, UID: cmp.Or(of.UID, p.Content.UID), Content: p.Content.Name}
	}
	target := TargetOf(p.Snapshot)
	if p.Content != nil {
		target.Content = p.Content.Name
	}
	return target
}

// ContentOf returns the content of a VolumeSnapshot, nil if no content names it.
func ContentOf(ctx context.Context, client versioned.Interface, vs *snapshotv1.VolumeSnapshot) (*snapshotv1.VolumeSnapshotContent, error) {
	content, err := TargetOf(vs).content(ctx, client, contentName(vs))
	if err != nil {
		return nil, fmt.Errorf("VolumeSnapshot %s/%s: %w", vs.Namespace, vs.Name, err)
	}
	return content, nil
}
