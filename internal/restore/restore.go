// Package restore decides how the snapshots in a backup come back in the
// cluster that is restored to: with which driver, class and deletion policy,
// and which volumes are refused. It changes what Velero's own actions have made
// of an item only where the configuration or a mark in the backup asks for it,
// and removes what a claim was filled from when that is done.
package restore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v6/clientset/versioned"
	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/util"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/mapping"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// Restorer works on the items of restores. Velero starts a process for each
// restore, so what it remembers is of one; it is safe for concurrent use.
type Restorer struct {
	clients   *cluster.Clients
	kube      kubernetes.Interface
	snapshots versioned.Interface
	clock     clock.PassiveClock
	log       logrus.FieldLogger
	// wait is how long the process of a restore waits for its claims.
	wait time.Duration

	mu       sync.Mutex
	restores map[types.UID]*memory
	// refused are the claims that were not restored, as backed up, by restore.
	refused map[types.UID][]types.NamespacedName
}

// memory is what is known of one restore. When the process dies in between it
// is gone, and what it knew is looked up in the cluster.
type memory struct {
	settings *config.Config
	err      error // that there are no settings
	// decided is by the VolumeSnapshot as backed up. Its content comes first,
	// and the claim that wants it last.
	decided map[types.NamespacedName]decision
	// parameters are those of the VolumeSnapshotClasses in the backup, as far as
	// they were restored.
	parameters map[string]map[string]string
	// filled are the PersistentVolumes, as backed up, that a VolumeSnapshotter has filled.
	filled map[string]bool
	// lent are the VolumeSnapshots that this process has restored for claims.
	lent []loan
	// backup is that which is restored from, nil until somebody asks.
	backup *velerov1.Backup
}

type decision struct {
	mapped *mapping.Mapped // nil where the maps do not name it
	// settled says that it is known whether the snapshot may be restored from.
	settled bool
	err     error
}

// Item is one object of a restore.
type Item struct {
	// Object is the item as Velero's own actions left it. It is changed in
	// place, and only in the fields that are mapped.
	Object *unstructured.Unstructured
	// BackedUp is the item as the backup has it.
	BackedUp *unstructured.Unstructured
	Restore  *velerov1.Restore
}

// NewRestorer returns a Restorer for the Velero that the clients reach.
func NewRestorer(clients *cluster.Clients, clock clock.PassiveClock, log logrus.FieldLogger) *Restorer {
	return &Restorer{
		clients: clients, kube: clients.Kube, snapshots: clients.Snapshots, clock: clock, log: log, wait: pollsWorth,
		restores: map[types.UID]*memory{}, refused: map[types.UID][]types.NamespacedName{},
	}
}

// of reads the configuration at the restore's first item. What could not be
// read stays an error to the end: half a restore with the maps and half
// without would be worse.
func (r *Restorer) of(ctx context.Context, restore *velerov1.Restore) *memory {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.restores[restore.UID]
	if !ok {
		known = &memory{decided: map[types.NamespacedName]decision{}, parameters: map[string]map[string]string{}, filled: map[string]bool{}}
		if known.settings, known.err = config.Load(ctx, r.kube, r.clients.VeleroNamespace); known.err != nil {
			known.err = fmt.Errorf("read the restore maps: %w", known.err)
		}
		r.restores[restore.UID] = known
	}
	return known
}

func (m *memory) maps() bool {
	return len(m.settings.Restore.Drivers)+len(m.settings.Restore.SnapshotClasses) > 0
}

// Class works on a VolumeSnapshotClass. skip says that it is not to be restored.
func (r *Restorer) Class(ctx context.Context, item Item) (skip bool, err error) {
	known := r.of(ctx, item.Restore)
	name := item.BackedUp.GetName()
	if known.err != nil {
		return false, fmt.Errorf("VolumeSnapshotClass %s is not restored: %w", name, known.err)
	}
	class := &snapshotv1.VolumeSnapshotClass{}
	if err := convert(item.BackedUp, class); err != nil {
		return false, err
	}
	r.mu.Lock()
	known.parameters[name] = class.Parameters
	r.mu.Unlock()
	if !known.maps() && !known.exportsOnly(class.Driver) {
		return false, nil
	}
	target, err := r.target(ctx)
	if err != nil {
		return false, fmt.Errorf("VolumeSnapshotClass %s is not restored: %w", name, err)
	}
	plan, err := mapping.MapClass(mapping.Source{Driver: class.Driver, Class: name}, known.settings, target, boolptr.IsSetToTrue(item.Restore.Spec.IncludeClusterResources))
	if err == nil && !plan.Skip && mapping.Named(plan.Name, target) == nil {
		err = usable(known.settings, class.Driver, plan.Driver, class.Parameters)
	}
	if err != nil {
		return false, fmt.Errorf("VolumeSnapshotClass %s is not restored: %w", name, err)
	}
	switch {
	case plan.Reason == "":
		return false, nil
	case plan.Skip:
		r.log.Infof("VolumeSnapshotClass %s of the backup is left out: %s", name, plan.Reason)
		return true, nil
	}
	r.log.Infof("VolumeSnapshotClass %s of the backup comes back as %s of driver %s: %s", name, plan.Name, plan.Driver, plan.Reason)
	item.Object.SetName(plan.Name)
	return false, set(item.Object, plan.Driver, "driver")
}

// Content works on a VolumeSnapshotContent: driver, class, deletion policy.
func (r *Restorer) Content(ctx context.Context, item Item) error {
	content := &snapshotv1.VolumeSnapshotContent{}
	if err := convert(item.BackedUp, content); err != nil {
		return err
	}
	snapshot := types.NamespacedName{Namespace: content.Spec.VolumeSnapshotRef.Namespace, Name: content.Spec.VolumeSnapshotRef.Name}
	known := r.of(ctx, item.Restore)
	decided := r.decide(ctx, known, snapshot, mapping.Source{Driver: content.Spec.Driver, Class: value(content.Spec.VolumeSnapshotClassName)}, content)
	if decided.err != nil {
		return fmt.Errorf("VolumeSnapshotContent %s of VolumeSnapshot %s is not restored: %w", content.Name, snapshot, r.advise(ctx, decided.err, types.NamespacedName{}))
	}
	if err := r.lend(ctx, item); err != nil {
		return fmt.Errorf("VolumeSnapshotContent %s of VolumeSnapshot %s is not restored: %w", content.Name, snapshot, err)
	}
	if mapped := decided.mapped; mapped != nil {
		r.log.Infof("VolumeSnapshotContent %s of VolumeSnapshot %s comes back with driver %s and class %s: %s",
			content.Name, snapshot, mapped.Driver, orNone(mapped.Class), mapped.Reason)
		if err := set(item.Object, mapped.Driver, "spec", "driver"); err != nil {
			return err
		}
		if mapped.Class == "" {
			unstructured.RemoveNestedField(item.Object.Object, "spec", "volumeSnapshotClassName")
		} else if err := set(item.Object, mapped.Class, "spec", "volumeSnapshotClassName"); err != nil {
			return err
		}
	}
	if policy := known.settings.Restore.DeletionPolicy; policy != "" {
		r.log.Infof("VolumeSnapshotContent %s of VolumeSnapshot %s comes back with deletion policy %s: restore.deletionPolicy", content.Name, snapshot, policy)
		return set(item.Object, string(policy), "spec", "deletionPolicy")
	}
	return nil
}

// Snapshot works on a VolumeSnapshot. Its class is Velero's to clear; driver
// and policy are annotations here, which say what its content has.
func (r *Restorer) Snapshot(ctx context.Context, item Item) error {
	snapshot := &snapshotv1.VolumeSnapshot{}
	if err := convert(item.BackedUp, snapshot); err != nil {
		return err
	}
	name := types.NamespacedName{Namespace: snapshot.Namespace, Name: snapshot.Name}
	known := r.of(ctx, item.Restore)
	decided := r.decide(ctx, known, name, mapping.Source{Driver: snapshot.Annotations[velerov1.DriverNameAnnotation], Class: value(snapshot.Spec.VolumeSnapshotClassName)}, snapshot)
	if decided.err == nil && (known.maps() || known.exportsOnly(snapshot.Annotations[velerov1.DriverNameAnnotation])) {
		if decided.err = r.hasContent(ctx, item.Object); decided.err != nil {
			r.remember(known, name, decided)
		}
	}
	if decided.err != nil {
		claim := types.NamespacedName{Namespace: snapshot.Namespace, Name: value(snapshot.Spec.Source.PersistentVolumeClaimName)}
		return errors.Join(fmt.Errorf("VolumeSnapshot %s is not restored: %w", name, r.advise(ctx, decided.err, claim)), r.dropContent(ctx, item))
	}
	if err := r.lend(ctx, item); err != nil {
		return fmt.Errorf("VolumeSnapshot %s is not restored: %w", name, err)
	}
	if decided.mapped != nil {
		if snapshot.Annotations[velerov1.VolumeGroupSnapshotHandleAnnotation] != "" {
			r.log.Warnf("VolumeSnapshot %s is of a group snapshot, for which Velero makes a VolumeGroupSnapshotContent of the backup's driver; the map does not reach that", name)
		}
		annotate(item.Object, velerov1.DriverNameAnnotation, decided.mapped.Driver)
	}
	if policy := known.settings.Restore.DeletionPolicy; policy != "" {
		annotate(item.Object, velerov1.VSCDeletionPolicyAnnotation, string(policy))
	}
	return nil
}

// dropContent removes the content of a VolumeSnapshot that is refused: whether
// the snapshot may be restored from was not known when it was made.
func (r *Restorer) dropContent(ctx context.Context, item Item) error {
	name, _, err := unstructured.NestedString(item.Object.Object, "spec", "source", "volumeSnapshotContentName")
	if err != nil || name == "" {
		return err
	}
	_, err = snapshot.Remove(ctx, r.snapshots, snapshot.Target{
		Namespace: targetNamespace(item.Restore, item.BackedUp.GetNamespace()), Name: item.Object.GetName(), Content: name,
		Policy: snapshotv1.VolumeSnapshotContentRetain,
	})
	return err
}

// hasContent is an error when the content that the VolumeSnapshot names is not
// there. It was restored just before, or refused, perhaps by a process that
// has died since.
func (r *Restorer) hasContent(ctx context.Context, snapshot *unstructured.Unstructured) error {
	name, _, err := unstructured.NestedString(snapshot.Object, "spec", "source", "volumeSnapshotContentName")
	if err != nil || name == "" {
		return err
	}
	_, err = r.snapshots.SnapshotV1().VolumeSnapshotContents().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("its VolumeSnapshotContent %s was not restored, for a reason among the errors of this restore", name)
	}
	if err != nil {
		return fmt.Errorf("get VolumeSnapshotContent %s: %w", name, err)
	}
	return nil
}

// Claim works on a PersistentVolumeClaim. It refuses one that would come back
// empty, and one whose VolumeSnapshot was refused. One that comes from a
// VolumeSnapshot has an operation, which removes that when it is not needed any
// more; "" is none.
func (r *Restorer) Claim(ctx context.Context, item Item) (operation string, err error) {
	operation, err = r.claim(ctx, item)
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.refused[item.Restore.UID] = append(r.refused[item.Restore.UID], types.NamespacedName{Namespace: item.BackedUp.GetNamespace(), Name: item.BackedUp.GetName()})
	}
	return operation, err
}

// StatefulSet refuses a StatefulSet that is missing a claim because that was
// refused: its controller would make the claim itself, empty. Velero restores
// claims first.
func (r *Restorer) StatefulSet(item Item) error {
	set := &appsv1.StatefulSet{}
	if err := convert(item.BackedUp, set); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, claim := range r.refused[item.Restore.UID] {
		for _, template := range set.Spec.VolumeClaimTemplates {
			ordinal, ok := strings.CutPrefix(claim.Name, template.Name+"-"+set.Name+"-")
			if _, err := strconv.Atoi(ordinal); claim.Namespace != set.Namespace || !ok || err != nil {
				continue
			}
			return fmt.Errorf("StatefulSet %s/%s is not restored: its claim %s was refused, and its controller would make an empty one", set.Namespace, set.Name, claim.Name)
		}
	}
	return nil
}

func (r *Restorer) claim(ctx context.Context, item Item) (operation string, err error) {
	claim := types.NamespacedName{Namespace: item.BackedUp.GetNamespace(), Name: item.BackedUp.GetName()}
	target := types.NamespacedName{Namespace: targetNamespace(item.Restore, claim.Namespace), Name: claim.Name}
	StripFinalizers(item.Object)
	if err := r.guard(ctx, item, claim, target); err != nil {
		return "", err
	}
	from := types.NamespacedName{Namespace: claim.Namespace, Name: item.BackedUp.GetAnnotations()[velerov1.VolumeSnapshotLabel]}
	if from.Name == "" {
		return "", nil
	}
	// Velero has pointed the claim at the VolumeSnapshot unless it leaves the
	// claim alone, has it filled otherwise, or was asked to make it empty.
	source := util.GenerateSha256FromRestoreUIDAndVsName(string(item.Restore.UID), from.Name)
	restored := &corev1.PersistentVolumeClaim{}
	if err := convert(item.Object, restored); err != nil {
		return "", err
	}
	pointed := restored.Spec.DataSource != nil && restored.Spec.DataSource.Name == source
	if known := r.of(ctx, item.Restore); pointed {
		if err := r.allowed(known, from); err != nil {
			return "", fmt.Errorf("claim %s is not restored: %w", claim, r.advise(ctx, err, claim))
		}
	} else if boolptr.IsSetToFalse(item.Restore.Spec.RestorePVs) {
		return "", nil
	}
	// The VolumeSnapshot may be there for a claim that Velero leaves alone, too.
	l := loan{target.Namespace, target.Name, source}
	there, err := r.lent(ctx, l, item.Restore)
	switch {
	case err != nil && pointed:
		return "", fmt.Errorf("claim %s is not restored: %w", claim, err)
	case err != nil:
		r.log.Warnf("Claim %s is there already, and what the restore has made for it stays: %v", target, err)
		return "", nil
	case !there && pointed:
		return "", fmt.Errorf("claim %s is not restored: its VolumeSnapshot %s, %s/%s here, was not restored, for a reason among the errors of this restore",
			claim, from, target.Namespace, source)
	case !there:
		return "", nil
	}
	return l.operation(), nil
}

// targetNamespace is where the restore brings a namespace of the backup.
func targetNamespace(restore *velerov1.Restore, namespace string) string {
	if mapped, ok := restore.Spec.NamespaceMapping[namespace]; ok {
		return mapped
	}
	return namespace
}

// exists tells whether the cluster has a claim that is not about to go.
func (r *Restorer) exists(ctx context.Context, claim types.NamespacedName) (bool, error) {
	live, err := r.kube.CoreV1().PersistentVolumeClaims(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get claim %s: %w", claim, err)
	}
	return live.DeletionTimestamp == nil, nil
}

// allowed is an error when the VolumeSnapshot that a claim is to come from was
// refused, as far as this process knows.
func (r *Restorer) allowed(known *memory, snapshot types.NamespacedName) error {
	if known.err != nil {
		return known.err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if decided := known.decided[snapshot]; decided.err != nil {
		return fmt.Errorf("its VolumeSnapshot %s was refused: %w", snapshot, decided.err)
	}
	return nil
}

// decide gives the decision on a snapshot, which is made once: content and
// VolumeSnapshot must not differ. item is the one of them that is restored.
func (r *Restorer) decide(ctx context.Context, known *memory, snapshot types.NamespacedName, source mapping.Source, item metav1.Object) decision {
	if known.err != nil {
		return decision{err: known.err}
	}
	r.mu.Lock()
	decided, ok := known.decided[snapshot]
	r.mu.Unlock()
	// Without a driver it is a VolumeSnapshot that no Velero has backed up with
	// its content, and all depends on that.
	if source.Driver == "" || (ok && (decided.settled || decided.err != nil)) {
		return decided
	}
	if !ok && known.maps() {
		target, err := r.target(ctx)
		if err == nil {
			decided.mapped, err = mapping.Map(source, known.settings, target)
		}
		decided.err = err
	}
	if decided.err == nil {
		decided.settled, decided.err = r.restorable(ctx, known, source, decided.mapped, item)
	}
	r.remember(known, snapshot, decided)
	return decided
}

func (r *Restorer) remember(known *memory, snapshot types.NamespacedName, decided decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known.decided[snapshot] = decided
}

// target is read for each decision: a restore brings classes along.
func (r *Restorer) target(ctx context.Context) (mapping.Target, error) {
	classes, err := r.snapshots.SnapshotV1().VolumeSnapshotClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return mapping.Target{}, fmt.Errorf("list VolumeSnapshotClasses: %w", err)
	}
	drivers, err := r.kube.StorageV1().CSIDrivers().List(ctx, metav1.ListOptions{})
	if err != nil {
		return mapping.Target{}, fmt.Errorf("list CSIDrivers: %w", err)
	}
	target := mapping.Target{Classes: classes.Items}
	for _, driver := range drivers.Items {
		target.Drivers = append(target.Drivers, driver.Name)
	}
	return target, nil
}

func convert(item *unstructured.Unstructured, into any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.Object, into); err != nil {
		return fmt.Errorf("read %s %s/%s: %w", item.GetKind(), item.GetNamespace(), item.GetName(), err)
	}
	return nil
}

func set(item *unstructured.Unstructured, value string, fields ...string) error {
	if err := unstructured.SetNestedField(item.Object, value, fields...); err != nil {
		return fmt.Errorf("change %s %s/%s: %w", item.GetKind(), item.GetNamespace(), item.GetName(), err)
	}
	return nil
}

func annotate(item *unstructured.Unstructured, key, value string) {
	annotations := item.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[key] = value
	item.SetAnnotations(annotations)
}

// unmark takes away what the backup's copy says of its origin.
func unmark(item *unstructured.Unstructured) {
	snapshot.Unmark(item)
	if len(item.GetLabels()) == 0 {
		item.SetLabels(nil)
	}
	unannotate(item, api.AnnotationExported)
}

func unannotate(item *unstructured.Unstructured, key string) {
	annotations := item.GetAnnotations()
	delete(annotations, key)
	if len(annotations) == 0 {
		annotations = nil
	}
	item.SetAnnotations(annotations)
}

func value(name *string) string {
	if name == nil {
		return ""
	}
	return *name
}

func orNone(class string) string {
	if class == "" {
		return "none"
	}
	return class
}
