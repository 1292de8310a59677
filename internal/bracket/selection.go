package bracket

import (
	"context"
	"fmt"
	"slices"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/nodeagent"
	"github.com/vmware-tanzu/velero/pkg/plugin/utils/volumehelper"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	"github.com/vmware-tanzu/velero/pkg/util/collections"
	"github.com/vmware-tanzu/velero/pkg/util/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// excludeLabel keeps an object out of every backup (Velero's documentation of
// resource filtering).
const excludeLabel = "velero.io/exclude-from-backup"

// selection answers whether Velero is about to snapshot a volume, with
// Velero's own code wherever it can be called.
type selection struct {
	backup *velerov1.Backup
	client crclient.Client
	// csi tells that the server runs with the EnableCSI feature.
	csi bool
	log logrus.FieldLogger
}

// snapshots returns "" when Velero will take a CSI snapshot of claim in this
// backup, otherwise why it will not. Freezing for a volume with a reason would
// stop an application for nothing.
func (s *selection) snapshots(ctx context.Context, claim *corev1.PersistentVolumeClaim) (reason string, err error) {
	switch s.backup.Status.Phase {
	case velerov1.BackupPhaseFinalizing, velerov1.BackupPhaseFinalizingPartiallyFailed:
		return "the backup is finalizing", nil
	default:
	}
	if !s.csi {
		return "the Velero server runs without --features=EnableCSI", nil
	}
	if claim.Status.Phase != corev1.ClaimBound || claim.Spec.VolumeName == "" {
		return fmt.Sprintf("the claim is %s", claim.Status.Phase), nil
	}
	if claim.Spec.StorageClassName == nil {
		return "the claim has no storage class, which Velero needs to find a VolumeSnapshotClass", nil
	}
	if reason, err := s.selects(ctx, claim); reason != "" || err != nil {
		return reason, err
	}

	volume := &corev1.PersistentVolume{}
	if err := s.client.Get(ctx, crclient.ObjectKey{Name: claim.Spec.VolumeName}, volume); err != nil {
		return "", fmt.Errorf("get PersistentVolume %s: %w", claim.Spec.VolumeName, err)
	}
	if volume.Spec.CSI == nil {
		return fmt.Sprintf("PersistentVolume %s is not a CSI volume", volume.Name), nil
	}
	if chosen, err := s.policy(claim); err != nil || !chosen {
		return "a volume policy, fs-backup or snapshotVolumes=false leaves it out", err
	}
	return s.obstacle(ctx, claim)
}

// obstacle names what Velero's own action would stumble over before it creates
// a VolumeSnapshot. The error itself is Velero's to report.
func (s *selection) obstacle(ctx context.Context, claim *corev1.PersistentVolumeClaim) (string, error) {
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
	if boolptr.IsSetToTrue(s.backup.Spec.SnapshotMoveData) && builtInMover(s.backup.Spec.DataMover) {
		if err := nodeagent.IsReady(ctx, s.backup.Namespace, s.client); err != nil {
			return fmt.Sprintf("the data mover is not ready: %v", err), nil
		}
	}
	return "", nil
}

// builtInMover is datamover.IsBuiltInUploader of Velero 1.18, whose package
// would bring the client libraries of every cloud into the plugin.
func builtInMover(name string) bool { return name == "" || name == "velero" }

// policy asks Velero's volume helper. The one that plugins can reach reads the
// backup's own volume policies only; the server's global ones, which Velero
// puts behind these, are asked by a second call with the ConfigMap that the
// backup names.
func (s *selection) policy(claim *corev1.PersistentVolumeClaim) (bool, error) {
	own, err := s.ask(s.backup, claim)
	if err != nil || !own {
		return false, err
	}
	global := s.backup.Annotations[velerov1.GlobalBackupVolumePolicyConfigMapAnnotation]
	if global == "" {
		return true, nil
	}
	// With snapshots off, yes can only come from an entry that says snapshot.
	strict := s.backup.DeepCopy()
	strict.Spec.SnapshotVolumes = boolptr.False()
	if matched, err := s.ask(strict, claim); err != nil || matched {
		return matched, err
	}
	behind := s.backup.DeepCopy()
	behind.Spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: global}
	return s.ask(behind, claim)
}

func (s *selection) ask(backup *velerov1.Backup, claim *corev1.PersistentVolumeClaim) (bool, error) {
	helper, err := volumehelper.NewVolumeHelperWithCache(*backup, s.client, s.log, nil)
	if err != nil {
		return false, fmt.Errorf("read the volume policies of backup %s: %w", backup.Name, err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(claim)
	if err != nil {
		return false, fmt.Errorf("convert claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	chosen, err := helper.ShouldPerformSnapshot(&unstructured.Unstructured{Object: content}, kuberesource.PersistentVolumeClaims)
	if err != nil {
		return false, fmt.Errorf("match the volume policies for claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return chosen, nil
}

// selects answers whether the claim itself is in the backup. With
// --include-cluster-resources=true Velero calls for every PersistentVolume of
// the cluster, whoever claims it.
func (s *selection) selects(ctx context.Context, claim *corev1.PersistentVolumeClaim) (reason string, err error) {
	if !s.namespace(claim.Namespace) {
		return fmt.Sprintf("namespace %s is not in the backup", claim.Namespace), nil
	}
	if !s.resource("persistentvolumeclaims", "persistentvolumeclaim", "pvc") {
		return "the backup leaves out persistentvolumeclaims", nil
	}
	if claim.Labels[excludeLabel] == "true" {
		return "the claim has the label " + excludeLabel, nil
	}
	if s.labels(claim.Labels) {
		return "", nil
	}
	// Velero takes a pod's claims along without looking at their labels.
	if s.resource("pods", "pod", "po") {
		pods := &corev1.PodList{}
		if err := s.client.List(ctx, pods, crclient.InNamespace(claim.Namespace)); err != nil {
			return "", fmt.Errorf("list the pods of namespace %s: %w", claim.Namespace, err)
		}
		for _, pod := range pods.Items {
			if s.pod(&pod) && slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
				return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim.Name
			}) {
				return "", nil
			}
		}
	}
	return "the backup's label selector does not match it", nil
}

// pod answers whether a pod is in the backup.
func (s *selection) pod(pod *corev1.Pod) bool {
	return s.namespace(pod.Namespace) && s.resource("pods", "pod", "po") &&
		pod.Labels[excludeLabel] != "true" && s.labels(pod.Labels)
}

func (s *selection) namespace(name string) bool {
	return collections.NewNamespaceIncludesExcludes().
		Includes(s.backup.Spec.IncludedNamespaces...).
		Excludes(s.backup.Spec.ExcludedNamespaces...).
		ShouldInclude(name)
}

// resource matches a namespaced resource, by any of its names, with the old
// resource filters and with the scoped ones.
func (s *selection) resource(names ...string) bool {
	spec := s.backup.Spec
	listed := func(list []string) bool {
		return slices.ContainsFunc(list, func(item string) bool { return item == "*" || slices.Contains(names, item) })
	}
	if listed(spec.ExcludedResources) || listed(spec.ExcludedNamespaceScopedResources) {
		return false
	}
	included := slices.Concat(spec.IncludedResources, spec.IncludedNamespaceScopedResources)
	return len(included) == 0 || listed(included)
}

func (s *selection) labels(of map[string]string) bool {
	selectors := s.backup.Spec.OrLabelSelectors
	if s.backup.Spec.LabelSelector != nil {
		selectors = append(slices.Clone(selectors), s.backup.Spec.LabelSelector)
	}
	if len(selectors) == 0 {
		return true
	}
	return slices.ContainsFunc(selectors, func(selector *metav1.LabelSelector) bool {
		parsed, err := metav1.LabelSelectorAsSelector(selector)
		return err == nil && parsed.Matches(labels.Set(of))
	})
}
