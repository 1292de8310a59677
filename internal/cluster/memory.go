package cluster

import (
	"context"
	"fmt"
	"reflect"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/utils/clock"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

const (
	// memoryLife is how long an answer may be used again.
	memoryLife = time.Minute
	// listVolumesFrom is the number of PersistentVolumes from which on a list of
	// all is cheaper than a request for each.
	listVolumesFrom = 8
	// objectsKept and listsKept bound the memory. Lists of pods are large, and Velero
	// processes one namespace after another.
	objectsKept = 1 << 16
	listsKept   = 16
)

// Remember returns a client that asks the API server for the same object, or
// the same list, at most once a minute: one backup asks for a policy, a
// StorageClass or the snapshot classes again for each of its volumes. Writes go
// through and are not remembered. An object that does not exist is asked for again.
func Remember(client crclient.WithWatch, clock clock.PassiveClock) crclient.Client {
	m := &memory{
		client:  client,
		objects: cache.NewLRUExpireCacheWithClock(objectsKept, clock),
		lists:   cache.NewLRUExpireCacheWithClock(listsKept, clock),
	}
	return interceptor.NewClient(client, interceptor.Funcs{Get: m.get, List: m.list})
}

type memory struct {
	client         crclient.WithWatch
	asking         Keyed // held during a request
	objects, lists *cache.LRUExpireCache
	volumes        atomic.Int64 // how many PersistentVolumes were asked for one by one
}

func (m *memory) get(ctx context.Context, client crclient.WithWatch, name crclient.ObjectKey, into crclient.Object, options ...crclient.GetOption) error {
	key := fmt.Sprintf("%T %s", into, name)
	defer m.asking.Lock(key)()
	if recall(m.objects, key, into) {
		return nil
	}
	if _, ok := into.(*corev1.PersistentVolume); ok && m.volumes.Add(1)%listVolumesFrom == 0 {
		if err := m.listVolumes(ctx); err != nil {
			return err
		}
		if recall(m.objects, key, into) {
			return nil
		}
	}
	if err := client.Get(ctx, name, into, options...); err != nil {
		return err
	}
	m.objects.Add(key, into.DeepCopyObject(), memoryLife)
	return nil
}

func (m *memory) list(ctx context.Context, client crclient.WithWatch, into crclient.ObjectList, options ...crclient.ListOption) error {
	applied := (&crclient.ListOptions{}).ApplyOptions(options)
	key := fmt.Sprintf("%T %s %v %v", into, applied.Namespace, applied.LabelSelector, applied.FieldSelector)
	defer m.asking.Lock(key)()
	if recall(m.lists, key, into) {
		return nil
	}
	if err := client.List(ctx, into, options...); err != nil {
		return err
	}
	m.lists.Add(key, into.DeepCopyObject(), memoryLife)
	return nil
}

// listVolumes remembers all PersistentVolumes, without their managed fields, which
// are large and unused.
func (m *memory) listVolumes(ctx context.Context) error {
	volumes, err := All[corev1.PersistentVolume](ctx, "PersistentVolumes", "", func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		page := &corev1.PersistentVolumeList{}
		return page, m.client.List(ctx, page, crclient.Limit(options.Limit), crclient.Continue(options.Continue))
	})
	for i := range volumes {
		volumes[i].ManagedFields = nil
		m.objects.Add(fmt.Sprintf("%T %s", &volumes[i], crclient.ObjectKeyFromObject(&volumes[i])), &volumes[i], memoryLife)
	}
	return err
}

// recall copies a remembered answer, as deep as a client's answer is.
func recall(from *cache.LRUExpireCache, key string, into any) bool {
	known, ok := from.Get(key)
	if !ok {
		return false
	}
	object, ok := known.(runtime.Object)
	if !ok {
		return false
	}
	reflect.ValueOf(into).Elem().Set(reflect.ValueOf(object.DeepCopyObject()).Elem())
	return true
}
