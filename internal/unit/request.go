package unit

import "stillpoint.io/stillpoint/internal/workload"

// Request is what the annotations of one workload of a group ask for.
type Request struct {
	Workload workload.Ref
	Settings
}

// Requests are those of the workloads that are quiesced, in the order of their
// plans.
func (g *Unit) Requests() []Request {
	var asks []Request
	for _, part := range g.Parts {
		if len(part.Settings.Blueprints) > 0 {
			asks = append(asks, Request{part.Workload.Ref, part.Settings})
		}
	}
	return asks
}
