// Package mapping decides with which driver and VolumeSnapshotClass a snapshot of a
// backup comes back in the cluster that it is restored to, by the maps of the
// configuration. What no map names is left as it is.
package mapping

import (
	"fmt"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"

	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/snapshotclass"
)

// Target is what the cluster that is restored to has.
type Target struct {
	Drivers []string // names of its CSIDrivers
	Classes []snapshotv1.VolumeSnapshotClass
}

// Source is what a backup says of a snapshot.
type Source struct {
	Driver string
	Class  string // "" for a snapshot without one
}

// Mapped is the driver and the class that a snapshot comes back with.
type Mapped struct {
	Driver string
	// Class is "" where the driver has no class in this cluster. Velero's
	// content has none then either.
	Class string
	// Reason says what decided on both, for the restore's log.
	Reason string
}

// Map decides with which driver and class a snapshot comes back: the driver
// first, then the class, by its own entry in the map or else by the chain for
// that driver. It is nil where the maps name neither its driver nor its class:
// then all stays as Velero leaves it.
func Map(source Source, settings *config.Config, target Target) (*Mapped, error) {
	class, classMapped := ClassEntry(settings.Restore, source.Class)
	driver, driverMapped, err := driverOf(source.Driver, settings.Restore, target)
	if err != nil {
		return nil, err
	}
	if !driverMapped && !classMapped {
		return nil, nil //nolint:nilnil // nothing is mapped
	}
	mapped := &Mapped{Driver: driver}
	var reasons []string
	if driverMapped {
		reasons = append(reasons, since(source, driver, class, true))
	}
	switch {
	case classMapped && !class.Skip:
		if err := fits(class, driver, target); err != nil {
			return nil, err
		}
		mapped.Class = class.To
		reasons = append(reasons, "class by "+show(class))
	case len(ofDriver(driver, target)) == 0:
		reasons = append(reasons, fmt.Sprintf("driver %s has no VolumeSnapshotClass here", driver))
	default:
		choice, err := snapshotclass.ForContent(driver, settings.SnapshotClasses, target.Classes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", since(source, driver, class, driverMapped), err)
		}
		mapped.Class = choice.Class.Name
		reasons = append(reasons, "class by "+choice.Reason)
	}
	mapped.Reason = strings.Join(reasons, "; ")
	return mapped, nil
}

// since says which entry sent a snapshot through the chain.
func since(source Source, driver string, class config.SnapshotClassMapping, driverMapped bool) string {
	if driverMapped {
		return fmt.Sprintf("restore.drivers maps driver %s to %s", source.Driver, driver)
	}
	return show(class)
}

// Class is what becomes of a VolumeSnapshotClass in a backup.
type Class struct {
	Skip         bool
	Name, Driver string
	// Reason says what decided; it is "" where nothing changes.
	Reason string
}

// MapClass decides what becomes of a VolumeSnapshotClass: by the maps it is
// left out, has another name or another driver. One that already exists under
// its new name is left as it is; one that does not is made by a restore that
// was told to bring cluster resources along, and an error in others: Velero
// restores classes unasked, and a typing mistake would become a class.
func MapClass(class Source, settings *config.Config, target Target, bring bool) (Class, error) {
	entry, entryThere := ClassEntry(settings.Restore, class.Class)
	if entry.Skip {
		return Class{Skip: true, Reason: show(entry)}, nil
	}
	driver, driverMapped, err := driverOf(class.Driver, settings.Restore, target)
	if err != nil {
		return Class{}, err
	}
	plan := Class{Name: class.Class, Driver: driver}
	var reasons []string
	if entryThere {
		plan.Name = entry.To
		misfit := fits(entry, driver, target)
		switch exists := Named(entry.To, target) != nil; {
		case misfit == nil:
			return Class{Skip: true, Reason: show(entry) + ", which this cluster has"}, nil
		case exists:
			return Class{}, misfit
		case !bring:
			return Class{}, fmt.Errorf("%w; --include-cluster-resources makes it from the one in the backup", misfit)
		}
		reasons = append(reasons, show(entry))
	}
	if driverMapped {
		reasons = append(reasons, fmt.Sprintf("restore.drivers maps driver %s to %s", class.Driver, driver))
	}
	plan.Reason = strings.Join(reasons, "; ")
	return plan, nil
}

// driverOf is the name that a driver has in the target cluster.
func driverOf(source string, maps config.Restore, target Target) (name string, mapped bool, err error) {
	for _, entry := range maps.Drivers {
		if entry.From != source {
			continue
		}
		// A driver need not have a CSIDriver object, and a class of it is a sign of it too.
		if known := drivers(target); !slices.Contains(known, entry.To) {
			return "", false, fmt.Errorf("restore.drivers maps driver %q of the backup to %q, of which this cluster has neither a CSIDriver nor a VolumeSnapshotClass; its drivers: %s",
				source, entry.To, list(known))
		}
		return entry.To, true, nil
	}
	return source, false, nil
}

// ClassEntry is the entry of the maps for a class.
func ClassEntry(maps config.Restore, class string) (config.SnapshotClassMapping, bool) {
	for _, entry := range maps.SnapshotClasses {
		if class != "" && entry.From == class {
			return entry, true
		}
	}
	return config.SnapshotClassMapping{}, false
}

// fits is an error unless the class that an entry names exists and is of the driver.
func fits(entry config.SnapshotClassMapping, driver string, target Target) error {
	class := Named(entry.To, target)
	choices := fmt.Sprintf("classes of driver %s here: %s", driver, list(ofDriver(driver, target)))
	if class == nil {
		return fmt.Errorf("restore.snapshotClasses maps VolumeSnapshotClass %q of the backup to %q, which this cluster does not have; %s", entry.From, entry.To, choices)
	}
	if class.Driver != driver {
		return fmt.Errorf("restore.snapshotClasses maps VolumeSnapshotClass %q of the backup to %q, which is of driver %q in this cluster, not of %q; %s",
			entry.From, entry.To, class.Driver, driver, choices)
	}
	return nil
}

// Named is a class of the target cluster, nil where it has none of that name.
func Named(name string, target Target) *snapshotv1.VolumeSnapshotClass {
	i := slices.IndexFunc(target.Classes, func(c snapshotv1.VolumeSnapshotClass) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &target.Classes[i]
}

func ofDriver(driver string, target Target) []string {
	var names []string
	for _, class := range target.Classes {
		if class.Driver == driver {
			names = append(names, class.Name)
		}
	}
	return names
}

func drivers(target Target) []string {
	names := slices.Clone(target.Drivers)
	for _, class := range target.Classes {
		names = append(names, class.Driver)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(slices.Values(names)), ", ")
}

func show(entry config.SnapshotClassMapping) string {
	if entry.Skip {
		return fmt.Sprintf("restore.snapshotClasses skips %s", entry.From)
	}
	return fmt.Sprintf("restore.snapshotClasses maps %s to %s", entry.From, entry.To)
}
