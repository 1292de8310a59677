package faults

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/tests/fake"
)

// paths are both ways to a snapshot.
var paths = map[string]func(*velerov1.Backup){
	"snapshots of Stillpoint": fake.WithPolicy,
	"snapshots of Velero":     func(*velerov1.Backup) {},
}

// records are the Secrets that say what is quiesced.
func records(bed *fake.Bed) []string {
	var names []string
	for _, secret := range bed.API.All("secrets") {
		if _, ok := secret.GetLabels()["stillpoint.io/intent"]; ok {
			names = append(names, secret.GetName())
		}
	}
	return names
}

// inconsistent asserts that a backup has no snapshot of a claim, and says why.
func inconsistent(t *testing.T, bed *fake.Bed, v *fake.Velero, r *fake.Result, claim string, words ...string) {
	t.Helper()
	marked := r.Claims[claim] != nil && r.Claims[claim].Annotations["stillpoint.io/no-snapshot"] != ""
	assert.True(t, marked || r.Dropped[claim] != nil, "claim %s passes for consistent", claim)
	said := strings.Join(v.Errors(), "\n") + fmt.Sprint(r.Dropped[claim])
	for _, word := range words {
		assert.Contains(t, said, word)
	}
	assert.Eventually(t, func() bool { return len(bed.Storage.Snapshots()) == 0 }, 2*time.Second, 10*time.Millisecond, "the snapshot is deleted")
}

func count(journal []string, word string) int {
	return len(slices.DeleteFunc(slices.Clone(journal), func(entry string) bool { return entry != word }))
}

// The kernel completes a freeze after the prepare-timeout, and after the first thaw
// has been told that nothing is frozen.
func TestFreezeThatCompletesAfterItsThaw(t *testing.T) {
	t.Parallel()
	for name, path := range paths {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Volumes: 2, Annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze", "stillpoint.io/prepare-timeout": "1s"}})
			stalled, other := bed.Node.FileSystem("shop", app.Claims[0]), bed.Node.FileSystem("shop", app.Claims[1])
			end := stalled.Stall()
			v := bed.Velero()
			result := make(chan *fake.Result, 1)
			go func() { result <- v.Backup(bed.Backup(path), app) }()
			require.Eventually(t, func() bool { return count(stalled.Journal(), "not frozen") > 1 }, 15*time.Second, 10*time.Millisecond, "the thaw is tried again")
			assert.False(t, other.Frozen(), "a volume is thawed whatever another one waits for")
			assert.NotEmpty(t, records(bed), "the record stays while the freeze can complete")
			end()
			r := <-result
			assert.False(t, stalled.Frozen())
			assert.Equal(t, 1, count(stalled.Journal(), "thawed"), stalled.Journal())
			assert.Equal(t, []string{"sync", "freeze", "frozen", "thawed"}, other.Journal())
			inconsistent(t, bed, v, r, app.Claims[0], "prepare-timeout")
			assert.Empty(t, records(bed))
			assert.Empty(t, bed.Events("StillFrozen"))
		})
	}
}

// Another program thaws what we have frozen.
func TestThawOfAThirdParty(t *testing.T) {
	t.Parallel()
	for name, path := range paths {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Annotations: fsfreeze})
			fs := bed.Node.FileSystem("shop", app.Claims[0])
			bed.Storage.Behave(func(types.NamespacedName) fake.Behaviour { return fake.Behaviour{Cut: 500 * time.Millisecond} })
			v := bed.Velero()
			result := make(chan *fake.Result, 1)
			go func() { result <- v.Backup(bed.Backup(path), app) }()
			require.Eventually(t, fs.Frozen, 5*time.Second, time.Millisecond)
			require.NoError(t, fs.Thaw())
			inconsistent(t, bed, v, <-result, app.Claims[0], "another program has thawed it")
			assert.Equal(t, 1, count(fs.Journal(), "not frozen"), "no thaw is repeated: %v", fs.Journal())
			assert.Empty(t, records(bed))
		})
	}
}

// Another program holds a freeze: ours fails, and theirs stays. The blueprints that
// users bring do the same as the built-in one.
func TestFreezeOfAThirdParty(t *testing.T) {
	t.Parallel()
	for name, quiesce := range map[string]struct{ pre, post string }{
		"built in":            {},
		"a blueprint":         {`["fsfreeze", "--freeze", "/data0"]`, `["fsfreeze", "--unfreeze", "/data0"]`},
		"a shell":             {`["sh", "-c", "fsfreeze --freeze /data0"]`, `["sh", "-c", "fsfreeze --unfreeze /data0"]`},
		"a shell that checks": {`["sh", "-c", "fsfreeze --freeze /data0 || exit 1"]`, `["fsfreeze", "--unfreeze", "/data0"]`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			annotations := fsfreeze
			if quiesce.pre != "" {
				annotations = own(t, bed, quiesce.pre, quiesce.post)
			}
			app := bed.Deploy(fake.App{Annotations: annotations, Volumes: 2})
			fs := bed.Node.FileSystem("shop", app.Claims[0])
			require.NoError(t, fs.Freeze())
			v := bed.Velero()
			r := v.Backup(bed.Backup(fake.WithPolicy), app)
			assert.True(t, fs.Frozen(), "the freeze of another program stays")
			assert.Equal(t, []string{"third party: freeze", "third party: frozen", "freeze", "busy"}, slices.DeleteFunc(fs.Journal(), func(word string) bool { return word == "sync" }))
			assert.False(t, bed.Node.FileSystem("shop", app.Claims[1]).Frozen())
			inconsistent(t, bed, v, r, app.Claims[0], "another program has frozen the file system already")
			assert.Empty(t, records(bed))
			require.NoError(t, fs.Thaw())
		})
	}
}

// own makes a blueprint of one command each in the app's container.
func own(t *testing.T, bed *fake.Bed, pre, post string) map[string]string {
	t.Helper()
	phase := `
    phases:
      - func: KubeExec
        name: one
        args: {namespace: '{{ .Deployment.Namespace }}', pod: '{{ index .Deployment.Pods 0 }}', container: main, command: %s}`
	bed.API.Put(t, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "own", Labels: map[string]string{"stillpoint.io/blueprint": ""}},
		Data:       map[string]string{"own.yaml": fmt.Sprintf("apiVersion: cr.kanister.io/v1alpha1\nkind: Blueprint\nmetadata: {name: own}\nactions:\n  backupPrehook:"+phase+"\n  backupPosthook:"+phase+"\n", pre, post)},
	})
	return map[string]string{"stillpoint.io/quiesce": "own"}
}

// What a dead process has left is not taken off the record while its freeze can still
// complete, and is thawed when it has.
func TestUndoWaitsForAPendingFreeze(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Annotations: fsfreeze})
	fs := bed.Node.FileSystem("shop", app.Claims[0])
	end := fs.Stall()
	bed.Node.Container("shop", app.Pods[0].Name, "main").Start("fsfreeze", "--freeze", "/data0")
	require.Eventually(t, func() bool { return count(fs.Journal(), "freeze") == 1 }, 5*time.Second, time.Millisecond)
	leave(t, bed, app, "", "")
	code, stdout, stderr := bed.Command("thaw", "--abandoned", "--timeout", "1s")
	assert.Equal(t, 1, code, stdout+stderr)
	assert.Contains(t, stderr, "may still be at work")
	assert.NotEmpty(t, records(bed))
	assert.NotEmpty(t, bed.Events("StillFrozen"))
	end()
	require.Eventually(t, fs.Frozen, 5*time.Second, time.Millisecond)
	code, stdout, stderr = bed.Command("thaw", "--all", "--timeout", "5s")
	assert.Zero(t, code, stdout+stderr)
	assert.False(t, fs.Frozen())
	assert.Equal(t, 1, count(fs.Journal(), "thawed"))
	assert.Empty(t, records(bed))
}

// leave writes the record of a process that has died while an app was frozen.
func leave(t *testing.T, bed *fake.Bed, app *fake.Workload, namespaceUID, claimUID types.UID) {
	t.Helper()
	record, err := json.Marshal(map[string]any{
		"name": "Deployment shop/db", "namespace": "shop", "namespaceUID": namespaceUID, "backup": "earlier", "backupUID": "1",
		"objects": []map[string]any{{"APIVersion": "apps/v1", "Kind": "Deployment", "Namespace": "shop", "Name": "db", "UID": "1"}},
		"since":   "2026-03-01T12:00:00Z", "until": "2026-03-01T12:10:00Z",
		"holder": map[string]any{"pod": "velero-gone", "podUID": "1", "host": "velero-gone", "pid": 7},
		"undo": []map[string]any{{
			"blueprint": "fsfreeze", "phase": "thaw", "guarded": true, "byHand": "thaw it",
			"call":    map[string]any{"Namespace": "shop", "Pod": app.Pods[0].Name, "Container": "main", "Command": []string{"fsfreeze", "--unfreeze", "/data0"}},
			"volumes": []map[string]any{{"claim": app.Claims[0], "claimUID": claimUID, "mountPath": "/data0", "node": fake.NodeName, "path": "/x"}},
		}},
	})
	require.NoError(t, err)
	bed.API.Put(t, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "stillpoint-intent-left", Labels: map[string]string{"stillpoint.io/intent": ""}},
		Type:       "stillpoint.io/intent", Data: map[string][]byte{"intent": record},
	})
}

// A namespace, or a claim, of the same name is another one: nothing is undone there.
func TestUndoLeavesNamesakesAlone(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		namespace, claim types.UID
		untouched        bool
	}{
		"the same":                    {},
		"another namespace":           {namespace: "earlier", untouched: true},
		"another claim":               {claim: "earlier", untouched: true},
		"a record of an older plugin": {namespace: "-", claim: "-"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Annotations: fsfreeze})
			fs := bed.Node.FileSystem("shop", app.Claims[0])
			require.NoError(t, fs.Freeze())
			namespace, claim := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: app.Claims[0]}}
			require.True(t, bed.API.Get(t, namespace) && bed.API.Get(t, claim))
			uid := func(given, real types.UID) types.UID {
				switch given {
				case "":
					return real
				case "-":
					return ""
				}
				return given
			}
			leave(t, bed, app, uid(test.namespace, namespace.UID), uid(test.claim, claim.UID))
			code, stdout, stderr := bed.Command("thaw", "--abandoned", "--timeout", "1s")
			assert.Zero(t, code, stdout+stderr)
			assert.Equal(t, test.untouched, fs.Frozen())
			assert.Empty(t, records(bed))
		})
	}
}

// A connection that carries nothing any more, and does not end, is not waited for.
func TestThawPastAHalfDeadConnection(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze", "stillpoint.io/quiesce-timeout": "30s"}})
	fs := bed.Node.FileSystem("shop", app.Claims[0])
	bed.Storage.Behave(func(types.NamespacedName) fake.Behaviour { return fake.Behaviour{Cut: 300 * time.Millisecond} })
	v := bed.Velero()
	result := make(chan *fake.Result, 1)
	go func() { result <- v.Backup(bed.Backup(fake.WithPolicy), app) }()
	require.Eventually(t, fs.Frozen, 5*time.Second, time.Millisecond)
	time.Sleep(100 * time.Millisecond) // the guards have their limits
	bed.Node.Container("shop", app.Pods[0].Name, "main").Silence()
	begun := time.Now()
	r := <-result
	assert.Less(t, time.Since(begun), 14*time.Second)
	assert.Equal(t, []string{"sync", "freeze", "frozen", "thawed"}, fs.Journal())
	assert.True(t, v.Said(logrus.WarnLevel, "thawed from container main"), v.Lines(logrus.WarnLevel))
	assert.Empty(t, v.Errors())
	assert.NotEmpty(t, r.Claims[app.Claims[0]].Labels["velero.io/volume-snapshot-name"], "it was frozen until then")
}

// The loss of a guard is no surprise only where the hook itself ends its pod.
func TestGuardIsLostBesideAChangeOfAnObject(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	bed.API.Put(t,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "mode"}, Data: map[string]string{"mode": "run"}},
		&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "own", Labels: map[string]string{"stillpoint.io/blueprint": ""}},
			Data: map[string]string{"own.yaml": `apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata: {name: own}
actions:
  backupPrehook:
    phases:
      - {func: KubeExec, name: lock, args: {namespace: shop, pod: '{{ index .Deployment.Pods 0 }}', container: main, command: ["true"]}}
      - {func: KubeOps, name: mode, args: {operation: patch, namespace: shop, objectReference: {apiVersion: v1, resource: configmaps, name: mode, namespace: shop}, spec: "data: {mode: backup}"}}
  backupPosthook:
    phases:
      - {func: KubeExec, name: unlock, args: {namespace: shop, pod: '{{ index .Deployment.Pods 0 }}', container: main, command: ["true"]}}
`},
		})
	app := bed.Deploy(fake.App{Annotations: map[string]string{"stillpoint.io/quiesce": "own"}})
	bed.Storage.Behave(func(types.NamespacedName) fake.Behaviour { return fake.Behaviour{Cut: time.Second} })
	v := bed.Velero()
	result := make(chan *fake.Result, 1)
	go func() { result <- v.Backup(bed.Backup(fake.WithPolicy), app) }()
	require.Eventually(t, func() bool { return len(bed.API.All("volumesnapshots")) == 1 }, 5*time.Second, time.Millisecond)
	main := bed.Node.Container("shop", app.Pods[0].Name, "main")
	main.Kill()
	main.Restart()
	inconsistent(t, bed, v, <-result, app.Claims[0], "was lost while frozen")
}

// What else a posthook does is for its own container.
func TestForeignContainerThawsAndDoesNothingElse(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{
		Annotations: own(t, bed, `["sh", "-c", "touch /lock; fsfreeze --freeze /data0"]`, `["sh", "-c", "rm /lock; fsfreeze --unfreeze /data0"]`),
		Pod: func(pod *corev1.Pod) {
			side := *pod.Spec.Containers[0].DeepCopy()
			side.Name, side.VolumeMounts[0].MountPath = "side", "/other"
			pod.Spec.Containers = append(pod.Spec.Containers, side)
			fake.Started(pod)
		},
	})
	bed.Storage.Behave(func(types.NamespacedName) fake.Behaviour { return fake.Behaviour{Cut: time.Second} })
	fs := bed.Node.FileSystem("shop", app.Claims[0])
	side := bed.Node.Container("shop", app.Pods[0].Name, "side")
	for _, name := range []string{"main", "side"} {
		c := bed.Node.Container("shop", app.Pods[0].Name, name)
		c.Program("touch", "#!/bin/sh\n")
		c.Program("rm", "#!/bin/sh\necho rm >>$FAKE_CONTAINER/foreign\n")
	}
	v := bed.Velero()
	result := make(chan *fake.Result, 1)
	go func() { result <- v.Backup(bed.Backup(fake.WithPolicy), app) }()
	require.Eventually(t, func() bool { return len(bed.API.All("volumesnapshots")) == 1 && fs.Frozen() }, 5*time.Second, time.Millisecond)
	bed.Node.Container("shop", app.Pods[0].Name, "main").Kill()
	inconsistent(t, bed, v, <-result, app.Claims[0], "was lost while frozen")
	assert.False(t, fs.Frozen())
	assert.True(t, v.Said(logrus.WarnLevel, "thawed from container side"), v.Lines(logrus.WarnLevel))
	assert.Empty(t, side.ReadFile("/foreign"), "nothing but the thaw runs in another container")
}

// It is found out at the thaw, when Velero has gone on from the first volume.
func TestThawOfAThirdPartyBetweenTwoVolumes(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Annotations: fsfreeze, Volumes: 2})
	first := bed.Node.FileSystem("shop", app.Claims[0])
	bed.Storage.Behave(func(types.NamespacedName) fake.Behaviour { return fake.Behaviour{Cut: 300 * time.Millisecond} })
	v := bed.Velero()
	result := make(chan *fake.Result, 1)
	go func() { result <- v.Backup(bed.Backup(), app) }()
	require.Eventually(t, func() bool { return len(bed.API.All("volumesnapshots")) == 2 }, 10*time.Second, time.Millisecond, "the first is cut")
	require.NoError(t, first.Thaw())
	r := <-result
	inconsistent(t, bed, v, r, app.Claims[1], "another program has thawed it")
	assert.True(t, v.Said(logrus.ErrorLevel, "The snapshot of claim shop/"+app.Claims[0]+" is not consistent and is deleted"), v.Errors())
}

// A store that writes nothing would hold up the freeze, and with it every writer. The
// application does not notice the backup then.
func TestStoreThatDoesNotWriteIsNotFrozen(t *testing.T) {
	t.Parallel()
	for name, change := range paths {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Volumes: 2, Annotations: map[string]string{"stillpoint.io/quiesce": "fsfreeze", "stillpoint.io/prepare-timeout": "1s"}})
			bed.Node.FileSystem("shop", app.Claims[1]).StallWrites()
			v := bed.Velero()
			r := v.Backup(bed.Backup(change), app)
			failed := strings.Join(v.Errors(), " ")
			for _, dropped := range r.Dropped {
				failed += dropped.Error()
			}
			assert.Contains(t, failed, "nothing was frozen: the storage did not write the file systems out within prepare-timeout 1s: 'sync' '-f' '/data1'")
			for _, claim := range app.Claims {
				assert.Equal(t, []string{"sync"}, bed.Node.FileSystem("shop", claim).Journal())
			}
			assert.Empty(t, records(bed), "nothing is left to undo")
		})
	}
}
