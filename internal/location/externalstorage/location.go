package externalstorage

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmware-tanzu/velero/pkg/util/kube"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"stillpoint.io/stillpoint/internal/location"
)

const (
	// VolumeAnnotation on a PersistentVolume, "true" or "false", overrides the config
	// of the location for this volume.
	VolumeAnnotation = Provider

	provisionedBy = kube.KubeAnnDynamicallyProvisioned
	// openEBSIdentity is an annotation on the volumes of OpenEBS before CSI, which are
	// iSCSI volumes in Kubernetes.
	openEBSIdentity = "openEBSProvisionerIdentity"
	openEBS         = "openebs"

	defaultTimeout = 10 * time.Minute
)

// sources has the volume sources that the controller, or its fork by OpenEBS, has
// plugins for. The names are those of the fields of a PersistentVolume.
var sources = []string{"awsElasticBlockStore", "cinder", "gcePersistentDisk", "glusterfs", "hostPath", openEBS}

// sourceOf returns the source of a volume, "" if the controller has no plugin for it.
func sourceOf(pv *corev1.PersistentVolume) string {
	spec := pv.Spec.PersistentVolumeSource
	switch {
	case spec.HostPath != nil:
		return "hostPath"
	case spec.AWSElasticBlockStore != nil:
		return "awsElasticBlockStore"
	case spec.GCEPersistentDisk != nil:
		return "gcePersistentDisk"
	case spec.Cinder != nil:
		return "cinder"
	case spec.Glusterfs != nil:
		return "glusterfs"
	case spec.ISCSI != nil && (pv.Annotations[openEBSIdentity] != "" || strings.HasPrefix(pv.Annotations[provisionedBy], "openebs.io/")):
		return openEBS
	case spec.ISCSI != nil && strings.Contains(spec.ISCSI.IQN, ".openebs."):
		return openEBS // provisioned from a snapshot
	default:
		return ""
	}
}

// options is the config of a VolumeSnapshotLocation.
type options struct {
	// provisioners has patterns of the provisioners of the volumes, by an annotation;
	// none match all.
	provisioners []string
	// volumeSources has the sources that are taken; none match all.
	volumeSources []string
	// promoterClass is "" if the only StorageClass of the promoter is used.
	promoterClass string
	// timeout limits how long a snapshot takes until it is Ready, and a volume until
	// it is provisioned.
	timeout time.Duration
}

func parseLocation(config map[string]string) (options, error) {
	l := options{timeout: defaultTimeout}
	err := location.Decode(Provider, config,
		location.Globs("provisioners", &l.provisioners),
		location.Key{Name: "volumeSources", Set: l.setSources},
		location.Name("promoterClass", &l.promoterClass),
		location.Duration("timeout", &l.timeout),
	)
	return l, err
}

func (l *options) setSources(_, value string) error {
	list, err := location.List(value)
	if err != nil {
		return err
	}
	for _, source := range list {
		if !slices.Contains(sources, source) {
			return fmt.Errorf("unknown source %q; valid: %s", source, strings.Join(sources, ", "))
		}
	}
	l.volumeSources = list
	return nil
}

// Takes reports whether a location with this config takes a volume in a cluster that
// serves the API.
func Takes(config map[string]string, volume *corev1.PersistentVolume) (bool, error) {
	l, err := parseLocation(config)
	if err != nil {
		return false, err
	}
	ours, _, err := l.takes(volume, true)
	return ours, err
}

// takes reports whether the location takes a volume, or returns why it does not.
func (l options) takes(pv *corev1.PersistentVolume, served bool) (ours bool, reason string, err error) {
	source := sourceOf(pv)
	value, annotated := pv.Annotations[VolumeAnnotation]
	switch {
	case annotated && value != "true" && value != "false":
		return false, "", fmt.Errorf("PersistentVolume %s: annotation %s: value %q: must be \"true\" or \"false\"", pv.Name, VolumeAnnotation, value)
	case value == "false":
		return false, "its annotation is \"false\"", nil
	case pv.Spec.ClaimRef == nil || pv.Status.Phase != corev1.VolumeBound && pv.Status.Phase != "":
		return false, "it is not bound to a claim, and snapshots are taken of claims", nil
	case !served && value == "true":
		return false, "", fmt.Errorf("PersistentVolume %s: annotation %s is \"true\", and this cluster does not serve the API %s", pv.Name, VolumeAnnotation, version)
	case !served:
		return false, "this cluster does not serve the API " + version.String(), nil
	case value == "true":
		return true, "", nil
	case source == "":
		return false, "the snapshot controller has no plugin for its source; it has plugins for: " + strings.Join(sources, ", "), nil
	case len(l.volumeSources) > 0 && !slices.Contains(l.volumeSources, source):
		return false, "volumeSources does not include " + source, nil
	// A volume that was provisioned from a snapshot is backed up, too.
	case pv.Annotations[provisionedBy] != promoter && !location.Matches(l.provisioners, pv.Annotations[provisionedBy]):
		return false, fmt.Sprintf("provisioners does not match %q in the annotation %s", pv.Annotations[provisionedBy], provisionedBy), nil
	default:
		return true, "", nil
	}
}

// promoter returns the StorageClass that provisions volumes from snapshots.
func (l options) promoter(classes []storagev1.StorageClass) (*storagev1.StorageClass, error) {
	var names []string
	var found *storagev1.StorageClass
	for i := range classes {
		class := &classes[i]
		switch {
		case class.Name == l.promoterClass && class.Provisioner != promoter:
			return nil, fmt.Errorf("promoterClass %s has the provisioner %s, and must have %s", class.Name, class.Provisioner, promoter)
		case class.Provisioner == promoter && (l.promoterClass == "" || class.Name == l.promoterClass):
			names, found = append(names, class.Name), class
		}
	}
	switch {
	case len(names) == 1:
		return found, nil
	case l.promoterClass != "":
		return nil, fmt.Errorf("StorageClass %s, which promoterClass of the VolumeSnapshotLocation names, does not exist", l.promoterClass)
	case len(names) == 0:
		return nil, fmt.Errorf("no StorageClass has the provisioner %s, which provisions volumes from snapshots", promoter)
	default:
		return nil, fmt.Errorf("the StorageClasses %s have the provisioner %s; promoterClass of the VolumeSnapshotLocation must name one of them", strings.Join(names, ", "), promoter)
	}
}
