package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/tests/cluster/freeze"
	"stillpoint.io/stillpoint/tests/cluster/loopcsi"
)

// errNoVolume says that a claim has no volume of the bed's driver.
var errNoVolume = errors.New("no volume of the test bed")

// VolumeMount is where the host has the volume of a claim mounted, while a pod
// uses it. A block volume is mounted nowhere.
func (c *Cluster) VolumeMount(ctx context.Context, namespace, claim string) (string, error) {
	volume, err := c.volume(ctx, namespace, claim)
	if err != nil {
		return "", err
	}
	handle := sha256.Sum256([]byte(volume)) // the kubelet names the directory so
	return filepath.Join(c.bed.KubeletDir(), "plugins", "kubernetes.io", "csi", loopcsi.Name, hex.EncodeToString(handle[:]), "globalmount"), nil
}

// volume is the storage's name of a claim's volume.
func (c *Cluster) volume(ctx context.Context, namespace, claim string) (string, error) {
	pvc, err := c.typed.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, claim, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("find the volume of claim %s/%s: %w", namespace, claim, err)
	}
	if pvc.Spec.VolumeName == "" {
		return "", fmt.Errorf("find the volume of claim %s/%s: %w: it is not bound", namespace, claim, errNoVolume)
	}
	pv, err := c.typed.CoreV1().PersistentVolumes().Get(ctx, pvc.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("find the volume of claim %s/%s: %w", namespace, claim, err)
	}
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != loopcsi.Name {
		return "", fmt.Errorf("find the volume of claim %s/%s: %w: %s is not one of %s", namespace, claim, errNoVolume, pv.Name, loopcsi.Name)
	}
	return pv.Spec.CSI.VolumeHandle, nil
}

// Frozen reports whether the volume of a claim is frozen. It finds out by
// trying to freeze it and thaws at once, so an application may notice a pause
// of some milliseconds; a freeze by somebody else in just that moment fails.
func (c *Cluster) Frozen(ctx context.Context, namespace, claim string) (bool, error) {
	point, err := c.VolumeMount(ctx, namespace, claim)
	if err != nil {
		return false, err
	}
	return freeze.Frozen(point)
}

// Thaw thaws the volume of a claim from the host and reports whether it was frozen.
func (c *Cluster) Thaw(ctx context.Context, namespace, claim string) (bool, error) {
	point, err := c.VolumeMount(ctx, namespace, claim)
	if err != nil {
		return false, err
	}
	return freeze.Thaw(point)
}

// ThawAll thaws every volume of the bed, those of other tests included, and
// names those that were frozen.
func (c *Cluster) ThawAll() ([]string, error) { return c.bed.Thaw() }
