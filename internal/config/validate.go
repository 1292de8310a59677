package config

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"
)

// validate returns everything that is wrong with a document of the right shape.
func (c *Config) validate() field.ErrorList {
	at := field.NewPath("blueprintNamespaces")
	all := unique(at, "", c.BlueprintNamespaces, func(name string) string { return name })
	for i, namespace := range c.BlueprintNamespaces {
		all = append(all, invalidName(at.Index(i), namespace, "the name of a namespace", validation.IsDNS1123Label(namespace))...)
	}
	for i, key := range c.ExcludedLabels {
		all = append(all, glob(field.NewPath("excludedLabels").Index(i), key)...)
	}

	at = field.NewPath("snapshotClasses")
	all = append(all, matches(at, c.SnapshotClasses, func(rule SnapshotClassRule) Match { return rule.Match })...)
	for i, rule := range c.SnapshotClasses {
		all = append(all, className(at.Index(i).Child("class"), rule.Class)...)
	}

	at = field.NewPath("drivers")
	all = append(all, unique(at, "name", c.Drivers, func(profile DriverProfile) string { return profile.Name })...)
	for i, profile := range c.Drivers {
		all = append(all, profile.validate(at.Index(i))...)
	}

	at = field.NewPath("dataMovers")
	all = append(all, unique(at, "name", c.DataMovers, func(mover DataMover) string { return mover.Name })...)
	for i, mover := range c.DataMovers {
		name := at.Index(i).Child("name")
		switch mover.Name {
		case "":
			all = append(all, field.Required(name, "the value of spec.datamover of the Backup"))
		case "velero":
			all = append(all, field.Invalid(name, mover.Name, "its snapshots are always deleted; to keep some, use localSnapshots"))
		}
	}

	at = field.NewPath("localSnapshots")
	all = append(all, matches(at, c.LocalSnapshots, func(rule LocalSnapshotRule) Match { return rule.Match })...)
	for i, rule := range c.LocalSnapshots {
		all = append(all, rule.validate(at.Index(i))...)
	}

	all = append(all, c.Restore.validate(field.NewPath("restore"))...)
	if c.NodeThaw != nil {
		all = append(all, c.NodeThaw.validate(field.NewPath("nodeThaw"))...)
	}
	return append(all, c.HelperPods.validate(field.NewPath("helperPods"))...)
}

func (h HelperPods) validate(at *field.Path) field.ErrorList {
	var all field.ErrorList
	resources := h.Requirements()
	for name, request := range resources.Requests {
		if limit, ok := resources.Limits[name]; ok && request.Cmp(limit) > 0 {
			all = append(all, field.Invalid(child(at.Child("resources", "requests"), string(name)), request.String(), "must not be more than the limit, "+limit.String()))
		}
	}
	if h.SecurityContext != nil && ptr.Deref(h.SecurityContext.Privileged, false) {
		all = append(all, field.Forbidden(at.Child("securityContext", "privileged"), "must not be true; use the podOverride of the one blueprint that needs it"))
	}
	return all
}

func (n NodeThaw) validate(at *field.Path) field.ErrorList {
	var all field.ErrorList
	switch {
	case n.Image == "":
		all = append(all, field.Required(at.Child("image"), "the image of this plugin, as given to velero plugin add; leave nodeThaw out to switch it off"))
	case strings.ContainsFunc(n.Image, unicode.IsSpace):
		all = append(all, field.Invalid(at.Child("image"), n.Image, "must be the name of an image, without blanks"))
	}
	if directory := n.KubeletDirectory; directory != "" && (!path.IsAbs(directory) || path.Clean(directory) != directory || directory == "/") {
		all = append(all, field.Invalid(at.Child("kubeletDirectory"), directory, "must be an absolute path such as "+DefaultKubeletDirectory+", without a slash at its end"))
	}
	return all
}

func (r LocalSnapshotRule) validate(at *field.Path) field.ErrorList {
	policy, count := at.Child("policy"), at.Child("count")
	if r.Policy == "" {
		return field.ErrorList{field.Required(policy, "delete, retain or keepLast")}
	}
	if wrong := oneOf(policy, r.Policy, LocalSnapshotDelete, LocalSnapshotRetain, LocalSnapshotKeepLast); wrong != nil {
		return wrong
	}
	switch {
	case r.Policy == LocalSnapshotKeepLast && r.Count < 1:
		return field.ErrorList{field.Invalid(count, r.Count, "must be at least 1 for policy: keepLast; policy: delete keeps none")}
	case r.Policy != LocalSnapshotKeepLast && r.Count != 0:
		return field.ErrorList{field.Invalid(count, r.Count, "is for policy: keepLast only")}
	}
	return nil
}

func (p DriverProfile) validate(at *field.Path) field.ErrorList {
	all := driverName(at.Child("name"), p.Name)
	exports := at.Child("exports")
	if p.Exports.Always && len(p.Exports.When) > 0 {
		all = append(all, field.Forbidden(exports.Child("when"), "excludes always: true; remove one of them"))
	}
	for i, when := range p.Exports.When {
		if when.Parameter == "" {
			all = append(all, field.Required(exports.Child("when").Index(i).Child("parameter"), "the key of a parameter of a VolumeSnapshotClass"))
		}
	}
	all = append(all, oneOf(at.Child("restoreFrom"), p.RestoreFrom, RestoreFromAny, RestoreFromExport)...)
	all = append(all, oneOf(at.Child("quiesce"), p.Quiesce, QuiesceOptional, QuiesceRequired)...)
	all = append(all, oneOf(at.Child("freeze"), p.Freeze, FreezeAlways, FreezeFlush, FreezeDriver)...)
	modes := at.Child("accessModes")
	if p.AccessModes != nil && len(p.AccessModes) == 0 {
		all = append(all, field.Invalid(modes, literal{p.AccessModes}, "no volume could be snapshotted; leave the key out for any"))
	}
	for i, mode := range p.AccessModes {
		all = append(all, oneOf(modes.Index(i), mode, corev1.ReadWriteOnce, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOncePod)...)
	}
	return all
}

// matches validates the matches of a list of rules of which the first match wins.
func matches[T any](at *field.Path, rules []T, match func(T) Match) field.ErrorList {
	var all field.ErrorList
	catchAll := -1
	for i, rule := range rules {
		m := match(rule)
		if catchAll >= 0 {
			all = append(all, field.Forbidden(at.Index(i), fmt.Sprintf("never reached: %s matches every volume, and the first match wins; put it last", at.Index(catchAll))))
		} else if m.everything() {
			catchAll = i
		}
		all = append(all, m.validate(at.Index(i).Child("match"))...)
	}
	return all
}

// everything reports whether the match selects all volumes. A match of several
// wildcards may do so too, which is not examined.
func (m Match) everything() bool {
	return m.Drivers == nil && m.Claims == nil && m.Backups == nil &&
		(m.StorageClasses == nil || slices.Contains(m.StorageClasses, "*")) &&
		(m.Namespaces == nil || slices.Contains(m.Namespaces, "*"))
}

func (m Match) validate(at *field.Path) field.ErrorList {
	var all field.ErrorList
	list := func(key string, values []string, validate func(at *field.Path, value string) field.ErrorList) {
		// A template may have left the list empty by mistake; no user asks for no volume.
		if values != nil && len(values) == 0 {
			all = append(all, field.Invalid(at.Child(key), literal{values}, "matches no volume; leave the key out to match any"))
		}
		for i, value := range values {
			all = append(all, validate(at.Child(key).Index(i), value)...)
		}
	}
	list("drivers", m.Drivers, driverName)
	list("storageClasses", m.StorageClasses, glob)
	list("namespaces", m.Namespaces, glob)
	all = append(all, selector(at.Child("claims"), m.Claims)...)
	return append(all, selector(at.Child("backups"), m.Backups)...)
}

func (r Restore) validate(at *field.Path) field.ErrorList {
	var all field.ErrorList
	var drivers, classes []rename
	for i, mapping := range r.Drivers {
		at := at.Child("drivers").Index(i)
		all = append(all, driverName(at.Child("from"), mapping.From)...)
		all = append(all, driverName(at.Child("to"), mapping.To)...)
		drivers = append(drivers, rename{mapping.From, mapping.To})
	}
	for i, mapping := range r.SnapshotClasses {
		at := at.Child("snapshotClasses").Index(i)
		all = append(all, className(at.Child("from"), mapping.From)...)
		switch {
		case mapping.Skip && mapping.To != "":
			all = append(all, field.Forbidden(at.Child("skip"), "excludes to: "+mapping.To+"; a VolumeSnapshotClass is renamed or left out, so remove one of them"))
		case !mapping.Skip && mapping.To == "":
			all = append(all, field.Required(at.Child("to"), "a name in this cluster; or add skip: true to leave the class out"))
		case !mapping.Skip:
			all = append(all, className(at.Child("to"), mapping.To)...)
		}
		classes = append(classes, rename{mapping.From, mapping.To})
	}
	all = append(all, renames(at.Child("drivers"), drivers)...)
	all = append(all, renames(at.Child("snapshotClasses"), classes)...)
	all = append(all, oneOf(at.Child("deletionPolicy"), r.DeletionPolicy, snapshotv1.VolumeSnapshotContentRetain, snapshotv1.VolumeSnapshotContentDelete)...)
	return append(all, oneOf(at.Child("volumesWithoutData"), r.VolumesWithoutData, WithoutDataVelero, WithoutDataProvision, WithoutDataRefuse)...)
}

// rename is an entry of a mapping; to is empty where the entry leaves a name out.
type rename struct{ from, to string }

// renames returns entries that contradict each other. Empty names have errors of
// their own.
func renames(at *field.Path, list []rename) field.ErrorList {
	all := unique(at, "from", list, func(r rename) string { return r.from })
	for i, r := range list {
		if r.from == "" || r.to == "" {
			continue
		}
		if r.from == r.to {
			all = append(all, field.Invalid(at.Index(i).Child("to"), r.to, "is the same as from, which changes nothing; remove the entry"))
			continue
		}
		for j, next := range list {
			if next.from == r.to && next.to != "" && next.from != next.to {
				all = append(all, field.Invalid(at.Index(i).Child("to"), r.to, fmt.Sprintf("%s renames it to %s; a name is mapped once, so %s", at.Index(j), next.to, instead(r, next))))
			}
		}
	}
	return all
}

// instead returns what to write in place of two entries that follow each other.
func instead(r, next rename) string {
	if next.to == r.from {
		return "keep the entry for the direction of this restore"
	}
	return fmt.Sprintf("write to: %s for %s, or remove one of them", next.to, r.from)
}

// unique returns an error for each name that an earlier item has; key is where an
// item has its name, empty for a list of names.
func unique[T any](at *field.Path, key string, items []T, name func(T) string) field.ErrorList {
	var all field.ErrorList
	seen := sets.New[string]()
	for i, item := range items {
		n, at := name(item), at.Index(i)
		if key != "" {
			at = at.Child(key)
		}
		if n != "" && seen.Has(n) { // an empty name has an error of its own
			all = append(all, field.Duplicate(at, n))
		}
		seen.Insert(n)
	}
	return all
}

// oneOf returns an error unless value is empty or valid.
func oneOf[T ~string](at *field.Path, value T, valid ...T) field.ErrorList {
	if value == "" || slices.Contains(valid, value) {
		return nil
	}
	return field.ErrorList{field.NotSupported(at, value, valid)}
}

func glob(at *field.Path, value string) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(at, `a name or a glob such as "fast-*"`)}
	}
	if _, err := path.Match(value, ""); err != nil {
		return field.ErrorList{field.Invalid(at, value, `must be a glob: * for any characters, ? for one, [a-z] for one of these, \ before a character that stands for itself`)}
	}
	return nil
}

func selector(at *field.Path, value *metav1.LabelSelector) field.ErrorList {
	if value != nil && len(value.MatchLabels) == 0 && len(value.MatchExpressions) == 0 {
		return field.ErrorList{field.Invalid(at, literal{value}, "selects by nothing; leave the key out to match any, or give it matchLabels or matchExpressions")}
	}
	return metavalidation.ValidateLabelSelector(value, metavalidation.LabelSelectorValidationOptions{}, at)
}

func className(at *field.Path, value string) field.ErrorList {
	return invalidName(at, value, "the name of a VolumeSnapshotClass", validation.IsDNS1123Subdomain(value))
}

// driverName checks a name as Kubernetes does for a CSIDriver: CSI allows
// capitals, and 63 characters.
func driverName(at *field.Path, value string) field.ErrorList {
	reasons := validation.IsDNS1123Subdomain(strings.ToLower(value))
	if len(value) > 63 {
		reasons = append(reasons, validation.MaxLenError(63))
	}
	return invalidName(at, value, "the name of a CSI driver", reasons)
}

func invalidName(at *field.Path, value, what string, reasons []string) field.ErrorList {
	switch {
	case value == "":
		return field.ErrorList{field.Required(at, what)}
	case len(reasons) > 0:
		return field.ErrorList{field.Invalid(at, value, "must be "+what+": "+strings.Join(reasons, "; "))}
	default:
		return nil
	}
}
