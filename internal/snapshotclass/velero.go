package snapshotclass

import (
	"slices"
	"strings"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
)

// Velero is the name of the class that Velero's own chain takes, "" for none.
// It is GetVolumeSnapshotClass of Velero's pkg/util/csi, which has four
// peculiarities: it asks for classes of the StorageClass's provisioner, not of
// the volume's driver; a name that does not serve is passed over; a mark counts
// by its presence, even as "false"; and of several marked classes the first
// listed is taken, which from the API server is the first by name.
func Velero(in Input) string {
	if in.StorageClass == nil {
		return "" // Velero gives up
	}
	provisioner := in.StorageClass.Provisioner
	classes := slices.SortedFunc(slices.Values(in.Classes), byName)

	named := func(annotations map[string]string, key string) string {
		name, ok := annotations[key]
		for _, class := range classes {
			if ok && strings.EqualFold(class.Name, name) && strings.EqualFold(class.Driver, provisioner) {
				return class.Name
			}
		}
		return ""
	}
	if name := named(in.Claim.Annotations, claimAnnotation); name != "" {
		return name
	}
	if name := named(in.Backup.Annotations, backupAnnotation+strings.ToLower(provisioner)); name != "" {
		return name
	}
	// Here capitals count.
	classes = slices.DeleteFunc(classes, func(class snapshotv1.VolumeSnapshotClass) bool { return class.Driver != provisioner })
	for _, class := range classes {
		if _, ok := class.Labels[velerov1.VolumeSnapshotClassSelectorLabel]; ok {
			return class.Name
		}
	}
	for _, class := range classes {
		if _, ok := class.Annotations[velerov1.VolumeSnapshotClassKubernetesAnnotation]; ok {
			return class.Name
		}
	}
	if len(classes) == 1 {
		return classes[0].Name
	}
	return ""
}

// Mend names the annotation on the claim, as key=value, with which Velero
// itself would take the chosen class. It is "" where Velero takes it anyway,
// and where no annotation helps: Velero looks among the classes of the
// StorageClass's provisioner, and the StorageClass may be gone, or of another
// driver than the volume.
func Mend(in Input, choice Choice) string {
	if Velero(in) == choice.Class.Name || in.StorageClass == nil || !strings.EqualFold(in.StorageClass.Provisioner, choice.Class.Driver) {
		return ""
	}
	return claimAnnotation + "=" + choice.Class.Name
}
