package location

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/util/kube"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
)

const (
	// pause is the poll interval for objects that are created or deleted.
	pause = 200 * time.Millisecond
	// adoptionLimit is how long Velero takes at most to create the replacement of a
	// promoted volume.
	adoptionLimit = 2 * time.Minute
	// cleanup limits the clean-up after a failure.
	cleanup = time.Minute
)

// Promoter provisions PersistentVolumes from snapshots by a temporary claim. The
// storage's own provisioner copies the data.
type Promoter struct {
	clients *cluster.Clients
	log     logrus.FieldLogger
}

// NewPromoter returns a Promoter.
func NewPromoter(clients *cluster.Clients, log logrus.FieldLogger) *Promoter {
	return &Promoter{clients: clients, log: log}
}

// Promote creates a claim whose data source is the snapshot, waits until it is bound,
// sets the reclaim policy of its volume to Retain, deletes the claim and returns the
// volume. ctx limits all of it. After an error neither claim nor volume remains, or the
// error says so.
//
// nodes has the nodes to provision for, the best one first. It must not be empty if the
// StorageClass waits for the first consumer, since there is none yet.
func (p *Promoter) Promote(ctx context.Context, claim *corev1.PersistentVolumeClaim, nodes ...string) (*corev1.PersistentVolume, error) {
	p.deleteAllReplaced(ctx)
	installation, err := p.clients.Installation(ctx)
	if err != nil {
		return nil, err
	}
	claim = claim.DeepCopy()
	metav1.SetMetaDataLabel(&claim.ObjectMeta, api.LabelPromoted, installation)
	metav1.SetMetaDataLabel(&claim.ObjectMeta, velerov1.ExcludeFromBackupLabel, "true")
	if len(nodes) > 0 {
		metav1.SetMetaDataAnnotation(&claim.ObjectMeta, kube.KubeAnnSelectedNode, nodes[0])
	}
	claim, err = p.clients.Kube.CoreV1().PersistentVolumeClaims(claim.Namespace).Create(ctx, claim, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create the temporary claim of a restore: %w", err)
	}
	volume, err := p.provision(ctx, claim, nodes)
	if err == nil {
		volume, err = p.detach(ctx, claim, volume)
	}
	if err != nil {
		return nil, errors.Join(err, p.abandon(ctx, claim))
	}
	return volume, nil
}

// provision waits until a claim is bound, and returns its volume.
func (p *Promoter) provision(ctx context.Context, claim *corev1.PersistentVolumeClaim, nodes []string) (*corev1.PersistentVolume, error) {
	claims := p.clients.Kube.CoreV1().PersistentVolumeClaims(claim.Namespace)
	name, tried := "", 1
	err := wait.PollUntilContextCancel(ctx, pause, true, func(ctx context.Context) (bool, error) {
		now, err := claims.Get(ctx, claim.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) || err == nil && now.UID != claim.UID:
			return false, fmt.Errorf("claim %s/%s was deleted while its volume was provisioned", claim.Namespace, claim.Name)
		case err != nil:
			return false, nil //nolint:nilerr // transient, and ctx has an end
		case now.Status.Phase == corev1.ClaimBound:
			name = now.Spec.VolumeName
			return true, nil
		case len(nodes) > 0 && now.Annotations[kube.KubeAnnSelectedNode] == "":
			// The provisioner rejected the node.
			node := nodes[tried%len(nodes)]
			tried++
			p.log.Infof("Provisioning claim %s/%s for node %s, since the provisioner rejected the node before it", claim.Namespace, claim.Name, node)
			return false, p.annotate(ctx, claim, node)
		}
		return false, nil
	})
	if err != nil {
		return nil, fmt.Errorf("provision a volume of StorageClass %s by claim %s/%s: %w%s",
			ptr.Deref(claim.Spec.StorageClassName, ""), claim.Namespace, claim.Name, err, p.lastEvent(ctx, claim))
	}
	volume, err := p.clients.Kube.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get PersistentVolume %s of claim %s/%s: %w", name, claim.Namespace, claim.Name, err)
	}
	return volume, nil
}

func (p *Promoter) annotate(ctx context.Context, claim *corev1.PersistentVolumeClaim, node string) error {
	_, err := p.clients.Kube.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType,
		Merge(map[string]any{"metadata": map[string]any{"annotations": map[string]string{kube.KubeAnnSelectedNode: node}}}), metav1.PatchOptions{})
	if apierrors.IsConflict(err) || apierrors.IsServerTimeout(err) {
		return nil
	}
	return err
}

// Merge returns a JSON merge patch of a change that can always be encoded.
func Merge(change map[string]any) []byte {
	patch, _ := json.Marshal(change) //nolint:errchkjson // maps of strings
	return patch
}

// lastEvent returns the last event of a claim, preferably a warning, for an error.
func (p *Promoter) lastEvent(ctx context.Context, claim *corev1.PersistentVolumeClaim) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	events, err := p.clients.Kube.CoreV1().Events(claim.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"involvedObject.uid": string(claim.UID)}.String(),
	})
	if err != nil || len(events.Items) == 0 {
		return "; the claim has no events: is the provisioner of its StorageClass running?"
	}
	last := slices.MaxFunc(events.Items, func(a, b corev1.Event) int {
		return cmp.Or(
			first(b.Type == corev1.EventTypeWarning, a.Type == corev1.EventTypeWarning),
			a.LastTimestamp.Compare(b.LastTimestamp.Time))
	})
	return fmt.Sprintf("; its last event: %s: %s", last.Reason, last.Message)
}

// first compares two values by a condition: the one that meets it comes first.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// detach sets the reclaim policy of a volume to Retain, and deletes its claim.
func (p *Promoter) detach(ctx context.Context, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) (*corev1.PersistentVolume, error) {
	volumes := p.clients.Kube.CoreV1().PersistentVolumes()
	_, err := volumes.Patch(ctx, volume.Name, types.MergePatchType, Merge(map[string]any{
		"metadata": map[string]any{"labels": map[string]string{api.LabelPromoted: claim.Labels[api.LabelPromoted], velerov1.ExcludeFromBackupLabel: "true"}},
		"spec":     map[string]any{"persistentVolumeReclaimPolicy": corev1.PersistentVolumeReclaimRetain},
	}), metav1.PatchOptions{})
	if err != nil {
		return nil, fmt.Errorf("retain PersistentVolume %s of temporary claim %s/%s: %w", volume.Name, claim.Namespace, claim.Name, err)
	}
	if err := p.deleteClaim(ctx, claim); err != nil {
		return nil, err
	}
	// A Released volume is not bound again.
	err = wait.PollUntilContextCancel(ctx, pause, true, func(ctx context.Context) (bool, error) {
		now, err := volumes.Get(ctx, volume.Name, metav1.GetOptions{})
		if err != nil {
			return false, permanent(err)
		}
		volume = now
		return volume.Status.Phase == corev1.VolumeReleased, nil
	})
	if err != nil {
		return nil, fmt.Errorf("wait until PersistentVolume %s is Released: %w", volume.Name, err)
	}
	return volume, nil
}

// permanent returns an error that is not transient.
func permanent(err error) error {
	if apierrors.IsNotFound(err) {
		return err
	}
	return nil
}

func (p *Promoter) deleteClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	claims := p.clients.Kube.CoreV1().PersistentVolumeClaims(claim.Namespace)
	err := wait.PollUntilContextCancel(ctx, pause, true, func(ctx context.Context) (bool, error) {
		now, err := claims.Get(ctx, claim.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) || err == nil && now.UID != claim.UID:
			return true, nil
		case err == nil && now.DeletionTimestamp == nil:
			_ = claims.Delete(ctx, claim.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(claim.UID))})
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("delete the temporary claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return nil
}

// abandon deletes a claim and its volume after a failure.
func (p *Promoter) abandon(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
	defer cancel()
	volumes := p.clients.Kube.CoreV1().PersistentVolumes()
	now, err := p.clients.Kube.CoreV1().PersistentVolumeClaims(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
	name := ""
	if err == nil && now.UID == claim.UID {
		name = now.Spec.VolumeName
	}
	if err := p.deleteClaim(ctx, claim); err != nil {
		return err
	}
	if name == "" {
		name = "pvc-" + string(claim.UID) // as provisioners name it
	}
	volume, err := volumes.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil && volume.Spec.ClaimRef != nil && volume.Spec.ClaimRef.UID == claim.UID {
		_, err = volumes.Patch(ctx, name, types.MergePatchType,
			Merge(map[string]any{"spec": map[string]any{"persistentVolumeReclaimPolicy": corev1.PersistentVolumeReclaimDelete}}), metav1.PatchOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete the unused PersistentVolume %s: %w", name, err)
	}
	return nil
}

// Nodes returns the nodes to provision for if a StorageClass waits for the first
// consumer: ready nodes within its allowedTopologies, those of the zone first. It
// returns nil for a class that does not wait, and an error if no node fits.
func (p *Promoter) Nodes(ctx context.Context, class *storagev1.StorageClass, zone string) ([]string, error) {
	if ptr.Deref(class.VolumeBindingMode, storagev1.VolumeBindingImmediate) != storagev1.VolumeBindingWaitForFirstConsumer {
		return nil, nil
	}
	list, err := p.clients.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the nodes for a volume of StorageClass %s: %w", class.Name, err)
	}
	nodes := nodesFor(list.Items, class, zone)
	if len(nodes) == 0 {
		return nil, fmt.Errorf("StorageClass %s waits for the first consumer, and no node is ready, schedulable and within its allowedTopologies", class.Name)
	}
	return nodes, nil
}

func nodesFor(all []corev1.Node, class *storagev1.StorageClass, zone string) []string {
	nodes := slices.DeleteFunc(slices.Clone(all), func(node corev1.Node) bool {
		ready := slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
		return !ready || node.Spec.Unschedulable || !allowedOn(class.AllowedTopologies, node.Labels)
	})
	inZone := func(node corev1.Node) bool {
		return zone != "" && (node.Labels[corev1.LabelTopologyZone] == zone || node.Labels[corev1.LabelFailureDomainBetaZone] == zone)
	}
	slices.SortStableFunc(nodes, func(a, b corev1.Node) int {
		return cmp.Or(first(inZone(a), inZone(b)), strings.Compare(a.Name, b.Name))
	})
	var names []string
	for _, node := range nodes {
		names = append(names, node.Name)
	}
	return names
}

// allowedOn reports whether the labels of a node match one of the terms; no terms match
// all nodes.
func allowedOn(terms []corev1.TopologySelectorTerm, labels map[string]string) bool {
	return len(terms) == 0 || slices.ContainsFunc(terms, func(term corev1.TopologySelectorTerm) bool {
		return !slices.ContainsFunc(term.MatchLabelExpressions, func(e corev1.TopologySelectorLabelRequirement) bool {
			return !slices.Contains(e.Values, labels[e.Key])
		})
	})
}

// Adopt returns the volume that replaces a promoted volume. Source, size and
// annotations are the promoted volume's; name, labels, claim, reclaim policy and
// StorageClass are those of item, the volume as backed up. It gets another name if the
// item's exists.
//
// The promoted volume is deleted when Velero has created its replacement: until then it
// is the only object that refers to the data. If the restore ends first, the next one
// deletes it.
func (p *Promoter) Adopt(ctx context.Context, item, promoted *corev1.PersistentVolume) (*corev1.PersistentVolume, error) {
	volumes := p.clients.Kube.CoreV1().PersistentVolumes()
	adopted := adopt(item, promoted)
	_, err := volumes.Get(ctx, adopted.Name, metav1.GetOptions{})
	switch {
	case err == nil:
		adopted.Name = "velero-" + string(promoted.UID)
	case !apierrors.IsNotFound(err):
		return nil, fmt.Errorf("get PersistentVolume %s: %w", adopted.Name, err)
	}
	promoted, err = volumes.Patch(ctx, promoted.Name, types.MergePatchType,
		Merge(map[string]any{"metadata": map[string]any{"annotations": map[string]string{api.AnnotationReplacedBy: adopted.Name}}}), metav1.PatchOptions{})
	if err != nil {
		return nil, fmt.Errorf("note what takes the place of PersistentVolume %s: %w", promoted.Name, err)
	}
	go p.deleteWhenReplaced(context.WithoutCancel(ctx), promoted)
	return adopted, nil
}

// bindings has annotations about the binding of a volume.
var bindings = []string{kube.KubeAnnBoundByController, api.AnnotationReplacedBy}

func adopt(item, promoted *corev1.PersistentVolume) *corev1.PersistentVolume {
	adopted := item.DeepCopy()
	spec := &adopted.Spec
	spec.PersistentVolumeSource = promoted.Spec.PersistentVolumeSource
	spec.NodeAffinity, spec.VolumeMode = promoted.Spec.NodeAffinity, promoted.Spec.VolumeMode
	spec.Capacity = promoted.Spec.Capacity
	if len(promoted.Spec.MountOptions) > 0 {
		spec.MountOptions = promoted.Spec.MountOptions
	}
	if adopted.Annotations == nil {
		adopted.Annotations = map[string]string{}
	}
	maps.Copy(adopted.Annotations, promoted.Annotations)
	for _, key := range bindings {
		delete(adopted.Annotations, key)
	}
	for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion} {
		if value := promoted.Labels[key]; value != "" {
			metav1.SetMetaDataLabel(&adopted.ObjectMeta, key, value)
		}
	}
	return adopted
}

// deleteWhenReplaced deletes a promoted volume when its replacement exists.
func (p *Promoter) deleteWhenReplaced(ctx context.Context, promoted *corev1.PersistentVolume) {
	ctx, cancel := context.WithTimeout(ctx, adoptionLimit)
	defer cancel()
	err := wait.PollUntilContextCancel(ctx, pause, true, func(ctx context.Context) (bool, error) {
		return p.deleteReplaced(ctx, promoted), nil
	})
	if err != nil {
		p.log.Warnf("Velero did not create the replacement of PersistentVolume %s, which was provisioned from a snapshot, as PersistentVolume %s: "+
			"the former remains, with reclaim policy Retain", promoted.Name, promoted.Annotations[api.AnnotationReplacedBy])
	}
}

// deleteReplaced deletes a promoted volume whose replacement exists.
func (p *Promoter) deleteReplaced(ctx context.Context, promoted *corev1.PersistentVolume) bool {
	volumes := p.clients.Kube.CoreV1().PersistentVolumes()
	other, err := volumes.Get(ctx, promoted.Annotations[api.AnnotationReplacedBy], metav1.GetOptions{})
	if err != nil || !equality.Semantic.DeepEqual(other.Spec.PersistentVolumeSource, promoted.Spec.PersistentVolumeSource) {
		return false
	}
	err = volumes.Delete(ctx, promoted.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(promoted.UID))})
	return err == nil || apierrors.IsNotFound(err)
}

// Promoted returns the promoted volume for which is returns true, nil if there is none.
func (p *Promoter) Promoted(ctx context.Context, is func(*corev1.PersistentVolume) bool) (*corev1.PersistentVolume, error) {
	list, err := p.promoted(ctx)
	for i := range list {
		if is(&list[i]) {
			return &list[i], nil
		}
	}
	return nil, err
}

// promoted returns the promoted volumes of this installation.
func (p *Promoter) promoted(ctx context.Context) ([]corev1.PersistentVolume, error) {
	installation, err := p.clients.Installation(ctx)
	if err != nil {
		return nil, err
	}
	list, err := p.clients.Kube.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{LabelSelector: api.LabelPromoted + "=" + installation})
	if err != nil {
		return nil, fmt.Errorf("list the PersistentVolumes with the label %s: %w", api.LabelPromoted, err)
	}
	return list.Items, nil
}

// deleteAllReplaced deletes the promoted volumes of earlier restores whose replacement
// exists. An error does not fail the restore.
func (p *Promoter) deleteAllReplaced(ctx context.Context) {
	left, err := p.promoted(ctx)
	if err != nil {
		p.log.Infof("Could not list the promoted volumes of earlier restores: %v", err)
	}
	for i := range left {
		if left[i].Annotations[api.AnnotationReplacedBy] != "" {
			p.deleteReplaced(ctx, &left[i])
		}
	}
}
