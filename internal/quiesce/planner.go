package quiesce

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/intent"
	"stillpoint.io/stillpoint/internal/node"
	"stillpoint.io/stillpoint/internal/workload"
)

// Planner makes plans. It reads, and runs probes in containers; it changes
// nothing.
type Planner struct {
	Kube     kubernetes.Interface
	Executor Executor
	Finder   *blueprint.Finder
	// Tasks are looked ahead at: what they need is checked, and what they put out
	// told, where that can be known.
	Tasks *blueprint.Tasks
	Clock clock.PassiveClock
	// Tools are what a session of a plan of this planner works with.
	Tools Tools
	// Warn is told what is no error but should not go unnoticed.
	Warn func(format string, args ...any)
}

// NewPlanner makes a planner with the configuration as it is now. Only a freeze
// needs it: a volume that nobody wants quiesced is not to fail for it.
func NewPlanner(ctx context.Context, clients *cluster.Clients, executor Executor, warn func(format string, args ...any)) (*Planner, error) {
	settings, err := config.Load(ctx, clients.Kube, clients.VeleroNamespace)
	if err != nil {
		return nil, err
	}
	clock := clock.RealClock{}
	tasks := blueprint.NewTasks(clients)
	tasks.Warn = warn
	tools := Tools{
		Executor: executor,
		Tasks:    tasks,
		Intents:  intent.NewBook(clients, clock),
		Node:     node.New(clients, func(context.Context) (*config.Config, error) { return settings, nil }),
	}
	return &Planner{
		Kube:     clients.Kube,
		Executor: executor,
		Finder:   blueprint.NewFinder(clients.Kube, clients.Dynamic, clients.VeleroNamespace, settings.BlueprintNamespaces),
		Tasks:    tasks,
		Clock:    clock,
		Tools:    tools,
		Warn:     warn,
	}, nil
}

// Plan renders everything that freezing a group will take, as far as it can be
// known before. Templates see the backup's start as .Time.
func (p *Planner) Plan(ctx context.Context, group *Group, backup *velerov1.Backup) (*Plan, error) {
	plan := &Plan{Name: group.Name(), OnError: group.OnError}
	namespace := group.Claims[0].Namespace
	plan.Owed = intent.Intent{
		ID:     intent.NewID(),
		Backup: backup.Name, BackupUID: backup.UID,
		Name: plan.Name, Namespace: namespace, Objects: group.Objects(),
	}
	started := p.Clock.Now()
	if backup.Status.StartTimestamp != nil {
		started = backup.Status.StartTimestamp.Time
	}
	files := newFileSystems(p.Executor, namespace, group.Claims)
	for _, part := range group.parts {
		if len(part.settings.Blueprints) == 0 {
			continue
		}
		plan.PrepareTimeout = shorter(plan.PrepareTimeout, part.settings.PrepareTimeout)
		plan.QuiesceTimeout = shorter(plan.QuiesceTimeout, part.settings.QuiesceTimeout)
		plan.Mask = plan.Mask.Merge(part.mask())
		for _, name := range part.settings.Blueprints {
			hook, mask, err := p.hook(ctx, name, part, files, started, plan.Owed.ID)
			plan.Mask = plan.Mask.Merge(mask)
			if err != nil {
				return nil, fmt.Errorf("%s: blueprint %s, which %s names: %w", part.workload, name, part.settings.Source, err)
			}
			plan.Hooks = append(plan.Hooks, hook)
		}
	}
	// The file systems of all workloads go last.
	slices.SortStableFunc(plan.Hooks, func(a, b Hook) int { return rank(a) - rank(b) })
	plan.Flush = flushes(plan.Hooks)
	rescue := &rescue{kube: p.Kube, group: group}
	plan.Alternatives, plan.ByHand, plan.Volumes = rescue.alternatives, rescue.byHand, rescue.volumes
	return plan, nil
}

func rank(h Hook) int {
	if h.Blueprint == FSFreeze {
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

func (p *Planner) hook(ctx context.Context, name string, part part, files *fileSystems, started time.Time, session string) (Hook, blueprint.Masker, error) {
	hook := Hook{Blueprint: name}
	var mask blueprint.Masker
	found, err := p.Finder.Find(ctx, name, part.workload.Namespace)
	if err != nil {
		return hook, mask, err
	}
	for _, warning := range found.Warnings {
		p.Warn("Blueprint %s (%s): %s", name, found.Source, warning)
	}
	functions := blueprint.KubeFunctions(blueprint.NewPods(p.Kube))
	maps.Copy(functions, blueprint.TaskFunctions(p.Tasks))
	maps.Copy(functions, files.functions(part.workload.Pods))
	maps.Copy(functions, inPods{part.workload.Namespace, part.workload.CurrentPods, session}.functions())
	renderer := &blueprint.Renderer{
		Functions: functions,
		Objects:   blueprint.NewObjects(p.Kube),
		ConfineTo: found.ConfinedTo,
	}
	script, mask, err := renderer.Script(ctx, found.Blueprint, part.params(started))
	if err != nil {
		return hook, mask, err
	}
	hook.Pre, hook.Post, hook.Script = script.Pre, script.Post, script
	for _, step := range slices.Concat(hook.Pre, hook.Post) {
		if step.Task != nil {
			step.Task.Owner = session
		}
	}
	if err := pairs(&hook); err != nil {
		return hook, mask, err
	}
	return hook, mask, unthawed(hook)
}

// params are what templates see.
func (p part) params(started time.Time) blueprint.Params {
	w := p.workload
	params := blueprint.Params{
		Object:    p.source,
		Namespace: &blueprint.Namespace{Name: w.Namespace, Namespace: w.Namespace},
		Options:   p.settings.Options,
		Time:      started.UTC().Format(time.RFC3339Nano),
	}
	if p.claim != nil {
		params.PVC = &blueprint.PVC{Name: p.claim.Name, Namespace: p.claim.Namespace}
	}
	described := blueprint.Deployment{
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
		set := blueprint.StatefulSet(described)
		params.StatefulSet = &set
	}
	return params
}
