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
	// VolumeAnnotation on a PersistentVolume decides for this volume alone: "true"
	// or "false".
	VolumeAnnotation = Provider

	provisionedBy = kube.KubeAnnDynamicallyProvisioned
	// openEBSIdentity is on the volumes of OpenEBS before CSI, which are iSCSI
	// targets to Kubernetes.
	openEBSIdentity = "openEBSProvisionerIdentity"
	openEBS         = "openebs"

	defaultTimeout = 10 * time.Minute
)

// sources are the kinds of volumes that the controller has plugins for, OpenEBS's
// fork of it included. Their names are those of the fields of a PersistentVolume.
var sources = []string{"awsElasticBlockStore", "cinder", "gcePersistentDisk", "glusterfs", "hostPath", openEBS}

// sourceOf is which of the sources a volume has, "" for none.
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
		return openEBS // made of a snapshot, by the promoter
	default:
		return ""
	}
}

// options is the config of a VolumeSnapshotLocation.
type options struct {
	// provisioners are patterns for who made the volumes, by their annotation; none
	// match all.
	provisioners []string
	// volumeSources are those of sources that are taken; none are all.
	volumeSources []string
	// promoterClass is "" where it is to be found.
	promoterClass string
	// timeout is how long a snapshot may take until it is Ready, and a volume until
	// it is made of one.
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
			return fmt.Errorf("there is no source %q; valid are: %s", source, strings.Join(sources, ", "))
		}
	}
	l.volumeSources = list
	return nil
}

// Takes answers whether a location with this config takes a volume, in a cluster
// that serves the API.
func Takes(config map[string]string, volume *corev1.PersistentVolume) (bool, error) {
	l, err := parseLocation(config)
	if err != nil {
		return false, err
	}
	ours, _, err := l.takes(volume, true)
	return ours, err
}

// takes decides whether a volume is snapshotted here, and says why not.
func (l options) takes(pv *corev1.PersistentVolume, served bool) (ours bool, reason string, err error) {
	source := sourceOf(pv)
	word, said := pv.Annotations[VolumeAnnotation]
	switch {
	case said && word != "true" && word != "false":
		return false, "", fmt.Errorf("PersistentVolume %s: annotation %s: value %q: must be \"true\" or \"false\"", pv.Name, VolumeAnnotation, word)
	case word == "false":
		return false, "its annotation says so", nil
	case pv.Spec.ClaimRef == nil || pv.Status.Phase != corev1.VolumeBound && pv.Status.Phase != "":
		return false, "it is not bound to a claim, and snapshots are taken of claims", nil
	case !served && word == "true":
		return false, "", fmt.Errorf("PersistentVolume %s: annotation %s is \"true\", and this cluster does not serve the API %s", pv.Name, VolumeAnnotation, version)
	case !served:
		return false, "this cluster does not serve the API " + version.String(), nil
	case word == "true":
		return true, "", nil
	case source == "":
		return false, "the snapshot controller has a plugin for none such; it has for: " + strings.Join(sources, ", "), nil
	case len(l.volumeSources) > 0 && !slices.Contains(l.volumeSources, source):
		return false, "volumeSources does not have " + source, nil
	// What was made of a snapshot goes on being backed up.
	case pv.Annotations[provisionedBy] != promoter && !location.Matches(l.provisioners, pv.Annotations[provisionedBy]):
		return false, fmt.Sprintf("provisioners does not match %q, which the annotation %s has", pv.Annotations[provisionedBy], provisionedBy), nil
	default:
		return true, "", nil
	}
}

// promoter finds the StorageClass by which volumes are made of snapshots.
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
		return nil, fmt.Errorf("there is no StorageClass %s, which promoterClass of the VolumeSnapshotLocation names", l.promoterClass)
	case len(names) == 0:
		return nil, fmt.Errorf("there is no StorageClass of provisioner %s, by which volumes are made of snapshots", promoter)
	default:
		return nil, fmt.Errorf("the StorageClasses %s have the provisioner %s; promoterClass of the VolumeSnapshotLocation must name one of them", strings.Join(names, ", "), promoter)
	}
}
