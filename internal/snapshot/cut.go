// Package snapshot follows VolumeSnapshots until the storage has cut them. It
// says when a snapshot's point in time lies in the past, which is when the
// application may run again; whether its data is copied somewhere by then is
// another question.
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

// EventKind is what happened to a claim's snapshot.
type EventKind int

// What can happen. Begun is that the snapshot controller has made a content; for
// those of other VolumeSnapshots the event has no names, and shows only that the
// controller runs. After Failed, Cut may still come: the CSI sidecar tries again,
// and so does the snapshot controller. Refused is a failure after which the driver
// is certainly not at work on the snapshot. Bound follows Cut: by then the
// VolumeSnapshot itself tells of its content, which is what others read.
const (
	Created EventKind = iota
	Begun
	Failed
	Refused
	Cut
	Bound
)

// Event tells of one claim's snapshot.
type Event struct {
	Kind             EventKind
	Namespace, Claim string
	// Snapshot is the name of the VolumeSnapshot.
	Snapshot string
	// Message is the driver's, when Kind is Failed or Refused.
	Message string
	// Object is the VolumeSnapshot as it is when Kind is Bound.
	Object *snapshotv1.VolumeSnapshot
}

// beingCreated is on a content while the driver may be at work on the snapshot.
const beingCreated = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"

// rewatchPause lies between two tries to reach the API server.
const rewatchPause = 250 * time.Millisecond

// deletedEarly is the message of a snapshot that will never be cut.
const deletedEarly = "the VolumeSnapshot was deleted before it was cut"

// OfBackup selects the VolumeSnapshots that Velero takes for a backup.
func OfBackup(backupName string) labels.Selector {
	return labels.SelectorFromSet(labels.Set{velerov1.BackupNameLabel: label.GetValidName(backupName)})
}

// Foreign reports whether a VolumeSnapshot with a backup's name is marked as that of
// another backup: another Velero may have one of the same name.
func Foreign(vs *snapshotv1.VolumeSnapshot, backup *velerov1.Backup) bool {
	uid := vs.Labels[velerov1.BackupUIDLabel]
	return uid != "" && uid != string(backup.UID)
}

// watcher follows the snapshots of one namespace and backup.
type watcher struct {
	client    versioned.Interface
	namespace string
	selector  string

	backup *velerov1.Backup // whose snapshots they are; nil where the selector says it
	signs  bool             // tells of others' contents, too
	since  map[string]bool  // UIDs of snapshots from before
	known  map[string]known // by name of the content
	told   map[known]EventKind
	events chan Event
}

type known struct{ namespace, claim, snapshot string }

func (k known) event(kind EventKind) Event {
	return Event{Kind: kind, Namespace: k.namespace, Claim: k.claim, Snapshot: k.snapshot}
}

// Watch follows the VolumeSnapshots of a namespace that come into being from
// now on and that Velero may have taken for a backup. It has its watches open when it returns. The channel is closed when
// ctx ends.
//
// It looks at the VolumeSnapshotContents, which the CSI sidecar writes as soon
// as the driver has answered; a VolumeSnapshot's own status comes later. The
// contents are watched from now on and never listed: a cluster can have
// thousands.
func Watch(ctx context.Context, client versioned.Interface, namespace string, backup *velerov1.Backup) (<-chan Event, error) {
	w := newWatcher(client, namespace, OfBackup(backup.Name))
	w.backup = backup
	before, err := w.list(ctx)
	if err != nil {
		return nil, err
	}
	for _, vs := range before.Items {
		w.since[string(vs.UID)] = true
	}
	return w.start(ctx)
}

// WatchAll follows the VolumeSnapshots of all namespaces, those that are there
// already included, and tells of new contents of all others; otherwise it is as
// Watch.
func WatchAll(ctx context.Context, client versioned.Interface, selector labels.Selector) (<-chan Event, error) {
	w := newWatcher(client, metav1.NamespaceAll, selector)
	w.signs = true
	return w.start(ctx)
}

func newWatcher(client versioned.Interface, namespace string, selector labels.Selector) *watcher {
	return &watcher{
		client: client, namespace: namespace, selector: selector.String(),
		since: map[string]bool{}, known: map[string]known{}, told: map[known]EventKind{},
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

// list lists page by page; its version is that of the first page, from which the
// watch goes on.
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

// open starts both watches at the present, and returns what is there.
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
		w.missed(ctx, listed)
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
				if w.signs && event.Type == watch.Added && content.Spec.Source.VolumeHandle != nil {
					w.send(ctx, Event{Kind: Begun})
				}
				w.content(ctx, content)
			}
		case <-ctx.Done():
			return
		}
	}
}

// snapshot takes note of a VolumeSnapshot and of what its status says.
func (w *watcher) snapshot(ctx context.Context, vs *snapshotv1.VolumeSnapshot) {
	if w.since[string(vs.UID)] || vs.Spec.Source.PersistentVolumeClaimName == nil || (w.backup != nil && Foreign(vs, w.backup)) {
		return
	}
	of := known{vs.Namespace, *vs.Spec.Source.PersistentVolumeClaimName, vs.Name}
	content := contentName(vs)
	if _, ok := w.known[content]; !ok {
		w.known[content] = of
		w.tell(ctx, of.event(Created))
		// Its content may have been cut before we knew whose it is.
		w.catchUp(ctx, vs)
	}
	switch {
	case vs.Status == nil:
	case vs.Status.BoundVolumeSnapshotContentName != nil && vs.Status.CreationTime != nil:
		w.tell(ctx, of.event(Cut)) // the content's own event may be on its way
		event := of.event(Bound)
		event.Object = vs
		w.tell(ctx, event)
	case vs.Status.Error != nil:
		w.failed(ctx, of, message(vs.Status.Error))
	}
}

func (w *watcher) failed(ctx context.Context, of known, message string) {
	event := of.event(Failed)
	event.Message = message
	w.tell(ctx, event)
}

func (w *watcher) deleted(ctx context.Context, vs *snapshotv1.VolumeSnapshot) {
	if of, ok := w.known[contentName(vs)]; ok {
		w.failed(ctx, of, deletedEarly)
	}
}

// missed tells of the snapshots that were deleted while no watch was open; they
// may have been cut before.
func (w *watcher) missed(ctx context.Context, list *snapshotv1.VolumeSnapshotList) {
	for name, of := range w.known {
		there := slices.ContainsFunc(list.Items, func(vs snapshotv1.VolumeSnapshot) bool {
			return vs.Name == of.snapshot && vs.Namespace == of.namespace
		})
		if there || w.told[of] >= Cut {
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

// content tells when a snapshot is cut: from then on it has a handle and a
// creation time, which the CSI specification defines as the point in time of
// the snapshot.
func (w *watcher) content(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) {
	of, ok := w.known[content.Name]
	if !ok {
		return
	}
	if w.signs {
		w.tell(ctx, of.event(Begun))
	}
	switch {
	case content.Status == nil:
	case content.Status.SnapshotHandle != nil && content.Status.CreationTime != nil:
		w.tell(ctx, of.event(Cut))
	case content.Status.Error != nil:
		w.failed(ctx, of, message(content.Status.Error))
		// The CSI sidecar takes the annotation away when the driver's answer is final
		// (isCSIFinalError in pkg/sidecar-controller of external-snapshotter 8.2).
		if _, creating := content.Annotations[beingCreated]; !creating {
			event := of.event(Refused)
			event.Message = message(content.Status.Error)
			w.tell(ctx, event)
		}
	}
}

// catchUp looks at a content whose events may have come too early for us. When
// it cannot be read, the watches will end with the same trouble.
func (w *watcher) catchUp(ctx context.Context, vs *snapshotv1.VolumeSnapshot) {
	if w.since[string(vs.UID)] {
		return
	}
	if content, err := w.client.SnapshotV1().VolumeSnapshotContents().Get(ctx, contentName(vs), metav1.GetOptions{}); err == nil {
		w.content(ctx, content)
	}
}

// tell passes an event on, unless it or a later one has been told.
func (w *watcher) tell(ctx context.Context, event Event) {
	of := known{event.Namespace, event.Claim, event.Snapshot}
	if last, ok := w.told[of]; ok && last >= event.Kind {
		return
	}
	w.told[of] = event.Kind
	w.send(ctx, event)
}

func (w *watcher) send(ctx context.Context, event Event) {
	select {
	case w.events <- event:
	case <-ctx.Done():
	}
}

// contentName is the name of a VolumeSnapshot's content, which the snapshot
// controller makes from its UID.
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
