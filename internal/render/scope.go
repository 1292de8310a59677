package render

import (
	"encoding/json"
	"errors"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// data is what the templates of one action see: the parameters, the objects of its
// phases, and their outputs so far. The child process gets it as JSON; see exact.
type data struct {
	Params
	ArtifactsIn map[string]*artifactData
	// Declared are the artifacts whose keys are known.
	Declared map[string]blueprint.Artifact
	// Secrets and ConfigMaps are those of secretNames and configMapNames.
	Secrets    map[string]corev1.Secret
	ConfigMaps map[string]corev1.ConfigMap
	// Phases are those up to the current one, without the deferPhase.
	Phases     map[string]*phaseData
	DeferPhase *phaseData
	// Secretive reports that there are Secrets, or outputs that could hold one.
	Secretive bool
}

func newData(p Params) *data {
	object, _ := exact(p.Object).(map[string]any)
	p.Object = object
	return &data{
		Params:      p,
		ArtifactsIn: map[string]*artifactData{},
		Secrets:     map[string]corev1.Secret{},
		ConfigMaps:  map[string]corev1.ConfigMap{},
	}
}

// phaseData is a phase: its objects and its output.
type phaseData struct {
	Name    string
	Fetched bool
	// Running reports that the current templates are those of the phase itself.
	Running    bool
	Secrets    map[string]corev1.Secret
	ConfigMaps map[string]corev1.ConfigMap
	// Ran reports that Output is known, or foretold.
	Ran    bool
	Output any
}

// artifactData is an artifact of the prehook.
type artifactData struct {
	Known bool
	blueprint.Artifact
}

// exact copies a JSON value so that the child process decodes the same value: a whole
// number of type float64 remains one.
func exact(value any) any {
	switch v := value.(type) {
	case map[string]any:
		c := make(map[string]any, len(v))
		for key, element := range v {
			c[key] = exact(element)
		}
		return c
	case []any:
		c := make([]any, len(v))
		for i, element := range v {
			c[i] = exact(element)
		}
		return c
	case float64:
		return json.Number(strconv.FormatFloat(v, 'e', -1, 64))
	default:
		return value
	}
}

// scope is data as templates see it. The names are Kanister's.
type scope struct {
	params      // templates cannot refer to this name
	ArtifactsIn map[string]*artifactScope
	Secrets     map[string]corev1.Secret
	ConfigMaps  map[string]corev1.ConfigMap
	// Kanister sets CurrentPhase only after it has rendered the args of most
	// functions. Here it is set earlier.
	Phases                   map[string]*phaseScope
	CurrentPhase, DeferPhase *phaseScope
	// Profile, and what an ActionSet adds to pods, are always empty: a hook has no
	// ActionSet.
	Profile                   *Profile
	PodOverride               map[string]any
	PodAnnotations, PodLabels map[string]string
}

type params = Params

// Profile is Kanister's location for data. It is always nil: templates can test it
// with "if", and using it is an error.
type Profile struct{ Location, Credential, SkipSSLVerify any }

func newScope(d *data, wants *wants) *scope {
	s := &scope{
		params: d.Params, Secrets: d.Secrets, ConfigMaps: d.ConfigMaps,
		ArtifactsIn: map[string]*artifactScope{}, Phases: map[string]*phaseScope{},
		DeferPhase: &phaseScope{d.DeferPhase, wants},
	}
	for name, artifact := range d.ArtifactsIn {
		s.ArtifactsIn[name] = &artifactScope{artifact, wants}
	}
	for name, phase := range d.Phases {
		s.Phases[name] = &phaseScope{phase, wants}
		if phase.Running {
			s.CurrentPhase = s.Phases[name]
		}
	}
	if d.DeferPhase.Running {
		s.CurrentPhase = s.DeferPhase
	}
	return s
}

// phaseScope is .Phases.<name>. The objects are typed as in Kanister, so that .Data of a
// Secret is bytes. What is not known yet is an error of type pending.
type phaseScope struct {
	data  *phaseData
	wants *wants
}

func (p *phaseScope) fetched() (*phaseData, error) {
	switch {
	case p == nil:
		return &phaseData{}, errAbsent
	case !p.data.Fetched:
		return &phaseData{}, p.wants.add("the objects of phase " + p.data.Name)
	}
	return p.data, nil
}

func (p *phaseScope) Secrets() (map[string]corev1.Secret, error) {
	phase, err := p.fetched()
	return phase.Secrets, err
}

func (p *phaseScope) ConfigMaps() (map[string]corev1.ConfigMap, error) {
	phase, err := p.fetched()
	return phase.ConfigMaps, err
}

func (p *phaseScope) Output() (map[string]any, error) {
	switch {
	case p == nil:
		return nil, errAbsent
	case p.data.Running:
		return nil, refusal("phase " + p.data.Name + " has no output while its own args are rendered")
	case !p.data.Ran:
		return nil, p.wants.add("the output of phase " + p.data.Name)
	}
	output, _ := p.data.Output.(map[string]any)
	return output, nil
}

// MarshalJSON returns what toJson prints of Kanister's own type.
func (p *phaseScope) MarshalJSON() ([]byte, error) {
	phase, err := p.fetched()
	if err != nil {
		return nil, err
	}
	output, err := p.Output()
	return marshal(map[string]any{"Secrets": phase.Secrets, "ConfigMaps": phase.ConfigMaps, "Output": output}, err)
}

// artifactScope is .ArtifactsIn.<name>.
type artifactScope struct {
	data  *artifactData
	wants *wants
}

func (a *artifactScope) artifact() (blueprint.Artifact, error) {
	switch {
	case a == nil:
		return blueprint.Artifact{}, errAbsent
	case !a.data.Known:
		return blueprint.Artifact{}, a.wants.add("the artifacts of " + blueprint.Prehook)
	}
	return a.data.Artifact, nil
}

func (a *artifactScope) KeyValue() (map[string]string, error) {
	artifact, err := a.artifact()
	return artifact.KeyValue, err
}

func (a *artifactScope) KopiaSnapshot() (string, error) {
	artifact, err := a.artifact()
	return artifact.KopiaSnapshot, err
}

// MarshalJSON returns what toJson prints of Kanister's own type.
func (a *artifactScope) MarshalJSON() ([]byte, error) {
	artifact, err := a.artifact()
	return marshal(artifact, err)
}

func marshal(value any, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return json.Marshal(value)
}

// wants records what a template asks for that is not known yet, because functions in a
// template may drop the error.
type wants struct{ first string }

func (w *wants) add(what string) error {
	if w.first == "" {
		w.first = what
	}
	return pending(what)
}

// pending is the error that a template asks for something that is not known yet.
type pending string

func (p pending) Error() string { return string(p) + " is not known yet" }

// errAbsent is the error that a phase or an artifact does not exist.
var errAbsent = errors.New("absent")

// refusal is an error of ours inside a template. It quotes no value, so it can be shown
// even if a template sees secrets.
type refusal string

func (r refusal) Error() string { return string(r) }
