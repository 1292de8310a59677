package render

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// fetch reads the object of a rendered reference into a phase. source is the
// reference as the blueprint has it.
func (r *rendering) fetch(ctx context.Context, as string, ref, source blueprint.ObjectReference, into *phaseData) error {
	switch {
	case ref.Name == "" && r.builtIn:
		return nil
	case ref.Name == "":
		return errors.New("name is empty")
	case ref.Namespace == "":
		return errors.New("namespace is empty") // Kanister asks the API server, which finds nothing
	}
	if err := r.Allow(ref.Namespace, ref.Namespace == source.Namespace && ref.Name == source.Name); err != nil {
		return err
	}
	if r.Kube == nil {
		return errors.New("objects cannot be fetched here")
	}
	// Kinds are compared as Kanister does. It ignores other kinds, and templates fail
	// on them later.
	switch strings.ToLower(ref.Kind) {
	case "secret":
		secret, err := r.Kube.CoreV1().Secrets(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return getError(err, "Secret", ref)
		}
		into.Secrets[as] = *secret
		r.learn(slices.Collect(maps.Values(secret.Data)))
	case "configmap":
		configMap, err := r.Kube.CoreV1().ConfigMaps(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return getError(err, "ConfigMap", ref)
		}
		into.ConfigMaps[as] = *configMap
	default:
		return fmt.Errorf("kind is %q; the kinds are ConfigMap, Secret", ref.Kind)
	}
	return nil
}

// getError names the optional right that may be missing.
func getError(err error, kind string, ref blueprint.ObjectReference) error {
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("get %s %s/%s: %w; bind ClusterRole stillpoint-%ss of deploy/rbac.yaml in namespace %s", kind, ref.Namespace, ref.Name, err, strings.ToLower(kind), ref.Namespace)
	}
	return fmt.Errorf("get %s %s/%s: %w", kind, ref.Namespace, ref.Name, err)
}
