package journal

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	clocktesting "k8s.io/utils/clock/testing"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/workload"
)

// server is an API server for Secrets that checks versions, which the fake client does not.
type server struct {
	*fake.Clientset
	versions int
	secrets  map[string]*corev1.Secret
	// lost is the number of next responses that are lost after their requests succeeded.
	lost     int
	requests []string
}

var secrets = schema.GroupResource{Resource: "secrets"}

func newServer(objects ...runtime.Object) *server {
	s := &server{Clientset: fake.NewClientset(objects...), secrets: map[string]*corev1.Secret{}}
	s.PrependReactor("*", "secrets", func(action clienttesting.Action) (bool, runtime.Object, error) {
		s.requests = append(s.requests, action.GetVerb())
		object, err := s.answer(action)
		if s.lost > 0 {
			s.lost--
			return true, nil, errors.New("connection reset by peer")
		}
		return true, object, err
	})
	return s
}

func (s *server) answer(action clienttesting.Action) (runtime.Object, error) {
	none := &corev1.Secret{}
	save := func(secret *corev1.Secret) (runtime.Object, error) {
		s.versions++
		secret = secret.DeepCopy()
		secret.ResourceVersion = strconv.Itoa(s.versions)
		s.secrets[secret.Name] = secret
		return secret.DeepCopy(), nil
	}
	switch action := action.(type) {
	case clienttesting.CreateActionImpl:
		return save(sent(action.Object))
	case clienttesting.UpdateActionImpl:
		secret := sent(action.Object)
		switch there := s.secrets[secret.Name]; {
		case there == nil:
			return none, apierrors.NewNotFound(secrets, secret.Name)
		case there.ResourceVersion != secret.ResourceVersion:
			return none, apierrors.NewConflict(secrets, secret.Name, nil)
		}
		return save(secret)
	case clienttesting.GetActionImpl:
		if there := s.secrets[action.GetName()]; there != nil {
			return there.DeepCopy(), nil
		}
		return none, apierrors.NewNotFound(secrets, action.GetName())
	case clienttesting.DeleteActionImpl:
		there := s.secrets[action.GetName()]
		if there == nil {
			return none, apierrors.NewNotFound(secrets, action.GetName())
		}
		if when := action.GetDeleteOptions().Preconditions; when != nil && *when.ResourceVersion != there.ResourceVersion {
			return none, apierrors.NewConflict(secrets, action.GetName(), nil)
		}
		delete(s.secrets, action.GetName())
		return none, nil
	case clienttesting.ListActionImpl:
		list := &corev1.SecretList{}
		for _, secret := range s.secrets {
			if action.GetListRestrictions().Labels.Matches(labels.Set(secret.Labels)) {
				list.Items = append(list.Items, *secret)
			}
		}
		return list, nil
	}
	return nil, errors.New("not known here: " + action.GetVerb())
}

func sent(object runtime.Object) *corev1.Secret {
	if secret, ok := object.(*corev1.Secret); ok {
		return secret
	}
	return &corev1.Secret{}
}

func (s *server) journal() *Journal {
	return New(&cluster.Clients{Kube: s, VeleroNamespace: "velero"}, clocktesting.NewFakePassiveClock(noon))
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func scaleUp() *Entry {
	return &Entry{
		Name: "Deployment shop/db", Namespace: "shop", Backup: "nightly",
		Undo: []Undo{{Blueprint: "scale", Phase: "up", Task: &render.Task{Func: "ScaleWorkload", Args: render.Args{"replicas": int64(3)}}}},
	}
}

func TestJournal(t *testing.T) {
	s := newServer()
	journal, i := s.journal(), scaleUp()
	require.NoError(t, journal.Open(t.Context(), i))
	assert.Equal(t, noon, i.Since)
	assert.Equal(t, Here(), i.Holder)
	secret := s.secrets[i.ID]
	require.NotNil(t, secret)
	assert.Equal(t, map[string]string{"stillpoint.io/intent": "", "velero.io/exclude-from-backup": "true"}, secret.Labels)

	i.Undo = append(i.Undo, Undo{Blueprint: "late", Call: &render.Call{Pod: "db-0", Command: []string{"unlock"}}})
	require.NoError(t, journal.Update(t.Context(), i))
	found, err := s.journal().List(t.Context())
	require.NoError(t, err)
	require.Len(t, found, 1)
	assert.Equal(t, i.Undo, found[0].Undo, "numbers stay whole")
	abandoned, err := s.journal().Abandoned(t.Context())
	require.NoError(t, err)
	assert.Empty(t, abandoned)

	s.requests = nil
	require.NoError(t, journal.Close(t.Context(), i.ID))
	assert.Equal(t, []string{"delete"}, s.requests)
	assert.Empty(t, s.secrets)
}

// A session is told if another process has released its entry.
func TestJournalTaken(t *testing.T) {
	s := newServer()
	session, i := s.journal(), scaleUp()
	i.Holder = Holder{Host: "elsewhere", PID: 1}
	require.NoError(t, session.Open(t.Context(), i))

	first, second := s.journal(), s.journal()
	theirs, err := first.List(t.Context())
	require.NoError(t, err)
	others, err := second.List(t.Context())
	require.NoError(t, err)
	require.NoError(t, first.Claim(t.Context(), &theirs[0], noon.Add(time.Minute)))
	require.ErrorIs(t, second.Claim(t.Context(), &others[0], noon.Add(time.Minute)), ErrTaken)
	assert.Equal(t, "elsewhere", others[0].Holder.Host, "as it was")

	require.ErrorIs(t, session.Update(t.Context(), i), ErrTaken)
	require.ErrorIs(t, session.Close(t.Context(), i.ID), ErrTaken)
	require.Len(t, s.secrets, 1, "it is the first's to delete")
	require.NoError(t, first.Close(t.Context(), i.ID))
	require.ErrorIs(t, session.Update(t.Context(), i), ErrTaken, "it is gone")
}

// After a lost response, the session still holds its entry.
func TestJournalLostAnswers(t *testing.T) {
	s := newServer()
	journal, i := s.journal(), scaleUp()
	require.NoError(t, journal.Open(t.Context(), i))
	for _, ask := range []func() error{
		func() error { return journal.Update(t.Context(), i) },
		func() error { return journal.Close(t.Context(), i.ID) },
	} {
		s.lost = 1
		err := ask()
		require.Error(t, err)
		require.NotErrorIs(t, err, ErrTaken)
		require.NoError(t, ask())
	}
	assert.Empty(t, s.secrets)

	i = scaleUp()
	require.NoError(t, journal.Open(t.Context(), i))
	s.lost = 1
	require.Error(t, journal.Update(t.Context(), i))
	require.NoError(t, journal.Close(t.Context(), i.ID), "of a version that it does not know")
}

func TestJournalSaysWhatItCannotDo(t *testing.T) {
	s := newServer()
	big := scaleUp()
	big.Undo[0].Task.Args["text"] = strings.Repeat("x", 1<<20)
	big.Holder = Holder{Host: "elsewhere"}
	require.EqualError(t, s.journal().Open(t.Context(), big), "what undoes the quiescing of Deployment shop/db is 1048881 bytes long, and a Secret that records it holds 1048576: shorten the commands of the posthooks, or give them what they need in a file of the container")
	assert.Empty(t, s.requests)

	good := scaleUp()
	require.NoError(t, s.journal().Open(t.Context(), good))
	s.secrets["newer"] = &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "newer", Labels: map[string]string{api.LabelJournal: ""}},
		Data:       map[string][]byte{"intent": []byte(`{"name": "x", "undo": [{"signal": "TERM"}]}`)},
	}
	s.secrets["other"] = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "other"}}
	found, err := s.journal().List(t.Context())
	require.EqualError(t, err, `read the intent in Secret velero/newer: unknown field "undo[0].signal"`)
	require.Len(t, found, 1)
	assert.Equal(t, good.ID, found[0].ID)
}

func TestGone(t *testing.T) {
	s := newServer(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "velero-1", UID: "1"}})
	for name, test := range map[string]struct {
		holder Holder
		want   string
	}{
		"lives":   {Holder{Pod: "velero-1", PodUID: "1"}, ""},
		"gone":    {Holder{Pod: "velero-0", PodUID: "0"}, "pod velero-0 is gone"},
		"another": {Holder{Pod: "velero-1", PodUID: "0"}, "pod velero-1 is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			gone, err := s.journal().HolderGone(t.Context(), &Entry{Holder: test.holder})
			require.NoError(t, err)
			assert.Equal(t, test.want, gone)
		})
	}
	s.PrependReactor("get", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("no answer")
	})
	_, err := s.journal().HolderGone(context.Background(), &Entry{Holder: Holder{Pod: "velero-1", PodUID: "1", PID: 7}})
	require.EqualError(t, err, "look whether process 7 of pod velero-1 lives: get pod velero/velero-1: no answer")
}

// An object that is quiesced again is not undone: that would undo the new freeze.
func TestStatuses(t *testing.T) {
	web := workload.Ref{Kind: "Deployment", Namespace: "shop", Name: "web"}
	for name, test := range map[string]struct {
		other Entry
		want  string
	}{
		"another object":      {Entry{Name: "Deployment shop/web", Namespace: "shop", Backup: "now"}, ""},
		"another namespace":   {Entry{Name: "Deployment shop/db", Namespace: "office", Backup: "now"}, ""},
		"the same object":     {Entry{Name: "Deployment shop/db", Namespace: "shop", Backup: "now"}, "now"},
		"a part of it":        {Entry{Name: "x", Namespace: "shop", Backup: "now", Objects: []workload.Ref{web}}, "now"},
		"its holder is gone":  {Entry{Name: "Deployment shop/db", Namespace: "shop", Backup: "now", Holder: Holder{Pod: "velero-1"}}, ""},
		"a process undoes it": {Entry{Name: "Deployment shop/db", Namespace: "shop", Backup: "now", Tried: noon}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer()
			left := scaleUp()
			left.Since, left.Holder, left.Objects = noon.Add(-time.Hour), Holder{Pod: "velero-0"}, []workload.Ref{web}
			require.NoError(t, s.journal().Open(t.Context(), left))
			require.NoError(t, s.journal().Open(t.Context(), &test.other))
			statuses, err := s.journal().Statuses(t.Context())
			require.NoError(t, err)
			require.Len(t, statuses, 2)
			assert.Equal(t, "pod velero-0 is gone", statuses[0].HolderGone)
			assert.Equal(t, test.want, statuses[0].FrozenAgainBy)
			assert.Equal(t, test.want == "", statuses[0].Abandoned())
			assert.Empty(t, statuses[1].FrozenAgainBy)
		})
	}
}

func TestDue(t *testing.T) {
	assert.True(t, (&Entry{}).Due(noon))
	assert.True(t, (&Entry{Tried: noon}).Due(noon), "the process that tried has died")
	assert.False(t, (&Entry{Tried: noon, Failure: "x"}).Due(noon.Add(time.Minute)))
	assert.True(t, (&Entry{Tried: noon, Failure: "x"}).Due(noon.Add(5*time.Minute)))
}
