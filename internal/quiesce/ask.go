package quiesce

import "stillpoint.io/stillpoint/internal/workload"

// Ask is what the annotations of one workload of a group ask for.
type Ask struct {
	Workload workload.Ref
	Settings
}

// Asks are those of the workloads that are quiesced, in the order of their
// plans.
func (g *Group) Asks() []Ask {
	var asks []Ask
	for _, part := range g.parts {
		if len(part.settings.Blueprints) > 0 {
			asks = append(asks, Ask{part.workload.Ref, part.settings})
		}
	}
	return asks
}
