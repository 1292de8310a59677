package journal

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
	kjson "sigs.k8s.io/json"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/workload"
)

const (
	// excludeLabel excludes a Secret from Velero's backups: a restored entry would undo a
	// freeze that does not exist.
	excludeLabel = "velero.io/exclude-from-backup"

	secretType = "stillpoint.io/intent"
	secretKey  = "intent"
	prefix     = "stillpoint-intent-"
)

// Journal has the entries of one Velero installation, which are Secrets in its namespace.
// It is safe for concurrent use; an Entry is not.
type Journal struct {
	kube      kubernetes.Interface
	namespace string
	clock     clock.PassiveClock

	mu sync.Mutex
	// held are the entries that this process has opened or claimed.
	held map[string]held
	// closing are the entries whose deletion failed without a definite result.
	closing map[string]bool
}

// held is the last known state of an entry.
type held struct {
	version string
	holder  Holder
}

// New returns the Journal of a Velero installation.
func New(clients *cluster.Clients, clock clock.PassiveClock) *Journal {
	return &Journal{
		kube: clients.Kube, namespace: clients.VeleroNamespace, clock: clock,
		held: map[string]held{}, closing: map[string]bool{},
	}
}

// NewID returns the name of a new entry.
func NewID() string { return prefix + rand.String(10) }

// Open creates an entry with one request. It must return before anything is frozen. It sets
// ID, Since and Holder if they are empty.
func (j *Journal) Open(ctx context.Context, e *Entry) error {
	e.ID = cmp.Or(e.ID, NewID())
	if e.Since.IsZero() {
		e.Since = j.clock.Now()
	}
	if e.Holder == (Holder{}) {
		e.Holder = Here()
	}
	data, err := encode(e)
	if err != nil {
		return err
	}
	secret, err := j.kube.CoreV1().Secrets(j.namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: j.meta(e), Type: secretType, Data: data,
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("record that %s is about to be quiesced: create Secret %s/%s: %w", e.Name, j.namespace, e.ID, err)
	}
	j.hold(e, secret.ResourceVersion)
	return nil
}

func (j *Journal) meta(e *Entry) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: j.namespace, Name: e.ID,
		Labels: map[string]string{api.LabelJournal: "", excludeLabel: "true"},
	}
}

func (j *Journal) hold(e *Entry, version string) {
	e.version = version
	j.mu.Lock()
	defer j.mu.Unlock()
	j.held[e.ID] = held{version, e.Holder}
}

// Update writes a changed entry that this process has opened or claimed. It returns
// ErrTaken if another process holds the entry now.
func (j *Journal) Update(ctx context.Context, e *Entry) error {
	err := j.write(ctx, e)
	if apierrors.IsConflict(err) {
		// The response to an earlier update may have been lost.
		now, gone := j.get(ctx, e.ID)
		if gone != nil {
			return j.failed(e.ID, gone)
		}
		j.mu.Lock()
		ours := now.Holder == j.held[e.ID].holder
		j.mu.Unlock()
		if !ours {
			return j.failed(e.ID, ErrTaken)
		}
		e.version = now.version
		err = j.write(ctx, e)
	}
	if err != nil {
		return j.failed(e.ID, err)
	}
	return nil
}

// write updates the Secret if it still has the version of the entry.
func (j *Journal) write(ctx context.Context, e *Entry) error {
	data, err := encode(e)
	if err != nil {
		return err
	}
	meta := j.meta(e)
	meta.ResourceVersion = e.version
	secret, err := j.kube.CoreV1().Secrets(j.namespace).Update(ctx, &corev1.Secret{ObjectMeta: meta, Type: secretType, Data: data}, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	j.hold(e, secret.ResourceVersion)
	return nil
}

func (j *Journal) failed(id string, err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		err = ErrTaken
	}
	return fmt.Errorf("update Secret %s/%s: %w", j.namespace, id, err)
}

// Claim makes this process the holder of an entry from List until a time. It returns
// ErrTaken if another process was faster.
func (j *Journal) Claim(ctx context.Context, e *Entry, until time.Time) error {
	before := *e
	e.Holder, e.Until, e.Tried = Here(), until, j.clock.Now()
	if err := j.write(ctx, e); err != nil {
		*e = before
		return j.failed(e.ID, err)
	}
	return nil
}

// Close deletes a completed entry. It returns ErrTaken if another process holds the entry
// now: that process has completed the undo, perhaps before this one. After any other error,
// Close can be called again.
func (j *Journal) Close(ctx context.Context, id string) error {
	j.mu.Lock()
	known, ours := j.held[id]
	asked := j.closing[id]
	j.mu.Unlock()
	err := j.remove(ctx, id, known.version)
	if apierrors.IsConflict(err) && ours {
		var now *Entry
		if now, err = j.get(ctx, id); err == nil {
			err = ErrTaken
			if now.Holder == known.holder {
				err = j.remove(ctx, id, now.version)
			}
		}
	}
	if apierrors.IsNotFound(err) {
		if err = ErrTaken; asked || !ours {
			err = nil
		}
	}
	if err != nil && !errors.Is(err, ErrTaken) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.closing[id] = true
		return fmt.Errorf("delete Secret %s/%s: %w", j.namespace, id, err)
	}
	j.mu.Lock()
	delete(j.held, id)
	delete(j.closing, id)
	j.mu.Unlock()
	if err != nil {
		return fmt.Errorf("delete Secret %s/%s: %w", j.namespace, id, err)
	}
	return nil
}

func (j *Journal) remove(ctx context.Context, id, version string) error {
	options := metav1.DeleteOptions{}
	if version != "" {
		options.Preconditions = &metav1.Preconditions{ResourceVersion: &version}
	}
	return j.kube.CoreV1().Secrets(j.namespace).Delete(ctx, id, options)
}

func (j *Journal) get(ctx context.Context, id string) (*Entry, error) {
	secret, err := j.kube.CoreV1().Secrets(j.namespace).Get(ctx, id, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return decode(secret)
}

// List returns all entries, the oldest first. The error names the entries that cannot be
// read; the others are returned with it.
func (j *Journal) List(ctx context.Context) ([]Entry, error) {
	list, err := j.kube.CoreV1().Secrets(j.namespace).List(ctx, metav1.ListOptions{LabelSelector: api.LabelJournal})
	if err != nil {
		return nil, fmt.Errorf("list Secrets of namespace %s with label %s: %w", j.namespace, api.LabelJournal, err)
	}
	var entries []Entry
	var errs []error
	for i := range list.Items {
		entry, err := decode(&list.Items[i])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		entries = append(entries, *entry)
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.ID, b.ID))
	})
	return entries, errors.Join(errs...)
}

// Status is the state of an entry.
type Status struct {
	*Entry
	// HolderGone is the reason why the holder is gone, or "" if it can still be there.
	HolderGone string
	// FrozenAgainBy is a later backup that has quiesced the same object and still holds it,
	// or "". The undo of the entry would undo that freeze, too.
	FrozenAgainBy string
}

// Abandoned reports whether any process may complete the entry.
func (s Status) Abandoned() bool { return s.HolderGone != "" && s.FrozenAgainBy == "" }

// Statuses returns all entries as List does, with their states.
func (j *Journal) Statuses(ctx context.Context) ([]Status, error) {
	entries, failed := j.List(ctx)
	statuses := make([]Status, len(entries))
	for n := range entries {
		gone, err := j.HolderGone(ctx, &entries[n])
		statuses[n] = Status{Entry: &entries[n], HolderGone: gone}
		failed = errors.Join(failed, err)
	}
	for n := range statuses {
		for _, other := range statuses {
			if other.HolderGone == "" && other.Tried.IsZero() && other.ID != statuses[n].ID && other.sameAs(statuses[n].Entry) {
				statuses[n].FrozenAgainBy = other.Backup
			}
		}
	}
	return statuses, failed
}

// sameAs reports whether two entries have an object in common.
func (e *Entry) sameAs(other *Entry) bool {
	return e.Namespace == other.Namespace && (e.Name == other.Name || slices.ContainsFunc(e.Objects, func(ref workload.Ref) bool {
		return slices.Contains(other.Objects, ref)
	}))
}

// Abandoned returns the entries that any process may complete.
func (j *Journal) Abandoned(ctx context.Context) ([]Entry, error) {
	statuses, err := j.Statuses(ctx)
	var abandoned []Entry
	for _, s := range statuses {
		if s.Abandoned() {
			abandoned = append(abandoned, *s.Entry)
		}
	}
	return abandoned, err
}

// HolderGone returns the reason why the holder of an entry is gone, or "" if it can still
// be there. It sends a request if the holder is in another pod.
func (j *Journal) HolderGone(ctx context.Context, e *Entry) (string, error) {
	f := facts{now: j.clock.Now(), here: Here(), started: started}
	if e.Holder.Pod != "" && !f.visible(e.Holder) {
		pod, err := j.kube.CoreV1().Pods(j.namespace).Get(ctx, e.Holder.Pod, metav1.GetOptions{})
		switch {
		case err == nil:
			f.pod = pod
		case !apierrors.IsNotFound(err):
			return "", fmt.Errorf("look whether %s lives: get pod %s/%s: %w", e.Holder, j.namespace, e.Holder.Pod, err)
		}
	}
	return f.holderGone(e), nil
}

func encode(e *Entry) (map[string][]byte, error) {
	text, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("record what undoes the quiescing of %s: %w", e.Name, err)
	}
	if len(text) > corev1.MaxSecretSize {
		return nil, fmt.Errorf("what undoes the quiescing of %s is %d bytes long, and a Secret that records it holds %d: shorten the commands of the posthooks, or give them what they need in a file of the container", e.Name, len(text), corev1.MaxSecretSize)
	}
	return map[string][]byte{secretKey: text}, nil
}

// decode is strict: a step with an unknown field must not count as done.
func decode(secret *corev1.Secret) (*Entry, error) {
	e := &Entry{}
	unknown, err := kjson.UnmarshalStrict(secret.Data[secretKey], e)
	if err == nil {
		err = errors.Join(unknown...)
	}
	if err != nil {
		return nil, fmt.Errorf("read the intent in Secret %s/%s: %w", secret.Namespace, secret.Name, err)
	}
	e.ID, e.version = secret.Name, secret.ResourceVersion
	return e, nil
}
