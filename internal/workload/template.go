package workload

import (
	"context"
	"errors"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Template has the claims that the pods of a controller mount, whether or not a pod runs.
type Template struct {
	claims   []string
	prefixes []string
}

// Mounts reports whether a pod of the template mounts a claim.
func (t Template) Mounts(claim string) bool {
	for _, name := range t.claims {
		if name == claim {
			return true
		}
	}
	for _, prefix := range t.prefixes {
		if ordinal, ok := strings.CutPrefix(claim, prefix); ok && ordinal != "" && strings.Trim(ordinal, "0123456789") == "" {
			return true
		}
	}
	return false
}

// Templates reads the templates of controllers of one namespace. It skips controllers that
// do not exist and kinds with short-lived pods, such as Jobs. The error names the
// controllers that cannot be read; the other templates are returned with it.
func Templates(ctx context.Context, kube kubernetes.Interface, namespace string, refs []Ref) (map[Ref]Template, error) {
	wanted := map[Ref]bool{}
	for _, ref := range refs {
		switch ref.groupKind() {
		case "Deployment.apps", "StatefulSet.apps", "DaemonSet.apps", "ReplicaSet.apps", "ReplicationController":
			wanted[ref] = true
		}
	}
	reader := &controllers{kube: kube, namespace: namespace}
	found := reader.read(ctx, wanted)
	templates := map[Ref]Template{}
	for ref, object := range found {
		templates[ref] = templateOf(object)
	}
	return templates, errors.Join(reader.unread...)
}

func templateOf(object metav1.Object) Template {
	var (
		spec     corev1.PodTemplateSpec
		template Template
	)
	switch o := object.(type) {
	case *appsv1.Deployment:
		spec = o.Spec.Template
	case *appsv1.DaemonSet:
		spec = o.Spec.Template
	case *appsv1.ReplicaSet:
		spec = o.Spec.Template
	case *corev1.ReplicationController:
		if o.Spec.Template != nil {
			spec = *o.Spec.Template
		}
	case *appsv1.StatefulSet:
		spec = o.Spec.Template
		for _, claim := range o.Spec.VolumeClaimTemplates {
			template.prefixes = append(template.prefixes, claim.Name+"-"+o.Name+"-")
		}
	}
	for _, volume := range spec.Spec.Volumes {
		if volume.PersistentVolumeClaim != nil {
			template.claims = append(template.claims, volume.PersistentVolumeClaim.ClaimName)
		}
	}
	return template
}
