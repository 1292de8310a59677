package bed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// VeleroNamespace is where Velero is installed.
const VeleroNamespace = "velero"

// veleroUser is who Velero, its plugins and its node-agent are to the API server.
const veleroUser = "system:serviceaccount:" + VeleroNamespace + ":velero"

// veleroLimit is the time Velero's pods may take to become ready.
const veleroLimit = 3 * time.Minute

// installVelero installs Velero as its users do, and waits until it is ready
// and has found its storage.
func (b *Bed) installVelero(ctx context.Context) error {
	installed, err := b.veleroInstalled(ctx)
	if err != nil {
		return err
	}
	if !installed {
		b.Say("installing Velero")
		_, err := b.Velero(ctx, "install",
			"--image", veleroImage, "--provider", "aws", "--plugins", awsImage,
			"--bucket", s3Bucket, "--secret-file", b.run("s3-credentials"),
			"--backup-location-config", "region=us-east-1,s3ForcePathStyle=true,s3Url=http://"+s3Address,
			"--use-volume-snapshots=false", "--features=EnableCSI",
			"--use-node-agent", "--privileged-node-agent", "--kubelet-root-dir", b.KubeletDir(),
			// Requests, not limits: they are what a small machine runs out of.
			"--velero-pod-cpu-request=50m", "--velero-pod-mem-request=64Mi",
			"--node-agent-pod-cpu-request=50m", "--node-agent-pod-mem-request=64Mi",
		)
		if err != nil {
			return err
		}
	}
	return waitFor(ctx, "Velero", veleroLimit, b.veleroReady)
}

// veleroInstalled is false, too, when an installation was cut off: it can be
// repeated.
func (b *Bed) veleroInstalled(ctx context.Context) (bool, error) {
	client, err := b.client()
	if err != nil {
		return false, err
	}
	_, err = client.AppsV1().Deployments(VeleroNamespace).Get(ctx, "velero", metav1.GetOptions{})
	if err == nil {
		_, err = client.AppsV1().DaemonSets(VeleroNamespace).Get(ctx, "node-agent", metav1.GetOptions{})
	}
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look whether Velero is installed: %w", err)
	}
	return true, nil
}

// veleroReady looks at the pods themselves: after a restart the Deployment's
// status is that of before for a while.
func (b *Bed) veleroReady(ctx context.Context) error {
	client, err := b.client()
	if err != nil {
		return err
	}
	for _, selector := range []string{"deploy=velero", "name=node-agent"} {
		pods, err := client.CoreV1().Pods(VeleroNamespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return err
		}
		if len(pods.Items) == 0 {
			return fmt.Errorf("there is no pod %s", selector)
		}
		for i := range pods.Items {
			if pod := &pods.Items[i]; pod.DeletionTimestamp != nil || !podReady(pod) {
				return fmt.Errorf("pod %s is not ready", pod.Name)
			}
		}
	}
	phase, err := b.Kubectl(ctx, nil, "-n", VeleroNamespace, "get", "backupstoragelocation", "default", "-o", "jsonpath={.status.phase}")
	if err != nil {
		return err
	}
	if phase != "Available" {
		return fmt.Errorf("the backup storage location is %q", phase)
	}
	return nil
}

func podReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// removeVeleroPods has Velero's pods made anew.
func (b *Bed) removeVeleroPods(ctx context.Context) error {
	client, err := b.client()
	if err != nil {
		return err
	}
	now := int64(0)
	err = client.CoreV1().Pods(VeleroNamespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove Velero's pods: %w", err)
	}
	return nil
}

// InstallPlugin makes Velero run our plugin from this binary, and waits until
// it does. An older build of it is removed. It must be called inside the
// cluster's network.
func (b *Bed) InstallPlugin(ctx context.Context, binary string) error {
	unlock, err := b.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	ref, err := b.importPlugin(ctx, binary)
	if err != nil {
		return err
	}
	installed, err := b.InstalledPlugins(ctx)
	if err != nil {
		return err
	}
	for _, old := range installed {
		if old == ref {
			continue
		}
		if _, err := b.Velero(ctx, "plugin", "remove", old); err != nil {
			return err
		}
	}
	if !slices.Contains(installed, ref) {
		if _, err := b.Velero(ctx, "plugin", "add", ref, "--confirm"); err != nil {
			return err
		}
	}
	// velero ends without an error where it has done nothing.
	if now, err := b.InstalledPlugins(ctx); err != nil || !slices.Equal(now, []string{ref}) {
		return errors.Join(err, fmt.Errorf("install %s: Velero has the plugins %v", ref, now))
	}
	if err := b.awaitVelero(ctx, ref); err != nil {
		return fmt.Errorf("install %s: %w", ref, err)
	}
	b.Say("Velero runs %s", ref)
	return nil
}

// SetVeleroVariable gives the Velero server an environment variable, or takes
// it away where value is empty, and waits until the server runs so. It must be
// called inside the cluster's network.
func (b *Bed) SetVeleroVariable(ctx context.Context, name, value string) error {
	unlock, err := b.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	setting := name + "=" + value
	if value == "" {
		setting = name + "-"
	}
	if _, err := b.Kubectl(ctx, nil, "-n", VeleroNamespace, "set", "env", "deployment/velero", "--containers=velero", setting); err != nil {
		return err
	}
	if err := b.awaitVelero(ctx, setting); err != nil {
		return fmt.Errorf("set the environment of Velero: %w", err)
	}
	return nil
}

// BackupDir is the directory in which the object store keeps a backup.
func (b *Bed) BackupDir(name string) string { return b.data(objectStore, s3Bucket, "backups", name) }

// awaitVelero waits until the Velero server runs as it was last configured.
func (b *Bed) awaitVelero(ctx context.Context, with string) error {
	if _, err := b.Kubectl(ctx, nil, "-n", VeleroNamespace, "rollout", "status", "deployment/velero", "--timeout=90s"); err != nil {
		return fmt.Errorf("Velero does not start with %s: %w\n%s", with, err, b.failedPods(ctx))
	}
	return waitFor(ctx, "Velero with "+with, veleroLimit, b.veleroReady)
}

// InstalledPlugins lists the images of our plugin that Velero is configured
// with: one, or none, or several after an installation that was cut off.
func (b *Bed) InstalledPlugins(ctx context.Context) ([]string, error) {
	client, err := b.client()
	if err != nil {
		return nil, err
	}
	d, err := client.AppsV1().Deployments(VeleroNamespace).Get(ctx, "velero", metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("list Velero's plugins: %w", err)
	}
	var images []string
	for i := range d.Spec.Template.Spec.InitContainers {
		if image := d.Spec.Template.Spec.InitContainers[i].Image; strings.HasPrefix(image, pluginRepository+":") {
			images = append(images, image)
		}
	}
	return images, nil
}

// failedPods is what the Velero pods that are not ready print.
func (b *Bed) failedPods(ctx context.Context) string {
	client, err := b.client()
	if err != nil {
		return err.Error()
	}
	pods, err := client.CoreV1().Pods(VeleroNamespace).List(ctx, metav1.ListOptions{LabelSelector: "deploy=velero"})
	if err != nil {
		return err.Error()
	}
	var all strings.Builder
	for i := range pods.Items {
		if podReady(&pods.Items[i]) {
			continue
		}
		out, err := b.Kubectl(ctx, nil, "-n", VeleroNamespace, "logs", pods.Items[i].Name, "--all-containers", "--prefix", "--ignore-errors", "--tail=5")
		all.WriteString(out)
		if err != nil {
			all.WriteString(err.Error())
		}
	}
	return all.String()
}
