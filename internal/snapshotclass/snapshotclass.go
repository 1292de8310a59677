package snapshotclass

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/velero"
)

// Annotations that name a class. Administrators set them.
const (
	// On a PersistentVolumeClaim; Velero's own.
	claimAnnotation = velerov1.VolumeSnapshotClassDriverPVCAnnotation
	// On a Backup or the template of a Schedule, followed by the driver's name in lower
	// case; Velero's own.
	backupAnnotation = velerov1.VolumeSnapshotClassDriverBackupAnnotationPrefix + "_"
	// On a StorageClass, beside api.AnnotationSnapshotClass.
	storageClassAnnotationK10 = "k10.kasten.io/volume-snapshot-class"
)

// Marks on a VolumeSnapshotClass with the value "true". Administrators or driver
// installations set them.
const (
	markVelero    = velerov1.VolumeSnapshotClassSelectorLabel // a label
	markK10       = "k10.kasten.io/is-snapshot-class"         // an annotation
	markCloudCasa = "cloudcasa.io/csi-volumesnapshot-class"   // a label
	markDefault   = velerov1.VolumeSnapshotClassKubernetesAnnotation
)

// Input is the input of the rules. Claim and Backup are required.
type Input struct {
	Claim        *corev1.PersistentVolumeClaim // as it is in the cluster
	StorageClass *storagev1.StorageClass       // nil if it does not exist
	Driver       string                        // of the PersistentVolume
	Backup       *velerov1.Backup
	Rules        []config.SnapshotClassRule
	Classes      []snapshotv1.VolumeSnapshotClass // of the cluster
	// Location has the classes by StorageClass of the VolumeSnapshotLocation of the
	// snapshot, or is nil.
	Location map[string]string
}

// Velero returns the input for Velero's own choice.
func (in Input) Velero() velero.ClassInput {
	return velero.ClassInput{Backup: in.Backup, Claim: in.Claim, StorageClass: in.StorageClass, Classes: in.Classes}
}

// Choice is a class with the reason for it.
type Choice struct {
	Class snapshotv1.VolumeSnapshotClass
	// Reason names the object and the key that decided, such as "annotation
	// velero.io/csi-volumesnapshot-class of PersistentVolumeClaim shop/data".
	Reason string
}

// rule is one step of the chain. It returns false if it does not apply, and an error if a
// value is invalid or ambiguous.
type rule func(Input) (Choice, bool, error)

// ofClaim are the rules that need the claim, from the nearest to the volume to the most
// distant.
var ofClaim = []rule{
	// The annotation of the claim.
	func(in Input) (Choice, bool, error) {
		return in.named(object("PersistentVolumeClaim", in.Claim), in.Claim.Annotations, claimAnnotation)
	},
	// The annotation of the Backup for the driver. Velero accepts the driver in lower case
	// only; this rule also accepts the exact name.
	func(in Input) (Choice, bool, error) {
		return in.named(object("Backup", in.Backup), in.Backup.Annotations, backupAnnotation+strings.ToLower(in.Driver), backupAnnotation+in.Driver)
	},
	// The config of the location for the StorageClass. The backup names the location.
	func(in Input) (Choice, bool, error) {
		key := "volumeSnapshotClass/" + in.storageClass()
		if name, ok := in.Location[in.storageClass()]; ok {
			return in.choose("key "+key+" of the VolumeSnapshotLocation", name)
		}
		return Choice{}, false, nil
	},
	// The configuration of Stillpoint.
	func(in Input) (Choice, bool, error) {
		return in.configured(func(match config.Match) bool {
			return match.Matches(in.Driver, in.storageClass(), in.Claim.Namespace, in.Claim.Labels, in.Backup.Labels)
		})
	},
	// The annotation of the StorageClass: Stillpoint's or K10's.
	func(in Input) (Choice, bool, error) {
		if in.StorageClass == nil {
			return Choice{}, false, nil
		}
		return in.named(object("StorageClass", in.StorageClass), in.StorageClass.Annotations, api.AnnotationSnapshotClass, storageClassAnnotationK10)
	},
}

// ofContent replaces ofClaim if there is no claim: the rules of the configuration that
// match drivers only.
var ofContent = []rule{
	func(in Input) (Choice, bool, error) {
		return in.configured(func(match config.Match) bool {
			return match.ByDriver() && match.Matches(in.Driver, "", "", nil, nil)
		})
	},
}

// ofDriver are the rules that need the driver only.
var ofDriver = []rule{
	// Velero's mark. Velero itself reads labels only.
	marked(markVelero, label, annotation),
	// K10's.
	marked(markK10, annotation),
	// CloudCasa's, a label by its documentation.
	marked(markCloudCasa, label, annotation),
	// Kubernetes' default class of a driver.
	marked(markDefault, annotation),
	// The only class of the driver.
	func(in Input) (Choice, bool, error) {
		switch classes := in.classes(); len(classes) {
		case 0:
			return Choice{}, false, nil
		case 1:
			return Choice{Class: classes[0], Reason: "the only VolumeSnapshotClass of driver " + in.Driver}, true, nil
		default:
			return Choice{}, false, fmt.Errorf("driver %s has several VolumeSnapshotClasses, and nothing says which of them to take: %s; set label %s to \"true\" on one, or %s",
				in.Driver, in.valid(), markVelero, in.advice())
		}
	},
}

// Choose returns the class for the snapshot of a claim's volume. The error names object,
// key, value and valid values.
func Choose(in Input) (Choice, error) {
	choice, err := in.first(slices.Concat(ofClaim, ofDriver))
	if err != nil {
		return Choice{}, fmt.Errorf("choose the VolumeSnapshotClass for %s: %w", object("PersistentVolumeClaim", in.Claim), err)
	}
	return choice, nil
}

// ForContent returns the class of a restored VolumeSnapshotContent of driver. Without a
// claim, it uses the rules of the configuration that match drivers only, the marks of the
// classes and the only class.
func ForContent(driver string, rules []config.SnapshotClassRule, classes []snapshotv1.VolumeSnapshotClass) (Choice, error) {
	in := Input{Driver: driver, Rules: rules, Classes: classes}
	choice, err := in.first(slices.Concat(ofContent, ofDriver))
	if err != nil {
		return Choice{}, fmt.Errorf("choose the VolumeSnapshotClass for a restored snapshot: %w", err)
	}
	return choice, nil
}

func (in Input) first(chain []rule) (Choice, error) {
	if in.Driver == "" {
		return Choice{}, errors.New("the volume has no CSI driver; only CSI volumes have VolumeSnapshots")
	}
	for _, rule := range chain {
		if choice, decided, err := rule(in); err != nil || decided {
			return choice, err
		}
	}
	return Choice{}, fmt.Errorf("there is no VolumeSnapshotClass of driver %s; create one with driver: %s", in.Driver, in.Driver)
}

// named is the rule for annotations that name a class. Several keys must have the same
// value.
func (in Input) named(object string, annotations map[string]string, keys ...string) (Choice, bool, error) {
	var found []string
	for _, key := range keys {
		value, ok := annotations[key]
		switch {
		case !ok:
			continue
		case value == "":
			return Choice{}, false, fmt.Errorf("annotation %s of %s is empty; remove it, or name a VolumeSnapshotClass of driver %s: %s", key, object, in.Driver, in.valid())
		case len(found) > 0 && annotations[found[0]] != value:
			return Choice{}, false, fmt.Errorf("annotation %s of %s is %q, and annotation %s is %q; remove one of them", found[0], object, annotations[found[0]], key, value)
		}
		found = append(found, key)
	}
	if len(found) == 0 {
		return Choice{}, false, nil
	}
	return in.choose(fmt.Sprintf("annotation %s of %s", found[0], object), annotations[found[0]])
}

// storageClass returns the name of the StorageClass of the claim, or "".
func (in Input) storageClass() string { return ptr.Deref(in.Claim.Spec.StorageClassName, "") }

// choose returns the class with a name, or an error that names where it was found.
func (in Input) choose(where, value string) (Choice, bool, error) {
	class, fault := in.class(value)
	if fault != "" {
		return Choice{}, false, fmt.Errorf("%s names VolumeSnapshotClass %s, which %s; VolumeSnapshotClasses of driver %s: %s", where, value, fault, in.Driver, in.valid())
	}
	return Choice{Class: class, Reason: where}, true, nil
}

// configured is the rule for the configuration. The first match decides.
func (in Input) configured(matches func(config.Match) bool) (Choice, bool, error) {
	for i, rule := range in.Rules {
		if !matches(rule.Match) {
			continue
		}
		where := fmt.Sprintf("snapshotClasses[%d] of the configuration", i)
		class, fault := in.class(rule.Class)
		switch {
		case fault == "":
			return Choice{Class: class, Reason: where}, true, nil
		case class.Name != "" && rule.Match.Drivers == nil:
			// The rule is for volumes of another driver, but does not match drivers.
			return Choice{}, false, fmt.Errorf("%s gives VolumeSnapshotClass %s, which %s, to a volume of driver %s; add match.drivers: [%s] to it", where, rule.Class, fault, in.Driver, class.Driver)
		default:
			return Choice{}, false, fmt.Errorf("%s gives VolumeSnapshotClass %s, which %s; VolumeSnapshotClasses of driver %s: %s", where, rule.Class, fault, in.Driver, in.valid())
		}
	}
	return Choice{}, false, nil
}

// mark is the kind of metadata in which a class has a key.
type mark struct {
	name string
	of   func(snapshotv1.VolumeSnapshotClass) map[string]string
}

var (
	label      = mark{"label", func(class snapshotv1.VolumeSnapshotClass) map[string]string { return class.Labels }}
	annotation = mark{"annotation", func(class snapshotv1.VolumeSnapshotClass) map[string]string { return class.Annotations }}
)

// marked is the rule for a key on classes of the driver. Only the value "true" counts.
func marked(key string, marks ...mark) rule {
	return func(in Input) (Choice, bool, error) {
		var choices []Choice
		for _, class := range in.classes() {
			at := slices.IndexFunc(marks, func(m mark) bool { return m.of(class)[key] == "true" })
			if at >= 0 {
				choices = append(choices, Choice{Class: class, Reason: fmt.Sprintf("%s %s of VolumeSnapshotClass %s", marks[at].name, key, class.Name)})
			}
		}
		switch len(choices) {
		case 0:
			return Choice{}, false, nil
		case 1:
			return choices[0], true, nil
		}
		var where []string
		for _, choice := range choices {
			where = append(where, choice.Reason)
		}
		return Choice{}, false, fmt.Errorf("several VolumeSnapshotClasses of driver %s are marked: %s; leave the mark on one, or %s", in.Driver, strings.Join(where, ", "), in.advice())
	}
}

// class returns the class with a name. fault is the reason why the class is not usable for
// this volume, or "". Like Velero, it ignores case.
func (in Input) class(name string) (class snapshotv1.VolumeSnapshotClass, fault string) {
	for _, class := range in.Classes {
		if !strings.EqualFold(class.Name, name) {
			continue
		}
		if class.Driver != in.Driver {
			return class, "is of driver " + class.Driver
		}
		return class, ""
	}
	return class, "does not exist"
}

// classes returns the classes of the driver, sorted by name.
func (in Input) classes() []snapshotv1.VolumeSnapshotClass {
	classes := slices.DeleteFunc(slices.Clone(in.Classes), func(class snapshotv1.VolumeSnapshotClass) bool { return class.Driver != in.Driver })
	slices.SortFunc(classes, byName)
	return classes
}

// valid lists the names of the usable classes.
func (in Input) valid() string {
	var names []string
	for _, class := range in.classes() {
		names = append(names, class.Name)
	}
	if len(names) == 0 {
		return "there are none"
	}
	return strings.Join(names, ", ")
}

// advice returns how to name a class if marks do not decide.
func (in Input) advice() string {
	if in.Claim == nil {
		return fmt.Sprintf("add a rule with match.drivers: [%s] and nothing else to match under snapshotClasses of the configuration", in.Driver)
	}
	return fmt.Sprintf("name one in annotation %s of the claim or in a rule under snapshotClasses of the configuration", claimAnnotation)
}

func byName(a, b snapshotv1.VolumeSnapshotClass) int { return strings.Compare(a.Name, b.Name) }

func object(kind string, of metav1.Object) string {
	if of.GetNamespace() == "" {
		return kind + " " + of.GetName()
	}
	return kind + " " + of.GetNamespace() + "/" + of.GetName()
}
