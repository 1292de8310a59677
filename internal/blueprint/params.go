package blueprint

import (
	"encoding/json"
	"errors"
	"maps"
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

// scope is the data of one action's templates: the parameters, what its phases
// have fetched, and what they have given so far. The names are Kanister's.
type scope struct {
	Object           map[string]any
	Deployment       *Deployment
	StatefulSet      *StatefulSet
	DeploymentConfig *DeploymentConfig
	PVC              *PVC
	Namespace        *Namespace
	Options          map[string]string
	Time             string

	ArtifactsIn map[string]*artifactScope
	// Secrets and ConfigMaps are those of secretNames and configMapNames.
	Secrets    map[string]corev1.Secret
	ConfigMaps map[string]corev1.ConfigMap

	// Phases are those up to the current one. Kanister sets CurrentPhase when
	// the args of most functions are rendered already, so that hardly anybody
	// can see that it is set earlier here.
	Phases       map[string]*phaseScope
	CurrentPhase *phaseScope
	DeferPhase   *phaseScope

	// Profile, and what an ActionSet adds to pods, are there in name only: a
	// hook has no ActionSet.
	Profile        *Profile
	PodOverride    map[string]any
	PodAnnotations map[string]string
	PodLabels      map[string]string
}

// Profile is Kanister's location for data. There never is one, so that asking
// for it with `if` works and using it is an error.
type Profile struct{ Location, Credential, SkipSSLVerify any }

func newScope(p Params) *scope {
	object, _ := clone(p.Object).(map[string]any)
	return &scope{
		// Templates can change a map (sprig's set and unset); the caller's
		// may be shared.
		Object:           object,
		Deployment:       p.Deployment,
		StatefulSet:      p.StatefulSet,
		DeploymentConfig: p.DeploymentConfig,
		PVC:              p.PVC,
		Namespace:        p.Namespace,
		Options:          p.Options,
		Time:             p.Time,
		ArtifactsIn:      map[string]*artifactScope{},
		Secrets:          map[string]corev1.Secret{},
		ConfigMaps:       map[string]corev1.ConfigMap{},
	}
}

// phaseScope is .Phases.<name>: the objects that the phase named, as the typed
// objects that Kanister hands out, so that .Data of a Secret is bytes, and what
// the phase gave. What is not there yet is an error of type pending.
type phaseScope struct {
	wants   *wants
	phase   string
	fetched bool
	// running tells that the templates at hand are those of the phase itself.
	running bool
	secrets map[string]corev1.Secret
	configs map[string]corev1.ConfigMap
	// ran tells that output is known, or foretold.
	ran    bool
	output map[string]any
}

func (p *phaseScope) Secrets() (map[string]corev1.Secret, error) {
	if p == nil {
		return nil, errAbsent
	}
	if !p.fetched {
		return nil, p.wants.add("the objects of phase " + p.phase)
	}
	return p.secrets, nil
}

func (p *phaseScope) ConfigMaps() (map[string]corev1.ConfigMap, error) {
	if p == nil {
		return nil, errAbsent
	}
	if !p.fetched {
		return nil, p.wants.add("the objects of phase " + p.phase)
	}
	return p.configs, nil
}

func (p *phaseScope) Output() (map[string]any, error) {
	if p == nil {
		return nil, errAbsent
	}
	if p.running {
		return nil, refusal("phase " + p.phase + " has no output while its own args are rendered")
	}
	if !p.ran {
		return nil, p.wants.add("the output of phase " + p.phase)
	}
	// Templates can change it.
	output, _ := clone(p.output).(map[string]any)
	return output, nil
}

// MarshalJSON gives what Kanister's own type gives to toJson.
func (p *phaseScope) MarshalJSON() ([]byte, error) {
	secrets, err := p.Secrets()
	if err != nil {
		return nil, err
	}
	output, err := p.Output()
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"Secrets": secrets, "ConfigMaps": p.configs, "Output": output})
}

// artifactScope is .ArtifactsIn.<name>.
type artifactScope struct {
	wants    *wants
	known    bool
	artifact Artifact
}

func (a *artifactScope) KeyValue() (map[string]string, error) {
	if a == nil {
		return nil, errAbsent
	}
	if !a.known {
		return nil, a.wants.add("the artifacts of " + Prehook)
	}
	return maps.Clone(a.artifact.KeyValue), nil
}

func (a *artifactScope) KopiaSnapshot() (string, error) {
	if a == nil {
		return "", errAbsent
	}
	if !a.known {
		return "", a.wants.add("the artifacts of " + Prehook)
	}
	return a.artifact.KopiaSnapshot, nil
}

// MarshalJSON gives what Kanister's own type gives to toJson.
func (a *artifactScope) MarshalJSON() ([]byte, error) {
	if _, err := a.KeyValue(); err != nil {
		return nil, err
	}
	return json.Marshal(a.artifact)
}

// wants remembers what a template has asked for that is not known yet. It is
// asked afterwards, since functions in a template may drop an error.
type wants struct{ first string }

func (w *wants) add(what string) error {
	if w.first == "" {
		w.first = what
	}
	return pending(what)
}

// pending is an error of a template that asks for what is not known yet.
type pending string

func (p pending) Error() string { return string(p) + " is not known yet" }

// errAbsent is that there is no phase, or artifact, to take something from.
var errAbsent = errors.New("absent")

// refusal is an error of ours inside a template. Its text is fixed, so it can
// be shown even where a template sees secrets.
type refusal string

func (r refusal) Error() string { return string(r) }

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
