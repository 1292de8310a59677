package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	"github.com/vmware-tanzu/velero/pkg/util/collections"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/mapping"
)

// exportsOnly reports whether snapshots of a driver in the backup can only be
// restored from their export.
func (m *restoreState) exportsOnly(driver string) bool {
	here, _ := m.settings.Restore.Driver(driver)
	return exportsOnly(m.settings, driver, here)
}

// exportsOnly follows the profile of the driver in this cluster, which restores.
func exportsOnly(settings *config.Config, source, target string) bool {
	return settings.Driver(target).RestoreFrom == config.RestoreFromExport ||
		(source == target && settings.Driver(source).RestoreFrom == config.RestoreFromExport)
}

// exportedBy reports whether a driver, by either of its names, exports the snapshots
// of a class.
func exportedBy(settings *config.Config, source, target string, parameters map[string]string) bool {
	return settings.Driver(source).Exported(parameters) || settings.Driver(target).Exported(parameters)
}

// usable returns an error for a VolumeSnapshotClass none of whose snapshots can be
// restored from.
func usable(settings *config.Config, source, target string, parameters map[string]string) error {
	if !exportsOnly(settings, source, target) || exportedBy(settings, source, target, parameters) {
		return nil
	}
	return fmt.Errorf("driver %s restores from exports only (restoreFrom: export in its profile), and snapshots of this class stay in the storage; "+
		"back up with data movement, and leave the class out with restore.snapshotClasses and skip: true", target)
}

// restorable returns an error for a snapshot that was not exported, of a driver that
// restores from exports only. settled is false if this item does not say so: a
// VolumeSnapshot has more information than its content.
func (r *Restorer) restorable(ctx context.Context, known *restoreState, source mapping.Source, mapped *mapping.Mapped, item metav1.Object) (settled bool, err error) {
	driver, _ := known.settings.Restore.Driver(source.Driver)
	if !exportsOnly(known.settings, source.Driver, driver) {
		return true, nil
	}
	var why string
	switch item.GetAnnotations()[api.AnnotationExported] {
	case "true":
		return true, nil
	case "false":
		why = "according to the backup it was not exported"
	default:
		parameters, found, err := r.classParameters(ctx, known, source, mapped)
		switch {
		case err != nil:
			return true, err
		case exportedBy(known.settings, source.Driver, driver, parameters):
			return true, nil
		case found:
			why = fmt.Sprintf("VolumeSnapshotClass %s has no parameter by which the driver exports", source.Class)
		default:
			why = fmt.Sprintf("VolumeSnapshotClass %s, which shows whether it was exported, exists neither here nor in this restore", cmp.Or(source.Class, "none"))
		}
		if _, isContent := item.(*snapshotv1.VolumeSnapshotContent); isContent && !found {
			return false, nil
		}
	}
	return true, &localError{driver, why}
}

// localError is the error of a snapshot that was not exported, of a driver that
// restores from exports only.
type localError struct{ driver, why string }

func (e *localError) Error() string {
	return fmt.Sprintf("driver %s restores from exports only (restoreFrom: export in its profile), and this snapshot stayed in the storage: %s", e.driver, e.why)
}

// withExport adds to a localError which backup has an export of the claim. The name of
// the claim is "" if only the VolumeSnapshot names it.
func (r *Restorer) withExport(ctx context.Context, err error, claim types.NamespacedName) error {
	if local := (*localError)(nil); !errors.As(err, &local) {
		return err
	}
	if claim.Name == "" {
		return fmt.Errorf("%w; the error of its VolumeSnapshot says which backup has an export", err)
	}
	return fmt.Errorf("%w; %s", err, r.exportAdvice(ctx, claim))
}

// classParameters returns the parameters of the class that a snapshot was taken with:
// the class in the backup, in the cluster, or the one that replaces it here.
func (r *Restorer) classParameters(ctx context.Context, known *restoreState, source mapping.Source, mapped *mapping.Mapped) (parameters map[string]string, found bool, err error) {
	r.mu.Lock()
	parameters, found = known.parameters[source.Class]
	r.mu.Unlock()
	if found || source.Class == "" {
		return parameters, found, nil
	}
	target, err := mapping.ReadTarget(ctx, r.clients)
	if err != nil {
		return nil, false, err
	}
	if class := target.Class(source.Class); class != nil && class.Driver == source.Driver {
		return class.Parameters, true, nil
	}
	if _, entry := mapping.ClassEntry(known.settings.Restore, source.Class); entry && mapped != nil && mapped.Class != "" {
		if class := target.Class(mapped.Class); class != nil {
			return class.Parameters, true, nil
		}
	}
	return nil, false, nil
}

// exportAdvice returns which backup has an export of a claim, for an error.
func (r *Restorer) exportAdvice(ctx context.Context, claim types.NamespacedName) string {
	backups, uploads := &velerov1.BackupList{}, &velerov2alpha1.DataUploadList{}
	err := r.clients.Objects.List(ctx, backups, crclient.InNamespace(r.clients.VeleroNamespace))
	if err == nil {
		err = r.clients.Objects.List(ctx, uploads, crclient.InNamespace(r.clients.VeleroNamespace))
	}
	if err != nil {
		return fmt.Sprintf("which backup has an export of claim %s could not be found out: %v", claim, err)
	}
	return exportOf(claim, backups.Items, uploads.Items)
}

// exportOf names the newest backup that exported a claim, or else the backups of
// another cluster that may have.
func exportOf(claim types.NamespacedName, backups []velerov1.Backup, uploads []velerov2alpha1.DataUpload) string {
	var newest *velerov1.Backup
	var maybe []string
	for i := range backups {
		backup := &backups[i]
		phase := backup.Status.Phase
		if !boolptr.IsSetToTrue(backup.Spec.SnapshotMoveData) || (phase != velerov1.BackupPhaseCompleted && phase != velerov1.BackupPhasePartiallyFailed) {
			continue
		}
		of := func(u velerov2alpha1.DataUpload) bool {
			return u.Labels[velerov1.BackupNameLabel] == label.GetValidName(backup.Name)
		}
		switch {
		case slices.ContainsFunc(uploads, func(u velerov2alpha1.DataUpload) bool {
			return of(u) && u.Status.Phase == velerov2alpha1.DataUploadPhaseCompleted && u.Spec.SourceNamespace == claim.Namespace && u.Spec.SourcePVC == claim.Name
		}):
			if newest == nil || started(backup).After(started(newest)) {
				newest = backup
			}
		case !slices.ContainsFunc(uploads, of) && collections.NewNamespaceIncludesExcludes().
			Includes(backup.Spec.IncludedNamespaces...).Excludes(backup.Spec.ExcludedNamespaces...).ShouldInclude(claim.Namespace):
			maybe = append(maybe, backup.Name)
		}
	}
	switch {
	case newest != nil:
		return fmt.Sprintf("backup %s of %s has an export of claim %s", newest.Name, started(newest).UTC().Format(time.RFC3339), claim)
	case len(maybe) > 0:
		slices.Sort(maybe)
		return fmt.Sprintf("no backup that was made here has an export of claim %s; one of another cluster may: %s", claim, strings.Join(maybe, ", "))
	}
	return fmt.Sprintf("no backup has an export of claim %s", claim)
}

func started(backup *velerov1.Backup) time.Time {
	return ptr.Deref(backup.Status.StartTimestamp, backup.CreationTimestamp).Time
}
