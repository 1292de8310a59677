package restore

import (
	"cmp"
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
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/mapping"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// Restorer processes the items of restores. Velero starts a process for each restore, so
// a Restorer usually serves one. It is safe for concurrent use.
type Restorer struct {
	clients   *cluster.Clients
	kube      kubernetes.Interface
	snapshots versioned.Interface
	clock     clock.PassiveClock
	log       logrus.FieldLogger
	// wait is how long the process waits for the claims of its restore.
	wait time.Duration

	mu       sync.Mutex
	restores map[types.UID]*restoreState
	// refused has, by restore, the claims that are not restored, as backed up.
	refused map[types.UID][]types.NamespacedName
}

// restoreState is the state of one restore. A process that continues the restore reads
// it from the cluster.
type restoreState struct {
	settings *config.Config
	err      error // why the settings could not be read
	// decided is by the VolumeSnapshot as backed up. Velero restores its content
	// first and its claim last.
	decided map[types.NamespacedName]decision
	// parameters has the parameters of the VolumeSnapshotClasses in the backup.
	parameters map[string]map[string]string
	// filled has the PersistentVolumes, as backed up, that a VolumeSnapshotter filled.
	filled map[string]bool
	// restored are the VolumeSnapshots that this process has restored for claims.
	restored []restoredSnapshot
	// backup is the Backup that is restored from, nil until it is read.
	backup *velerov1.Backup
}

type decision struct {
	mapped *mapping.Mapped // nil if the maps do not name it
	// settled reports whether it is known that the snapshot can be restored from.
	settled bool
	err     error
}

// Item is one object of a restore.
type Item struct {
	// Object is the item as Velero's own actions left it. It is changed in place.
	Object *unstructured.Unstructured
	// BackedUp is the item as the backup has it.
	BackedUp *unstructured.Unstructured
	Restore  *velerov1.Restore
}

// NewRestorer returns a Restorer.
func NewRestorer(clients *cluster.Clients, clock clock.PassiveClock, log logrus.FieldLogger) *Restorer {
	return &Restorer{
		clients: clients, kube: clients.Kube, snapshots: clients.Snapshots, clock: clock, log: log, wait: waitLimit,
		restores: map[types.UID]*restoreState{}, refused: map[types.UID][]types.NamespacedName{},
	}
}

// of returns the state of a restore, and reads the configuration at the first item. A
// configuration error applies to the whole restore, so that all items are treated alike.
func (r *Restorer) of(ctx context.Context, restore *velerov1.Restore) *restoreState {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.restores[restore.UID]
	if !ok {
		known = &restoreState{decided: map[types.NamespacedName]decision{}, parameters: map[string]map[string]string{}, filled: map[string]bool{}}
		if known.settings, known.err = config.Load(ctx, r.kube, r.clients.VeleroNamespace); known.err != nil {
			known.err = fmt.Errorf("read the restore maps: %w", known.err)
		}
		r.restores[restore.UID] = known
	}
	return known
}

func (m *restoreState) maps() bool {
	return len(m.settings.Restore.Drivers)+len(m.settings.Restore.SnapshotClasses) > 0
}

// Class processes a VolumeSnapshotClass. skip excludes it from the restore.
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
	target, err := mapping.ReadTarget(ctx, r.clients)
	if err != nil {
		return false, fmt.Errorf("VolumeSnapshotClass %s is not restored: %w", name, err)
	}
	plan, err := mapping.MapClass(mapping.Source{Driver: class.Driver, Class: name}, known.settings, target, boolptr.IsSetToTrue(item.Restore.Spec.IncludeClusterResources))
	if err == nil && !plan.Skip && target.Class(plan.Name) == nil {
		err = usable(known.settings, class.Driver, plan.Driver, class.Parameters)
	}
	if err != nil {
		return false, fmt.Errorf("VolumeSnapshotClass %s is not restored: %w", name, err)
	}
	switch {
	case plan.Reason == "":
		return false, nil
	case plan.Skip:
		r.log.Infof("Skipped VolumeSnapshotClass %s of the backup: %s", name, plan.Reason)
		return true, nil
	}
	r.log.Infof("Mapped VolumeSnapshotClass %s of the backup to %s of driver %s: %s", name, plan.Name, plan.Driver, plan.Reason)
	item.Object.SetName(plan.Name)
	return false, set(item.Object, plan.Driver, "driver")
}

// Content sets driver, class and deletion policy of a VolumeSnapshotContent.
func (r *Restorer) Content(ctx context.Context, item Item) error {
	content := &snapshotv1.VolumeSnapshotContent{}
	if err := convert(item.BackedUp, content); err != nil {
		return err
	}
	snapshot := types.NamespacedName{Namespace: content.Spec.VolumeSnapshotRef.Namespace, Name: content.Spec.VolumeSnapshotRef.Name}
	known := r.of(ctx, item.Restore)
	decided := r.decide(ctx, known, snapshot, mapping.Source{Driver: content.Spec.Driver, Class: ptr.Deref(content.Spec.VolumeSnapshotClassName, "")}, content)
	if decided.err != nil {
		return fmt.Errorf("VolumeSnapshotContent %s of VolumeSnapshot %s is not restored: %w", content.Name, snapshot, r.withExport(ctx, decided.err, types.NamespacedName{}))
	}
	if err := r.mark(ctx, item); err != nil {
		return fmt.Errorf("VolumeSnapshotContent %s of VolumeSnapshot %s is not restored: %w", content.Name, snapshot, err)
	}
	if mapped := decided.mapped; mapped != nil {
		r.log.Infof("Mapped VolumeSnapshotContent %s of VolumeSnapshot %s to driver %s and class %s: %s",
			content.Name, snapshot, mapped.Driver, cmp.Or(mapped.Class, "none"), mapped.Reason)
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
		r.log.Infof("Set deletion policy %s on VolumeSnapshotContent %s of VolumeSnapshot %s: restore.deletionPolicy", policy, content.Name, snapshot)
		return set(item.Object, string(policy), "spec", "deletionPolicy")
	}
	return nil
}

// Snapshot sets the annotations of a VolumeSnapshot that name the driver and the
// deletion policy of its content. Velero clears the class itself.
func (r *Restorer) Snapshot(ctx context.Context, item Item) error {
	snapshot := &snapshotv1.VolumeSnapshot{}
	if err := convert(item.BackedUp, snapshot); err != nil {
		return err
	}
	name := types.NamespacedName{Namespace: snapshot.Namespace, Name: snapshot.Name}
	known := r.of(ctx, item.Restore)
	decided := r.decide(ctx, known, name, mapping.Source{Driver: snapshot.Annotations[velerov1.DriverNameAnnotation], Class: ptr.Deref(snapshot.Spec.VolumeSnapshotClassName, "")}, snapshot)
	if decided.err == nil && (known.maps() || known.exportsOnly(snapshot.Annotations[velerov1.DriverNameAnnotation])) {
		if decided.err = r.hasContent(ctx, item.Object); decided.err != nil {
			r.remember(known, name, decided)
		}
	}
	if decided.err != nil {
		claim := types.NamespacedName{Namespace: snapshot.Namespace, Name: ptr.Deref(snapshot.Spec.Source.PersistentVolumeClaimName, "")}
		return errors.Join(fmt.Errorf("VolumeSnapshot %s is not restored: %w", name, r.withExport(ctx, decided.err, claim)), r.dropContent(ctx, item))
	}
	if err := r.mark(ctx, item); err != nil {
		return fmt.Errorf("VolumeSnapshot %s is not restored: %w", name, err)
	}
	if decided.mapped != nil {
		if snapshot.Annotations[velerov1.VolumeGroupSnapshotHandleAnnotation] != "" {
			r.log.Warnf("restore.drivers does not apply to VolumeSnapshot %s: it belongs to a group snapshot, for which Velero creates a VolumeGroupSnapshotContent of the backup's driver", name)
		}
		annotate(item.Object, velerov1.DriverNameAnnotation, decided.mapped.Driver)
	}
	if policy := known.settings.Restore.DeletionPolicy; policy != "" {
		annotate(item.Object, velerov1.VSCDeletionPolicyAnnotation, string(policy))
	}
	return nil
}

// dropContent removes the content of a refused VolumeSnapshot. It was restored before
// it was known that the snapshot cannot be restored from.
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

// hasContent returns an error if the content of a VolumeSnapshot does not exist:
// Velero restores contents first, so it was refused, perhaps by an earlier process.
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

// Claim refuses a claim that would come back empty, or whose VolumeSnapshot was
// refused. For a claim that is filled from a VolumeSnapshot it returns the ID of the
// operation that removes the VolumeSnapshot when the claim no longer needs it.
func (r *Restorer) Claim(ctx context.Context, item Item) (operation string, err error) {
	operation, err = r.claim(ctx, item)
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.refused[item.Restore.UID] = append(r.refused[item.Restore.UID], types.NamespacedName{Namespace: item.BackedUp.GetNamespace(), Name: item.BackedUp.GetName()})
	}
	return operation, err
}

// StatefulSet refuses a StatefulSet one of whose claims was refused: its controller
// would create an empty claim. Velero restores claims first.
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
	// Velero makes the VolumeSnapshot the claim's data source unless the claim exists,
	// is filled in another way, or is to come back empty.
	source := util.GenerateSha256FromRestoreUIDAndVsName(string(item.Restore.UID), from.Name)
	restored := &corev1.PersistentVolumeClaim{}
	if err := convert(item.Object, restored); err != nil {
		return "", err
	}
	pointed := restored.Spec.DataSource != nil && restored.Spec.DataSource.Name == source
	if known := r.of(ctx, item.Restore); pointed {
		if err := r.allowed(known, from); err != nil {
			return "", fmt.Errorf("claim %s is not restored: %w", claim, r.withExport(ctx, err, claim))
		}
	} else if boolptr.IsSetToFalse(item.Restore.Spec.RestorePVs) {
		return "", nil
	}
	// The VolumeSnapshot can exist for a claim that Velero does not change, too.
	l := restoredSnapshot{target.Namespace, target.Name, source}
	there, err := r.ensureMarked(ctx, l, item.Restore)
	switch {
	case err != nil && pointed:
		return "", fmt.Errorf("claim %s is not restored: %w", claim, err)
	case err != nil:
		r.log.Warnf("Could not mark the VolumeSnapshot for clean-up that this restore created for existing claim %s: %v", target, err)
		return "", nil
	case !there && pointed:
		return "", fmt.Errorf("claim %s is not restored: its VolumeSnapshot %s, %s/%s here, was not restored, for a reason among the errors of this restore",
			claim, from, target.Namespace, source)
	case !there:
		return "", nil
	}
	return l.operation(), nil
}

// targetNamespace returns the namespace that a namespace of the backup is restored to.
func targetNamespace(restore *velerov1.Restore, namespace string) string {
	return cmp.Or(restore.Spec.NamespaceMapping[namespace], namespace)
}

// exists reports whether the cluster has a claim that is not being deleted.
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

// allowed returns an error if this process refused the VolumeSnapshot of a claim.
func (r *Restorer) allowed(known *restoreState, snapshot types.NamespacedName) error {
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

// decide returns the decision on a snapshot. It is made once, so that content and
// VolumeSnapshot agree. item is the one of them that is restored.
func (r *Restorer) decide(ctx context.Context, known *restoreState, snapshot types.NamespacedName, source mapping.Source, item metav1.Object) decision {
	if known.err != nil {
		return decision{err: known.err}
	}
	r.mu.Lock()
	decided, ok := known.decided[snapshot]
	r.mu.Unlock()
	// A VolumeSnapshot without the annotation of its driver was backed up without its
	// content, on which everything depends.
	if source.Driver == "" || (ok && (decided.settled || decided.err != nil)) {
		return decided
	}
	if !ok && known.maps() {
		target, err := mapping.ReadTarget(ctx, r.clients) // a restore adds classes
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

func (r *Restorer) remember(known *restoreState, snapshot types.NamespacedName, decided decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known.decided[snapshot] = decided
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

// unmark removes the labels and annotations of an object's origin.
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
