package export

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"stillpoint.io/stillpoint/internal/config"
)

// Suits answers why a volume's snapshot would be worth nothing by the profile of
// its driver, nil where it is worth something. quiet tells that the volume's
// workload is quiesced, or that there is none.
func Suits(profile config.DriverProfile, volume *corev1.PersistentVolume, quiet bool) error {
	switch {
	case !profile.CanSnapshot(volume.Spec.AccessModes):
		return fmt.Errorf("PersistentVolume %s has the access modes %v; driver %s can snapshot %v, by its profile in the configuration",
			volume.Name, volume.Spec.AccessModes, profile.Name, profile.AccessModes)
	case profile.Quiesce == config.QuiesceRequired && !quiet:
		return fmt.Errorf("PersistentVolume %s is in use and its workload is not quiesced, as the profile of driver %s in the configuration requires; "+
			"annotate the workload with stillpoint.io/quiesce", volume.Name, profile.Name)
	}
	return nil
}
