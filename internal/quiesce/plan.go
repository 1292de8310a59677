package quiesce

import (
	"context"
	"slices"
	"time"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
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
	OnError                        OnError

	// Flush are commands that write out what file systems still hold in memory,
	// while the application runs on, so that the freeze has little left to do.
	// They may fail: the freeze writes out the rest.
	Flush []blueprint.Call

	// Mask knows the secret values that the commands contain.
	Mask blueprint.Masker

	// Alternatives gives other ways to run a post command whose own container
	// cannot; nil means that there are none.
	Alternatives func(ctx context.Context, call blueprint.Call) []blueprint.Call
	// ByHand tells a person how to run a post command; nil says nothing.
	ByHand func(call blueprint.Call) string
}

// Hook is one blueprint's part of a plan.
type Hook struct {
	Blueprint string
	Pre, Post []blueprint.Step
}

// prepares tells whether a pre command of the blueprint runs in container.
func (h *Hook) prepares(container cluster.Container) bool {
	return slices.ContainsFunc(h.Pre, func(step blueprint.Step) bool {
		return slices.ContainsFunc(step.Calls, func(call blueprint.Call) bool {
			return containerOf(call) == container
		})
	})
}

// Blueprints returns the names of the blueprints, in the order of the pre commands.
func (p *Plan) Blueprints() []string {
	names := make([]string, len(p.Hooks))
	for i, hook := range p.Hooks {
		names[i] = hook.Blueprint
	}
	return names
}

func (p *Plan) alternatives(ctx context.Context, call blueprint.Call) []blueprint.Call {
	if p.Alternatives == nil {
		return nil
	}
	return p.Alternatives(ctx, call)
}

func (p *Plan) byHand(call blueprint.Call) string {
	if p.ByHand == nil {
		return "no way to undo it is known"
	}
	return p.ByHand(call)
}
