package render

import (
	"cmp"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// Params are the parameters that templates see, under Kanister's names. Those that do
// not apply to the annotated object are nil: templates can test them with "if", and using
// them is an error.
type Params struct {
	// Object is the annotated object as the API server has it.
	Object      map[string]any
	Deployment  *Deployment
	StatefulSet *StatefulSet
	// DeploymentConfig is OpenShift's.
	DeploymentConfig *DeploymentConfig
	PVC              *PVC
	Namespace        *Namespace
	// Options are the option.stillpoint.io/* annotations without the prefix.
	Options map[string]string
	// Time is when the backup began: RFC 3339 with nanoseconds, UTC.
	Time string
}

// Deployment describes the running pods of a Deployment's current revision.
type Deployment struct {
	Name      string
	Namespace string
	Pods      []string
	// Containers are those of each pod, in the order of Pods.
	Containers [][]string
	// PersistentVolumeClaims is pod → claim → mount path.
	PersistentVolumeClaims map[string]map[string]string
}

// StatefulSet describes the running pods of a StatefulSet.
type StatefulSet Deployment

// DeploymentConfig describes the running pods of an OpenShift DeploymentConfig.
type DeploymentConfig Deployment

// PVC is the annotated claim.
type PVC struct {
	Name      string
	Namespace string
}

// Namespace is the annotated namespace; both fields are its name, as in Kanister.
type Namespace struct {
	Name      string
	Namespace string
}

// namespace returns the namespace that the annotated object is in, or is.
func (p Params) namespace() string {
	if meta, ok := p.Object["metadata"].(map[string]any); ok {
		field := "namespace"
		if p.Object["kind"] == "Namespace" {
			field = "name"
		}
		if name, ok := meta[field].(string); ok {
			return name
		}
	}
	return p.described().namespace
}

// kind returns the kind of the annotated object, for messages.
func (p Params) kind() string {
	if kind, ok := p.Object["kind"].(string); ok && kind != "" {
		return kind
	}
	return cmp.Or(p.described().kind, "object of this kind")
}

// workload is what ScaleWorkload scales by default.
func (p Params) workload() (kind, name string) {
	p.PVC, p.Namespace = nil, nil
	workload := p.described()
	return workload.kind, workload.name
}

// described is the object that the parameters describe, a workload rather than its
// namespace.
func (p Params) described() (object struct{ kind, namespace, name string }) {
	switch {
	case p.Deployment != nil:
		object.kind, object.namespace, object.name = "Deployment", p.Deployment.Namespace, p.Deployment.Name
	case p.StatefulSet != nil:
		object.kind, object.namespace, object.name = "StatefulSet", p.StatefulSet.Namespace, p.StatefulSet.Name
	case p.DeploymentConfig != nil:
		object.kind, object.namespace, object.name = "DeploymentConfig", p.DeploymentConfig.Namespace, p.DeploymentConfig.Name
	case p.PVC != nil:
		object.kind, object.namespace, object.name = "PersistentVolumeClaim", p.PVC.Namespace, p.PVC.Name
	case p.Namespace != nil:
		object.kind, object.namespace, object.name = "Namespace", p.Namespace.Name, p.Namespace.Name
	}
	return object
}

// parameters lists the names that a path in a template may start with.
func (p Params) parameters() string {
	names := []string{".ArtifactsIn", ".ConfigMaps", ".Object", ".Options", ".Phases", ".Secrets", ".Time"}
	for name, set := range map[string]bool{
		".Deployment": p.Deployment != nil, ".StatefulSet": p.StatefulSet != nil, ".DeploymentConfig": p.DeploymentConfig != nil,
		".PVC": p.PVC != nil, ".Namespace": p.Namespace != nil,
	} {
		if set {
			names = append(names, name)
		}
	}
	return blueprint.List(names)
}
