package quiesce

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/function"
	"stillpoint.io/stillpoint/internal/journal"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/unit"
	"stillpoint.io/stillpoint/internal/workload"
)

// part is a part of a unit, with the methods of the planner.
type part struct{ unit.Part }

// Planner makes plans. It only reads objects and runs probes in containers.
type Planner struct {
	Kube     kubernetes.Interface
	Executor podexec.Executor
	Finder   *blueprint.Finder
	// Tasks verifies the requirements of tasks and predicts their outputs.
	Tasks    *function.Tasks
	Clock    clock.PassiveClock
	Settings *config.Config
	Warn     func(format string, args ...any)
	// Driver returns the profile of a claim's driver.
	Driver func(ctx context.Context, claim *corev1.PersistentVolumeClaim) (config.DriverProfile, error)
}

// NewPlanner returns a planner for one freeze with the given settings.
func NewPlanner(settings *config.Config, clients *cluster.Clients, executor podexec.Executor, warn func(format string, args ...any)) *Planner {
	tasks := function.NewTasks(clients)
	tasks.Warn = warn
	tasks.Pods = func(context.Context) config.HelperPods { return settings.HelperPods }
	return &Planner{
		Kube:     clients.Kube,
		Executor: executor,
		Finder:   blueprint.NewFinder(clients.Kube, clients.Dynamic, clients.VeleroNamespace, settings.BlueprintNamespaces),
		Tasks:    tasks,
		Clock:    clock.RealClock{},
		Settings: settings,
		Warn:     warn,
		Driver: func(ctx context.Context, claim *corev1.PersistentVolumeClaim) (config.DriverProfile, error) {
			volume := &corev1.PersistentVolume{}
			if err := clients.Remembered.Get(ctx, crclient.ObjectKey{Name: claim.Spec.VolumeName}, volume); err != nil {
				return config.DriverProfile{}, fmt.Errorf("get PersistentVolume %s: %w", claim.Spec.VolumeName, err)
			}
			if volume.Spec.CSI == nil {
				return config.DriverProfile{}, nil
			}
			return settings.Driver(volume.Spec.CSI.Driver), nil
		},
	}
}

// Plan renders the hooks of a unit. Phases that depend on the outputs of others are
// rendered later, by the session. Templates see the backup's start as .Time.
func (p *Planner) Plan(ctx context.Context, u *unit.Unit, backup *velerov1.Backup) (*Plan, error) {
	plan := &Plan{Name: u.Name(), OnError: u.OnError}
	namespace := u.Claims[0].Namespace
	plan.Record = journal.Entry{
		ID:     journal.NewID(),
		Backup: backup.Name, BackupUID: backup.UID,
		Name: plan.Name, Namespace: namespace, Objects: u.Refs(),
	}
	if u.Namespace != nil {
		plan.Record.NamespaceUID = u.Namespace.UID
	}
	started := p.Clock.Now()
	if backup.Status.StartTimestamp != nil {
		started = backup.Status.StartTimestamp.Time
	}
	files := newFileSystems(p.Executor, namespace, u.Claims, p.Driver)
	for _, of := range u.Parts {
		part := part{of}
		if len(part.Settings.Blueprints) == 0 {
			continue
		}
		plan.PrepareTimeout = shorter(plan.PrepareTimeout, part.Settings.PrepareTimeout)
		plan.QuiesceTimeout = shorter(plan.QuiesceTimeout, part.Settings.QuiesceTimeout)
		plan.Mask = plan.Mask.Merge(part.mask())
		for _, name := range part.Settings.Blueprints {
			hook, mask, err := p.hook(ctx, name, part, files, started, plan.Record.ID)
			plan.Mask = plan.Mask.Merge(mask)
			if err != nil {
				return nil, fmt.Errorf("%s: blueprint %s, which %s names: %w", part.Workload, name, part.Settings.Source, err)
			}
			plan.Hooks = append(plan.Hooks, hook)
		}
	}
	// Freeze the file systems of all workloads last.
	slices.SortStableFunc(plan.Hooks, func(a, b Hook) int { return rank(a) - rank(b) })
	plan.Flush = flushes(plan.Hooks)
	if err := p.levels(ctx, plan, u, files); err != nil {
		return nil, err
	}
	for _, other := range u.OtherFreezes(p.Kube.Discovery(), backup) {
		p.Warn("Quiesced twice: %s, beside Stillpoint's own quiesce of %s; a file system that is frozen already cannot be frozen again, which fails the quiesce. Remove one of the two", other, plan.Name)
	}
	plan.rescue = &rescue{kube: p.Kube, unit: u}
	return plan, nil
}

// levels sets plan.Unfrozen, warns about these claims, and verifies the blueprints that
// freeze file systems with their own commands.
func (p *Planner) levels(ctx context.Context, plan *Plan, u *unit.Unit, files *fileSystems) error {
	plan.Unfrozen = files.unfrozen
	var moving []string
	for _, claim := range u.Claims {
		level, ok := plan.Unfrozen[claim.Name]
		if !ok {
			continue
		}
		moving = append(moving, claim.Name)
		if level.Level != LevelCrash {
			continue
		}
		driver, err := files.driver(ctx, &claim)
		if err == nil && driver.Quiesce == config.QuiesceRequired && rank(plan.Hooks[0]) > 0 {
			err = fmt.Errorf("claim %s/%s: its driver %s requires a quiesced workload, and %s", claim.Namespace, claim.Name, driver.Name, level.Why)
		}
		if err != nil {
			return err
		}
		p.Warn("Not frozen: claim %s/%s: %s. Its snapshot is crash-consistent, unless another blueprint quiesces what writes to it; the annotation %s: %s on the claim leaves it out",
			claim.Namespace, claim.Name, level.Why, api.AnnotationQuiesce, unit.None)
	}
	if len(moving) > 0 && len(u.Claims) > 1 {
		p.Warn("Not of one moment: the snapshots of %s, since Stillpoint does not freeze %s: each is written to until it is cut", plan.Name, strings.Join(moving, ", "))
	}
	for _, hook := range plan.Hooks {
		if err := files.otherFreezes(ctx, hook, plan.Flush, p.Warn); err != nil {
			return err
		}
	}
	return nil
}

func rank(h Hook) int {
	if h.Blueprint == unit.FSFreeze {
		return 1
	}
	return 0
}

func shorter(a, b time.Duration) time.Duration {
	if a == 0 {
		return b
	}
	return min(a, b)
}

func (p *Planner) hook(ctx context.Context, name string, part part, files *fileSystems, started time.Time, session string) (Hook, render.Masker, error) {
	hook := Hook{Blueprint: name}
	var mask render.Masker
	found, err := p.Finder.Find(ctx, name, part.Workload.Namespace)
	if err != nil {
		return hook, mask, err
	}
	for _, warning := range found.Warnings {
		p.Warn("Blueprint %s (%s): %s", name, found.Source, warning)
	}
	if err := part.permit(name, found); err != nil {
		return hook, mask, err
	}
	if advice := found.WithoutHooks(); advice != "" {
		p.Warn("Nothing is quiesced by blueprint %s (%s), which %s names: %s", name, found.Source, part.Settings.Source, advice)
		return hook, mask, nil
	}
	scales := found.Calls(scaleFunction)
	if !scales { // otherwise scalesToZero decides after rendering
		if err := part.verifyReachable(found.Blueprint, files.claims); err != nil {
			return hook, mask, err
		}
	}
	functions := function.KubeFunctions(p.Kube)
	maps.Copy(functions, function.TaskFunctions(p.Tasks))
	maps.Copy(functions, files.functions(part.Workload.Pods))
	maps.Copy(functions, inPods{part.Workload.Namespace, part.reachable(), session}.functions())
	renderer := &render.Renderer{
		Functions: functions,
		Kube:      p.Kube,
		ConfineTo: found.ConfinedTo,
	}
	script, mask, err := renderer.Script(ctx, found.Blueprint, part.params(started))
	if err != nil {
		return hook, mask, err
	}
	hook.Pre, hook.Post, hook.Script = script.Pre, script.Post, script
	if scales && !part.scalesToZero(hook.Pre) {
		if err := part.verifyReachable(found.Blueprint, files.claims); err != nil {
			return hook, mask, err
		}
	}
	for _, step := range slices.Concat(hook.Pre, hook.Post) {
		if step.Task != nil {
			step.Task.Owner = session
		}
	}
	if err := pairSessions(&hook); err != nil {
		return hook, mask, err
	}
	return hook, mask, unthawed(hook)
}

// scaleFunction is the Kanister function that can end all pods of a workload.
const scaleFunction = "ScaleWorkload"

// reachable returns the pods in which hooks can run commands, those of the current
// revision first.
func (p part) reachable() []corev1.Pod {
	pods := slices.Clone(p.Workload.CurrentPods)
	for _, pod := range workload.Reachable(p.Workload.Pods) {
		if !slices.ContainsFunc(pods, func(known corev1.Pod) bool { return known.Name == pod.Name }) {
			pods = append(pods, pod)
		}
	}
	return pods
}

// scalesToZero reports whether steps scale the workload to 0, which also ends pods that
// hooks cannot run in.
func (p part) scalesToZero(steps []*render.Step) bool {
	return slices.ContainsFunc(steps, func(step *render.Step) bool {
		return step.Task != nil && function.Ends(step.Task, p.Workload.Kind, p.Workload.Namespace, p.Workload.Name)
	})
}

// verifyReachable returns an error if a pod uses one of the claims and no hook can run in
// that pod. It accepts that a file system is frozen from another pod.
func (p part) verifyReachable(bp *blueprint.Blueprint, claims map[string]corev1.PersistentVolumeClaim) error {
	files := bp.Calls(freezeFunction)
	inPods := bp.Calls(runFunction) || bp.Calls(holdFunction)
	if bp.Actions[blueprint.Prehook] == nil || p.Object != nil && !files && !inPods {
		return nil // hooks of annotated objects select their pods themselves
	}
	onlyFiles := files && !inPods && !bp.Calls("KubeExec") && !bp.Calls("KubeExecAll")
	for _, pod := range p.Workload.Pods {
		why := workload.Unreachable(&pod)
		for _, claim := range slices.Sorted(maps.Keys(claims)) {
			if why == "" || !p.Covers(claim) || !workload.Uses(&pod, claim) {
				continue
			}
			elsewhere := func(other corev1.Pod) bool {
				return slices.ContainsFunc(workload.Mounts(&other), func(m workload.Mount) bool { return m.Claim == claim })
			}
			if onlyFiles && slices.ContainsFunc(p.reachable(), elsewhere) {
				continue
			}
			return fmt.Errorf("pod %s/%s %s and can write to claim %s, so no hook can run in it (%s); back up again when it has ended, or runs",
				pod.Namespace, pod.Name, why, claim, containerStates(&pod))
		}
	}
	return nil
}

// containerStates describes the active containers of a pod and why they do not run.
func containerStates(pod *corev1.Pod) string {
	var all []string
	active := workload.Active(pod)
	for _, name := range slices.Sorted(maps.Keys(active)) {
		all = append(all, fmt.Sprintf("container %s: %s", name, cmp.Or(active[name], "running")))
	}
	return strings.Join(all, ", ")
}

// params returns the parameters of the templates.
func (p part) params(started time.Time) render.Params {
	w := p.Workload
	params := render.Params{
		Object:    p.Source,
		Namespace: &render.Namespace{Name: w.Namespace, Namespace: w.Namespace},
		Options:   p.Settings.Options,
		Time:      started.UTC().Format(time.RFC3339Nano),
	}
	if p.Claim != nil {
		params.PVC = &render.PVC{Name: p.Claim.Name, Namespace: p.Claim.Namespace}
	}
	described := render.Deployment{
		Name: w.Name, Namespace: w.Namespace,
		PersistentVolumeClaims: map[string]map[string]string{},
	}
	for i := range w.CurrentPods {
		pod := &w.CurrentPods[i]
		described.Pods = append(described.Pods, pod.Name)
		described.Containers = append(described.Containers, workload.RunningContainers(pod))
		paths := map[string]string{}
		for _, mount := range workload.Mounts(pod) {
			if _, ok := paths[mount.Claim]; !ok {
				paths[mount.Claim] = mount.Path
			}
		}
		described.PersistentVolumeClaims[pod.Name] = paths
	}
	switch w.Kind {
	case "Deployment":
		params.Deployment = &described
	case "StatefulSet":
		set := render.StatefulSet(described)
		params.StatefulSet = &set
	case "DeploymentConfig":
		config := render.DeploymentConfig(described)
		params.DeploymentConfig = &config
	}
	return params
}

// mask masks the values of an annotated Secret, which templates see as .Object.
func (p part) mask() render.Masker {
	if p.Object == nil || p.Object.Kind != "Secret" {
		return render.Masker{}
	}
	data, _, err := unstructured.NestedStringMap(p.Source, "data")
	if err != nil {
		return render.Masker{}
	}
	var values [][]byte
	for _, value := range data {
		if plain, err := base64.StdEncoding.DecodeString(value); err == nil {
			values = append(values, plain)
		}
	}
	return render.NewMasker(values...)
}
