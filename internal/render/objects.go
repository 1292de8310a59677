package render

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// Objects fetches what phases name under `objects`.
type Objects interface {
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
}

// NewObjects fetches from a cluster.
func NewObjects(client kubernetes.Interface) Objects { return clusterObjects{client} }

type clusterObjects struct{ client kubernetes.Interface }

func (c clusterObjects) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	return c.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (c clusterObjects) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	return c.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
}

// advise names the optional right that is missing.
func advise(err error, role, namespace string) error {
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("%w; bind ClusterRole %s of deploy/rbac.yaml in namespace %s", err, role, namespace)
	}
	return err
}

// fetch reads one rendered reference into a phase's scope, and gives the
// secret values in it.
func fetch(ctx context.Context, objects Objects, as string, ref blueprint.ObjectReference, into *phaseData) ([][]byte, error) {
	// Kinds are compared as Kanister does. It passes over other kinds without
	// a word, and templates fail on them later.
	switch strings.ToLower(ref.Kind) {
	case "secret":
		secret, err := objects.Secret(ctx, ref.Namespace, ref.Name)
		if err != nil {
			return nil, fmt.Errorf("get Secret %s/%s: %w", ref.Namespace, ref.Name, advise(err, "stillpoint-secrets", ref.Namespace))
		}
		into.Secrets[as] = *secret.DeepCopy()
		var values [][]byte
		for _, value := range secret.Data {
			values = append(values, value)
		}
		for _, value := range secret.StringData {
			values = append(values, []byte(value))
		}
		return values, nil
	case "configmap":
		configMap, err := objects.ConfigMap(ctx, ref.Namespace, ref.Name)
		if err != nil {
			return nil, fmt.Errorf("get ConfigMap %s/%s: %w", ref.Namespace, ref.Name, advise(err, "stillpoint-configmaps", ref.Namespace))
		}
		into.ConfigMaps[as] = *configMap.DeepCopy()
		return nil, nil
	default:
		return nil, fmt.Errorf("kind is %q; the kinds are ConfigMap, Secret", ref.Kind)
	}
}
