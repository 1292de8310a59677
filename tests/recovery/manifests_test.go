package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"stillpoint.io/stillpoint/internal/config"
)

// configuration is the document of Stillpoint that is among the objects of a
// manifest.
func configuration(t *testing.T, manifest string) *config.Config {
	t.Helper()
	require.NotContains(t, manifest, "%!")
	for document := range strings.SplitSeq(manifest, "\n---\n") {
		object := corev1.ConfigMap{}
		require.NoError(t, yaml.Unmarshal([]byte(document), &object), document)
		if object.Labels["stillpoint.io/stillpoint"] != "" {
			settings, err := config.Decode(&object)
			require.NoError(t, err)
			return settings
		}
	}
	t.Fatal("there is no configuration")
	return nil
}

func TestLost(t *testing.T) {
	settings := configuration(t, lost())
	require.Len(t, settings.SnapshotClasses, 1)
	assert.Equal(t, "loop-exports", settings.SnapshotClasses[0].Class)
	match := settings.SnapshotClasses[0].Match
	assert.True(t, match.Matches("loop.csi.stillpoint.io", "loop", exported, nil, map[string]string{"velero.io/schedule-name": exported}))
	assert.False(t, match.Matches("loop.csi.stillpoint.io", "loop", moved, nil, map[string]string{"velero.io/schedule-name": moved}))
}

func TestMaps(t *testing.T) {
	settings := configuration(t, told())
	assert.Equal(t, []config.DriverMapping{{From: "loop.csi.stillpoint.io", To: "vault.csi.stillpoint.io"}}, settings.Restore.Drivers)
	assert.Equal(t, []config.SnapshotClassMapping{{From: "loop", To: "vault"}, {From: "loop-exports", To: "vault-exports"}}, settings.Restore.SnapshotClasses)
}

func TestApp(t *testing.T) {
	text, err := appManifest(moved, "loop")
	require.NoError(t, err)
	for document := range strings.SplitSeq(text, "\n---\n") {
		require.NoError(t, yaml.Unmarshal([]byte(document), &map[string]any{}), document)
	}
}
