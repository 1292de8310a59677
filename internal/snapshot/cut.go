// Package snapshot creates, watches, marks and deletes VolumeSnapshots. It reports when
// the storage has cut a snapshot. From then on the application may write again, even if
// the data is copied elsewhere later.
package snapshot

import (
	"context"
	"fmt"
	"slices"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/label"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"

	"stillpoint.io/stillpoint/internal/cluster"
)

// EventKind is the kind of an Event.
type EventKind int

// Kinds of events. After Failed, Cut may still follow: the CSI sidecar and the snapshot
// controller try again.
const (
	// Created is sent for a new VolumeSnapshot.
	Created EventKind = iota
	// Begun is sent when the snapshot controller has created a content. For a content of
	// another VolumeSnapshot the event has no names.
	Begun
	Failed
	// Refused is a failure after which the driver certainly does not work on the
	// snapshot.
	Refused
	Cut
	// Bound follows Cut: the VolumeSnapshot has the name of its content.
	Bound
)

// Event is an event of one claim's snapshot.
type Event struct {
	Kind             EventKind
	Namespace, Claim string
	// Snapshot is the name of the VolumeSnapshot.
	Snapshot string
	// Message is the driver's message if Kind is Failed or Refused.
	Message string
	// Object is the VolumeSnapshot if Kind is Bound.
	Object *snapshotv1.VolumeSnapshot
}

// beingCreated is on a content while the driver may be at work on the snapshot.
const beingCreated = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"

// rewatchPause is the time between two attempts to reach the API server.
const rewatchPause = 250 * time.Millisecond

// deletedEarly is the message of a snapshot that will never be cut.
const deletedEarly = "the VolumeSnapshot was deleted before it was cut"

// OfBackup selects the VolumeSnapshots that Velero takes for a backup.
func OfBackup(backupName string) labels.Selector {
	return labels.SelectorFromSet(labels.Set{velerov1.BackupNameLabel: label.GetValidName(backupName)})
}

// Foreign reports whether a VolumeSnapshot with a backup's name is marked as another
// backup's. Another Velero may have a backup of that name.
func Foreign(vs *snapshotv1.VolumeSnapshot, backup *velerov1.Backup) bool {
	uid := vs.Labels[velerov1.BackupUIDLabel]
	return uid != "" && uid != string(backup.UID)
}

// watcher follows the snapshots of one namespace and backup.
type watcher struct {
	client    versioned.Interface
	namespace string
	selector  string

	backup      *velerov1.Backup // nil if the selector suffices
	reportBegun bool             // also reports contents of other VolumeSnapshots
	before      map[string]bool  // UIDs of the snapshots that existed before
	known       map[string]known // by name of the content
	sent        map[known]EventKind
	events      chan Event
}

type known struct{ namespace, claim, snapshot string }

func (k known) event(kind EventKind) Event {
	return Event{Kind: kind, Namespace: k.namespace, Claim: k.claim, Snapshot: k.snapshot}
}

// Watch follows the VolumeSnapshots of a namespace that are created from now on and that
// Velero may have taken for a backup. Its watches are open when it returns. It closes
// the channel when ctx ends.
//
// It reads the VolumeSnapshotContents, which the CSI sidecar updates as soon as the
// driver answers. The status of a VolumeSnapshot follows later. The contents are watched
// from now on and never listed, because a cluster can have thousands.
func Watch(ctx context.Context, client versioned.Interface, namespace string, backup *velerov1.Backup) (<-chan Event, error) {
	w := newWatcher(client, namespace, OfBackup(backup.Name))
	w.backup = backup
	before, err := w.list(ctx)
	if err != nil {
		return nil, err
	}
	for _, vs := range before.Items {
		w.before[string(vs.UID)] = true
	}
	return w.start(ctx)
}

// WatchAll follows the existing and new VolumeSnapshots of all namespaces that the
// selector matches. It also reports new contents of all others. Otherwise it is like
// Watch.
func WatchAll(ctx context.Context, client versioned.Interface, selector labels.Selector) (<-chan Event, error) {
	w := newWatcher(client, metav1.NamespaceAll, selector)
	w.reportBegun = true
	return w.start(ctx)
}

func newWatcher(client versioned.Interface, namespace string, selector labels.Selector) *watcher {
	return &watcher{
		client: client, namespace: namespace, selector: selector.String(),
		before: map[string]bool{}, known: map[string]known{}, sent: map[known]EventKind{},
		events: make(chan Event, 64),
	}
}

func (w *watcher) start(ctx context.Context) (<-chan Event, error) {
	snapshots, contents, listed, err := w.open(ctx)
	if err != nil {
		return nil, err
	}
	go w.run(ctx, snapshots, contents, listed)
	return w.events, nil
}

// list lists page by page. Its version is that of the first page, from which the watch
// continues.
func (w *watcher) list(ctx context.Context) (*snapshotv1.VolumeSnapshotList, error) {
	all, options := &snapshotv1.VolumeSnapshotList{}, metav1.ListOptions{LabelSelector: w.selector, Limit: cluster.PageSize}
	for {
		page, err := w.client.SnapshotV1().VolumeSnapshots(w.namespace).List(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("list the VolumeSnapshots of %s: %w", w.where(), err)
		}
		if all.ResourceVersion == "" {
			all.ResourceVersion = page.ResourceVersion
		}
		all.Items = append(all.Items, page.Items...)
		if options.Continue = page.Continue; page.Continue == "" {
			return all, nil
		}
	}
}

func (w *watcher) where() string {
	if w.namespace == metav1.NamespaceAll {
		return "all namespaces"
	}
	return "namespace " + w.namespace
}

// open starts both watches at the present, and returns the existing VolumeSnapshots.
func (w *watcher) open(ctx context.Context) (snapshots, contents watch.Interface, listed *snapshotv1.VolumeSnapshotList, err error) {
	now, err := w.client.SnapshotV1().VolumeSnapshotContents().List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("list the VolumeSnapshotContents: %w", err)
	}
	contents, err = w.client.SnapshotV1().VolumeSnapshotContents().Watch(ctx, metav1.ListOptions{ResourceVersion: now.ResourceVersion})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("watch the VolumeSnapshotContents: %w", err)
	}
	listed, err = w.list(ctx)
	if err == nil {
		snapshots, err = w.client.SnapshotV1().VolumeSnapshots(w.namespace).Watch(ctx,
			metav1.ListOptions{LabelSelector: w.selector, ResourceVersion: listed.ResourceVersion})
	}
	if err != nil {
		contents.Stop()
		return nil, nil, nil, fmt.Errorf("watch the VolumeSnapshots of %s: %w", w.where(), err)
	}
	return snapshots, contents, listed, nil
}

func (w *watcher) run(ctx context.Context, snapshots, contents watch.Interface, listed *snapshotv1.VolumeSnapshotList) {
	defer close(w.events)
	for {
		for i := range listed.Items {
			w.snapshot(ctx, &listed.Items[i])
			w.catchUp(ctx, &listed.Items[i])
		}
		w.reportDeleted(ctx, listed)
		w.follow(ctx, snapshots, contents)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(rewatchPause):
			}
			var err error
			if snapshots, contents, listed, err = w.open(ctx); err == nil {
				break
			}
		}
	}
}

// follow returns when a watch has ended.
func (w *watcher) follow(ctx context.Context, snapshots, contents watch.Interface) {
	defer snapshots.Stop()
	defer contents.Stop()
	for {
		select {
		case event, open := <-snapshots.ResultChan():
			if !open || event.Type == watch.Error {
				return
			}
			if vs, ok := event.Object.(*snapshotv1.VolumeSnapshot); ok {
				if event.Type == watch.Deleted {
					w.deleted(ctx, vs)
				} else {
					w.snapshot(ctx, vs)
				}
			}
		case event, open := <-contents.ResultChan():
			if !open || event.Type == watch.Error {
				return
			}
			if content, ok := event.Object.(*snapshotv1.VolumeSnapshotContent); ok && event.Type != watch.Deleted {
				if w.reportBegun && event.Type == watch.Added && content.Spec.Source.VolumeHandle != nil {
					w.send(ctx, Event{Kind: Begun})
				}
				w.content(ctx, content)
			}
		case <-ctx.Done():
			return
		}
	}
}

// snapshot processes a VolumeSnapshot and its status.
func (w *watcher) snapshot(ctx context.Context, vs *snapshotv1.VolumeSnapshot) {
	if w.before[string(vs.UID)] || vs.Spec.Source.PersistentVolumeClaimName == nil || (w.backup != nil && Foreign(vs, w.backup)) {
		return
	}
	of := known{vs.Namespace, *vs.Spec.Source.PersistentVolumeClaimName, vs.Name}
	content := contentName(vs)
	if _, ok := w.known[content]; !ok {
		w.known[content] = of
		w.report(ctx, of.event(Created))
		// The content may have been cut before its VolumeSnapshot was known.
		w.catchUp(ctx, vs)
	}
	switch {
	case vs.Status == nil:
	case vs.Status.BoundVolumeSnapshotContentName != nil && vs.Status.CreationTime != nil:
		w.report(ctx, of.event(Cut)) // the content's own event may follow
		event := of.event(Bound)
		event.Object = vs
		w.report(ctx, event)
	case vs.Status.Error != nil:
		w.failed(ctx, of, message(vs.Status.Error))
	}
}

func (w *watcher) failed(ctx context.Context, of known, message string) {
	event := of.event(Failed)
	event.Message = message
	w.report(ctx, event)
}

func (w *watcher) deleted(ctx context.Context, vs *snapshotv1.VolumeSnapshot) {
	if of, ok := w.known[contentName(vs)]; ok {
		w.failed(ctx, of, deletedEarly)
	}
}

// reportDeleted reports the snapshots that were deleted while no watch was open. They
// may have been cut before.
func (w *watcher) reportDeleted(ctx context.Context, list *snapshotv1.VolumeSnapshotList) {
	for name, of := range w.known {
		there := slices.ContainsFunc(list.Items, func(vs snapshotv1.VolumeSnapshot) bool {
			return vs.Name == of.snapshot && vs.Namespace == of.namespace
		})
		if there || w.sent[of] >= Cut {
			continue
		}
		content, err := w.client.SnapshotV1().VolumeSnapshotContents().Get(ctx, name, metav1.GetOptions{})
		switch {
		case err == nil:
			w.content(ctx, content)
		case !apierrors.IsNotFound(err):
			continue
		}
		w.failed(ctx, of, deletedEarly)
	}
}

// content processes a content. A snapshot is cut when the content has a handle and a
// creation time, which the CSI specification defines as the point in time of the
// snapshot.
func (w *watcher) content(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) {
	of, ok := w.known[content.Name]
	if !ok {
		return
	}
	if w.reportBegun {
		w.report(ctx, of.event(Begun))
	}
	switch {
	case content.Status == nil:
	case content.Status.SnapshotHandle != nil && content.Status.CreationTime != nil:
		w.report(ctx, of.event(Cut))
	case content.Status.Error != nil:
		w.failed(ctx, of, message(content.Status.Error))
		// The CSI sidecar removes the annotation when the driver's answer is final
		// (isCSIFinalError in pkg/sidecar-controller of external-snapshotter 8.2).
		if _, creating := content.Annotations[beingCreated]; !creating {
			event := of.event(Refused)
			event.Message = message(content.Status.Error)
			w.report(ctx, event)
		}
	}
}

// catchUp reads a content whose events may have come before its VolumeSnapshot was
// known. If the read fails, so do the watches, which are opened again.
func (w *watcher) catchUp(ctx context.Context, vs *snapshotv1.VolumeSnapshot) {
	if w.before[string(vs.UID)] {
		return
	}
	if content, err := w.client.SnapshotV1().VolumeSnapshotContents().Get(ctx, contentName(vs), metav1.GetOptions{}); err == nil {
		w.content(ctx, content)
	}
}

// report sends an event, unless it or a later one of the snapshot was sent.
func (w *watcher) report(ctx context.Context, event Event) {
	of := known{event.Namespace, event.Claim, event.Snapshot}
	if last, ok := w.sent[of]; ok && last >= event.Kind {
		return
	}
	w.sent[of] = event.Kind
	w.send(ctx, event)
}

func (w *watcher) send(ctx context.Context, event Event) {
	select {
	case w.events <- event:
	case <-ctx.Done():
	}
}

// contentName returns the name of a VolumeSnapshot's content, which the snapshot
// controller derives from the UID.
func contentName(vs *snapshotv1.VolumeSnapshot) string {
	if vs.Status != nil && vs.Status.BoundVolumeSnapshotContentName != nil {
		return *vs.Status.BoundVolumeSnapshotContentName
	}
	if name := vs.Spec.Source.VolumeSnapshotContentName; name != nil {
		return *name
	}
	return "snapcontent-" + string(vs.UID)
}

func message(e *snapshotv1.VolumeSnapshotError) string {
	if e.Message == nil {
		return "the driver gave no message"
	}
	return *e.Message
}
