package decision

import (
	"fmt"

	"stillpoint.io/stillpoint/internal/config"
)

// applyProfile refuses what the profile of a volume's driver says is unusable.
func (d *Decision) applyProfile(profile config.DriverProfile) error {
	if !profile.CanSnapshot(d.Volume.Spec.AccessModes) {
		return fmt.Errorf("PersistentVolume %s has the access modes %v; driver %s can snapshot %v, by its profile in the configuration",
			d.Volume.Name, d.Volume.Spec.AccessModes, profile.Name, profile.AccessModes)
	}
	if profile.Quiesce == config.QuiesceRequired {
		d.QuiesceRequired = fmt.Errorf("PersistentVolume %s is in use and its workload is not quiesced, as the profile of driver %s in the configuration requires; "+
			"annotate the workload with stillpoint.io/quiesce", d.Volume.Name, profile.Name)
	}
	return nil
}
