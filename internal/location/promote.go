package location

import (
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
	// pause lies between two looks at something that is to come or go.
	pause = 200 * time.Millisecond
	// handover is how long Velero may take to create the volume that it was given.
	handover = 2 * time.Minute
	// cleanup is how long it may take to undo what has failed.
	cleanup = time.Minute
)

// Promoter turns snapshots into PersistentVolumes, through a temporary claim:
// the storage's own provisioner does the work.
type Promoter struct {
	clients *cluster.Clients
	log     logrus.FieldLogger
}

// NewPromoter returns a Promoter.
func NewPromoter(clients *cluster.Clients, log logrus.FieldLogger) *Promoter {
	return &Promoter{clients: clients, log: log}
}

// Promote creates the claim, which says where its data comes from, waits until it
// is bound, has its volume outlive it, and deletes it. The volume is returned with
// the reclaim policy Retain and without a claim. ctx bounds all of it; after an
// error neither claim nor volume is left, or the error says so.
//
// nodes are those to provision for, the best one first, where the StorageClass
// waits for the first consumer: there is none yet. They must not be empty then.
func (p *Promoter) Promote(ctx context.Context, claim *corev1.PersistentVolumeClaim, nodes ...string) (*corev1.PersistentVolume, error) {
	p.tidy(ctx)
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
		return nil, fmt.Errorf("create the claim that a volume is provisioned by: %w", err)
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
			return false, nil //nolint:nilerr // it may pass, and ctx has an end
		case now.Status.Phase == corev1.ClaimBound:
			name = now.Spec.VolumeName
			return true, nil
		case len(nodes) > 0 && now.Annotations[kube.KubeAnnSelectedNode] == "":
			// The provisioner gives a node back that it cannot provision for.
			node := nodes[tried%len(nodes)]
			tried++
			p.log.Infof("Claim %s/%s cannot be provisioned for the node tried last, trying %s", claim.Namespace, claim.Name, node)
			return false, p.annotate(ctx, claim, node)
		}
		return false, nil
	})
	if err != nil {
		return nil, fmt.Errorf("provision a volume of StorageClass %s by claim %s/%s: %w%s",
			ptr.Deref(claim.Spec.StorageClassName, ""), claim.Namespace, claim.Name, err, p.trouble(ctx, claim))
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

// Merge is a JSON merge patch; what it is made of cannot fail to be encoded.
func Merge(change map[string]any) []byte {
	patch, _ := json.Marshal(change) //nolint:errchkjson // maps of strings
	return patch
}

// trouble is what the last warning of a claim's events says, for an error.
func (p *Promoter) trouble(ctx context.Context, claim *corev1.PersistentVolumeClaim) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	events, err := p.clients.Kube.CoreV1().Events(claim.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"involvedObject.uid": string(claim.UID)}.String(),
	})
	if err != nil || len(events.Items) == 0 {
		return "; the claim has no events: is the provisioner of its StorageClass running?"
	}
	last := slices.MaxFunc(events.Items, func(a, b corev1.Event) int {
		warns := func(e corev1.Event) int {
			if e.Type == corev1.EventTypeWarning {
				return 1
			}
			return 0
		}
		if d := warns(a) - warns(b); d != 0 {
			return d
		}
		return a.LastTimestamp.Compare(b.LastTimestamp.Time)
	})
	return fmt.Sprintf("; its last event: %s: %s", last.Reason, last.Message)
}

// detach has a volume stay, and deletes its claim.
func (p *Promoter) detach(ctx context.Context, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) (*corev1.PersistentVolume, error) {
	volumes := p.clients.Kube.CoreV1().PersistentVolumes()
	_, err := volumes.Patch(ctx, volume.Name, types.MergePatchType, Merge(map[string]any{
		"metadata": map[string]any{"labels": map[string]string{api.LabelPromoted: claim.Labels[api.LabelPromoted], velerov1.ExcludeFromBackupLabel: "true"}},
		"spec":     map[string]any{"persistentVolumeReclaimPolicy": corev1.PersistentVolumeReclaimRetain},
	}), metav1.PatchOptions{})
	if err != nil {
		return nil, fmt.Errorf("have PersistentVolume %s outlive its claim %s/%s: %w", volume.Name, claim.Namespace, claim.Name, err)
	}
	if err := p.deleteClaim(ctx, claim); err != nil {
		return nil, err
	}
	// Released, it takes part in no binding any more.
	err = wait.PollUntilContextCancel(ctx, pause, true, func(ctx context.Context) (bool, error) {
		now, err := volumes.Get(ctx, volume.Name, metav1.GetOptions{})
		if err != nil {
			return false, client404(err)
		}
		volume = now
		return volume.Status.Phase == corev1.VolumeReleased, nil
	})
	if err != nil {
		return nil, fmt.Errorf("wait until PersistentVolume %s is Released: %w", volume.Name, err)
	}
	return volume, nil
}

// client404 keeps an error that will not pass.
func client404(err error) error {
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

// abandon takes a claim away whose volume is of no use, and the volume with it.
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
		name = "pvc-" + string(claim.UID) // what provisioners call it
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
		return fmt.Errorf("PersistentVolume %s, which nobody needs, is left: %w", name, err)
	}
	return nil
}

// Nodes are those to provision for, where a StorageClass waits for the first
// consumer: ready ones that its topology allows, those of the zone first. It is
// nil for a class that does not wait, and an error where no node would do.
func (p *Promoter) Nodes(ctx context.Context, class *storagev1.StorageClass, zone string) ([]string, error) {
	if ptr.Deref(class.VolumeBindingMode, storagev1.VolumeBindingImmediate) != storagev1.VolumeBindingWaitForFirstConsumer {
		return nil, nil
	}
	list, err := p.clients.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the nodes that a volume of StorageClass %s could be for: %w", class.Name, err)
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
		return !ready || node.Spec.Unschedulable || !allowed(class.AllowedTopologies, node.Labels)
	})
	there := func(node corev1.Node) int {
		if zone != "" && (node.Labels[corev1.LabelTopologyZone] == zone || node.Labels[corev1.LabelFailureDomainBetaZone] == zone) {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(nodes, func(a, b corev1.Node) int {
		if d := there(a) - there(b); d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
	var names []string
	for _, node := range nodes {
		names = append(names, node.Name)
	}
	return names
}

// allowed tells whether a node's labels match one of the terms; no terms match
// all.
func allowed(terms []corev1.TopologySelectorTerm, labels map[string]string) bool {
	return len(terms) == 0 || slices.ContainsFunc(terms, func(term corev1.TopologySelectorTerm) bool {
		return !slices.ContainsFunc(term.MatchLabelExpressions, func(e corev1.TopologySelectorLabelRequirement) bool {
			return !slices.Contains(e.Values, labels[e.Key])
		})
	})
}

// Adopt makes of item, a volume as it was backed up, the one that takes the place
// of a promoted volume: where the data lies and how it is reached, the size, and
// what the provisioner knows its volumes by are the promoted volume's; name,
// labels, claim, reclaim policy and StorageClass are the item's. The name is
// another one where the item's is taken.
//
// The promoted volume goes when Velero has created its replacement, and not
// before: until then it is all that knows of the data. A restore that ends first
// leaves it to the next one.
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
	go p.handOver(context.WithoutCancel(ctx), promoted)
	return adopted, nil
}

// bindings are annotations of a volume that say how it was bound.
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

// handOver waits for Velero, and deletes a promoted volume when another has taken
// its place.
func (p *Promoter) handOver(ctx context.Context, promoted *corev1.PersistentVolume) {
	ctx, cancel := context.WithTimeout(ctx, handover)
	defer cancel()
	err := wait.PollUntilContextCancel(ctx, pause, true, func(ctx context.Context) (bool, error) {
		return p.replaced(ctx, promoted), nil
	})
	if err != nil {
		p.log.Warnf("PersistentVolume %s was provisioned from a snapshot, and Velero has not created PersistentVolume %s in its place: it is left, "+
			"with the reclaim policy Retain", promoted.Name, promoted.Annotations[api.AnnotationReplacedBy])
	}
}

// replaced deletes a promoted volume whose replacement is there.
func (p *Promoter) replaced(ctx context.Context, promoted *corev1.PersistentVolume) bool {
	volumes := p.clients.Kube.CoreV1().PersistentVolumes()
	other, err := volumes.Get(ctx, promoted.Annotations[api.AnnotationReplacedBy], metav1.GetOptions{})
	if err != nil || !equality.Semantic.DeepEqual(other.Spec.PersistentVolumeSource, promoted.Spec.PersistentVolumeSource) {
		return false
	}
	err = volumes.Delete(ctx, promoted.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(promoted.UID))})
	return err == nil || apierrors.IsNotFound(err)
}

// Promoted finds the volume that was promoted and has that storage behind it; nil
// when there is none.
func (p *Promoter) Promoted(ctx context.Context, is func(*corev1.PersistentVolume) bool) (*corev1.PersistentVolume, error) {
	list, err := p.left(ctx)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if is(&list[i]) {
			return &list[i], nil
		}
	}
	return nil, nil //nolint:nilnil // none is a valid answer
}

func (p *Promoter) left(ctx context.Context) ([]corev1.PersistentVolume, error) {
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

// tidy deletes what an earlier restore had to leave, now that the replacement is
// there. Its trouble is not the restore's.
func (p *Promoter) tidy(ctx context.Context) {
	left, err := p.left(ctx)
	if err != nil {
		p.log.Infof("What earlier restores have left is not known: %v", err)
	}
	for i := range left {
		if left[i].Annotations[api.AnnotationReplacedBy] != "" {
			p.replaced(ctx, &left[i])
		}
	}
}
