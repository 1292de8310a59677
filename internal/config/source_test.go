package config

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"
	clocktesting "k8s.io/utils/clock/testing"
)

func TestSource(t *testing.T) {
	bad := configMap("stillpoint", "version: v1\nblueprintNamespaces: ops")
	client := fake.NewClientset(bad)
	clock := clocktesting.NewFakePassiveClock(time.Now())
	source := NewSource(client, "velero", clock)
	_, err := source.Get(t.Context())
	require.ErrorContains(t, err, "must be a list")

	update := func(namespace string) {
		require.NoError(t, client.Tracker().Update(configMaps, configMap("stillpoint", "version: v1\nblueprintNamespaces: ["+namespace+"]"), "velero"))
	}
	get := func() []string {
		config, err := source.Get(t.Context())
		require.NoError(t, err)
		return config.BlueprintNamespaces
	}
	update("ops")
	require.Equal(t, []string{"ops"}, get(), "an error is not remembered")
	update("other")
	require.Equal(t, []string{"ops"}, get())
	clock.SetTime(clock.Now().Add(sourceLife))
	require.Equal(t, []string{"other"}, get())
}

var configMaps = corev1.SchemeGroupVersion.WithResource("configmaps")
