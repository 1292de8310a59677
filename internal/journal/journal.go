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
func (b *Journal) Open(ctx context.Context, i *Entry) error {
	i.ID = cmp.Or(i.ID, NewID())
	if i.Since.IsZero() {
		i.Since = b.clock.Now()
	}
	if i.Holder == (Holder{}) {
		i.Holder = Here()
	}
	data, err := encode(i)
	if err != nil {
		return err
	}
	secret, err := b.kube.CoreV1().Secrets(b.namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: b.meta(i), Type: secretType, Data: data,
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("record that %s is about to be quiesced: create Secret %s/%s: %w", i.Name, b.namespace, i.ID, err)
	}
	b.hold(i, secret.ResourceVersion)
	return nil
}

func (b *Journal) meta(i *Entry) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: b.namespace, Name: i.ID,
		Labels: map[string]string{api.LabelJournal: "", excludeLabel: "true"},
	}
}

func (b *Journal) hold(i *Entry, version string) {
	i.version = version
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held[i.ID] = held{version, i.Holder}
}

// Update writes a changed entry that this process has opened or claimed. It returns
// ErrTaken if another process holds the entry now.
func (b *Journal) Update(ctx context.Context, i *Entry) error {
	err := b.write(ctx, i)
	if apierrors.IsConflict(err) {
		// The response to an earlier update may have been lost.
		now, gone := b.get(ctx, i.ID)
		if gone != nil {
			return b.failed(i.ID, gone)
		}
		b.mu.Lock()
		ours := now.Holder == b.held[i.ID].holder
		b.mu.Unlock()
		if !ours {
			return b.failed(i.ID, ErrTaken)
		}
		i.version = now.version
		err = b.write(ctx, i)
	}
	if err != nil {
		return b.failed(i.ID, err)
	}
	return nil
}

// write updates the Secret if it still has the version of the entry.
func (b *Journal) write(ctx context.Context, i *Entry) error {
	data, err := encode(i)
	if err != nil {
		return err
	}
	meta := b.meta(i)
	meta.ResourceVersion = i.version
	secret, err := b.kube.CoreV1().Secrets(b.namespace).Update(ctx, &corev1.Secret{ObjectMeta: meta, Type: secretType, Data: data}, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	b.hold(i, secret.ResourceVersion)
	return nil
}

func (b *Journal) failed(id string, err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		err = ErrTaken
	}
	return fmt.Errorf("update Secret %s/%s: %w", b.namespace, id, err)
}

// Claim makes this process the holder of an entry from List until a time. It returns
// ErrTaken if another process was faster.
func (b *Journal) Claim(ctx context.Context, i *Entry, until time.Time) error {
	before := *i
	i.Holder, i.Until, i.Tried = Here(), until, b.clock.Now()
	if err := b.write(ctx, i); err != nil {
		*i = before
		return b.failed(i.ID, err)
	}
	return nil
}

// Close deletes a completed entry. It returns ErrTaken if another process holds the entry
// now: that process has completed the undo, perhaps before this one. After any other error,
// Close can be called again.
func (b *Journal) Close(ctx context.Context, id string) error {
	b.mu.Lock()
	known, ours := b.held[id]
	asked := b.closing[id]
	b.mu.Unlock()
	err := b.remove(ctx, id, known.version)
	if apierrors.IsConflict(err) && ours {
		var now *Entry
		if now, err = b.get(ctx, id); err == nil {
			err = ErrTaken
			if now.Holder == known.holder {
				err = b.remove(ctx, id, now.version)
			}
		}
	}
	if apierrors.IsNotFound(err) {
		if err = ErrTaken; asked || !ours {
			err = nil
		}
	}
	if err != nil && !errors.Is(err, ErrTaken) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.closing[id] = true
		return fmt.Errorf("delete Secret %s/%s: %w", b.namespace, id, err)
	}
	b.mu.Lock()
	delete(b.held, id)
	delete(b.closing, id)
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("delete Secret %s/%s: %w", b.namespace, id, err)
	}
	return nil
}

func (b *Journal) remove(ctx context.Context, id, version string) error {
	options := metav1.DeleteOptions{}
	if version != "" {
		options.Preconditions = &metav1.Preconditions{ResourceVersion: &version}
	}
	return b.kube.CoreV1().Secrets(b.namespace).Delete(ctx, id, options)
}

func (b *Journal) get(ctx context.Context, id string) (*Entry, error) {
	secret, err := b.kube.CoreV1().Secrets(b.namespace).Get(ctx, id, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return decode(secret)
}

// List returns all entries, the oldest first. The error names the entries that cannot be
// read; the others are returned with it.
func (b *Journal) List(ctx context.Context) ([]Entry, error) {
	list, err := b.kube.CoreV1().Secrets(b.namespace).List(ctx, metav1.ListOptions{LabelSelector: api.LabelJournal})
	if err != nil {
		return nil, fmt.Errorf("list Secrets of namespace %s with label %s: %w", b.namespace, api.LabelJournal, err)
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
func (b *Journal) Statuses(ctx context.Context) ([]Status, error) {
	entries, failed := b.List(ctx)
	statuses := make([]Status, len(entries))
	for j := range entries {
		gone, err := b.HolderGone(ctx, &entries[j])
		statuses[j] = Status{Entry: &entries[j], HolderGone: gone}
		failed = errors.Join(failed, err)
	}
	for j := range statuses {
		for _, other := range statuses {
			if other.HolderGone == "" && other.Tried.IsZero() && other.ID != statuses[j].ID && other.sameAs(statuses[j].Entry) {
				statuses[j].FrozenAgainBy = other.Backup
			}
		}
	}
	return statuses, failed
}

// sameAs reports whether two entries have an object in common.
func (i *Entry) sameAs(other *Entry) bool {
	return i.Namespace == other.Namespace && (i.Name == other.Name || slices.ContainsFunc(i.Objects, func(ref workload.Ref) bool {
		return slices.Contains(other.Objects, ref)
	}))
}

// Abandoned returns the entries that any process may complete.
func (b *Journal) Abandoned(ctx context.Context) ([]Entry, error) {
	statuses, err := b.Statuses(ctx)
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
func (b *Journal) HolderGone(ctx context.Context, i *Entry) (string, error) {
	f := facts{now: b.clock.Now(), here: Here(), started: started}
	if i.Holder.Pod != "" && !f.visible(i.Holder) {
		pod, err := b.kube.CoreV1().Pods(b.namespace).Get(ctx, i.Holder.Pod, metav1.GetOptions{})
		switch {
		case err == nil:
			f.pod = pod
		case !apierrors.IsNotFound(err):
			return "", fmt.Errorf("look whether %s lives: get pod %s/%s: %w", i.Holder, b.namespace, i.Holder.Pod, err)
		}
	}
	return f.holderGone(i), nil
}

func encode(i *Entry) (map[string][]byte, error) {
	text, err := json.Marshal(i)
	if err != nil {
		return nil, fmt.Errorf("record what undoes the quiescing of %s: %w", i.Name, err)
	}
	if len(text) > corev1.MaxSecretSize {
		return nil, fmt.Errorf("what undoes the quiescing of %s is %d bytes long, and a Secret that records it holds %d: shorten the commands of the posthooks, or give them what they need in a file of the container", i.Name, len(text), corev1.MaxSecretSize)
	}
	return map[string][]byte{secretKey: text}, nil
}

// decode is strict: a step with an unknown field must not count as done.
func decode(secret *corev1.Secret) (*Entry, error) {
	i := &Entry{}
	unknown, err := kjson.UnmarshalStrict(secret.Data[secretKey], i)
	if err == nil {
		err = errors.Join(unknown...)
	}
	if err != nil {
		return nil, fmt.Errorf("read the intent in Secret %s/%s: %w", secret.Namespace, secret.Name, err)
	}
	i.ID, i.version = secret.Name, secret.ResourceVersion
	return i, nil
}
