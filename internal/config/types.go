package config

import (
	"cmp"
	"path"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Config is the document, with its defaults filled in.
type Config struct {
	// Version is the version of the document, `v1`. Required.
	Version string `json:"version"`
	// BlueprintNamespaces are the namespaces whose Blueprint objects serve all
	// workloads and may reach into all namespaces. Default: Velero's own; an
	// empty list is none.
	BlueprintNamespaces []string `json:"blueprintNamespaces"`
	// SnapshotClasses are rules that choose the VolumeSnapshotClass of a
	// volume; the first that matches wins. Default: none.
	SnapshotClasses []SnapshotClassRule `json:"snapshotClasses"`
	// Drivers are profiles of CSI drivers; one takes the place of the built-in
	// profile of the same name. Default: the built-in ones.
	Drivers []DriverProfile `json:"drivers"`
	// DataMovers are profiles of data movers other than Velero's own. Default:
	// none, which leaves their snapshots to them.
	DataMovers []DataMover `json:"dataMovers"`
	// LocalSnapshots are rules that say what becomes of the storage's snapshot
	// once a data mover has exported it; the first that matches wins. Default:
	// none, it is deleted.
	LocalSnapshots []LocalSnapshotRule `json:"localSnapshots"`
	// ExcludedLabels are globs (`*`, `?`, `[a-z]`) of keys of labels that a
	// VolumeSnapshot does not get from its claim, beside Stillpoint's and Velero's:
	// those by which a GitOps tool finds the objects that it prunes. A list takes the
	// place of the default; an empty one excludes none. Default: the labels of Argo CD
	// (`app.kubernetes.io/instance`, `argocd.argoproj.io/*`), Flux
	// (`*.toolkit.fluxcd.io/*`), Fleet (`fleet.cattle.io/*`, `objectset.rio.cattle.io/*`),
	// Config Sync (`configsync.gke.io/*`, `configmanagement.gke.io/*`), kapp
	// (`kapp.k14s.io/*`) and `kubectl apply --prune` (`applyset.kubernetes.io/*`).
	ExcludedLabels []string `json:"excludedLabels"`
	// Restore is what becomes of the snapshots in a backup when they are
	// restored. Default: as Velero does it.
	Restore Restore `json:"restore"`
	// NodeThaw is the permission to thaw a file system by a privileged pod on its
	// node, when no container is left that could. Default: none, which tells a
	// person what to run there.
	NodeThaw *NodeThaw `json:"nodeThaw"`
	// HelperPods are the defaults of the pods that Stillpoint makes for blueprints
	// (KubeTask, MultiContainerRun); the podOverride of a blueprint wins. Default:
	// what namespaces with quotas or with Pod Security ask for.
	HelperPods HelperPods `json:"helperPods"`
}

// DriverProfile describes a CSI driver, as far as its snapshots go.
type DriverProfile struct {
	// Name is the name of the CSI driver. Required.
	Name string `json:"name"`
	// Exports are the snapshots that the driver itself copies to somewhere that
	// outlives the volume, so that the snapshot's handle names the copy. Default:
	// none of them.
	Exports Exports `json:"exports"`
	// RestoreFrom is `export` where a snapshot that was not exported cannot be
	// restored, or is not to be; `any` otherwise. Default: any.
	RestoreFrom RestoreFrom `json:"restoreFrom"`
	// AccessModes are the access modes of the volumes that the driver can
	// snapshot; a claim with another one is an error when it is backed up.
	// Default: any.
	AccessModes []corev1.PersistentVolumeAccessMode `json:"accessModes"`
	// Quiesce is `required` where a snapshot of a volume in use is worth nothing
	// unless its workload is quiesced: one that is not is an error when it is
	// backed up. Default: optional.
	Quiesce Quiesce `json:"quiesce"`
	// Freeze is `always` where the blueprint fsfreeze freezes the file systems of
	// the driver's volumes, `flush` where the storage suspends the device for each
	// snapshot, so that they are only written out, and `driver` where the driver
	// freezes them by itself. A file system that lies directly on LVM or DRBD is
	// never frozen, only written out. Default: always.
	Freeze Freeze `json:"freeze"`
}

// Exports says which snapshots a driver exports by itself. They are exported
// when they are ready to use.
type Exports struct {
	// Always is true where the driver exports every snapshot. Default: false.
	Always bool `json:"always"`
	// When are parameters of the VolumeSnapshotClass that make the driver export
	// the snapshot; one of them is enough. Default: none.
	When []ClassParameter `json:"when"`
}

// ClassParameter is a parameter of a VolumeSnapshotClass.
type ClassParameter struct {
	// Parameter is the key of the parameter. Required.
	Parameter string `json:"parameter"`
	// Value is the value of the parameter. A class without the parameter has an
	// empty one. Default: empty.
	Value string `json:"value"`
}

// RestoreFrom is what a driver's volumes can be restored from.
type RestoreFrom string

// What a driver's volumes can be restored from.
const (
	RestoreFromAny    RestoreFrom = "any"
	RestoreFromExport RestoreFrom = "export"
)

// Quiesce is whether a driver's snapshots need a quiesced workload.
type Quiesce string

// Whether a driver's snapshots need a quiesced workload.
const (
	QuiesceOptional Quiesce = "optional"
	QuiesceRequired Quiesce = "required"
)

// Freeze is who freezes the file systems of a driver's volumes.
type Freeze string

// Who freezes the file systems of a driver's volumes.
const (
	FreezeAlways Freeze = "always"
	FreezeFlush  Freeze = "flush"
	FreezeDriver Freeze = "driver"
)

// DataMover describes a data mover other than Velero's own.
type DataMover struct {
	// Name is the name of the data mover, as in the Backup's `spec.datamover`.
	// Required.
	Name string `json:"name"`
	// DeleteSnapshots is true where the snapshots that the mover was given are to
	// be deleted when its DataUpload has ended. Default: false, since a mover may
	// keep them on purpose.
	DeleteSnapshots bool `json:"deleteSnapshots"`
}

// LocalSnapshotRule says what becomes of the storage's snapshots of the volumes
// that it matches, once they are exported.
type LocalSnapshotRule struct {
	// Match is which volumes the rule is for. Default: all of them.
	Match Match `json:"match"`
	// Policy is what is done. `delete` leaves no snapshot behind. The other two
	// take a second snapshot in the same freeze, which stays beside the export for
	// quick restores: `retain` until the backup is deleted, `keepLast` until newer
	// ones of the same claim take its place. Required.
	Policy LocalSnapshotPolicy `json:"policy"`
	// Count is how many snapshots of a claim stay under `keepLast`, the newest
	// ones; at least 1. Required for keepLast.
	Count int `json:"count"`
}

// LocalSnapshotPolicy is what becomes of a snapshot once it is exported.
type LocalSnapshotPolicy string

// What becomes of a snapshot once it is exported.
const (
	LocalSnapshotDelete   LocalSnapshotPolicy = "delete"
	LocalSnapshotRetain   LocalSnapshotPolicy = "retain"
	LocalSnapshotKeepLast LocalSnapshotPolicy = "keepLast"
)

// SnapshotClassRule gives a VolumeSnapshotClass to the volumes that it matches.
type SnapshotClassRule struct {
	// Match is which volumes the rule is for. Default: all of them.
	Match Match `json:"match"`
	// Class is the name of a VolumeSnapshotClass of the volumes' driver; one of
	// another driver is an error when such a volume is snapshotted. Required.
	Class string `json:"class"`
}

// Match selects volumes. All keys that are given must hold; an empty match
// selects every volume.
type Match struct {
	// Drivers are names of CSI drivers, in full; one of them must be that of
	// the PersistentVolume. Default: any.
	Drivers []string `json:"drivers"`
	// StorageClasses are globs (`*`, `?`, `[a-z]`); one of them must match the
	// name of the claim's StorageClass, which is empty for a claim without one.
	// Default: any.
	StorageClasses []string `json:"storageClasses"`
	// Namespaces are globs (`*`, `?`, `[a-z]`); one of them must match the
	// claim's namespace. Default: any.
	Namespaces []string `json:"namespaces"`
	// Claims is a selector over the labels of the PersistentVolumeClaim.
	// Default: any.
	Claims *metav1.LabelSelector `json:"claims"`
	// Backups is a selector over the labels of the Backup; one that a schedule
	// made has the label `velero.io/schedule-name` and those of the Schedule.
	// Default: any.
	Backups *metav1.LabelSelector `json:"backups"`
}

// Restore says what becomes of the snapshots in a backup when they are
// restored.
type Restore struct {
	// Drivers are the CSI drivers that have another name in this cluster. Only
	// the administrator can know that both understand the same snapshot
	// handles. Default: none, every driver keeps its name.
	Drivers []DriverMapping `json:"drivers"`
	// SnapshotClasses are the VolumeSnapshotClasses in a backup that have
	// another name in this cluster, or are left out. Default: none.
	SnapshotClasses []SnapshotClassMapping `json:"snapshotClasses"`
	// DeletionPolicy is the policy of the VolumeSnapshotContents that a restore
	// makes. With `Delete` the storage's snapshot goes when the restored
	// VolumeSnapshot is deleted, although the backup still names it. Default:
	// Velero's, which is Retain.
	DeletionPolicy snapshotv1.DeletionPolicy `json:"deletionPolicy"`
	// VolumesWithoutData is what becomes of volumes of which the backup has no data.
	// `velero` brings one with reclaim policy Retain back as it was, with the data
	// that its storage has now, and one with Delete back empty. `provision` brings
	// each back empty. `refuse` makes its claim an error. Default: velero.
	VolumesWithoutData VolumesWithoutData `json:"volumesWithoutData"`
}

// VolumesWithoutData is what becomes of volumes of which the backup has no data.
type VolumesWithoutData string

// What becomes of volumes of which the backup has no data.
const (
	WithoutDataVelero    VolumesWithoutData = "velero"
	WithoutDataProvision VolumesWithoutData = "provision"
	WithoutDataRefuse    VolumesWithoutData = "refuse"
)

// WithoutData is what becomes of volumes of which the backup has no data.
func (r Restore) WithoutData() VolumesWithoutData {
	return cmp.Or(r.VolumesWithoutData, WithoutDataVelero)
}

// DriverMapping renames a CSI driver. It is applied once: what it makes is not
// looked up again.
type DriverMapping struct {
	// From is the name of the CSI driver in the backup. Required.
	From string `json:"from"`
	// To is the name of the CSI driver in this cluster. Required.
	To string `json:"to"`
}

// SnapshotClassMapping renames a VolumeSnapshotClass, or leaves it out: it has
// either `to` or `skip`. It is applied once: what it makes is not looked up
// again.
type SnapshotClassMapping struct {
	// From is the name of the VolumeSnapshotClass in the backup. Required.
	From string `json:"from"`
	// To is the name of the VolumeSnapshotClass in this cluster. Required
	// without skip.
	To string `json:"to"`
	// Skip is true where the VolumeSnapshotClass is not to be restored.
	// Default: false.
	Skip bool `json:"skip"`
}

// Driver is the name that a CSI driver of a backup has in this cluster. renamed is
// false for one that keeps its own.
func (r Restore) Driver(name string) (here string, renamed bool) {
	i := slices.IndexFunc(r.Drivers, func(m DriverMapping) bool { return m.From == name })
	if i < 0 {
		return name, false
	}
	return r.Drivers[i].To, true
}

// Default is the configuration where there is no ConfigMap.
func Default(veleroNamespace string) *Config {
	return &Config{Version: Version, BlueprintNamespaces: []string{veleroNamespace}}
}

// Matches answers whether the volume of a claim in this backup is selected.
// storageClass is empty for a claim without one.
func (m Match) Matches(driver, storageClass, namespace string, claim, backup map[string]string) bool {
	return (m.Drivers == nil || slices.Contains(m.Drivers, driver)) &&
		anyGlob(m.StorageClasses, storageClass) &&
		anyGlob(m.Namespaces, namespace) &&
		selects(m.Claims, claim) &&
		selects(m.Backups, backup)
}

// trackingLabels are the keys by which GitOps tools know their objects.
var trackingLabels = []string{
	"app.kubernetes.io/instance", "argocd.argoproj.io/*", "*.toolkit.fluxcd.io/*", "fleet.cattle.io/*", "objectset.rio.cattle.io/*",
	"configsync.gke.io/*", "configmanagement.gke.io/*", "kapp.k14s.io/*", "applyset.kubernetes.io/*",
}

// ExcludesLabel reports whether VolumeSnapshots do not get a label of their claim.
func (c *Config) ExcludesLabel(key string) bool {
	globs := c.ExcludedLabels
	if globs == nil {
		globs = trackingLabels
	}
	return anyGlob(globs, key)
}

// ByDriver answers whether the match asks for nothing but drivers, so that it
// says something of a volume whose claim is not there.
func (m Match) ByDriver() bool {
	return m.StorageClasses == nil && m.Namespaces == nil && m.Claims == nil && m.Backups == nil
}

func anyGlob(globs []string, name string) bool {
	return globs == nil || slices.ContainsFunc(globs, func(glob string) bool {
		// A bad glob has no match; decoding has refused it.
		matches, err := path.Match(glob, name)
		return err == nil && matches
	})
}

func selects(selector *metav1.LabelSelector, of map[string]string) bool {
	if selector == nil {
		return true
	}
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && parsed.Matches(labels.Set(of))
}

// NodeThaw is what the pod is made of that thaws file systems on a node. It is
// privileged, runs in Velero's namespace for some seconds, and only when a file
// system is frozen that nothing else can thaw. Its rights are in
// deploy/rbac.yaml.
type NodeThaw struct {
	// Image is the image of this plugin, as given to `velero plugin add`; every
	// node must be able to pull it, or have it. Required.
	Image string `json:"image"`
	// KubeletDirectory is the directory of the kubelet on the nodes. Default:
	// `/var/lib/kubelet`.
	KubeletDirectory string `json:"kubeletDirectory"`
}

// HelperPods are the defaults of the pods that Stillpoint makes, for each container
// of them. The pod of nodeThaw has the resources only.
type HelperPods struct {
	// Resources are the requests and limits, as in the spec of a pod; `{}` is none.
	// Default: requests of `cpu: 10m, memory: 32Mi`, limits of `cpu: 1, memory:
	// 512Mi`.
	Resources *corev1.ResourceRequirements `json:"resources"`
	// SecurityContext is the security context, as in the spec of a container; what
	// it has not is as by default. Default: `allowPrivilegeEscalation: false,
	// capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}`, and
	// `runAsNonRoot: true` where the namespace refuses a pod without it.
	SecurityContext *corev1.SecurityContext `json:"securityContext"`
}

// Requirements are the resources of a container.
func (h HelperPods) Requirements() corev1.ResourceRequirements {
	if h.Resources != nil {
		return *h.Resources
	}
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
		Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("512Mi")},
	}
}

// DefaultKubeletDirectory is where a kubelet has its volumes unless it was told
// otherwise.
const DefaultKubeletDirectory = "/var/lib/kubelet"

// Directory is the directory of the kubelet on the nodes.
func (n NodeThaw) Directory() string { return cmp.Or(n.KubeletDirectory, DefaultKubeletDirectory) }
