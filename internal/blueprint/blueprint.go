package blueprint

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// The type of a blueprint. It is Kanister's, so that published files work unchanged.
const (
	APIVersion = "cr.kanister.io/v1alpha1"
	Kind       = "Blueprint"
)

// The actions that run around a snapshot. The names are Kasten K10's.
const (
	Prehook  = "backupPrehook"
	Posthook = "backupPosthook"
)

// hooks are all names of actions with a meaning in K10. Stillpoint ignores other actions,
// and warns of a name that differs from one of these only in case.
var hooks = []string{Prehook, Posthook, "restorePrehook", "restorePosthook", "backup", "restore", "delete"}

// Blueprint is a set of actions, by name.
type Blueprint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Actions           map[string]*Action `json:"actions,omitempty"`

	// Source is set by Finder and appears in every error about the blueprint.
	Source Source `json:"-"`
}

// Action is a list of phases that run one after another.
type Action struct {
	Name               string              `json:"name"`
	Kind               string              `json:"kind"`
	ConfigMapNames     []string            `json:"configMapNames,omitempty"`
	SecretNames        []string            `json:"secretNames,omitempty"`
	InputArtifactNames []string            `json:"inputArtifactNames,omitempty"`
	OutputArtifacts    map[string]Artifact `json:"outputArtifacts,omitempty"`
	Phases             []Phase             `json:"phases,omitempty"`
	DeferPhase         *Phase              `json:"deferPhase,omitempty"`
}

// Artifact is what one action passes to a later one; its strings are templates.
type Artifact struct {
	KeyValue      map[string]string `json:"keyValue,omitempty"`
	KopiaSnapshot string            `json:"kopiaSnapshot,omitempty"`
}

// Phase is one call of a function. Every string in Args and ObjectRefs, at any
// depth, is a template.
type Phase struct {
	Func       string                     `json:"func"`
	Name       string                     `json:"name"`
	ObjectRefs map[string]ObjectReference `json:"objects,omitempty"`
	Args       map[string]any             `json:"args"`
}

// ObjectReference names an object whose content a phase's templates see.
type ObjectReference struct {
	APIVersion string `json:"apiVersion"`
	Group      string `json:"group"`
	Resource   string `json:"resource"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	Namespace  string `json:"namespace,omitempty"`
}

// Fields returns the fields by their names in a blueprint.
func (r *ObjectReference) Fields() map[string]*string {
	return map[string]*string{
		"apiVersion": &r.APIVersion, "group": &r.Group, "resource": &r.Resource, "kind": &r.Kind, "name": &r.Name, "namespace": &r.Namespace,
	}
}

// Calls reports whether a phase of the prehook calls function.
func (b *Blueprint) Calls(function string) bool {
	action := b.Actions[Prehook]
	return action != nil && slices.ContainsFunc(action.Phases, func(p Phase) bool { return p.Func == function })
}

// dropped returns the actions that Kasten K10 runs and Stillpoint does not, sorted.
func (b *Blueprint) dropped() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(b.Actions)) {
		if slices.Contains(hooks, name) && name != Prehook && name != Posthook {
			names = append(names, name)
		}
	}
	return names
}

func (b *Blueprint) hooked() bool { return b.Actions[Prehook] != nil || b.Actions[Posthook] != nil }

// WithoutHooks returns advice for a blueprint that has actions of Kasten K10, but no hook
// of a backup; "" for any other.
func (b *Blueprint) WithoutHooks() string {
	names := b.dropped()
	meant := slices.ContainsFunc(slices.Collect(maps.Keys(b.Actions)), func(name string) bool {
		return strings.EqualFold(name, Prehook) || strings.EqualFold(name, Posthook)
	})
	if meant || len(names) == 0 {
		return ""
	}
	return fmt.Sprintf("it has neither %s nor %s, and its actions (%s) do not run here, since Velero backs up the volumes and restores them; "+
		"to quiesce the workload, name a blueprint with these hooks, or a built-in recipe, in the annotation stillpoint.io/quiesce (built in: %s), and remove this name",
		Prehook, Posthook, strings.Join(names, ", "), List(slices.Collect(maps.Keys(BuiltIns()))))
}

// Title returns how errors refer to the blueprint.
func (b *Blueprint) Title() string {
	if b.Source == "" {
		return fmt.Sprintf("blueprint %s", b.Name)
	}
	return fmt.Sprintf("blueprint %s (%s)", b.Name, b.Source)
}

// Parse reads one YAML or JSON document. Unknown fields are warnings, because the API
// server drops them with Kanister's CRD and old published blueprints have some. A
// duplicate key is an error, and so is an apiVersion or kind that is not a blueprint's;
// both may be missing.
func Parse(doc []byte) (bp *Blueprint, warnings []string, err error) {
	docs := flat(doc)
	switch len(docs) {
	case 0:
		return nil, nil, errors.New("the document is empty; a blueprint has apiVersion, kind, metadata and actions")
	case 1:
		return parse(docs[0])
	default:
		return nil, nil, fmt.Errorf("%d documents where one is expected", len(docs))
	}
}

// ParseAll reads a YAML stream of any number of documents, without the empty ones. If
// there are several, errors and warnings name the document.
func ParseAll(stream []byte) ([]*Blueprint, []string, error) {
	var (
		blueprints []*Blueprint
		warnings   []string
	)
	docs := flat(stream)
	for i, doc := range docs {
		bp, warned, err := parse(doc)
		if err != nil {
			return nil, nil, fmt.Errorf("%s%w", position(i, len(docs)), err)
		}
		blueprints = append(blueprints, bp)
		for _, w := range warned {
			warnings = append(warnings, position(i, len(docs))+w)
		}
	}
	return blueprints, warnings, nil
}

// position returns the prefix of a message about document i of n.
func position(i, n int) string {
	if n == 1 {
		return ""
	}
	return fmt.Sprintf("document %d: ", i+1)
}

func parse(doc []byte) (*Blueprint, []string, error) {
	asJSON, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return nil, nil, fmt.Errorf("read as YAML: %w", err)
	}
	bp := &Blueprint{}
	// Like the API server: field names are case-sensitive, and whole numbers stay whole.
	unknown, err := kjson.UnmarshalStrict(asJSON, bp)
	if err != nil {
		return nil, nil, fmt.Errorf("read as a blueprint: %w", err)
	}
	if bp.APIVersion != "" && bp.APIVersion != APIVersion {
		return nil, nil, fmt.Errorf("apiVersion is %q, a blueprint's is %q", bp.APIVersion, APIVersion)
	}
	if bp.Kind != "" && bp.Kind != Kind {
		return nil, nil, fmt.Errorf("kind is %q, a blueprint's is %q", bp.Kind, Kind)
	}
	var warnings []string
	for _, u := range unknown {
		warnings = append(warnings, u.Error()+" is ignored")
	}
	return bp, append(warnings, mistakes(bp)...), nil
}

// mistakes returns what Kanister accepts silently although it cannot be intended.
func mistakes(bp *Blueprint) []string {
	var found []string
	for _, name := range slices.Sorted(maps.Keys(bp.Actions)) {
		for _, hook := range hooks {
			if name != hook && strings.EqualFold(name, hook) {
				found = append(found, fmt.Sprintf("action %q never runs: the name is %q", name, hook))
			}
		}
		action := bp.Actions[name]
		if action == nil {
			continue
		}
		var names []string
		for _, phase := range action.Phases {
			if slices.Contains(names, phase.Name) {
				found = append(found, fmt.Sprintf("action %q has two phases named %q", name, phase.Name))
			}
			names = append(names, phase.Name)
		}
	}
	return found
}

// boundary is a line that ends a YAML document. Behind "---" the next one may start.
var boundary = regexp.MustCompile(`(?m)^(---(?:[ \t]|\r?$)|\.\.\.[ \t]*\r?$)`)

// Documents splits a YAML stream, because the YAML library reads only the first document
// and silently ignores the rest.
func Documents(stream []byte) [][]byte {
	var docs [][]byte
	for _, doc := range boundary.Split(string(stream), -1) {
		if !blank(doc) {
			docs = append(docs, []byte(doc))
		}
	}
	return docs
}

// flat is Documents with the items of a List instead of the List, which
// `kubectl get blueprints -o yaml` prints.
func flat(stream []byte) [][]byte {
	var docs [][]byte
	for _, doc := range Documents(stream) {
		var list struct {
			Kind  string            `json:"kind"`
			Items []json.RawMessage `json:"items"`
		}
		if err := yaml.Unmarshal(doc, &list); err != nil || list.Kind != "List" && list.Kind != Kind+"List" {
			docs = append(docs, doc)
			continue
		}
		for _, item := range list.Items {
			docs = append(docs, item)
		}
	}
	return docs
}

// blank reports whether a document has only comments and white space.
func blank(doc string) bool {
	for line := range strings.Lines(doc) {
		if line = strings.TrimSpace(strings.TrimPrefix(line, "\ufeff")); line != "" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}

// List returns names for a message: sorted, or "none".
func List(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(slices.Values(names)), ", ")
}
