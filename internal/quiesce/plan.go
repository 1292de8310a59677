package quiesce

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"stillpoint.io/stillpoint/internal/journal"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/unit"
)

// Plan is everything that one session will do, rendered before anything is
// touched.
type Plan struct {
	// Name is what is quiesced, as users call it: "Deployment shop/db".
	Name string
	// Hooks are in the order of the pre commands; post commands go the other
	// way round.
	Hooks []Hook

	// PrepareTimeout limits all pre commands together, QuiesceTimeout the
	// freeze from the end of these.
	PrepareTimeout, QuiesceTimeout time.Duration
	OnError                        unit.OnError

	// Flush are commands that write out what file systems still hold in memory,
	// while the application runs on, so that the freeze has little left to do.
	// They may fail: the freeze writes out the rest.
	Flush []render.Call

	// Unfrozen are claims of whose file systems a freeze was asked for, and which
	// Stillpoint does not freeze.
	Unfrozen map[string]Level

	// Mask knows the secret values that the commands contain.
	Mask render.Masker

	// Owed is the record of what undoes the plan, as far as it is known before the
	// session has begun.
	Record journal.Entry

	// Alternatives gives, for each file system that a post command thaws, the commands
	// that thaw it in other containers; nil means that there are none.
	Alternatives func(ctx context.Context, call render.Call) [][]render.Call
	// Gone reports whether no process of call's container can be left; nil knows none.
	Gone func(ctx context.Context, call render.Call) bool
	// Ends reports whether a hook itself ends the pod of a call; nil ends none.
	EndsPod func(hook *Hook, call render.Call) bool
	// ByHand tells a person how to run a post command; nil says nothing.
	ByHand func(call render.Call) string
	// Volumes are the file systems that a post command thaws, as their node sees them;
	// nil knows none.
	Volumes func(call render.Call) []journal.Volume
}

// NotFrozen are the claims that Stillpoint does not freeze, each in a clause.
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
	// Script renders what cannot be rendered before a phase has run, and is told
	// what phases put out; nil where everything is rendered.
	Script *render.Script
}

// waiting reports whether a phase of the posthook is not rendered yet.
func (h *Hook) hasUnrendered() bool {
	return slices.ContainsFunc(h.Post, func(step *render.Step) bool { return step.Needs != "" })
}

// prepares reports whether a pre command of the blueprint runs in container.
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

func (p *Plan) alternatives(ctx context.Context, call render.Call) [][]render.Call {
	if p.Alternatives == nil {
		return nil
	}
	return p.Alternatives(ctx, call)
}

func (p *Plan) gone(ctx context.Context, call render.Call) bool {
	return p.Gone != nil && p.Gone(ctx, call)
}

// ends reports whether the loss of a target's guard is no surprise.
func (p *Plan) endsPod(t *target) bool { return p.EndsPod != nil && p.EndsPod(t.hook, t.call) }

func (p *Plan) byHand(call render.Call) string {
	if p.ByHand == nil {
		return "no way to undo it is known"
	}
	return p.ByHand(call)
}

func (p *Plan) volumes(call render.Call) []journal.Volume {
	if p.Volumes == nil {
		return nil
	}
	return p.Volumes(call)
}
