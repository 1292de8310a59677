package blueprint

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
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
	PVC         *PVC
	Namespace   *Namespace
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
	case p.PVC != nil:
		return "PersistentVolumeClaim"
	case p.Namespace != nil:
		return "Namespace"
	}
	return "object of this kind"
}

// parameters are the names that a template may start with.
func (p Params) parameters() string {
	names := []string{".Object", ".Options", ".Phases", ".Time"}
	for name, set := range map[string]bool{
		".Deployment": p.Deployment != nil, ".StatefulSet": p.StatefulSet != nil,
		".PVC": p.PVC != nil, ".Namespace": p.Namespace != nil,
	} {
		if set {
			names = append(names, name)
		}
	}
	return list(names)
}

// scope is the data of one action's templates: the parameters, and what its
// phases have fetched so far.
//
// Kanister's remaining parameters are methods that fail, so that a blueprint
// which needs one is refused by name while the plan is made, and does not go
// on with nothing in its place.
type scope struct {
	Object           map[string]any
	Deployment       *Deployment
	StatefulSet      *StatefulSet
	DeploymentConfig *DeploymentConfig
	PVC              *PVC
	Namespace        *Namespace
	Options          map[string]string
	Time             string
	Phases           map[string]*phaseScope
}

// DeploymentConfig is OpenShift's. It is never set, so that asking for it with
// `if` works and using it is an error.
type DeploymentConfig Deployment

func newScope(p Params) *scope {
	object, _ := clone(p.Object).(map[string]any)
	return &scope{
		// Templates can change a map (sprig's set and unset); the caller's
		// may be shared.
		Object:      object,
		Deployment:  p.Deployment,
		StatefulSet: p.StatefulSet,
		PVC:         p.PVC,
		Namespace:   p.Namespace,
		Options:     p.Options,
		Time:        p.Time,
		Phases:      map[string]*phaseScope{},
	}
}

func (*scope) Profile() (any, error)        { return nil, unsupported(".Profile") }
func (*scope) ArtifactsIn() (any, error)    { return nil, unsupported(".ArtifactsIn") }
func (*scope) Secrets() (any, error)        { return nil, unsupported(".Secrets (of secretNames)") }
func (*scope) ConfigMaps() (any, error)     { return nil, unsupported(".ConfigMaps (of configMapNames)") }
func (*scope) CurrentPhase() (any, error)   { return nil, unsupported(".CurrentPhase") }
func (*scope) DeferPhase() (any, error)     { return nil, unsupported(".DeferPhase") }
func (*scope) PodOverride() (any, error)    { return nil, unsupported(".PodOverride") }
func (*scope) PodAnnotations() (any, error) { return nil, unsupported(".PodAnnotations") }
func (*scope) PodLabels() (any, error)      { return nil, unsupported(".PodLabels") }

// phaseScope is .Phases.<name>: the objects that the phase named, as the typed
// objects that Kanister hands out, so that .Data of a Secret is bytes.
type phaseScope struct {
	Secrets    map[string]corev1.Secret
	ConfigMaps map[string]corev1.ConfigMap
}

func newPhaseScope() *phaseScope {
	return &phaseScope{Secrets: map[string]corev1.Secret{}, ConfigMaps: map[string]corev1.ConfigMap{}}
}

func (*phaseScope) Output() (any, error) { return nil, unsupported(".Phases.<name>.Output") }

// refusal is an error of ours inside a template. Its text is fixed, so it can
// be shown even where a template sees secrets.
type refusal string

func (r refusal) Error() string { return string(r) }

func unsupported(parameter string) error {
	return refusal(parameter + " is not supported yet")
}

// clone copies maps and slices all the way down; other values are shared.
// Numbers keep their type, which a detour through JSON would not grant.
func clone(value any) any {
	switch v := value.(type) {
	case map[string]any:
		c := make(map[string]any, len(v))
		for key, element := range v {
			c[key] = clone(element)
		}
		return c
	case []any:
		c := make([]any, len(v))
		for i, element := range v {
			c[i] = clone(element)
		}
		return c
	default:
		return value
	}
}

// list writes names for a message: sorted, or "none".
func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(slices.Values(names)), ", ")
}
