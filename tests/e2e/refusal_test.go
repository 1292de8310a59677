package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/tests/cluster"
)

// Each bad input gives one error that names the object and the key, and leaves
// nothing frozen. All of them are workloads of one backup.
func testBadInput(t *testing.T, c *cluster.Cluster) {
	blueprint(t, c, execBlueprint("e2e-no-container", "ghost", "true", "true"))
	blueprint(t, c, execBlueprint("e2e-template", "sidecar", "echo {{ .Options.absent }}", "true"))
	blueprint(t, c, `
metadata: {name: e2e-secret}
actions:
  backupPrehook:
    phases:
      - func: KubeExec
        name: lock
        objects:
          password: {kind: Secret, name: nowhere, namespace: "{{ .Deployment.Namespace }}"}
        args:
          namespace: "{{ .Deployment.Namespace }}"
          pod: "{{ index .Deployment.Pods 0 }}"
          command: [sh, -c, 'echo {{ index .Phases.lock.Secrets.password.Data "x" | toString }}']
`)
	blueprint(t, c, `
metadata: {name: e2e-function}
actions:
  backupPrehook:
    phases:
      - func: BackupData
        name: dump
        args: {namespace: x, pod: y}
`)
	hostPath := func(pod *corev1.PodSpec) {
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: "host", VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: "/var/tmp"},
		}})
		pod.Containers[1].VolumeMounts = append(pod.Containers[1].VolumeMounts, corev1.VolumeMount{Name: "host", MountPath: "/host"})
	}
	quiesce := func(value string, more ...string) map[string]string {
		annotations := map[string]string{"stillpoint.io/quiesce": value}
		for i := 0; i < len(more); i += 2 {
			annotations[more[i]] = more[i+1]
		}
		return annotations
	}
	a := &app{t: t, c: c, namespace: c.Namespace(t, "e2e"), mounts: map[string]string{}}
	cases := map[string]struct {
		shape
		wants []string // NAME is the workload's
	}{
		"unknown blueprint": {
			shape{annotations: quiesce("nothing-like-it")},
			[]string{"nothing-like-it", "fsfreeze"},
		},
		"unknown value": {
			shape{annotations: quiesce("fsfreeze", "stillpoint.io/on-quiesce-error", "ignore")},
			[]string{"stillpoint.io/on-quiesce-error", `\"ignore\"`, "fail, continue"},
		},
		"unknown annotation": {
			shape{annotations: map[string]string{"stillpoint.io/queisce": "fsfreeze"}},
			[]string{"stillpoint.io/queisce", "stillpoint.io/quiesce"},
		},
		"timeout that is none": {
			shape{annotations: quiesce("fsfreeze", "stillpoint.io/quiesce-timeout", "soon")},
			[]string{"stillpoint.io/quiesce-timeout", `\"soon\"`, "30s"},
		},
		"missing container": {
			shape{annotations: quiesce("e2e-no-container")},
			[]string{"e2e-no-container", "ghost", "sidecar"},
		},
		"missing container of fsfreeze": {
			shape{annotations: quiesce("fsfreeze", "option.stillpoint.io/container", "ghost")},
			[]string{"NAME-data0", "ghost"},
		},
		"missing secret": {
			shape{annotations: quiesce("e2e-secret")},
			[]string{"e2e-secret", "lock", "nowhere"},
		},
		"missing mount path": {
			shape{annotations: quiesce("fsfreeze", "option.stillpoint.io/paths", "/nowhere")},
			[]string{"/nowhere", "/mnt/data0"},
		},
		"template error": {
			shape{annotations: quiesce("e2e-template")},
			[]string{"e2e-template", "args.command[2]", "absent"},
		},
		"unsupported function": {
			shape{annotations: quiesce("e2e-function")},
			[]string{"e2e-function", "dump", "BackupData", "KubeExec"},
		},
		"no privileges": {
			shape{annotations: quiesce("fsfreeze"), unprivileged: true},
			[]string{"NAME-data0", "container sidecar", "CAP_SYS_ADMIN", "privileged: true"},
		},
		"a directory of the node": {
			shape{annotations: quiesce("fsfreeze", "option.stillpoint.io/paths", "/host"), pod: hostPath},
			[]string{"/host", "must not be frozen", "freeze the node"},
		},
		"a directory-backed volume": {
			shape{annotations: quiesce("fsfreeze"), claim: func(claim *corev1.PersistentVolumeClaim) {
				claim.Spec.StorageClassName = ptr.To(cluster.DirectoryClass)
			}},
			[]string{"NAME-data0", "must not be frozen", "larger file system"},
		},
		"ReadWriteMany": {
			shape{annotations: quiesce("fsfreeze"), claim: func(claim *corev1.PersistentVolumeClaim) {
				claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
			}},
			[]string{"NAME-data0", "ReadWriteMany"},
		},
		"a block device": {
			shape{annotations: quiesce("fsfreeze"), claim: func(claim *corev1.PersistentVolumeClaim) {
				claim.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
			}},
			[]string{"NAME-data0", "volumeMode Block"},
		},
		"more volumes than the freeze has time for": {
			shape{annotations: quiesce("fsfreeze", "stillpoint.io/quiesce-timeout", "5s"), volumes: 2},
			[]string{"2 volumes", "quiesce-timeout", "group snapshots"},
		},
	}
	workload := map[string]string{}
	for i, name := range slices.Sorted(maps.Keys(cases)) {
		workload[name] = fmt.Sprintf("case-%02d", i)
		a.create(workload[name], cases[name].shape)
	}
	for _, name := range workload {
		a.ready(name)
	}
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	log := b.log()
	assert.NotContains(t, log, "Quiesced Deployment")
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			var errors strings.Builder
			for line := range strings.Lines(said(log, "error")) {
				if strings.Contains(line, a.namespace+"/"+workload[name]) {
					errors.WriteString(line)
				}
			}
			for _, want := range test.wants {
				assert.Contains(t, errors.String(), strings.ReplaceAll(want, "NAME", workload[name]))
			}
			if test.claim == nil {
				assert.False(t, a.frozen(workload[name]+"-data0"))
				assert.Eventually(t, func() bool { return a.events(workload[name])["QuiesceFailed"] != "" }, 5*time.Second, 50*time.Millisecond)
			}
		})
	}
}

func testContinueSnapshotsAllTheSameAndWarns(t *testing.T, c *cluster.Cluster) {
	a := newApp(t, c, shape{unprivileged: true, annotations: map[string]string{
		"stillpoint.io/quiesce": "fsfreeze", "stillpoint.io/on-quiesce-error": "continue",
	}})
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhaseCompleted, b.finished(limit))
	log := b.log()
	assert.Empty(t, said(log, "error"))
	assert.Contains(t, said(log, "warning"), "CAP_SYS_ADMIN")
	assert.Contains(t, said(log, "warning"), "crash-consistent")
	assert.Contains(t, log, "Created VolumeSnapshot "+a.namespace)
}

// A mistake in the configuration is an error for those who asked for something,
// and keeps nobody else from being backed up.
func TestBrokenConfiguration(t *testing.T) {
	c := connect(t)
	a := newApp(t, c, shape{})
	broken := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: cluster.VeleroNamespace, Name: "e2e-broken",
			Labels: map[string]string{"velero.io/plugin-config": "", "stillpoint.io/stillpoint": "Configuration"},
		},
		Data: map[string]string{"config.yaml": "version: v1\nblueprintNamespace: [velero]\n"},
	}
	require.NoError(t, c.Objects().Create(t.Context(), broken))
	t.Cleanup(func() { _ = c.Objects().Delete(context.Background(), broken) })

	require.Equal(t, velerov1.BackupPhaseCompleted, startBackup(t, c, a.namespace, nil).finished(limit))
	a.kubectl("annotate", "deployment", "app", "stillpoint.io/quiesce=fsfreeze")
	b := startBackup(t, c, a.namespace, nil)
	require.Equal(t, velerov1.BackupPhasePartiallyFailed, b.finished(limit))
	for _, want := range []string{"e2e-broken", "blueprintNamespace", "blueprintNamespaces"} {
		assert.Contains(t, said(b.log(), "error"), want)
	}
}
