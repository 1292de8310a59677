package faults

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/tests/fake"
)

// talkative is a blueprint of the administrator. Its hooks hand the workload's Secret
// to a program in the workload's container.
const talkative = `
apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata: {name: talkative}
actions:
  backupPrehook:
    phases:
    - func: RunInPods
      name: pre
      objects: &login {login: {kind: Secret, namespace: "{{ .Deployment.Namespace }}", name: login}}
      args: {command: [talk, pre], env: {PASSWORD: '{{ index .Phases.pre.Secrets.login.Data "password" | toString }}'}}
  backupPosthook:
    phases:
    - func: RunInPods
      name: post
      objects: *login
      args: {command: [talk, post], env: {PASSWORD: '{{ index .Phases.post.Secrets.login.Data "password" | toString }}'}}
`

// told is everything of a backup that people read: the plugin's log, all events and
// what is written on objects. Secrets themselves are left out.
func told(t *testing.T, bed *fake.Bed, v *fake.Velero) string {
	t.Helper()
	all := v.Lines(logrus.DebugLevel)
	for _, resource := range []string{"events", "configmaps", "persistentvolumeclaims", "volumesnapshots", "deployments"} {
		objects, err := json.Marshal(bed.API.All(resource))
		require.NoError(t, err)
		all = append(all, string(objects))
	}
	return strings.Join(all, "\n")
}

// 29: who can replace a program of the container, and read the backup's log but not
// the Secret, has the program print the password so that only a part of it fits into
// the error.
func TestPartsOfASecretAreNotShown(t *testing.T) {
	t.Parallel()
	const secret = "correct-horse-battery-staple-0123456789-abcdefghij"
	// The password begins before the last 2 KiB, or 64 KiB, of the output.
	for _, behind := range []int{2048 - 10, 2048 - 25, 2048 - 45, 65536 - 25} {
		t.Run(fmt.Sprintf("%d behind", behind), func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			bed.API.Put(t,
				&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "login"}, Data: map[string][]byte{"password": []byte(secret)}},
				&corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "talkative", Labels: map[string]string{"stillpoint.io/blueprint": ""}},
					Data:       map[string]string{"talkative": talkative},
				})
			app := bed.Deploy(fake.App{Pod: uses, Annotations: map[string]string{"stillpoint.io/quiesce": "talkative", "stillpoint.io/quiesce-timeout": "2s"}})
			bed.Node.Container("shop", app.Pods[0].Name, "main").Program("talk", fmt.Sprintf(`#!/bin/sh
[ "$1" = pre ] || exit 0
printf '%%s' "$PASSWORD"
head -c %d /dev/zero | tr '\0' x
exit 1
`, behind))
			v := bed.Velero()
			v.Backup(bed.Backup(fake.WithPolicy), app)
			require.True(t, v.Said(logrus.ErrorLevel, "xxxx"), v.Lines(logrus.DebugLevel))
			said := told(t, bed, v)
			for length := 8; length <= len(secret); length++ {
				assert.NotContains(t, said, secret[len(secret)-length:], "the end of the secret")
			}
		})
	}
}
