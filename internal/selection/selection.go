package selection

import (
	"context"
	"fmt"
	"sync"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/nodeagent"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	"github.com/vmware-tanzu/velero/pkg/util/collections"
	"github.com/vmware-tanzu/velero/pkg/util/csi"
	vhutil "github.com/vmware-tanzu/velero/pkg/util/volumehelper"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/velero"
)

// PolicyValue is the parameter of a volume policy that selects Stillpoint:
//
//	action:
//	  type: custom
//	  parameters: {snapshotter: stillpoint.io}
const (
	PolicyValue     = "stillpoint.io"
	PolicyParameter = "snapshotter"
)

// Path is how the snapshot of a volume is taken.
type Path string

// The paths.
const (
	None   Path = "none"
	Velero Path = "velero" // around: Velero's CSI action
	Group  Path = "group"  // Stillpoint, all volumes of a unit at once
	// Snapshotter is the location path: Velero calls Stillpoint's VolumeSnapshotter for one
	// volume after another.
	Snapshotter Path = "snapshotter"
)

// Verdict is the result for one volume in a backup.
type Verdict struct {
	Path Path
	// Location is set for the path Snapshotter.
	Location *velerov1.VolumeSnapshotLocation
	// Reason is why no path takes a snapshot.
	Reason string
	// Excluded is true if the reason is a filter of the backup.
	Excluded bool
	// Fails is true if Velero's CSI action fails for that reason and drops the claim from
	// the backup.
	Fails bool
	// Uncalled is an error if Velero calls no action for the PersistentVolume, so that
	// Stillpoint cannot freeze before Velero's snapshot.
	Uncalled error
	// Warning is for the author of the volume policy, or "".
	Warning string
	// Obstacle is an error if Stillpoint cannot snapshot a volume that a policy assigns to
	// it.
	Obstacle error
}

// Selection selects the paths of one backup. It is safe for concurrent use.
type Selection struct {
	backup *velerov1.Backup
	client crclient.Client
	csi    bool
	log    logrus.FieldLogger

	mu sync.Mutex
	// own are the volume policies of the backup, global those of the server. They are nil
	// before the first use.
	own, global vhutil.VolumeHelper
	// filters are nil before the first use.
	filters *velero.Filters
}

// New returns the Selection of a backup. csi is true if the Velero server runs with the
// feature EnableCSI. The client should be cached, because the same objects are read for
// each volume.
func New(client crclient.Client, csi bool, backup *velerov1.Backup) *Selection {
	quiet := logrus.New() // Velero's helpers log each volume at level info
	quiet.SetLevel(logrus.PanicLevel)
	return &Selection{backup: backup, client: client, csi: csi, log: quiet}
}

// Of returns the path of a claim. A volume without a snapshot needs no freeze.
func (s *Selection) Of(ctx context.Context, claim *corev1.PersistentVolumeClaim) (Verdict, error) {
	if reason, err := s.excludedBy(ctx, claim); reason != "" || err != nil {
		verdict := none(reason)
		verdict.Excluded = reason != ""
		return verdict, err
	}
	return s.OfIncluded(ctx, claim)
}

// OfIncluded is Of for a claim that Velero has called an action for. It is in the backup,
// perhaps because a plugin added it despite the filters.
func (s *Selection) OfIncluded(ctx context.Context, claim *corev1.PersistentVolumeClaim) (Verdict, error) {
	if velero.Finalizing(s.backup) {
		return none("the backup is finalizing"), nil
	}
	action, err := s.action(claim)
	if err != nil {
		return Verdict{}, err
	}
	switch {
	case action.ours():
		return Verdict{Path: Group, Obstacle: s.obstacle(ctx, claim)}, nil
	case action.custom():
		verdict := none(fmt.Sprintf("a volume policy hands it to another snapshotter (%s)", action))
		verdict.Warning = action.misspelt()
		return verdict, nil
	}
	return s.snapshots(ctx, claim, action)
}

func none(reason string) Verdict { return Verdict{Path: None, Reason: reason} }

// obstacle returns why Stillpoint cannot take a snapshot that a volume policy requests.
func (s *Selection) obstacle(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	name := claim.Namespace + "/" + claim.Name
	if !s.csi {
		return fmt.Errorf("claim %s: the Velero server runs without --features=EnableCSI, which restoring a VolumeSnapshot needs", name)
	}
	if claim.Status.Phase != corev1.ClaimBound || claim.Spec.VolumeName == "" {
		return fmt.Errorf("claim %s is %s: there is no volume to snapshot; bind or delete it, or leave it out by a volume policy with action skip before the entry with action custom", name, claim.Status.Phase)
	}
	if key := s.backup.Spec.VolumeGroupSnapshotLabelKey; key != "" && claim.Labels[key] != "" {
		return fmt.Errorf("claim %s has the label %s=%s, by which Velero takes a VolumeGroupSnapshot, and a volume policy hands it to Stillpoint; "+
			"take the label away, or leave the claim to Velero by an entry before the one with action custom:\n"+
			"- conditions:\n    pvcLabels: {%s: %s}\n  action:\n    type: snapshot", name, key, claim.Labels[key], key, claim.Labels[key])
	}
	volume, err := s.Volume(ctx, claim)
	if err != nil {
		return err
	}
	if volume.Spec.CSI == nil {
		return fmt.Errorf("claim %s: PersistentVolume %s is not a CSI volume, which is all that Stillpoint can snapshot; "+
			"add the condition csi: {} to the entry with action custom, or an entry with action fs-backup or skip before it", name, volume.Name)
	}
	if claim.Spec.StorageClassName == nil {
		return fmt.Errorf("claim %s has no storageClassName, not even an empty one, and Velero's own action drops such a claim from the backup; create it again with a StorageClass, or with storageClassName: \"\" and the volumeName %s", name, volume.Name)
	}
	if !s.movesData() {
		return nil
	}
	if _, _, err := s.StorageClass(ctx, claim); err != nil {
		return fmt.Errorf("claim %s: Velero's data movement needs a StorageClass: %w", name, err)
	}
	if err := s.checkMover(ctx); err != nil {
		return fmt.Errorf("claim %s: %w", name, err)
	}
	return nil
}

// Volume returns the PersistentVolume of a bound claim.
func (s *Selection) Volume(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*corev1.PersistentVolume, error) {
	volume := &corev1.PersistentVolume{}
	if err := s.client.Get(ctx, crclient.ObjectKey{Name: claim.Spec.VolumeName}, volume); err != nil {
		return nil, fmt.Errorf("get PersistentVolume %s: %w", claim.Spec.VolumeName, err)
	}
	return volume, nil
}

// movesData reports whether the backup moves snapshot data.
func (s *Selection) movesData() bool { return boolptr.IsSetToTrue(s.backup.Spec.SnapshotMoveData) }

// checkMover returns an error if Velero's data mover is not ready.
func (s *Selection) checkMover(ctx context.Context) error {
	if !velero.BuiltInMover(s.backup.Spec.DataMover) {
		return nil
	}
	if err := nodeagent.IsReady(ctx, s.backup.Namespace, s.client); err != nil {
		return fmt.Errorf("the data mover is not ready: %w", err)
	}
	return nil
}

// snapshots returns the path of a claim that is in the backup and that no policy assigns to
// another snapshotter: Velero's CSI action or Stillpoint's VolumeSnapshotter.
func (s *Selection) snapshots(ctx context.Context, claim *corev1.PersistentVolumeClaim, action action) (Verdict, error) {
	bound := claim.Status.Phase == corev1.ClaimBound && claim.Spec.VolumeName != ""
	if bound {
		volume, err := s.Volume(ctx, claim)
		if err != nil {
			return Verdict{}, err
		}
		if location, err := s.locationOf(ctx, volume, action); err != nil || location != nil {
			return Verdict{Path: Snapshotter, Location: location}, err
		}
	}
	if !s.csi {
		return none("the Velero server runs without --features=EnableCSI, and no VolumeSnapshotLocation of the backup takes it through Stillpoint"), nil
	}
	if !bound {
		verdict := none(fmt.Sprintf("the claim is %s", claim.Status.Phase))
		var err error
		verdict.Fails, err = s.failsWithoutVolume(claim)
		return verdict, err
	}
	if claim.Spec.StorageClassName == nil {
		verdict := none("the claim has no storage class, which Velero needs to find a VolumeSnapshotClass")
		var err error
		verdict.Fails, err = s.chosen(claim, action)
		return verdict, err
	}
	volume, err := s.Volume(ctx, claim)
	if err != nil {
		return Verdict{}, err
	}
	if volume.Spec.CSI == nil {
		return none(fmt.Sprintf("PersistentVolume %s is not a CSI volume", volume.Name)), nil
	}
	if chosen, err := s.chosen(claim, action); err != nil || !chosen {
		return none("a volume policy, fs-backup or snapshotVolumes=false leaves it out"), err
	}
	if reason, err := s.veleroFailure(ctx, claim); reason != "" || err != nil {
		return Verdict{Path: None, Reason: reason, Fails: true}, err
	}
	verdict := Verdict{Path: Velero}
	if called, err := s.called(ctx, volume); err != nil || !called {
		verdict.Uncalled = fmt.Errorf("the backup leaves out persistentvolumes/%s, for which Stillpoint is called before Velero's own snapshot; "+
			"include it, or hand the volume to Stillpoint's group snapshots by a volume policy with action custom", volume.Name)
		return verdict, err
	}
	return verdict, nil
}

// veleroFailure returns the reason why Velero's CSI action fails before it creates a
// VolumeSnapshot, or "". Velero reports the error itself.
func (s *Selection) veleroFailure(ctx context.Context, claim *corev1.PersistentVolumeClaim) (string, error) {
	class := &storagev1.StorageClass{}
	err := s.client.Get(ctx, crclient.ObjectKey{Name: *claim.Spec.StorageClassName}, class)
	if apierrors.IsNotFound(err) {
		return fmt.Sprintf("StorageClass %s is gone", *claim.Spec.StorageClassName), nil
	}
	if err != nil {
		return "", fmt.Errorf("get StorageClass %s: %w", *claim.Spec.StorageClassName, err)
	}
	if _, err := csi.GetVolumeSnapshotClass(class.Provisioner, s.backup, claim, s.log, s.client); err != nil {
		return fmt.Sprintf("Velero finds no VolumeSnapshotClass: %v", err), nil
	}
	if s.movesData() {
		if err := s.checkMover(ctx); err != nil {
			return err.Error(), nil //nolint:nilerr // Velero reports it
		}
	}
	return "", nil
}

// excludedBy returns why the claim is not in the backup, or "". With
// --include-cluster-resources=true, Velero calls actions for every PersistentVolume of the
// cluster, whichever claim it belongs to.
func (s *Selection) excludedBy(ctx context.Context, claim *corev1.PersistentVolumeClaim) (reason string, err error) {
	f, err := s.included(ctx)
	if err != nil {
		return "", err
	}
	if reason := f.Excludes(velero.Claims, claim); reason != "" || f.Collects(velero.Claims, claim) {
		return reason, nil
	}
	included, err := s.includedClaims(ctx, f, claim.Namespace)
	switch {
	case err != nil || included[claim.Name]:
		return "", err
	case f.Policied(claim.Namespace):
		return "namespacedFilterPolicies of the backup's resource policies do not match it", nil
	}
	return "the backup's label selector does not match it", nil
}

// Pod reports whether the filters of the backup select a pod.
func (s *Selection) Pod(ctx context.Context, pod *corev1.Pod) (bool, error) {
	f, err := s.included(ctx)
	return err == nil && f.Excludes(velero.Pods, pod) == "" && f.Collects(velero.Pods, pod), err
}

// Namespace reports whether a namespace is in the backup.
func (s *Selection) Namespace(name string) bool {
	return collections.NewNamespaceIncludesExcludes().
		Includes(s.backup.Spec.IncludedNamespaces...).
		Excludes(s.backup.Spec.ExcludedNamespaces...).
		ShouldInclude(name)
}
