package mapping

import (
	"context"
	"fmt"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/snapshotclass"
)

// Target is what the cluster that is restored to has.
type Target struct {
	Drivers []string // names of its CSIDrivers
	Classes []snapshotv1.VolumeSnapshotClass
}

// ReadTarget returns the drivers and classes of the cluster.
func ReadTarget(ctx context.Context, clients *cluster.Clients) (Target, error) {
	classes, err := clients.Snapshots.SnapshotV1().VolumeSnapshotClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return Target{}, fmt.Errorf("list VolumeSnapshotClasses: %w", err)
	}
	drivers, err := clients.Kube.StorageV1().CSIDrivers().List(ctx, metav1.ListOptions{})
	if err != nil {
		return Target{}, fmt.Errorf("list CSIDrivers: %w", err)
	}
	target := Target{Classes: classes.Items}
	for _, driver := range drivers.Items {
		target.Drivers = append(target.Drivers, driver.Name)
	}
	return target, nil
}

// Class returns the class of that name, nil if it does not exist.
func (t Target) Class(name string) *snapshotv1.VolumeSnapshotClass {
	i := slices.IndexFunc(t.Classes, func(c snapshotv1.VolumeSnapshotClass) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &t.Classes[i]
}

// classesOf returns the names of a driver's classes.
func (t Target) classesOf(driver string) sets.Set[string] {
	names := sets.New[string]()
	for _, class := range t.Classes {
		if class.Driver == driver {
			names.Insert(class.Name)
		}
	}
	return names
}

// Source is the driver and the class of a snapshot in a backup.
type Source struct {
	Driver string
	Class  string // "" for a snapshot without one
}

// Mapped is the driver and the class that a snapshot comes back with.
type Mapped struct {
	Driver string
	// Class is "" if the driver has no class in this cluster. Velero's content then
	// has no class either.
	Class string
	// Reason names the entries that decided, for the log of the restore.
	Reason string
}

// Map decides on the driver first and then on the class: by the class's own entry,
// else by the rules for that driver. It returns nil if the maps name neither.
func Map(source Source, settings *config.Config, target Target) (*Mapped, error) {
	entry, classMapped := ClassEntry(settings.Restore, source.Class)
	driver, driverReason, err := driverOf(source.Driver, settings.Restore, target)
	switch {
	case err != nil:
		return nil, err
	case driverReason == "" && !classMapped:
		return nil, nil //nolint:nilnil // see above
	}
	mapped := &Mapped{Driver: driver}
	classReason := ""
	switch {
	case classMapped && !entry.Skip:
		if err := fits(entry, driver, target); err != nil {
			return nil, err
		}
		mapped.Class, classReason = entry.To, "class by "+show(entry)
	case len(target.classesOf(driver)) == 0:
		classReason = fmt.Sprintf("driver %s has no VolumeSnapshotClass here", driver)
	default:
		choice, err := snapshotclass.ForContent(driver, settings.SnapshotClasses, target.Classes)
		if err != nil {
			if driverReason == "" {
				driverReason = show(entry)
			}
			return nil, fmt.Errorf("%s: %w", driverReason, err)
		}
		mapped.Class, classReason = choice.Class.Name, "class by "+choice.Reason
	}
	mapped.Reason = join(driverReason, classReason)
	return mapped, nil
}

// Class is what becomes of a VolumeSnapshotClass in a backup.
type Class struct {
	Skip         bool
	Name, Driver string
	// Reason names the entries that decided, "" if nothing changes.
	Reason string
}

// MapClass decides what becomes of a VolumeSnapshotClass: the maps can skip it or
// give it another name or driver. A class that exists under its new name stays as it
// is. One that does not is created if the restore includes cluster resources (bring),
// and is an error otherwise: Velero restores classes without being asked, and a
// spelling mistake would become a class.
func MapClass(class Source, settings *config.Config, target Target, bring bool) (Class, error) {
	entry, mapped := ClassEntry(settings.Restore, class.Class)
	if entry.Skip {
		return Class{Skip: true, Reason: show(entry)}, nil
	}
	driver, driverReason, err := driverOf(class.Driver, settings.Restore, target)
	switch {
	case err != nil:
		return Class{}, err
	case !mapped:
		return Class{Name: class.Class, Driver: driver, Reason: driverReason}, nil
	}
	switch misfit := fits(entry, driver, target); {
	case misfit == nil:
		return Class{Skip: true, Reason: show(entry) + ", which this cluster has"}, nil
	case target.Class(entry.To) != nil:
		return Class{}, misfit
	case !bring:
		return Class{}, fmt.Errorf("%w; --include-cluster-resources makes it from the one in the backup", misfit)
	}
	return Class{Name: entry.To, Driver: driver, Reason: join(show(entry), driverReason)}, nil
}

// driverOf returns the name of a driver in the target cluster; reason is "" for a
// driver that keeps its name.
func driverOf(source string, maps config.Restore, target Target) (name, reason string, err error) {
	name, mapped := maps.Driver(source)
	if !mapped {
		return name, "", nil
	}
	// A driver need not have a CSIDriver object; a class of it proves it too.
	known := sets.New(target.Drivers...)
	for _, class := range target.Classes {
		known.Insert(class.Driver)
	}
	if !known.Has(name) {
		return "", "", fmt.Errorf("restore.drivers maps driver %q of the backup to %q, of which this cluster has neither a CSIDriver nor a VolumeSnapshotClass; its drivers: %s",
			source, name, list(known))
	}
	return name, fmt.Sprintf("restore.drivers maps driver %s to %s", source, name), nil
}

// ClassEntry returns the entry of the maps for a class.
func ClassEntry(maps config.Restore, class string) (config.SnapshotClassMapping, bool) {
	for _, entry := range maps.SnapshotClasses {
		if class != "" && entry.From == class {
			return entry, true
		}
	}
	return config.SnapshotClassMapping{}, false
}

// fits returns an error unless the class that an entry names exists and is of the
// driver.
func fits(entry config.SnapshotClassMapping, driver string, target Target) error {
	where := "which this cluster does not have"
	if class := target.Class(entry.To); class != nil {
		if class.Driver == driver {
			return nil
		}
		where = fmt.Sprintf("which is of driver %q in this cluster, not of %q", class.Driver, driver)
	}
	return fmt.Errorf("restore.snapshotClasses maps VolumeSnapshotClass %q of the backup to %q, %s; classes of driver %s here: %s",
		entry.From, entry.To, where, driver, list(target.classesOf(driver)))
}

func join(reasons ...string) string {
	return strings.Join(slices.DeleteFunc(reasons, func(reason string) bool { return reason == "" }), "; ")
}

func list(names sets.Set[string]) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(sets.List(names), ", ")
}

func show(entry config.SnapshotClassMapping) string {
	if entry.Skip {
		return fmt.Sprintf("restore.snapshotClasses skips %s", entry.From)
	}
	return fmt.Sprintf("restore.snapshotClasses maps %s to %s", entry.From, entry.To)
}
