package faults

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/tests/fake"
)

// A template that takes too much is an error of its own workload: the plugin's process
// hardly grows, and the next workload is quiesced.
func TestTemplatesThatTakeTooMuch(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ template, want string }{
		"recursion":   {`{{ define "a" }}{{ $x := repeat 1000000 "x" }}{{ template "a" }}{{ $x }}{{ end }}{{ template "a" }}`, "too much memory"},
		"a huge list": {`{{ until 1000000000 | len }}`, "too much memory"},
		"a long text": {`{{ range until 100000 }}{{ repeat 100000 "x" }}{{ end }}`, "the text is longer than"},
		"DNS":         {`{{ getHostByName "example.com" }}`, "getHostByName is refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			withHooks(t, bed, `{func: KubeExec, name: run, args: {namespace: shop, pod: db-0, command: ['`+test.template+`']}}`, "")
			bomb := bed.Deploy(fake.App{Annotations: map[string]string{"stillpoint.io/quiesce": "hooks"}})
			other := bed.Deploy(fake.App{Name: "other", Annotations: fsfreeze})
			v := bed.Velero()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := time.Now()
			r := v.Backup(bed.Backup(fake.WithPolicy), bomb, other)
			runtime.ReadMemStats(&after)
			assert.Less(t, time.Since(began), time.Minute)
			assert.Less(t, after.HeapSys, before.HeapSys+512<<20)
			assert.Contains(t, strings.Join(v.Errors(), "\n"), test.want)
			require.Empty(t, r.Dropped)
			snapshots := bed.Storage.Snapshots()
			require.Len(t, snapshots, 1)
			assert.True(t, snapshots[0].Frozen)
			assert.NotEmpty(t, r.Claims[other.Claims[0]].Labels["velero.io/volume-snapshot-name"])
		})
	}
}

// Whoever may write the object that Wait looks at does not write its condition.
func TestWaitedForFieldIsNoTemplate(t *testing.T) {
	t.Parallel()
	for state, want := range map[string]string{
		"open":                              "",
		`x" }}{{ end }}true{{ if eq "1" "2`: "not within 1s",
	} {
		bed := fake.New(t)
		bed.API.Put(t, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "lock"}, Data: map[string]string{"state": state}})
		withHooks(t, bed, `{func: Wait, name: wait, args: {timeout: 1s, conditions: {anyOf: [{condition: '{{ if eq "{ $.data.state }" "open" }}true{{ end }}', objectReference: {apiVersion: v1, resource: configmaps, name: lock, namespace: shop}}]}}}`, "")
		app := bed.Deploy(fake.App{Annotations: map[string]string{"stillpoint.io/quiesce": "hooks"}})
		v := bed.Velero()
		v.Backup(bed.Backup(fake.WithPolicy), app)
		if want == "" {
			assert.Empty(t, v.Errors())
		} else {
			assert.Contains(t, strings.Join(v.Errors(), "\n"), want)
		}
	}
}
