package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	found, err := parseWays("group,hooks")
	require.NoError(t, err)
	assert.Equal(t, []way{group, hooks}, found)
	_, err = parseWays("hooks,hook")
	require.EqualError(t, err, `no way "hook"; there are hooks, early, around, group, snapshotter, floor`)

	volumes, err := parseVolumes("16,1")
	require.NoError(t, err)
	assert.Equal(t, []int{16, 1}, volumes)
	for _, wrong := range []string{"", "0", "1,1", "one"} {
		_, err = parseVolumes(wrong)
		assert.Error(t, err, wrong)
	}
}

// Each way takes back what another one may have left on the same pod.
func TestAnnotations(t *testing.T) {
	keys := func(w way) (deployment, pod []string) {
		onDeployment, onPod := w.annotations([]string{"/a"})
		for key := range onDeployment {
			deployment = append(deployment, key)
		}
		for key := range onPod {
			pod = append(pod, key)
		}
		return deployment, pod
	}
	deployment, pod := keys(hooks)
	for _, w := range ways {
		d, p := keys(w)
		assert.ElementsMatch(t, deployment, d, w)
		assert.ElementsMatch(t, pod, p, w)
	}
}

func TestHookCommand(t *testing.T) {
	assert.Equal(t, `["fsfreeze","--freeze","/data/data1"]`, hookCommand("--freeze", []string{"/data/data1"}))
	assert.Equal(t, `["sh","-c","fsfreeze --unfreeze /a && fsfreeze --unfreeze /b"]`, hookCommand("--unfreeze", []string{"/a", "/b"}))
}
