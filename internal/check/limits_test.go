package check

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func podOf(containers ...corev1.Container) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: containers}}
}

// controller is a Deployment with a container of an image, and no other hint of what
// it is.
func (s *scene) controller(args ...string) {
	s.add(&appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "controller"},
		Spec:       appsv1.DeploymentSpec{Template: podOf(corev1.Container{Name: "main", Image: "example.com:5000/mirror/snapshot-controller@sha256:abc", Args: args})},
	})
}

// sidecar is a StatefulSet of a driver with its sidecar. The driver's name stands in
// an argument of the other container.
func (s *scene) sidecar(of string, args ...string) {
	s.add(&appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "storage", Name: of},
		Spec: appsv1.StatefulSetSpec{Template: podOf(
			corev1.Container{Name: "driver", Args: []string{"--drivername=" + of}},
			corev1.Container{Name: "csi-snapshotter", Args: args, Env: []corev1.EnvVar{{Name: "QPS", Value: "50"}}},
		)},
	})
}

// volumes are claims of one workload that the group path freezes together.
func (s *scene) volumes(n int, class, timeout string) {
	var claims []string
	for i := range n {
		claims = append(claims, s.claim(fmt.Sprintf("data-%d", i), class, "group", func(c *corev1.PersistentVolumeClaim) {
			c.Annotations = map[string]string{}
		}))
	}
	s.statefulSet("db", asks("fsfreeze", "stillpoint.io/quiesce-timeout", timeout), claims...)
}

func TestRequestLimits(t *testing.T) {
	const raised = "--kube-api-qps=200 --kube-api-burst=400"
	for name, test := range map[string]struct {
		make     func(s *scene)
		freeze   Freeze
		warnings []string // parts of the only warning; none is no warning
		notes    []string // parts of the notes, in order
	}{
		"default limits": {
			func(s *scene) {
				s.controller("--leader-election=true")
				s.sidecar(driver, "--csi-address=/csi/csi.sock")
				s.volumes(16, "fast", "20s")
			},
			Freeze{16, "10.8s", "12.8s"},
			[]string{
				"predicted to last 10.8s to 12.8s", "for 16 snapshots", "stillpoint.io/quiesce-timeout is 20s", "--kube-api-qps and --kube-api-burst",
				"Deployment kube-system/controller, container main (5 and 10)", "StatefulSet storage/" + driver + ", container csi-snapshotter (5 and 10)",
			},
			nil,
		},
		"default limits, time enough": {
			func(s *scene) { s.controller(); s.sidecar(driver); s.volumes(16, "fast", "30s") }, Freeze{16, "10.8s", "12.8s"}, nil, nil,
		},
		"more volumes than the default timeout has time for": {
			func(s *scene) { s.controller(); s.sidecar(driver); s.volumes(45, "fast", "30s") }, Freeze{45, "34s", "36s"}, []string{"predicted to last 34s to 36s"}, nil,
		},
		"raised": {
			func(s *scene) {
				s.controller(strings.Fields(raised)...)
				s.sidecar(driver, strings.Fields(raised)...)
				s.volumes(45, "fast", "30s")
			},
			Freeze{45, "0s", "900ms"},
			nil, nil,
		},
		"only the sidecar is slow, its arguments are words of their own and variables": {
			func(s *scene) {
				s.controller("-kube-api-qps", "200", "-kube-api-burst", "400")
				s.sidecar(driver, "--kube-api-qps=$(QPS)", "--kube-api-burst", "20")
				s.volumes(45, "fast", "5s")
			},
			Freeze{45, "3.2s", "3.6s"},
			[]string{"for example to 200 and 400, of StatefulSet storage/" + driver + ", container csi-snapshotter (50 and 20)"},
			nil,
		},
		"the sidecar of another driver": {
			func(s *scene) {
				s.controller(strings.Fields(raised)...)
				s.sidecar("not."+driver, strings.Fields(raised)...) // ends like it
				s.volumes(30, "fast", "30s")
			},
			Freeze{30, "22s", "24s"},
			[]string{"the CSI sidecar of driver " + driver + " (5 and 10)"},
			[]string{"The request limits of the CSI sidecar of driver " + driver + " are not known, and the default is assumed (--kube-api-qps=5 --kube-api-burst=10): no Deployment, StatefulSet or DaemonSet has the container csi-snapshotter of driver " + driver},
		},
		"a sidecar whose pod does not name the driver": {
			func(s *scene) {
				s.controller(strings.Fields(raised)...)
				s.add(
					&appsv1.Deployment{
						ObjectMeta: metav1.ObjectMeta{Namespace: "storage", Name: "csi-controller"},
						Spec:       appsv1.DeploymentSpec{Template: podOf(corev1.Container{Name: "snapshotter", Command: []string{"/bin/csi-snapshotter"}, Args: []string{"--kube-api-qps=100"}})},
					},
					&appsv1.DaemonSet{
						ObjectMeta: metav1.ObjectMeta{Namespace: "storage", Name: "csi-node"},
						Spec:       appsv1.DaemonSetSpec{Template: podOf(corev1.Container{Name: "registrar", Args: []string{"--kubelet-registration-path=/var/lib/kubelet/plugins/" + driver + "/csi.sock"}})},
					})
				s.volumes(30, "fast", "30s")
			},
			Freeze{30, "1.1s", "1.2s"},
			nil, nil,
		},
		"nothing is found": {
			func(s *scene) { s.volumes(2, "fast", "30s") },
			Freeze{2, "0s", "1.6s"},
			nil,
			[]string{"The request limits of the CSI sidecar of driver " + driver, "The request limits of the snapshot controller are not known, and the default is assumed"},
		},
		"cannot be listed": {
			func(s *scene) {
				s.controller(strings.Fields(raised)...)
				s.volumes(2, "fast", "30s")
				s.deny = "daemonsets"
			},
			Freeze{2, "0s", "1.6s"},
			nil,
			[]string{"the snapshot controller are not known, and the default is assumed (--kube-api-qps=5 --kube-api-burst=10): list the DaemonSets of all namespaces: ", "the CSI sidecar of driver"},
		},
		"not a number": {
			func(s *scene) {
				s.controller("--kube-api-qps=fast")
				s.sidecar(driver, strings.Fields(raised)...)
				s.volumes(2, "fast", "30s")
			},
			Freeze{2, "0s", "1.6s"},
			nil,
			[]string{"the snapshot controller are not known, and the default is assumed (--kube-api-qps=5 --kube-api-burst=10): Deployment kube-system/controller, container main has --kube-api-qps=fast, which is not a positive number"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			test.make(s)
			report, err := s.check(Options{Namespaces: []string{"shop"}, VolumePolicies: "policies"})
			require.NoError(t, err)
			require.Len(t, report.Units, 1)
			require.Empty(t, report.Units[0].Failures)
			assert.Equal(t, &test.freeze, report.Units[0].Quiesce.PredictedFreeze)
			if len(test.warnings) == 0 {
				assert.Empty(t, report.Units[0].Warnings)
			} else if assert.Len(t, report.Units[0].Warnings, 1) {
				for _, part := range test.warnings {
					assert.Contains(t, report.Units[0].Warnings[0], part)
				}
			}
			if assert.Len(t, report.Notes, len(test.notes)) {
				for _, part := range test.notes {
					assert.Contains(t, strings.Join(report.Notes, "\n"), part)
				}
			}
		})
	}
}
