package quiesce

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"stillpoint.io/stillpoint/internal/journal"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/unit"
)

// Plan is everything that one session will do.
type Plan struct {
	// Name is the name of the unit, such as "Deployment shop/db".
	Name string
	// Hooks are in the order of the pre commands; post commands run in reverse order.
	Hooks []Hook

	// PrepareTimeout limits all pre commands together. QuiesceTimeout limits the freeze
	// after them.
	PrepareTimeout, QuiesceTimeout time.Duration
	OnError                        unit.OnError

	// Flush has commands that write out the file systems while the application runs, to
	// shorten the freeze. A command that fails is logged: the freeze writes out the rest.
	Flush []render.Call

	// Unfrozen has the claims that a hook asks to freeze and Stillpoint does not freeze.
	Unfrozen map[string]Level

	// Mask masks the secret values in the commands.
	Mask render.Masker

	// Record is the journal's record of the plan, without the pending undo.
	Record journal.Entry

	rescue rescuer
}

// NotFrozen returns a sentence for each claim that Stillpoint does not freeze.
func (p *Plan) NotFrozen() []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(p.Unfrozen)) {
		all = append(all, fmt.Sprintf("%s is not frozen by Stillpoint (level %s): %s", name, p.Unfrozen[name].Level, p.Unfrozen[name].Why))
	}
	return all
}

// Hook is one blueprint's part of a plan.
type Hook struct {
	Blueprint string
	Pre, Post []*render.Step
	// Script renders phases that depend on the outputs of earlier ones; nil if all phases
	// are rendered.
	Script *render.Script
}

// hasUnrendered reports whether a phase of the posthook is not rendered yet.
func (h *Hook) hasUnrendered() bool {
	return slices.ContainsFunc(h.Post, func(step *render.Step) bool { return step.Needs != "" })
}

// prepares reports whether a pre command of the hook runs in container.
func (h *Hook) prepares(container podexec.Container) bool {
	return slices.ContainsFunc(h.Pre, func(step *render.Step) bool {
		return slices.ContainsFunc(step.Calls, func(call render.Call) bool {
			return ContainerOf(call) == container
		})
	})
}

// Empty reports whether the plan runs nothing: its blueprints have no hooks.
func (p *Plan) Empty() bool {
	return !slices.ContainsFunc(p.Hooks, func(h Hook) bool { return len(h.Pre)+len(h.Post) > 0 })
}

// Blueprints returns the names of the blueprints, in the order of the pre commands.
func (p *Plan) Blueprints() []string {
	names := make([]string, len(p.Hooks))
	for i, hook := range p.Hooks {
		names[i] = hook.Blueprint
	}
	return names
}
