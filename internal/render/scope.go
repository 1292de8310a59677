package render

import (
	"encoding/json"
	"errors"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// data is what the templates of one action see: the parameters, what its phases have
// fetched, and what they have given so far. It is sent to the process that renders,
// as JSON; see exact.
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

// phaseData is a phase: the objects that it named, and what it gave.
type phaseData struct {
	Name    string
	Fetched bool
	// Running reports that the templates at hand are those of the phase itself.
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

// exact copies a value of JSON such that decodeJSON gives the same again: a whole
// number that is a float64 stays one.
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
	params      // which templates cannot name
	ArtifactsIn map[string]*artifactScope
	Secrets     map[string]corev1.Secret
	ConfigMaps  map[string]corev1.ConfigMap
	// Kanister sets CurrentPhase when the args of most functions are rendered
	// already, so that hardly a blueprint can see that it is set earlier here.
	Phases                   map[string]*phaseScope
	CurrentPhase, DeferPhase *phaseScope
	// Profile, and what an ActionSet adds to pods, are there in name only: a
	// hook has no ActionSet.
	Profile                   *Profile
	PodOverride               map[string]any
	PodAnnotations, PodLabels map[string]string
}

type params = Params

// Profile is Kanister's location for data. There never is one, so that asking
// for it with `if` works and using it is an error.
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

// phaseScope is .Phases.<name>. The objects are the typed ones that Kanister hands
// out, so that .Data of a Secret is bytes. What is not there yet is an error of type
// pending.
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

// MarshalJSON gives what Kanister's own type gives to toJson.
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

// MarshalJSON gives what Kanister's own type gives to toJson.
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
