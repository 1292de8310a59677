package config

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// builtIn are the profiles of drivers that are known to behave otherwise than
// the CSI specification makes one expect. The configuration can replace each.
var builtIn = []DriverProfile{
	// LINSTOR ships a snapshot to an S3 remote (linstor-csi, "backups to S3").
	{Name: "linstor.csi.linbit.com", Exports: Exports{When: []ClassParameter{{"snap.linstor.csi.linbit.com/type", "S3"}}}},
	// Longhorn makes a backup in its backup target; a class without a type is one
	// from before it could do anything else.
	{Name: "driver.longhorn.io", Exports: Exports{When: []ClassParameter{{"type", "bak"}, {"type", ""}}}},
	// OpenEBS: Mayastor freezes file systems by itself and thaws them until the
	// kernel reports that none is frozen; LVM suspends the device for each snapshot.
	{Name: "io.openebs.csi-mayastor", Freeze: FreezeDriver},
	{Name: "local.csi.openebs.io", Freeze: FreezeFlush},
	// Ondat restores from an external backup only, and not from its snapshots.
	{Name: "csi.storageos.com", RestoreFrom: RestoreFromExport},
	// These keep their snapshots apart from the disks, and have them ready to use
	// when they are there as a whole.
	{Name: "ebs.csi.aws.com", Exports: Exports{Always: true}},
	{Name: "pd.csi.storage.gke.io", Exports: Exports{Always: true}},
	{Name: "disk.csi.azure.com", Exports: Exports{Always: true}},
	// Cinder has a backup service beside its snapshots.
	{Name: "cinder.csi.openstack.org", Exports: Exports{When: []ClassParameter{{"type", "backup"}}}},
}

// Driver is the profile of a CSI driver: the configuration's, the built-in one,
// or that of a driver of which nothing is known.
func (c *Config) Driver(name string) DriverProfile {
	for _, profiles := range [][]DriverProfile{c.Drivers, builtIn} {
		if i := slices.IndexFunc(profiles, func(p DriverProfile) bool { return p.Name == name }); i >= 0 {
			return profiles[i]
		}
	}
	return DriverProfile{Name: name}
}

// Exported answers whether the driver itself exports the snapshots of a
// VolumeSnapshotClass with these parameters.
func (p DriverProfile) Exported(parameters map[string]string) bool {
	return p.Exports.Always || slices.ContainsFunc(p.Exports.When, func(w ClassParameter) bool { return parameters[w.Parameter] == w.Value })
}

// CanSnapshot answers whether the driver can snapshot a volume with these access
// modes.
func (p DriverProfile) CanSnapshot(modes []corev1.PersistentVolumeAccessMode) bool {
	return p.AccessModes == nil || !slices.ContainsFunc(modes, func(mode corev1.PersistentVolumeAccessMode) bool {
		return !slices.Contains(p.AccessModes, mode)
	})
}

// DeletesSnapshotsOf answers whether the snapshots that a data mover was given
// are deleted when its DataUpload has ended. Velero's own mover has two names.
func (c *Config) DeletesSnapshotsOf(dataMover string) bool {
	if dataMover == "" || dataMover == "velero" {
		return true
	}
	i := slices.IndexFunc(c.DataMovers, func(m DataMover) bool { return m.Name == dataMover })
	return i >= 0 && c.DataMovers[i].DeleteSnapshots
}
