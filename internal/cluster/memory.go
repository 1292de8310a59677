package cluster

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/lru"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

const (
	// memoryLife is how long an answer may be used again.
	memoryLife = time.Minute
	// listVolumesFrom is the number of PersistentVolumes from which on a list of
	// all is cheaper than a request for each.
	listVolumesFrom = 8
	// volumesPage is how many PersistentVolumes one answer holds.
	volumesPage = 500
	// listsKept is how many lists are remembered. Those of pods are large, and
	// Velero takes one namespace after another.
	listsKept = 16
)

// Remember returns a client that asks the API server for the same object, or
// the same list, at most once a minute: one backup asks for a policy, a
// StorageClass or the snapshot classes again for each of its volumes. What is
// written goes through, and is not remembered. An object that is not there is
// asked for again.
func Remember(client crclient.WithWatch, clock clock.PassiveClock) crclient.Client {
	m := &memory{client: client, clock: clock, objects: map[string]answer{}, lists: lru.New(listsKept)}
	return interceptor.NewClient(client, interceptor.Funcs{Get: m.get, List: m.list})
}

type memory struct {
	client crclient.WithWatch
	clock  clock.PassiveClock

	asking  Keyed // by what is asked for; mu is not held during a request
	mu      sync.Mutex
	objects map[string]answer
	lists   *lru.Cache // of answers
	// volumes is how many PersistentVolumes were asked for one by one.
	volumes int
}

type answer struct {
	object any
	until  time.Time
}

func (m *memory) get(ctx context.Context, client crclient.WithWatch, name crclient.ObjectKey, into crclient.Object, options ...crclient.GetOption) error {
	key := fmt.Sprintf("%T %s", into, name)
	defer m.asking.Lock(key)()
	if m.recall(key, into) {
		return nil
	}
	if _, ok := into.(*corev1.PersistentVolume); ok && m.countVolume() {
		if err := m.listVolumes(ctx); err != nil {
			return err
		}
		if m.recall(key, into) {
			return nil
		}
	}
	if err := client.Get(ctx, name, into, options...); err != nil {
		return err
	}
	m.remember(key, into.DeepCopyObject())
	return nil
}

// countVolume reports whether the volumes that were asked for one by one are enough
// for a list of all.
func (m *memory) countVolume() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.volumes = (m.volumes + 1) % listVolumesFrom
	return m.volumes == 0
}

func (m *memory) list(ctx context.Context, client crclient.WithWatch, into crclient.ObjectList, options ...crclient.ListOption) error {
	applied := (&crclient.ListOptions{}).ApplyOptions(options)
	key := fmt.Sprintf("%T %s %v %v", into, applied.Namespace, applied.LabelSelector, applied.FieldSelector)
	defer m.asking.Lock(key)()
	if m.recall(key, into) {
		return nil
	}
	if err := client.List(ctx, into, options...); err != nil {
		return err
	}
	m.remember(key, into.DeepCopyObject())
	return nil
}

// listVolumes remembers all PersistentVolumes, page by page, without what
// takes the most room of them and interests nobody.
func (m *memory) listVolumes(ctx context.Context) error {
	volumes := &corev1.PersistentVolumeList{}
	for {
		err := m.client.List(ctx, volumes, crclient.Limit(volumesPage), crclient.Continue(volumes.Continue))
		if err != nil {
			return fmt.Errorf("list the PersistentVolumes: %w", err)
		}
		for i := range volumes.Items {
			volume := volumes.Items[i].DeepCopy()
			volume.ManagedFields = nil
			m.remember(fmt.Sprintf("%T %s", volume, crclient.ObjectKeyFromObject(volume)), volume)
		}
		if volumes.Continue == "" {
			return nil
		}
	}
}

func (m *memory) remember(key string, object any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	answer := answer{object, m.clock.Now().Add(memoryLife)}
	if _, ok := object.(crclient.ObjectList); ok {
		m.lists.Add(key, answer)
	} else {
		m.objects[key] = answer
	}
}

// recall copies what is remembered, as deep as a client's answer is.
func (m *memory) recall(key string, into any) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	known, ok := m.objects[key]
	if list, found := m.lists.Get(key); found {
		known, ok = list.(answer)
	}
	if !ok || !m.clock.Now().Before(known.until) {
		return false
	}
	var copied any
	switch object := known.object.(type) {
	case crclient.Object:
		copied = object.DeepCopyObject()
	case crclient.ObjectList:
		copied = object.DeepCopyObject()
	}
	reflect.ValueOf(into).Elem().Set(reflect.ValueOf(copied).Elem())
	return true
}
