package snapshot

import (
	"context"
	"errors"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned/fake"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"
)

// taken returns a VolumeSnapshot of a claim as Velero creates it for backup nightly.
func taken(name, claim string) *snapshotv1.VolumeSnapshot {
	return &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"velero.io/backup-name": "nightly"}},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}},
	}
}

// contentOf returns a VolumeSnapshot's content before the driver has answered.
func contentOf(vs *snapshotv1.VolumeSnapshot) *snapshotv1.VolumeSnapshotContent {
	return &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "snapcontent-" + string(vs.UID)},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			DeletionPolicy:    snapshotv1.VolumeSnapshotContentRetain,
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: vs.Namespace, Name: vs.Name},
		},
	}
}

// cutOf returns the content once the driver has cut the snapshot. It may still have the
// error of an earlier try.
func cutOf(vs *snapshotv1.VolumeSnapshot) *snapshotv1.VolumeSnapshotContent {
	content := contentOf(vs)
	handle, created := "handle-"+vs.Name, time.Now().UnixNano()
	content.Status = &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle, CreationTime: &created, Error: failure("an earlier try")}
	return content
}

func failedOf(vs *snapshotv1.VolumeSnapshot, e *snapshotv1.VolumeSnapshotError) *snapshotv1.VolumeSnapshotContent {
	content := contentOf(vs)
	content.Status = &snapshotv1.VolumeSnapshotContentStatus{Error: e}
	content.Annotations = map[string]string{beingCreated: "yes"}
	return content
}

func failure(message string) *snapshotv1.VolumeSnapshotError {
	return &snapshotv1.VolumeSnapshotError{Message: &message}
}

// storage is an API server with the snapshots of one namespace. Unlike the plain fake,
// its watches of VolumeSnapshots respect the label selector, and tests can interrupt
// them.
type storage struct {
	*fake.Clientset
	t       *testing.T
	watches map[string]chan watch.Interface // the open ones, by resource
}

func newStorage(t *testing.T, objects ...runtime.Object) *storage {
	s := &storage{Clientset: fake.NewSimpleClientset(objects...), t: t, watches: map[string]chan watch.Interface{
		"volumesnapshots": make(chan watch.Interface, 16), "volumesnapshotcontents": make(chan watch.Interface, 16),
	}}
	s.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		asked, ok := action.(clienttesting.WatchAction)
		if !ok {
			return false, nil, nil
		}
		all, err := s.Tracker().Watch(action.GetResource(), action.GetNamespace())
		if err != nil {
			return true, nil, err
		}
		selected := watch.Filter(all, func(event watch.Event) (watch.Event, bool) {
			if vs, ok := event.Object.(*snapshotv1.VolumeSnapshot); ok {
				return event, asked.GetWatchRestrictions().Labels.Matches(labels.Set(vs.Labels))
			}
			return event, true
		})
		s.watches[action.GetResource().Resource] <- selected
		return true, selected, nil
	})
	return s
}

func (s *storage) create(vs *snapshotv1.VolumeSnapshot) {
	s.t.Helper()
	_, err := s.SnapshotV1().VolumeSnapshots(vs.Namespace).Create(s.t.Context(), vs, metav1.CreateOptions{})
	require.NoError(s.t, err)
}

func (s *storage) createContent(content *snapshotv1.VolumeSnapshotContent) {
	s.t.Helper()
	_, err := s.SnapshotV1().VolumeSnapshotContents().Create(s.t.Context(), content, metav1.CreateOptions{})
	require.NoError(s.t, err)
}

func (s *storage) update(content *snapshotv1.VolumeSnapshotContent) {
	s.t.Helper()
	_, err := s.SnapshotV1().VolumeSnapshotContents().Update(s.t.Context(), content, metav1.UpdateOptions{})
	require.NoError(s.t, err)
}

func (s *storage) updateStatus(vs *snapshotv1.VolumeSnapshot, status snapshotv1.VolumeSnapshotStatus) {
	s.t.Helper()
	vs = vs.DeepCopy()
	vs.Status = &status
	_, err := s.SnapshotV1().VolumeSnapshots(vs.Namespace).Update(s.t.Context(), vs, metav1.UpdateOptions{})
	require.NoError(s.t, err)
}

func (s *storage) remove(vs *snapshotv1.VolumeSnapshot) {
	s.t.Helper()
	require.NoError(s.t, s.SnapshotV1().VolumeSnapshots(vs.Namespace).Delete(s.t.Context(), vs.Name, metav1.DeleteOptions{}))
}

// follower reads the events of a Watch.
type follower struct {
	t      *testing.T
	events <-chan Event
}

func (s *storage) follow() *follower {
	s.t.Helper()
	events, err := Watch(s.t.Context(), s, "shop", &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Name: "nightly"}})
	require.NoError(s.t, err)
	return &follower{s.t, events}
}

func (f *follower) expect(events ...Event) {
	f.t.Helper()
	for _, want := range events {
		select {
		case got := <-f.events:
			require.Equal(f.t, want, got)
		case <-time.After(10 * time.Second):
			require.Fail(f.t, "no event came", "%+v", want)
		}
	}
}

// silent checks that the next event is that of a snapshot created now.
func (f *follower) silent(s *storage) {
	f.t.Helper()
	s.create(taken("last", "last"))
	f.expect(Event{Kind: Created, Namespace: "shop", Claim: "last", Snapshot: "last"})
}

func TestCutAfterCreated(t *testing.T) {
	s := newStorage(t)
	f := s.follow()
	vs := taken("vs-1", "data")
	s.create(vs)
	f.expect(Event{Kind: Created, Namespace: "shop", Claim: "data", Snapshot: "vs-1"})
	s.createContent(contentOf(vs))
	cut := cutOf(vs)
	half := cut.DeepCopy() // a handle without a point in time is no cut
	half.Status.CreationTime, half.Status.Error = nil, nil
	s.update(half)
	s.update(cut)
	f.expect(Event{Kind: Cut, Namespace: "shop", Claim: "data", Snapshot: "vs-1"})
	// The VolumeSnapshot's own status comes later, and so may its deletion: Velero
	// deletes it when it no longer needs it.
	name := "snapcontent-uid-vs-1"
	s.updateStatus(vs, snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &name, Error: failure("late")})
	s.update(cut)
	s.remove(vs)
	f.silent(s)
}

// Bound follows when the VolumeSnapshot names its content. The content's own event may
// come later, or never.
func TestBoundAfterCut(t *testing.T) {
	s := newStorage(t)
	f := s.follow()
	vs := taken("vs-1", "data")
	s.create(vs)
	f.expect(Event{Kind: Created, Namespace: "shop", Claim: "data", Snapshot: "vs-1"})
	name, now := "snapcontent-uid-vs-1", metav1.Now()
	s.updateStatus(vs, snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &name})
	s.updateStatus(vs, snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &name, CreationTime: &now})
	f.expect(Event{Kind: Cut, Namespace: "shop", Claim: "data", Snapshot: "vs-1"})
	bound := <-f.events
	assert.Equal(t, Bound, bound.Kind)
	require.NotNil(t, bound.Object)
	assert.Equal(t, &now, bound.Object.Status.CreationTime)
	s.createContent(cutOf(vs))
	f.silent(s)
}

// A new process of the same backup reads the existing snapshots in every namespace.
func TestWatchAll(t *testing.T) {
	before, elsewhere := taken("vs-1", "data"), taken("vs-2", "data")
	elsewhere.Namespace = "office"
	s := newStorage(t, before, elsewhere, cutOf(before))
	events, err := WatchAll(t.Context(), s, OfBackup("nightly"))
	require.NoError(t, err)
	f := &follower{t, events}
	// The fake sorts namespaces by name.
	f.expect(
		Event{Kind: Created, Namespace: "office", Claim: "data", Snapshot: "vs-2"},
		Event{Kind: Created, Namespace: "shop", Claim: "data", Snapshot: "vs-1"},
		Event{Kind: Begun, Namespace: "shop", Claim: "data", Snapshot: "vs-1"},
		Event{Kind: Cut, Namespace: "shop", Claim: "data", Snapshot: "vs-1"},
	)
	s.createContent(cutOf(elsewhere))
	f.expect(Event{Kind: Begun, Namespace: "office", Claim: "data", Snapshot: "vs-2"}, Event{Kind: Cut, Namespace: "office", Claim: "data", Snapshot: "vs-2"})
	s.remove(before)
	f.silent(s)
}

func TestCutAfterFailed(t *testing.T) {
	for name, test := range map[string]struct {
		fail    func(*storage, *snapshotv1.VolumeSnapshot)
		message string
	}{
		"content": {func(s *storage, vs *snapshotv1.VolumeSnapshot) {
			s.update(failedOf(vs, failure("no space left")))
		}, "no space left"},
		"content, without a message": {func(s *storage, vs *snapshotv1.VolumeSnapshot) {
			s.update(failedOf(vs, &snapshotv1.VolumeSnapshotError{}))
		}, "the driver gave no message"},
		"VolumeSnapshot": {func(s *storage, vs *snapshotv1.VolumeSnapshot) {
			s.updateStatus(vs, snapshotv1.VolumeSnapshotStatus{Error: failure("no class")})
		}, "no class"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStorage(t)
			f := s.follow()
			vs := taken("vs-1", "data")
			s.create(vs)
			s.createContent(contentOf(vs))
			f.expect(Event{Kind: Created, Namespace: "shop", Claim: "data", Snapshot: "vs-1"})
			test.fail(s, vs)
			f.expect(Event{Kind: Failed, Namespace: "shop", Claim: "data", Snapshot: "vs-1", Message: test.message})
			s.update(failedOf(vs, failure("again"))) // told once
			final := failedOf(vs, failure("no such pool"))
			final.Annotations = nil // by the sidecar, when the driver is certainly done
			s.update(final)
			f.expect(Event{Kind: Refused, Namespace: "shop", Claim: "data", Snapshot: "vs-1", Message: "no such pool"})
			s.update(cutOf(vs))
			f.expect(Event{Kind: Cut, Namespace: "shop", Claim: "data", Snapshot: "vs-1"})
			f.silent(s)
		})
	}
}

func TestDeletedBeforeCut(t *testing.T) {
	s := newStorage(t)
	f := s.follow()
	vs := taken("vs-1", "data")
	s.create(vs)
	f.expect(Event{Kind: Created, Namespace: "shop", Claim: "data", Snapshot: "vs-1"})
	s.remove(vs)
	f.expect(Event{Kind: Failed, Namespace: "shop", Claim: "data", Snapshot: "vs-1", Message: "the VolumeSnapshot was deleted before it was cut"})
	// Velero's retry is another snapshot.
	again := taken("vs-2", "data")
	s.create(again)
	s.createContent(cutOf(again))
	f.expect(Event{Kind: Created, Namespace: "shop", Claim: "data", Snapshot: "vs-2"}, Event{Kind: Cut, Namespace: "shop", Claim: "data", Snapshot: "vs-2"})
}

func TestForeignSnapshots(t *testing.T) {
	before := taken("before", "data")
	s := newStorage(t, before, contentOf(before))
	f := s.follow()

	s.update(cutOf(before))
	s.updateStatus(before, snapshotv1.VolumeSnapshotStatus{Error: failure("x")})
	s.remove(before)

	other := taken("of-another-backup", "data")
	other.Labels["velero.io/backup-name"] = "weekly"
	s.create(other)
	s.createContent(cutOf(other))

	elsewhere := taken("of-another-namespace", "data")
	elsewhere.Namespace = "office"
	s.create(elsewhere)
	s.createContent(cutOf(elsewhere))

	imported := taken("of-no-claim", "data")
	content := "snapcontent-imported"
	imported.Spec.Source = snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: &content}
	s.create(imported)

	f.silent(s)
}

// The content's watch may be ahead of the snapshot's.
func TestContentThatWasCutBeforeItsSnapshotWasSeen(t *testing.T) {
	s := newStorage(t)
	f := s.follow()
	vs := taken("vs-1", "data")
	s.createContent(cutOf(vs))
	s.create(vs)
	f.expect(Event{Kind: Created, Namespace: "shop", Claim: "data", Snapshot: "vs-1"}, Event{Kind: Cut, Namespace: "shop", Claim: "data", Snapshot: "vs-1"})
	f.silent(s)
}

func TestAWatchThatEndsIsOpenedAgain(t *testing.T) {
	for _, resource := range []string{"volumesnapshots", "volumesnapshotcontents"} {
		t.Run(resource, func(t *testing.T) {
			before := taken("before", "data")
			s := newStorage(t, before)
			f := s.follow()
			vs, created := taken("vs-1", "data"), taken("vs-2", "wal")
			s.create(vs)
			f.expect(Event{Kind: Created, Namespace: "shop", Claim: "data", Snapshot: "vs-1"})

			(<-s.watches[resource]).Stop()
			s.createContent(cutOf(vs))
			s.create(created)
			got := []Event{<-f.events, <-f.events}
			assert.ElementsMatch(t, []Event{{Kind: Cut, Namespace: "shop", Claim: "data", Snapshot: "vs-1"}, {Kind: Created, Namespace: "shop", Claim: "wal", Snapshot: "vs-2"}}, got)
			s.createContent(cutOf(created))
			f.expect(Event{Kind: Cut, Namespace: "shop", Claim: "wal", Snapshot: "vs-2"})
			f.silent(s)
		})
	}
}

func TestDeletedWhileNoWatchIsOpen(t *testing.T) {
	for name, test := range map[string]struct {
		content func(*snapshotv1.VolumeSnapshot) *snapshotv1.VolumeSnapshotContent
		want    Event
	}{
		"not cut": {contentOf, Event{Kind: Failed, Namespace: "shop", Claim: "data", Snapshot: "vs-1", Message: "the VolumeSnapshot was deleted before it was cut"}},
		"cut":     {cutOf, Event{Kind: Cut, Namespace: "shop", Claim: "data", Snapshot: "vs-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStorage(t)
			f := s.follow()
			vs := taken("vs-1", "data")
			s.create(vs)
			f.expect(Event{Kind: Created, Namespace: "shop", Claim: "data", Snapshot: "vs-1"})
			// Both watches end, so that neither sends the next events.
			(<-s.watches["volumesnapshots"]).Stop()
			(<-s.watches["volumesnapshotcontents"]).Stop()
			s.createContent(test.content(vs))
			s.remove(vs)
			f.expect(test.want)
			f.silent(s)
		})
	}
}

// While the API server is unreachable no event is sent. Afterwards all missed events
// are.
func TestServerIsUnreachable(t *testing.T) {
	s := newStorage(t)
	refused := make(chan struct{}, 2)
	s.PrependReactor("list", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		select {
		case <-refused:
			return true, nil, errors.New("connection refused")
		default:
			return false, nil, nil
		}
	})
	f := s.follow()
	vs := taken("vs-1", "data")
	s.create(vs)
	f.expect(Event{Kind: Created, Namespace: "shop", Claim: "data", Snapshot: "vs-1"})
	refused <- struct{}{}
	refused <- struct{}{}
	(<-s.watches["volumesnapshots"]).Stop()
	s.createContent(cutOf(vs))
	f.expect(Event{Kind: Cut, Namespace: "shop", Claim: "data", Snapshot: "vs-1"})
	f.silent(s)
}

func TestWatchEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	events, err := Watch(ctx, newStorage(t), "shop", &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Name: "nightly"}})
	require.NoError(t, err)
	cancel()
	select {
	case _, open := <-events:
		assert.False(t, open)
	case <-time.After(10 * time.Second):
		require.Fail(t, "the channel stays open")
	}
}

func TestWatchErrors(t *testing.T) {
	for name, test := range map[string]struct{ verb, resource, text string }{
		"snapshots":       {"list", "volumesnapshots", `list the VolumeSnapshots of namespace shop: volumesnapshots.snapshot.storage.k8s.io is forbidden: no`},
		"contents":        {"list", "volumesnapshotcontents", `list the VolumeSnapshotContents: volumesnapshotcontents.snapshot.storage.k8s.io is forbidden: no`},
		"watch contents":  {"watch", "volumesnapshotcontents", `watch the VolumeSnapshotContents: volumesnapshotcontents.snapshot.storage.k8s.io is forbidden: no`},
		"watch snapshots": {"watch", "volumesnapshots", `watch the VolumeSnapshots of namespace shop: volumesnapshots.snapshot.storage.k8s.io is forbidden: no`},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStorage(t)
			forbidden := apierrors.NewForbidden(schema.GroupResource{Group: "snapshot.storage.k8s.io", Resource: test.resource}, "", errors.New("no"))
			if test.verb == "watch" {
				s.PrependWatchReactor(test.resource, func(clienttesting.Action) (bool, watch.Interface, error) { return true, nil, forbidden })
			} else {
				s.PrependReactor(test.verb, test.resource, func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, forbidden })
			}
			_, err := Watch(t.Context(), s, "shop", &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Name: "nightly"}})
			require.EqualError(t, err, test.text)
		})
	}
}

func TestOfBackup(t *testing.T) {
	assert.Equal(t, "velero.io/backup-name=nightly", OfBackup("nightly").String())
	// Velero shortens names that exceed the limit of a label.
	long := "a-very-long-name-of-a-schedule-that-somebody-has-thought-of-20261121030000"
	assert.Equal(t, "velero.io/backup-name=a-very-long-name-of-a-schedule-that-somebody-has-thought-4651b0", OfBackup(long).String())
}
