// Package selection tells who takes the snapshot of a volume in a backup:
// Velero, Stillpoint or nobody. It decides by the backup's filters and Velero's
// volume policies, and says why.
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

// PolicyValue is what hands volumes to Stillpoint in a volume policy:
//
//	action:
//	  type: custom
//	  parameters: {snapshotter: stillpoint.io}
const (
	PolicyValue     = "stillpoint.io"
	PolicyParameter = "snapshotter"
)

// Path is who takes the snapshot of a volume.
type Path string

// The paths.
const (
	None   Path = "none"
	Velero Path = "velero" // Velero's own CSI action; Stillpoint quiesces around it
	Group  Path = "group"  // Stillpoint, all volumes of a workload at once
	// Snapshotter is Stillpoint's VolumeSnapshotter, which Velero calls for one
	// volume after another.
	Snapshotter Path = "snapshotter"
)

// Verdict is what becomes of a volume in a backup.
type Verdict struct {
	Path Path
	// Location is the VolumeSnapshotLocation of the path Snapshotter.
	Location *velerov1.VolumeSnapshotLocation
	// Reason says why nobody takes a snapshot.
	Reason string
	// Excluded reports that the backup's filters are the reason.
	Excluded bool
	// Fails tells that Velero's own action ends with an error for that reason,
	// and drops the claim from the backup.
	Fails bool
	// Uncalled is why there is no moment to freeze before Velero's own snapshot: it
	// calls no action for the PersistentVolume. nil where it does.
	Uncalled error
	// Warning is what the author of the volume policy should see, "" for nothing.
	Warning string
	// Obstacle says why a volume that was handed to Stillpoint cannot be
	// snapshotted; nil when it can.
	Obstacle error
}

// Selection belongs to one backup. It answers with Velero's own code wherever
// that can be called, and is safe for concurrent use.
type Selection struct {
	backup *velerov1.Backup
	client crclient.Client
	csi    bool
	log    logrus.FieldLogger

	mu sync.Mutex
	// policies are the volume helpers of the backup's own volume policies and of
	// the server's global ones, nil until they are asked.
	own, global vhutil.VolumeHelper
	// filters are nil until they are asked.
	filters *velero.Filters
}

// New returns the selection of a backup. csi tells whether the Velero server
// runs with the EnableCSI feature. The client should remember its answers: the
// same few objects are asked for with each volume.
func New(client crclient.Client, csi bool, backup *velerov1.Backup) *Selection {
	quiet := logrus.New() // Velero's helpers tell of each volume at info
	quiet.SetLevel(logrus.PanicLevel)
	return &Selection{backup: backup, client: client, csi: csi, log: quiet}
}

// Of answers who will take a snapshot of claim. Freezing for a volume that
// nobody snapshots would stop an application for nothing.
func (s *Selection) Of(ctx context.Context, claim *corev1.PersistentVolumeClaim) (Verdict, error) {
	if reason, err := s.selects(ctx, claim); reason != "" || err != nil {
		verdict := none(reason)
		verdict.Excluded = reason != ""
		return verdict, err
	}
	return s.OfIncluded(ctx, claim)
}

// OfIncluded is Of for a claim that Velero calls for: it is in the backup,
// perhaps because another plugin has asked for it in spite of the filters.
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

// obstacle is what keeps Stillpoint from taking a snapshot that a volume policy
// asks for.
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
	if !s.moves() {
		return nil
	}
	if _, _, err := s.StorageClass(ctx, claim); err != nil {
		return fmt.Errorf("claim %s: Velero's data movement needs a StorageClass: %w", name, err)
	}
	if err := s.mover(ctx); err != nil {
		return fmt.Errorf("claim %s: %w", name, err)
	}
	return nil
}

// Volume is the PersistentVolume that a claim is bound to.
func (s *Selection) Volume(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*corev1.PersistentVolume, error) {
	volume := &corev1.PersistentVolume{}
	if err := s.client.Get(ctx, crclient.ObjectKey{Name: claim.Spec.VolumeName}, volume); err != nil {
		return nil, fmt.Errorf("get PersistentVolume %s: %w", claim.Spec.VolumeName, err)
	}
	return volume, nil
}

// moves tells whether the backup moves the snapshots' data.
func (s *Selection) moves() bool { return boolptr.IsSetToTrue(s.backup.Spec.SnapshotMoveData) }

// mover is an error when Velero's data mover cannot work.
func (s *Selection) mover(ctx context.Context) error {
	if !velero.BuiltInMover(s.backup.Spec.DataMover) {
		return nil
	}
	if err := nodeagent.IsReady(ctx, s.backup.Namespace, s.client); err != nil {
		return fmt.Errorf("the data mover is not ready: %w", err)
	}
	return nil
}

// snapshots answers whether Velero will take a snapshot of a claim that is in the
// backup, by its CSI action or through Stillpoint's VolumeSnapshotters.
func (s *Selection) snapshots(ctx context.Context, claim *corev1.PersistentVolumeClaim, action action) (Verdict, error) {
	bound := claim.Status.Phase == corev1.ClaimBound && claim.Spec.VolumeName != ""
	if bound {
		volume, err := s.Volume(ctx, claim)
		if err != nil {
			return Verdict{}, err
		}
		if location, err := s.snapshotter(ctx, volume, action); err != nil || location != nil {
			return Verdict{Path: Snapshotter, Location: location}, err
		}
	}
	if !s.csi {
		return none("the Velero server runs without --features=EnableCSI, and no VolumeSnapshotLocation of the backup takes it through Stillpoint"), nil
	}
	if !bound {
		verdict := none(fmt.Sprintf("the claim is %s", claim.Status.Phase))
		var err error
		verdict.Fails, err = s.misses(claim)
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
	if reason, err := s.stumbles(ctx, claim); reason != "" || err != nil {
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

// stumbles names what Velero's own action would stumble over before it creates
// a VolumeSnapshot. The error itself is Velero's to report.
func (s *Selection) stumbles(ctx context.Context, claim *corev1.PersistentVolumeClaim) (string, error) {
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
	if s.moves() {
		if err := s.mover(ctx); err != nil {
			return err.Error(), nil //nolint:nilerr // it is Velero's to report
		}
	}
	return "", nil
}

// selects says why the claim itself is not in the backup; "" if it is. With
// --include-cluster-resources=true Velero calls for every PersistentVolume of
// the cluster, whoever claims it.
func (s *Selection) selects(ctx context.Context, claim *corev1.PersistentVolumeClaim) (reason string, err error) {
	f, err := s.included(ctx)
	if err != nil {
		return "", err
	}
	if reason := f.Excludes(velero.Claims, claim); reason != "" || f.Collects(velero.Claims, claim) {
		return reason, nil
	}
	brought, err := s.brought(ctx, f, claim.Namespace)
	switch {
	case err != nil || brought[claim.Name]:
		return "", err
	case f.Policied(claim.Namespace):
		return "namespacedFilterPolicies of the backup's resource policies do not match it", nil
	}
	return "the backup's label selector does not match it", nil
}

// Pod reports whether a pod is in the backup by itself.
func (s *Selection) Pod(ctx context.Context, pod *corev1.Pod) (bool, error) {
	f, err := s.included(ctx)
	return err == nil && f.Excludes(velero.Pods, pod) == "" && f.Collects(velero.Pods, pod), err
}

// Namespace answers whether a namespace is in the backup.
func (s *Selection) Namespace(name string) bool {
	return collections.NewNamespaceIncludesExcludes().
		Includes(s.backup.Spec.IncludedNamespaces...).
		Excludes(s.backup.Spec.ExcludedNamespaces...).
		ShouldInclude(name)
}
