package check

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/annotated"
	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/decision"
	"stillpoint.io/stillpoint/internal/function"
	"stillpoint.io/stillpoint/internal/quiesce"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/unit"
	"stillpoint.io/stillpoint/internal/velero"
	"stillpoint.io/stillpoint/internal/workload"
)

// Report is what a backup would do. Its JSON is for programs: docs/check.md
// explains the keys, which stay as they are. Nothing in it is secret.
type Report struct {
	// Fails tells that the backup would fail for at least one volume.
	Fails  bool   `json:"fails"`
	Backup Backup `json:"backup"`
	// Failures and Warnings concern more than one unit, Notes are neither.
	Failures []string `json:"failures"`
	Warnings []string `json:"warnings"`
	Notes    []string `json:"notes"`
	Units    []Unit   `json:"units"`
}

// Backup is what the report is about.
type Backup struct {
	Server                 string   `json:"server"`
	Schedule               string   `json:"schedule,omitempty"`
	Namespaces             []string `json:"namespaces"`
	VolumePolicies         string   `json:"volumePolicies,omitempty"`
	GlobalVolumePolicies   string   `json:"globalVolumePolicies,omitempty"`
	SnapshotMoveData       bool     `json:"snapshotMoveData"`
	EnableCSI              bool     `json:"enableCSI"`
	CSISnapshotTimeout     string   `json:"csiSnapshotTimeout"`
	ItemBlockWorkers       int      `json:"itemBlockWorkers"`
	SnapshotPoll           string   `json:"snapshotPoll"`
	VolumeGroupSnapshotKey string   `json:"volumeGroupSnapshotLabelKey"`
}

// Unit is what is snapshotted together: workloads that share volumes, or a
// claim by itself.
type Unit struct {
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	Workloads []Workload `json:"workloads"`
	// Quiesce is absent where nothing is asked for.
	Quiesce  *Quiesce `json:"quiesce,omitempty"`
	Volumes  []Volume `json:"volumes"`
	Failures []string `json:"failures"`
	Warnings []string `json:"warnings"`
	Notes    []string `json:"notes"`
}

// Workload is a controller, a bare pod, or another object that is annotated.
type Workload struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Pods []Pod  `json:"pods"`
	// StandsFor are the claims of an annotated object that is no workload. Its
	// pods are those of the workloads.
	StandsFor []string `json:"standsFor,omitempty"`
	// OfNamespace tells that it stands for all claims of the namespace, since
	// nothing depends on it.
	OfNamespace bool `json:"ofNamespace,omitempty"`
}

// Pod is one that runs, with its running containers.
type Pod struct {
	Name       string   `json:"name"`
	Containers []string `json:"containers"`
}

// Quiesce is how a unit is brought to rest. Where no plan could be made the
// blueprints have no commands.
type Quiesce struct {
	Blueprints     []Blueprint `json:"blueprints"`
	PrepareTimeout string      `json:"prepareTimeout"`
	QuiesceTimeout string      `json:"quiesceTimeout"`
	OnError        string      `json:"onError"`
	// PredictedFreeze is absent where nothing can be frozen.
	PredictedFreeze *Freeze `json:"predictedFreeze,omitempty"`
}

// Blueprint is one of a plan, in the order of the pre commands.
type Blueprint struct {
	Name string `json:"name"`
	// Source is where it was found, "" where it was not.
	Source string `json:"source"`
	// AskedBy is the object that names it.
	AskedBy string    `json:"askedBy"`
	Pre     []Command `json:"pre"`
	Post    []Command `json:"post"`
}

// Command is one command in one container, or what is done in its place. Secret
// values are *** in it.
type Command struct {
	Phase     string   `json:"phase"`
	Namespace string   `json:"namespace,omitempty"`
	Pod       string   `json:"pod,omitempty"`
	Container string   `json:"container,omitempty"`
	Command   []string `json:"command,omitempty"`
	// Task is what is done through the API server.
	Task string `json:"task,omitempty"`
	// Needs is what has to be known before the command is; "" where it is.
	Needs string `json:"needs,omitempty"`
}

// The values of Volume.Path.
const (
	PathGroup  = "group"  // Stillpoint takes the snapshot, with all others of the unit
	PathAround = "around" // Velero does, and Stillpoint freezes around it
	// Stillpoint's VolumeSnapshotter does, for one volume after another.
	PathSnapshotter = "snapshotter"
	PathNone        = "none" // nobody does
)

// Volume is one claim.
type Volume struct {
	Claim            string   `json:"claim"`
	Size             string   `json:"size,omitempty"`
	AccessModes      []string `json:"accessModes"`
	VolumeMode       string   `json:"volumeMode"`
	StorageClass     string   `json:"storageClass,omitempty"`
	PersistentVolume string   `json:"persistentVolume,omitempty"`
	Driver           string   `json:"driver,omitempty"`
	Path             string   `json:"path"`
	// Location is the VolumeSnapshotLocation of the path snapshotter.
	Location string `json:"location,omitempty"`
	// Reason says why Path is none.
	Reason string `json:"reason,omitempty"`
	// SnapshotClass is the VolumeSnapshotClass that would be taken.
	SnapshotClass       string `json:"snapshotClass,omitempty"`
	SnapshotClassReason string `json:"snapshotClassReason,omitempty"`
}

// unitReport is what was gathered about a Unit.
type unitReport struct {
	whole    *unit.Unit
	asked    bool
	path     decision.Path // of the volumes that are frozen together
	plan     *quiesce.Plan
	sources  map[string]string // of blueprints
	warnings []string          // of the planner
	freeze   *Freeze
	// cause is why nothing can be frozen.
	cause   error
	volumes []volume
}

// volume is what was decided about a Volume.
type volume struct {
	*decision.Decision
	err error // why there is no decision
}

// snapshotted reports whether a snapshot is to be taken and nothing is known to be in
// the way.
func (v volume) snapshotted() bool { return v.err == nil && v.Snapshotted() }

func newReport(server velero.Server, backup *velerov1.Backup, options Options) *Report {
	r := &Report{
		Backup: Backup{
			Server: server.Source, Schedule: options.Schedule, Namespaces: options.Namespaces,
			GlobalVolumePolicies: server.GlobalPolicies,
			SnapshotMoveData:     ptr.Deref(backup.Spec.SnapshotMoveData, false),
			EnableCSI:            server.CSI, ItemBlockWorkers: server.Workers, SnapshotPoll: server.Poll.String(),
			CSISnapshotTimeout:     backup.Spec.CSISnapshotTimeout.Duration.String(),
			VolumeGroupSnapshotKey: backup.Spec.VolumeGroupSnapshotLabelKey,
		},
		Failures: []string{}, Warnings: []string{}, Notes: []string{}, Units: []Unit{},
	}
	if r.Backup.Namespaces == nil {
		r.Backup.Namespaces = []string{}
	}
	if backup.Spec.ResourcePolicy != nil {
		r.Backup.VolumePolicies = backup.Spec.ResourcePolicy.Name
	}
	return r
}

func (r *Report) fail(format string, args ...any) {
	r.Fails = true
	r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// noteOnce adds a note unless the report has it.
func (r *Report) noteOnce(format string, args ...any) {
	if !slices.Contains(r.Notes, fmt.Sprintf(format, args...)) {
		r.note(format, args...)
	}
}

// unread tells of kinds that could not be looked at for annotated objects.
func (r *Report) unread(kinds []annotated.Unread) {
	var forbidden, broken []string
	for _, kind := range kinds {
		if kind.Broken {
			broken = append(broken, kind.String())
		} else {
			forbidden = append(forbidden, kind.Name)
		}
	}
	if len(forbidden) > 0 {
		r.note("Quiesce annotations are not looked for on objects of these kinds, which Stillpoint cannot list: %s.", strings.Join(forbidden, ", "))
	}
	if len(broken) > 0 {
		r.Warnings = append(r.Warnings, fmt.Sprintf("Quiesce annotations cannot be looked for on objects of these kinds, since the API server cannot read them: %s", strings.Join(broken, ", ")))
	}
}

// add takes a unit into the report. Claims of one workload whose annotations
// are not valid fail one by one, for the same reason.
func (r *Report) add(u Unit) {
	r.Fails = r.Fails || len(u.Failures) > 0
	for i := range r.Units {
		same := &r.Units[i]
		if same.Namespace == u.Namespace && same.Name == u.Name && len(u.Failures) > 0 && reflect.DeepEqual(same.Failures, u.Failures) {
			same.Volumes = append(same.Volumes, u.Volumes...)
			return
		}
	}
	r.Units = append(r.Units, u)
}

// finish adds what is to be said of the whole.
func (r *Report) finish() *Report {
	ours := slices.ContainsFunc(r.Units, func(u Unit) bool {
		return slices.ContainsFunc(u.Volumes, func(v Volume) bool { return v.Path == PathGroup })
	})
	if ours && r.Backup.ItemBlockWorkers > 1 {
		r.Warnings = append(r.Warnings, fmt.Sprintf("The server has %d workers. %s", r.Backup.ItemBlockWorkers, velero.WorkersWarning))
	}
	return r
}

// report says what would become of a unit.
func (u *unitReport) report() Unit {
	r := Unit{
		Namespace: u.whole.Claims[0].Namespace, Name: u.whole.Name(), Workloads: []Workload{}, Volumes: []Volume{},
		Failures: []string{}, Warnings: append([]string{}, u.warnings...), Notes: []string{},
	}
	listed := map[workload.Ref]bool{}
	for _, o := range u.whole.AnnotatedObjects() {
		listed[o.Ref] = true
		r.Workloads = append(r.Workloads, Workload{Kind: o.Kind, Name: o.Name, Pods: []Pod{}, StandsFor: o.Claims, OfNamespace: o.AllClaims})
	}
	r.Notes = append(append(r.Notes, u.whole.RepeatedAnnotations()...), u.whole.DuplicateBlueprints()...)
	for _, w := range u.whole.Component.Workloads {
		described := Workload{Kind: w.Kind, Name: w.Name}
		for i := range w.Pods {
			described.Pods = append(described.Pods, Pod{Name: w.Pods[i].Name, Containers: workload.RunningContainers(&w.Pods[i])})
		}
		if listed[w.Ref] { // the controller of pods is an annotated object itself
			i := slices.IndexFunc(r.Workloads, func(known Workload) bool { return known.Kind == w.Kind && known.Name == w.Name })
			r.Workloads[i].Pods = described.Pods
			continue
		}
		r.Workloads = append(r.Workloads, described)
	}
	if u.asked {
		r.Quiesce = u.quiesced()
	}
	if u.plan != nil {
		for _, text := range u.plan.NotFrozen() {
			r.Notes = append(r.Notes, "Claim "+text+".")
		}
	}
	for _, v := range u.volumes {
		r.Volumes = append(r.Volumes, v.report())
		r.judge(v, u)
	}
	switch frozen := slices.ContainsFunc(u.volumes, volume.snapshotted); {
	case !u.asked:
	case !frozen && u.cause != nil:
		r.Warnings = append(r.Warnings, u.cause.Error())
	case !frozen:
		r.Notes = append(r.Notes, "Nothing is frozen: no volume is snapshotted.")
	default:
		r.judgeFreeze(u)
	}
	return r
}

// judge adds what is wrong with one volume, and what should be known of it.
func (r *Unit) judge(v volume, u *unitReport) {
	switch {
	case v.err != nil:
		r.Failures = append(r.Failures, v.err.Error())
	case v.Obstacle != nil:
		r.Failures = append(r.Failures, v.Obstacle.Error())
	case v.Refusal != nil && !u.asked: // else it is why the unit is not frozen
		r.Failures = append(r.Failures, v.Refusal.Error())
	}
	for _, finding := range v.Findings(u.asked || !u.whole.InUse(v.Claim.Name)) {
		switch finding.Level {
		case logrus.ErrorLevel:
			r.Failures = append(r.Failures, finding.Text)
		case logrus.WarnLevel:
			r.Warnings = append(r.Warnings, finding.Text)
		default:
			r.Notes = append(r.Notes, finding.Text)
		}
	}
}

// judgeFreeze says why a freeze that is asked for cannot be. On the group path
// a class that is missing for one volume keeps all from being frozen.
func (r *Unit) judgeFreeze(u *unitReport) {
	lax := u.whole.OnError == unit.Continue
	cause, taken := u.cause, 0
	for _, v := range u.volumes {
		switch {
		case !v.snapshotted():
		case v.Refusal == nil:
			taken++
		case lax:
			r.Failures = append(r.Failures, v.Refusal.Error())
			fallthrough
		default:
			cause = cmp.Or(cause, v.Refusal)
		}
	}
	switch {
	case cause == nil, lax && taken == 0:
	case lax:
		r.Warnings = append(r.Warnings, fmt.Sprintf("quiesce fails, so the snapshots are crash-consistent only (%s is %s): %v",
			api.AnnotationOnQuiesceError, unit.Continue, cause))
	default:
		r.Failures = append(r.Failures, fmt.Sprintf("quiesce fails, so nothing of it is snapshotted: %v", cause))
	}
}

// quiesced is the plan, or what is known without one.
func (u *unitReport) quiesced() *Quiesce {
	q := &Quiesce{Blueprints: []Blueprint{}, OnError: string(u.whole.OnError), PredictedFreeze: u.freeze}
	var prepare, limit time.Duration
	for _, ask := range u.whole.Requests() {
		if prepare == 0 || ask.PrepareTimeout < prepare {
			prepare = ask.PrepareTimeout
		}
		if limit == 0 || ask.QuiesceTimeout < limit {
			limit = ask.QuiesceTimeout
		}
		for _, name := range ask.Blueprints {
			q.Blueprints = append(q.Blueprints, Blueprint{
				Name: name, Source: u.sources[name], AskedBy: ask.Source, Pre: []Command{}, Post: []Command{},
			})
		}
	}
	// The order of a plan.
	slices.SortStableFunc(q.Blueprints, func(a, b Blueprint) int { return last(a.Name) - last(b.Name) })
	if u.plan != nil {
		prepare, limit = u.plan.PrepareTimeout, u.plan.QuiesceTimeout
		for i, hook := range u.plan.Hooks {
			q.Blueprints[i].Pre, q.Blueprints[i].Post = commands(hook.Pre, u.plan.Mask), commands(hook.Post, u.plan.Mask)
		}
	}
	q.PrepareTimeout, q.QuiesceTimeout = prepare.String(), limit.String()
	return q
}

func last(name string) int {
	if name == unit.FSFreeze {
		return 1
	}
	return 0
}

// commands are those of a hook's steps, without secrets.
func commands(steps []*render.Step, mask render.Masker) []Command {
	all := []Command{}
	for _, step := range steps {
		switch {
		case step.Needs != "":
			all = append(all, Command{Phase: step.Phase, Task: step.Func, Needs: step.Needs})
		case step.Task != nil:
			all = append(all, Command{Phase: step.Phase, Task: mask.Mask(function.Describe(step.Task))})
		}
		for _, call := range step.Calls {
			command := Command{Phase: step.Phase, Namespace: call.Namespace, Pod: mask.Mask(call.Pod), Container: mask.Mask(call.Container)}
			for _, word := range call.Command {
				command.Command = append(command.Command, mask.Mask(word))
			}
			all = append(all, command)
		}
	}
	return all
}

func (v volume) report() Volume {
	r := Volume{
		Claim: v.Claim.Name, PersistentVolume: v.Claim.Spec.VolumeName,
		AccessModes:  []string{},
		VolumeMode:   string(ptr.Deref(v.Claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)),
		StorageClass: ptr.Deref(v.Claim.Spec.StorageClassName, ""),
		Path:         PathNone, Reason: v.Reason,
	}
	for _, mode := range v.Claim.Spec.AccessModes {
		r.AccessModes = append(r.AccessModes, string(mode))
	}
	size, ok := v.Claim.Status.Capacity[corev1.ResourceStorage]
	if !ok {
		size, ok = v.Claim.Spec.Resources.Requests[corev1.ResourceStorage]
	}
	if ok {
		r.Size = size.String()
	}
	if v.Volume != nil && v.Volume.Spec.CSI != nil {
		r.Driver = v.Volume.Spec.CSI.Driver
	}
	switch v.Path {
	case decision.None:
		return r
	case decision.Group:
		r.Path = PathGroup
	case decision.Around:
		r.Path = PathAround
	case decision.Location:
		r.Path, r.Location = PathSnapshotter, v.Location.Name
	}
	if v.Class != "" {
		r.SnapshotClass, r.SnapshotClassReason = v.Class, v.ClassReason
	}
	return r
}

// JSON writes a report for programs.
func (r *Report) JSON(to io.Writer) error {
	encoder := json.NewEncoder(to)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

// counts are the units, the volumes and the units that fail.
func (r *Report) counts() (units, volumes, failing int) {
	for _, u := range r.Units {
		units++
		volumes += len(u.Volumes)
		if len(u.Failures) > 0 {
			failing++
		}
	}
	return units, volumes, failing
}

// plural counts things.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, strings.TrimSuffix(thing, "s"))
}
