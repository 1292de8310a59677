package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	clocktesting "k8s.io/utils/clock/testing"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// counted is a client that remembers, and the requests that got through.
func counted(t *testing.T, objects ...crclient.Object) (crclient.Client, *clocktesting.FakePassiveClock, func() []string) {
	t.Helper()
	var requests []string
	server := interceptor.NewClient(fake.NewClientBuilder().WithScheme(scheme.Scheme).WithObjects(objects...).Build(), interceptor.Funcs{
		Get: func(ctx context.Context, c crclient.WithWatch, key crclient.ObjectKey, into crclient.Object, options ...crclient.GetOption) error {
			requests = append(requests, "get "+key.Name)
			return c.Get(ctx, key, into, options...)
		},
		List: func(ctx context.Context, c crclient.WithWatch, into crclient.ObjectList, options ...crclient.ListOption) error {
			requests = append(requests, fmt.Sprintf("list %T", into))
			return c.List(ctx, into, options...)
		},
	})
	clock := clocktesting.NewFakePassiveClock(time.Now())
	return Remember(server, clock), clock, func() []string { defer func() { requests = nil }(); return requests }
}

func TestRemember(t *testing.T) {
	policy := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "policy"}, Data: map[string]string{"a": "b"}}
	client, clock, requests := counted(t, policy)
	read := func() *corev1.ConfigMap {
		found := &corev1.ConfigMap{}
		require.NoError(t, client.Get(t.Context(), crclient.ObjectKeyFromObject(policy), found))
		return found
	}
	read().Data["a"] = "changed by its reader"
	assert.Equal(t, "b", read().Data["a"])
	assert.Equal(t, []string{"get policy"}, requests())
	clock.SetTime(clock.Now().Add(memoryLife + 1))
	read()
	assert.Equal(t, []string{"get policy"}, requests())

	for range 2 {
		list := &corev1.ConfigMapList{}
		require.NoError(t, client.List(t.Context(), list, crclient.InNamespace("velero")))
		assert.Len(t, list.Items, 1)
		require.NoError(t, client.List(t.Context(), list, crclient.InNamespace("shop")))
		assert.Empty(t, list.Items)
	}
	assert.Equal(t, []string{"list *v1.ConfigMapList", "list *v1.ConfigMapList"}, requests())

	for range 2 {
		require.Error(t, client.Get(t.Context(), crclient.ObjectKey{Namespace: "velero", Name: "other"}, &corev1.ConfigMap{}))
	}
	assert.Equal(t, []string{"get other", "get other"}, requests())
}

// Few volumes are read one by one, many by one list.
func TestRememberVolumes(t *testing.T) {
	var objects []crclient.Object
	for i := range 100 {
		objects = append(objects, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pv%d", i)}, Spec: corev1.PersistentVolumeSpec{StorageClassName: fmt.Sprint(i)}})
	}
	client, _, requests := counted(t, objects...)
	for i := range objects {
		volume := &corev1.PersistentVolume{}
		require.NoError(t, client.Get(t.Context(), crclient.ObjectKeyFromObject(objects[i]), volume))
		assert.Equal(t, fmt.Sprint(i), volume.Spec.StorageClassName)
	}
	made := requests()
	assert.Len(t, made, listVolumesFrom)
	assert.Equal(t, "list *v1.PersistentVolumeList", made[listVolumesFrom-1])
}
