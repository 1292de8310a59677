package faults

import (
	"maps"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/tests/fake"
)

// openshift, argo and kruise have controllers of pods that Kubernetes does not have.
var (
	openshift = fake.Kind{Group: "apps.openshift.io", Version: "v1", Resource: "deploymentconfigs", Kind: "DeploymentConfig", Namespaced: true, Status: true}
	argo      = fake.Kind{Group: "argoproj.io", Version: "v1alpha1", Resource: "rollouts", Kind: "Rollout", Namespaced: true, Status: true}
	kruise    = fake.Kind{Group: "apps.kruise.io", Version: "v1alpha1", Resource: "clonesets", Kind: "CloneSet", Namespaced: true, Status: true}
)

// chained makes objects of which each controls the next, the last of them a pod with
// a volume. Annotations are those of the object at place annotated.
func chained(t *testing.T, bed *fake.Bed, annotated int, chain ...[2]string) *fake.Workload {
	t.Helper()
	var owners []metav1.OwnerReference
	for i, link := range chain {
		apiVersion, kind := link[0], link[1]
		object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": apiVersion, "kind": kind}}
		object.SetNamespace("shop")
		object.SetName("db")
		object.SetUID(types.UID("uid-" + kind))
		object.SetOwnerReferences(owners)
		if i == annotated {
			object.SetAnnotations(fsfreeze)
		}
		if kind == "DeploymentConfig" {
			_ = unstructured.SetNestedField(object.Object, int64(2), "status", "latestVersion")
		}
		bed.API.Put(t, object)
		bed.API.Get(t, object)
		owners = []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: "db", UID: object.GetUID(), Controller: ptr.To(true)}}
	}
	return bed.Deploy(fake.App{Kind: "Pod", Name: "db-x", Pod: func(pod *corev1.Pod) {
		pod.OwnerReferences = owners
		pod.Labels = map[string]string{"deploymentconfig": "db", "deployment": "db-2"}
	}})
}

// annotate adds annotations to an object.
func annotate(annotations map[string]string) func(object *unstructured.Unstructured) {
	return func(object *unstructured.Unstructured) {
		all := object.GetAnnotations()
		if all == nil {
			all = map[string]string{}
		}
		maps.Copy(all, annotations)
		object.SetAnnotations(all)
	}
}

// 41: whatever runs pods and carries an annotation of ours is quiesced, or named as
// not acted on, in the backup and in check.
func TestAnnotationsAreActedOnOrNamed(t *testing.T) {
	t.Parallel()
	type link = [2]string
	for name, test := range map[string]struct {
		annotated int
		chain     []link
		named     string // "" means quiesced
	}{
		"ReplicationController":               {0, []link{{"v1", "ReplicationController"}}, ""},
		"DeploymentConfig":                    {0, []link{{"apps.openshift.io/v1", "DeploymentConfig"}, {"v1", "ReplicationController"}}, ""},
		"DeploymentConfig's controller":       {1, []link{{"apps.openshift.io/v1", "DeploymentConfig"}, {"v1", "ReplicationController"}}, "The annotations of ReplicationController shop/db are not acted on, since it belongs to DeploymentConfig shop/db: annotate that."},
		"Job":                                 {0, []link{{"batch/v1", "Job"}}, ""},
		"CronJob":                             {0, []link{{"batch/v1", "CronJob"}, {"batch/v1", "Job"}}, ""},
		"Job of a CronJob":                    {1, []link{{"batch/v1", "CronJob"}, {"batch/v1", "Job"}}, "The annotations of Job shop/db are not acted on, since it belongs to CronJob shop/db: annotate that."},
		"DaemonSet":                           {0, []link{{"apps/v1", "DaemonSet"}}, ""},
		"Argo Rollout":                        {0, []link{{"argoproj.io/v1alpha1", "Rollout"}, {"apps/v1", "ReplicaSet"}}, ""},
		"Argo Rollout's ReplicaSet":           {1, []link{{"argoproj.io/v1alpha1", "Rollout"}, {"apps/v1", "ReplicaSet"}}, "The annotations of ReplicaSet shop/db are not acted on, since it belongs to Rollout shop/db: annotate that."},
		"OpenKruise CloneSet":                 {0, []link{{"apps.kruise.io/v1alpha1", "CloneSet"}}, ""},
		"what owns a Deployment":              {0, []link{{"apps.kruise.io/v1alpha1", "CloneSet"}, {"apps/v1", "Deployment"}, {"apps/v1", "ReplicaSet"}}, ""},
		"ReplicaSet of a Deployment":          {1, []link{{"apps/v1", "Deployment"}, {"apps/v1", "ReplicaSet"}}, "The annotations of ReplicaSet shop/db are not acted on, since it belongs to Deployment shop/db: annotate that."},
		"Deployment that a custom one owns":   {1, []link{{"apps.kruise.io/v1alpha1", "CloneSet"}, {"apps/v1", "Deployment"}, {"apps/v1", "ReplicaSet"}}, ""},
		"StatefulSet that a custom one owns":  {1, []link{{"apps.kruise.io/v1alpha1", "CloneSet"}, {"apps/v1", "StatefulSet"}}, ""},
		"what owns what owns a custom object": {0, []link{{"argoproj.io/v1alpha1", "Rollout"}, {"apps.kruise.io/v1alpha1", "CloneSet"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			for _, kind := range []fake.Kind{openshift, argo, kruise} {
				bed.API.AddKind(kind)
			}
			bed.API.Put(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
			app := chained(t, bed, test.annotated, test.chain...)
			code, said := checked(bed)
			v := bed.Velero()
			v.Backup(bed.Backup(fake.WithPolicy), app)
			assert.Equal(t, 0, code, said)
			assert.Empty(t, v.Errors())
			require.Len(t, bed.Storage.Snapshots(), 1)
			assert.Equal(t, test.named == "", bed.Storage.Snapshots()[0].Frozen)
			if test.named != "" {
				assert.Contains(t, said, test.named)
				assert.True(t, v.Said(logrus.InfoLevel, test.named), v.Lines(logrus.InfoLevel))
			}
		})
	}
}

// A workload without running pods is named in the backup, too.
func TestIdleWorkloadIsNamed(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Annotations: fsfreeze, Pod: func(pod *corev1.Pod) { pod.Status = corev1.PodStatus{Phase: corev1.PodPending}; pod.Spec.NodeName = "" }})
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.True(t, v.Said(logrus.InfoLevel, "Nothing is run for Deployment shop/db, which is annotated"), v.Lines(logrus.InfoLevel))
}
