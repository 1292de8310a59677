package config

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"reflect"
	"slices"
	"strings"
	"unicode"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// shape compares what the document has at a key path with the type that is to
// hold it: keys that the type lacks, and values of another kind. A null is as
// good as an absent key.
func shape(at string, value any, want reflect.Type) []error {
	for want.Kind() == reflect.Pointer {
		want = want.Elem()
	}
	if value == nil {
		return nil
	}
	kind := ""
	if want == reflect.TypeFor[resource.Quantity]() {
		if quantity, err := resource.ParseQuantity(fmt.Sprint(value)); err != nil || quantity.Sign() < 0 {
			return []error{fmt.Errorf("%s is %s, must be a quantity such as 100m or 64Mi", at, show(value))}
		}
		return nil
	}
	switch want.Kind() {
	case reflect.Struct:
		if value, ok := value.(map[string]any); ok {
			var faults []error
			for _, key := range slices.Sorted(maps.Keys(value)) {
				if field, ok := fieldOf(want, key); ok {
					faults = append(faults, shape(join(at, key), value[key], field.Type)...)
				} else {
					faults = append(faults, fmt.Errorf("%s is an unknown key; valid keys: %s", join(at, key), keys(want)))
				}
			}
			return faults
		}
		kind = "a map with the keys: " + keys(want)
	case reflect.Map:
		if value, ok := value.(map[string]any); ok {
			var faults []error
			for _, key := range slices.Sorted(maps.Keys(value)) {
				faults = append(faults, shape(join(at, key), value[key], want.Elem())...)
			}
			return faults
		}
		kind = "a map"
	case reflect.Slice:
		if value, ok := value.([]any); ok {
			var faults []error
			for i, item := range value {
				faults = append(faults, shape(fmt.Sprintf("%s[%d]", at, i), item, want.Elem())...)
			}
			return faults
		}
		kind = "a list"
	case reflect.String:
		if _, ok := value.(string); ok {
			return nil
		}
		kind = "a string"
	case reflect.Bool:
		if _, ok := value.(bool); ok {
			return nil
		}
		kind = "true or false"
	case reflect.Int, reflect.Int64:
		if number, ok := value.(float64); ok && number == math.Trunc(number) {
			return nil
		}
		kind = "a whole number"
	default:
		panic("no document has a " + want.String())
	}
	return []error{fmt.Errorf("%s is %s, must be %s", at, show(value), kind)}
}

// join makes a key path; a key with dots in it is put in brackets, or it could
// be read as several.
func join(at, key string) string {
	switch {
	case strings.Contains(key, "."):
		return fmt.Sprintf("%s[%q]", at, key)
	case at == "":
		return key
	default:
		return at + "." + key
	}
}

func fieldOf(t reflect.Type, key string) (reflect.StructField, bool) {
	for _, field := range reflect.VisibleFields(t) {
		if keyOf(field) == key {
			return field, true
		}
	}
	return reflect.StructField{}, false
}

func keyOf(field reflect.StructField) string {
	key, _, _ := strings.Cut(field.Tag.Get("json"), ",")
	return key
}

// keys lists the keys of a map of the document.
func keys(t reflect.Type) string {
	var names []string
	for _, field := range reflect.VisibleFields(t) {
		names = append(names, keyOf(field))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// faults are all that is wrong with a document that has been read, each with
// its key path, the value and what is valid.
func (c *Config) faults() []error {
	var faults []error
	for i, namespace := range c.BlueprintNamespaces {
		at := fmt.Sprintf("blueprintNamespaces[%d]", i)
		if reasons := validation.IsDNS1123Label(namespace); len(reasons) > 0 {
			faults = append(faults, fmt.Errorf("%s is %q, must be the name of a namespace: %s", at, namespace, strings.Join(reasons, "; ")))
		}
		if first := slices.Index(c.BlueprintNamespaces, namespace); first < i {
			faults = append(faults, fmt.Errorf("%s is %q, as is blueprintNamespaces[%d]", at, namespace, first))
		}
	}
	for i, key := range c.ExcludedLabels {
		faults = append(faults, glob(fmt.Sprintf("excludedLabels[%d]", i), key)...)
	}
	classes := rules{list: "snapshotClasses", catchAll: -1}
	for i, rule := range c.SnapshotClasses {
		at, wrong := classes.next(i, rule.Match)
		faults = append(faults, wrong...)
		faults = append(faults, className(at+".class", rule.Class)...)
	}
	faults = append(faults, c.profileFaults()...)
	local := rules{list: "localSnapshots", catchAll: -1}
	for i, rule := range c.LocalSnapshots {
		at, wrong := local.next(i, rule.Match)
		faults = append(faults, wrong...)
		faults = append(faults, rule.faults(at)...)
	}
	faults = append(faults, c.Restore.faults("restore")...)
	if c.NodeThaw != nil {
		faults = append(faults, c.NodeThaw.faults("nodeThaw")...)
	}
	return append(faults, c.HelperPods.faults("helperPods")...)
}

func (h HelperPods) faults(at string) []error {
	var faults []error
	resources := h.Requirements()
	for name, request := range resources.Requests {
		if limit, ok := resources.Limits[name]; ok && request.Cmp(limit) > 0 {
			faults = append(faults, fmt.Errorf("%s is %s, must not be more than the limit, %s", join(at+".resources.requests", string(name)), request.String(), limit.String()))
		}
	}
	if s := h.SecurityContext; s != nil && s.Privileged != nil && *s.Privileged {
		faults = append(faults, fmt.Errorf("%s.securityContext.privileged is true, must be the podOverride of the one blueprint that needs it", at))
	}
	return faults
}

func (n NodeThaw) faults(at string) []error {
	var faults []error
	switch {
	case n.Image == "":
		faults = append(faults, errors.New(at+".image is missing; it is the image of this plugin, as given to velero plugin add; leave nodeThaw out to switch it off"))
	case strings.ContainsFunc(n.Image, unicode.IsSpace):
		faults = append(faults, fmt.Errorf("%s.image is %q, must be the name of an image, without blanks", at, n.Image))
	}
	if directory := n.KubeletDirectory; directory != "" && (!path.IsAbs(directory) || path.Clean(directory) != directory || directory == "/") {
		faults = append(faults, fmt.Errorf("%s.kubeletDirectory is %q, must be an absolute path such as %s, without a slash at its end", at, directory, DefaultKubeletDirectory))
	}
	return faults
}

// rules goes through a list of rules of which the first match wins.
type rules struct {
	list     string
	catchAll int // index of the rule that leaves nothing to later ones, or -1
}

// next is the key path of a rule, and what is wrong with its place and match.
func (r *rules) next(i int, match Match) (at string, faults []error) {
	at = fmt.Sprintf("%s[%d]", r.list, i)
	if r.catchAll >= 0 {
		faults = append(faults, fmt.Errorf("%s is never reached: %s[%d] matches every volume, and the first match wins; put it last", at, r.list, r.catchAll))
	} else if match.everything() {
		r.catchAll = i
	}
	return at, append(faults, match.faults(at+".match")...)
}

func (r LocalSnapshotRule) faults(at string) []error {
	switch r.Policy {
	case LocalSnapshotKeepLast:
		if r.Count < 1 {
			return []error{fmt.Errorf("%s.count is %d, must be at least 1 for keepLast; policy: delete keeps none", at, r.Count)}
		}
	case LocalSnapshotDelete, LocalSnapshotRetain:
		if r.Count != 0 {
			return []error{fmt.Errorf("%s.count is %d, which only policy: keepLast has", at, r.Count)}
		}
	default:
		return []error{fmt.Errorf("%s.policy is %q, must be delete, retain or keepLast", at, r.Policy)}
	}
	return nil
}

// profileFaults are what is wrong with the profiles of drivers and data movers.
func (c *Config) profileFaults() []error {
	var faults []error
	for i, profile := range c.Drivers {
		at := fmt.Sprintf("drivers[%d]", i)
		faults = append(faults, driverName(at+".name", profile.Name)...)
		first := slices.IndexFunc(c.Drivers, func(p DriverProfile) bool { return p.Name == profile.Name })
		if first < i && profile.Name != "" {
			faults = append(faults, fmt.Errorf("%s.name is %q, as is drivers[%d].name; remove one of them", at, profile.Name, first))
		}
		faults = append(faults, profile.faults(at)...)
	}
	for i, mover := range c.DataMovers {
		at := fmt.Sprintf("dataMovers[%d]", i)
		first := slices.IndexFunc(c.DataMovers, func(m DataMover) bool { return m.Name == mover.Name })
		switch {
		case mover.Name == "":
			faults = append(faults, errors.New(at+".name is missing; it is what the Backup's spec.datamover has"))
		case mover.Name == "velero":
			faults = append(faults, fmt.Errorf("%s.name is %q, whose snapshots are always deleted; to keep some, use localSnapshots", at, mover.Name))
		case first < i:
			faults = append(faults, fmt.Errorf("%s.name is %q, as is dataMovers[%d].name; remove one of them", at, mover.Name, first))
		}
	}
	return faults
}

var accessModes = []corev1.PersistentVolumeAccessMode{
	corev1.ReadWriteOnce, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOncePod,
}

func (p DriverProfile) faults(at string) []error {
	var faults []error
	if p.Exports.Always && len(p.Exports.When) > 0 {
		faults = append(faults, fmt.Errorf("%s.exports has both always: true and when; all snapshots are exported or some are, so remove one of them", at))
	}
	for i, when := range p.Exports.When {
		if when.Parameter == "" {
			faults = append(faults, fmt.Errorf("%s.exports.when[%d].parameter is missing; it is the key of a parameter of a VolumeSnapshotClass", at, i))
		}
	}
	switch p.RestoreFrom {
	case "", RestoreFromAny, RestoreFromExport:
	default:
		faults = append(faults, fmt.Errorf("%s.restoreFrom is %q, must be any or export", at, p.RestoreFrom))
	}
	switch p.Quiesce {
	case "", QuiesceOptional, QuiesceRequired:
	default:
		faults = append(faults, fmt.Errorf("%s.quiesce is %q, must be optional or required", at, p.Quiesce))
	}
	switch p.Freeze {
	case "", FreezeAlways, FreezeFlush, FreezeDriver:
	default:
		faults = append(faults, fmt.Errorf("%s.freeze is %q, must be always, flush or driver", at, p.Freeze))
	}
	if p.AccessModes != nil && len(p.AccessModes) == 0 {
		faults = append(faults, fmt.Errorf("%s.accessModes is [], with which no volume can be snapshotted; leave the key out for any", at))
	}
	for i, mode := range p.AccessModes {
		if !slices.Contains(accessModes, mode) {
			faults = append(faults, fmt.Errorf("%s.accessModes[%d] is %q, must be one of %v", at, i, mode, accessModes))
		}
	}
	return faults
}

// everything answers whether no volume is left out. A match that is made of
// more than wildcards may do so too, which is not looked into.
func (m Match) everything() bool {
	return m.Drivers == nil && m.Claims == nil && m.Backups == nil &&
		(m.StorageClasses == nil || slices.Contains(m.StorageClasses, "*")) &&
		(m.Namespaces == nil || slices.Contains(m.Namespaces, "*"))
}

func (m Match) faults(at string) []error {
	var faults []error
	list := func(key string, values []string, check func(at, value string) []error) {
		// What fills a template may have come out empty; nobody means no volume.
		if values != nil && len(values) == 0 {
			faults = append(faults, fmt.Errorf("%s.%s is [], which matches no volume; leave the key out to match any", at, key))
		}
		for i, value := range values {
			faults = append(faults, check(fmt.Sprintf("%s.%s[%d]", at, key, i), value)...)
		}
	}
	list("drivers", m.Drivers, driverName)
	list("storageClasses", m.StorageClasses, glob)
	list("namespaces", m.Namespaces, glob)
	faults = append(faults, selector(at+".claims", m.Claims)...)
	return append(faults, selector(at+".backups", m.Backups)...)
}

func (r Restore) faults(at string) []error {
	var faults []error
	var drivers, classes []rename
	for i, mapping := range r.Drivers {
		at := fmt.Sprintf("%s.drivers[%d]", at, i)
		faults = append(faults, driverName(at+".from", mapping.From)...)
		faults = append(faults, driverName(at+".to", mapping.To)...)
		drivers = append(drivers, rename{at, mapping.From, mapping.To})
	}
	for i, mapping := range r.SnapshotClasses {
		at := fmt.Sprintf("%s.snapshotClasses[%d]", at, i)
		faults = append(faults, className(at+".from", mapping.From)...)
		switch {
		case mapping.Skip && mapping.To != "":
			faults = append(faults, fmt.Errorf("%s has both to: %s and skip: true; a VolumeSnapshotClass is renamed or left out, so remove one of them", at, mapping.To))
		case !mapping.Skip && mapping.To == "":
			faults = append(faults, fmt.Errorf("%s has neither to, a name in this cluster, nor skip: true, to leave it out; add one of them", at))
		case !mapping.Skip:
			faults = append(faults, className(at+".to", mapping.To)...)
		}
		classes = append(classes, rename{at, mapping.From, mapping.To})
	}
	faults = append(faults, renames(drivers)...)
	faults = append(faults, renames(classes)...)
	switch r.DeletionPolicy {
	case "", snapshotv1.VolumeSnapshotContentRetain, snapshotv1.VolumeSnapshotContentDelete:
	default:
		faults = append(faults, fmt.Errorf("%s.deletionPolicy is %q, must be Retain or Delete; leave the key out for Velero's", at, r.DeletionPolicy))
	}
	switch r.VolumesWithoutData {
	case "", WithoutDataVelero, WithoutDataProvision, WithoutDataRefuse:
	default:
		faults = append(faults, fmt.Errorf("%s.volumesWithoutData is %q, must be velero, provision or refuse", at, r.VolumesWithoutData))
	}
	return faults
}

// rename is an entry of a map; to is empty where it only takes away.
type rename struct{ at, from, to string }

// renames finds entries that contradict each other. Empty names have faults of
// their own.
func renames(all []rename) []error {
	var faults []error
	for i, r := range all {
		if r.from == "" {
			continue
		}
		if first := slices.IndexFunc(all, func(other rename) bool { return other.from == r.from }); first < i {
			faults = append(faults, fmt.Errorf("%s.from is %q, as is %s.from; remove one of them", r.at, r.from, all[first].at))
		}
		if r.from == r.to {
			faults = append(faults, fmt.Errorf("%s has %q both as from and as to, which changes nothing; remove it", r.at, r.from))
			continue
		}
		if r.to == "" {
			continue
		}
		for _, next := range all {
			if next.from == r.to && next.to != "" && next.from != next.to {
				faults = append(faults, fmt.Errorf("%s makes %s of %s, and %s makes %s of %s; a name is mapped once, so say what is meant: %s",
					r.at, r.to, r.from, next.at, next.to, next.from, meant(r, next)))
			}
		}
	}
	return faults
}

// meant is what the first of two entries that follow each other could say.
func meant(r, next rename) string {
	if next.to == r.from {
		return "keep the one for the direction of this restore"
	}
	return fmt.Sprintf("to: %s for %s, or remove one of them", next.to, r.from)
}

func glob(at, value string) []error {
	if value == "" {
		return []error{fmt.Errorf("%s is empty, must be a name or a glob such as %q", at, "fast-*")}
	}
	if _, err := path.Match(value, ""); err != nil {
		return []error{fmt.Errorf("%s is %q, must be a glob: * for any characters, ? for one, [a-z] for one of these, \\ before a character that stands for itself", at, value)}
	}
	return nil
}

func selector(at string, value *metav1.LabelSelector) []error {
	if value == nil {
		return nil
	}
	if len(value.MatchLabels) == 0 && len(value.MatchExpressions) == 0 {
		return []error{fmt.Errorf("%s is {}, which selects by nothing; leave the key out to match any, or give it matchLabels or matchExpressions", at)}
	}
	if _, err := metav1.LabelSelectorAsSelector(value); err != nil {
		return []error{fmt.Errorf("%s is %s, must be a label selector: %w", at, show(value), err)}
	}
	return nil
}

func className(at, value string) []error {
	return name(at, value, "the name of a VolumeSnapshotClass", validation.IsDNS1123Subdomain(value))
}

// driverName checks a name as Kubernetes does for a CSIDriver: CSI allows
// capitals, and 63 characters.
func driverName(at, value string) []error {
	reasons := validation.IsDNS1123Subdomain(strings.ToLower(value))
	if len(value) > 63 {
		reasons = append(reasons, validation.MaxLenError(63))
	}
	return name(at, value, "the name of a CSI driver", reasons)
}

func name(at, value, what string, reasons []string) []error {
	switch {
	case value == "":
		return []error{errors.New(at + " is missing; it is " + what)}
	case len(reasons) > 0:
		return []error{fmt.Errorf("%s is %q, must be %s: %s", at, value, what, strings.Join(reasons, "; "))}
	default:
		return nil
	}
}
