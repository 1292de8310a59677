package unit

import "stillpoint.io/stillpoint/internal/workload"

// Request has the settings of one workload of a unit.
type Request struct {
	Workload workload.Ref
	Settings
}

// Requests returns the settings of the workloads that are quiesced, in the order of their
// plans.
func (u *Unit) Requests() []Request {
	var asks []Request
	for _, part := range u.Parts {
		if len(part.Settings.Blueprints) > 0 {
			asks = append(asks, Request{part.Workload.Ref, part.Settings})
		}
	}
	return asks
}
