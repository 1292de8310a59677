package blueprint

import (
	"slices"
	"strings"
)

// Params is what templates see, under Kanister's names. Those that do not
// apply to the annotated object stay nil; using them is then an error, asking
// for them with `if` is not.
type Params struct {
	// Object is the annotated object as the API server has it, whatever its
	// kind.
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

// StatefulSet describes the running pods of a StatefulSet; the fields are
// those of Deployment.
type StatefulSet struct {
	Name                   string
	Namespace              string
	Pods                   []string
	Containers             [][]string
	PersistentVolumeClaims map[string]map[string]string
}

// DeploymentConfig describes the running pods of an OpenShift
// DeploymentConfig; the fields are those of Deployment.
type DeploymentConfig struct {
	Name                   string
	Namespace              string
	Pods                   []string
	Containers             [][]string
	PersistentVolumeClaims map[string]map[string]string
}

// PVC is the annotated claim.
type PVC struct {
	Name      string
	Namespace string
}

// Namespace is the annotated namespace; both fields are its name, as with
// Kanister.
type Namespace struct {
	Name      string
	Namespace string
}

// namespace is the one that the annotated object is in, or is.
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
	switch {
	case p.Deployment != nil:
		return p.Deployment.Namespace
	case p.StatefulSet != nil:
		return p.StatefulSet.Namespace
	case p.DeploymentConfig != nil:
		return p.DeploymentConfig.Namespace
	case p.PVC != nil:
		return p.PVC.Namespace
	case p.Namespace != nil:
		return p.Namespace.Name
	}
	return ""
}

// kind says what the annotated object is, for messages.
func (p Params) kind() string {
	kind, ok := p.Object["kind"].(string)
	switch {
	case ok && kind != "":
		return kind
	case p.Deployment != nil:
		return "Deployment"
	case p.StatefulSet != nil:
		return "StatefulSet"
	case p.DeploymentConfig != nil:
		return "DeploymentConfig"
	case p.PVC != nil:
		return "PersistentVolumeClaim"
	case p.Namespace != nil:
		return "Namespace"
	}
	return "object of this kind"
}

// workload is what ScaleWorkload takes when its args name nothing.
func (p Params) workload() (kind, name string) {
	switch {
	case p.StatefulSet != nil:
		return "StatefulSet", p.StatefulSet.Name
	case p.Deployment != nil:
		return "Deployment", p.Deployment.Name
	case p.DeploymentConfig != nil:
		return "DeploymentConfig", p.DeploymentConfig.Name
	}
	return "", ""
}

// parameters are the names that a template may start with.
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
	return list(names)
}

// list writes names for a message: sorted, or "none".
func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(slices.Values(names)), ", ")
}
