package snapshotclass

import (
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/config"
)

const (
	driver = "csi.example.com"
	other  = "csi.example.org"

	isVelero    = "velero.io/csi-volumesnapshot-class"
	isK10       = "k10.kasten.io/is-snapshot-class"
	isCloudCasa = "cloudcasa.io/csi-volumesnapshot-class"
	isDefault   = "snapshot.storage.kubernetes.io/is-default-class"
)

// class returns a class with marks such as "label velero.io/csi-volumesnapshot-class=true".
func class(name, driver string, marks ...string) snapshotv1.VolumeSnapshotClass {
	class := snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Driver: driver}
	for _, mark := range marks {
		kind, mark, _ := strings.Cut(mark, " ")
		key, value, _ := strings.Cut(mark, "=")
		switch kind {
		case "label":
			metav1.SetMetaDataLabel(&class.ObjectMeta, key, value)
		case "annotation":
			metav1.SetMetaDataAnnotation(&class.ObjectMeta, key, value)
		}
	}
	return class
}

func storageClass(provisioner string) *storagev1.StorageClass {
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast", Annotations: map[string]string{}}, Provisioner: provisioner}
}

// input returns a volume with two classes of its driver, neither of which is preferred, and
// one class of another driver.
func input() Input {
	fast := "fast"
	return Input{
		Claim: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", Labels: map[string]string{"tier": "gold"}, Annotations: map[string]string{}},
			Spec:       corev1.PersistentVolumeClaimSpec{StorageClassName: &fast},
		},
		StorageClass: storageClass(driver),
		Driver:       driver,
		Backup: &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{
			Namespace: "velero", Name: "nightly-1", Labels: map[string]string{"velero.io/schedule-name": "nightly"}, Annotations: map[string]string{},
		}},
		Classes: []snapshotv1.VolumeSnapshotClass{class("b", driver), class("a", driver), class("foreign", other)},
	}
}

func classes(classes ...snapshotv1.VolumeSnapshotClass) func(*Input) {
	return func(in *Input) { in.Classes = classes }
}

func rules(rules ...config.SnapshotClassRule) func(*Input) {
	return func(in *Input) { in.Rules = rules }
}

func byLabel(key, value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}

// choices are test cases for Choose and for the comparison with Velero.
var choices = map[string]struct {
	change func(in *Input)
	class  string
	reason string // or the end of the error
}{
	"claim": {func(in *Input) { in.Claim.Annotations[isVelero] = "a" }, "a", "annotation velero.io/csi-volumesnapshot-class of PersistentVolumeClaim shop/data"},
	"claim, in capitals": {
		func(in *Input) { in.Claim.Annotations[isVelero] = "A" },
		"a", "annotation velero.io/csi-volumesnapshot-class of PersistentVolumeClaim shop/data",
	},
	"claim, no such class": {
		func(in *Input) { in.Claim.Annotations[isVelero] = "c" },
		"", "annotation velero.io/csi-volumesnapshot-class of PersistentVolumeClaim shop/data names VolumeSnapshotClass c, which does not exist; VolumeSnapshotClasses of driver csi.example.com: a, b",
	},
	"claim, other driver": {
		func(in *Input) { in.Claim.Annotations[isVelero] = "foreign" },
		"", "annotation velero.io/csi-volumesnapshot-class of PersistentVolumeClaim shop/data names VolumeSnapshotClass foreign, which is of driver csi.example.org; VolumeSnapshotClasses of driver csi.example.com: a, b",
	},
	"claim, other driver and none of its own": {
		func(in *Input) {
			in.Claim.Annotations[isVelero], in.Classes = "foreign", []snapshotv1.VolumeSnapshotClass{class("foreign", other)}
		},
		"", "annotation velero.io/csi-volumesnapshot-class of PersistentVolumeClaim shop/data names VolumeSnapshotClass foreign, which is of driver csi.example.org; VolumeSnapshotClasses of driver csi.example.com: there are none",
	},
	"claim, empty": {
		func(in *Input) { in.Claim.Annotations[isVelero] = "" },
		"", "annotation velero.io/csi-volumesnapshot-class of PersistentVolumeClaim shop/data is empty; remove it, or name a VolumeSnapshotClass of driver csi.example.com: a, b",
	},

	"backup": {
		func(in *Input) { in.Backup.Annotations[isVelero+"_csi.example.com"] = "b" },
		"b", "annotation velero.io/csi-volumesnapshot-class_csi.example.com of Backup velero/nightly-1",
	},
	"backup, no such class": {
		func(in *Input) { in.Backup.Annotations[isVelero+"_csi.example.com"] = "c" },
		"", "annotation velero.io/csi-volumesnapshot-class_csi.example.com of Backup velero/nightly-1 names VolumeSnapshotClass c, which does not exist; VolumeSnapshotClasses of driver csi.example.com: a, b",
	},
	"backup, empty": {
		func(in *Input) { in.Backup.Annotations[isVelero+"_csi.example.com"] = "" },
		"", "annotation velero.io/csi-volumesnapshot-class_csi.example.com of Backup velero/nightly-1 is empty; remove it, or name a VolumeSnapshotClass of driver csi.example.com: a, b",
	},
	"backup, for another driver": {
		func(in *Input) {
			in.Backup.Annotations[isVelero+"_csi.example.org"] = "foreign"
			in.Classes = []snapshotv1.VolumeSnapshotClass{class("a", driver)}
		},
		"a", "the only VolumeSnapshotClass of driver csi.example.com",
	},
	"backup, driver with capitals": {
		func(in *Input) {
			in.Driver, in.StorageClass = "CSI.example.com", storageClass("CSI.example.com")
			in.Classes = []snapshotv1.VolumeSnapshotClass{class("a", "CSI.example.com"), class("b", "CSI.example.com")}
			in.Backup.Annotations[isVelero+"_csi.example.com"] = "b"
		},
		"b", "annotation velero.io/csi-volumesnapshot-class_csi.example.com of Backup velero/nightly-1",
	},
	"backup, capitals in the key too": {
		func(in *Input) {
			in.Driver, in.StorageClass = "CSI.example.com", storageClass("CSI.example.com")
			in.Classes = []snapshotv1.VolumeSnapshotClass{class("a", "CSI.example.com"), class("b", "CSI.example.com")}
			in.Backup.Annotations[isVelero+"_CSI.example.com"] = "b"
		},
		"b", "annotation velero.io/csi-volumesnapshot-class_CSI.example.com of Backup velero/nightly-1",
	},

	"configuration": {rules(config.SnapshotClassRule{Class: "b"}), "b", "snapshotClasses[0] of the configuration"},
	"configuration, first match": {
		rules(config.SnapshotClassRule{Match: config.Match{Drivers: []string{other}}, Class: "foreign"},
			config.SnapshotClassRule{Match: config.Match{Namespaces: []string{"sh*"}}, Class: "b"}, config.SnapshotClassRule{Class: "a"}),
		"b", "snapshotClasses[1] of the configuration",
	},
	"configuration, by StorageClass": {
		rules(config.SnapshotClassRule{Match: config.Match{StorageClasses: []string{"slow"}}, Class: "b"},
			config.SnapshotClassRule{Match: config.Match{StorageClasses: []string{"fast"}}, Class: "a"}),
		"a", "snapshotClasses[1] of the configuration",
	},
	"configuration, by a StorageClass that is gone": {
		func(in *Input) {
			in.StorageClass = nil
			in.Rules = []config.SnapshotClassRule{{Match: config.Match{StorageClasses: []string{"fast"}}, Class: "a"}}
		},
		"a", "snapshotClasses[0] of the configuration",
	},
	"configuration, no StorageClass": {
		func(in *Input) {
			in.StorageClass, in.Claim.Spec.StorageClassName = nil, nil
			in.Rules = []config.SnapshotClassRule{{Match: config.Match{StorageClasses: []string{"?*"}}, Class: "a"}, {Class: "b"}}
		},
		"b", "snapshotClasses[1] of the configuration",
	},
	"configuration, by labels": {
		rules(config.SnapshotClassRule{Match: config.Match{Claims: byLabel("tier", "silver")}, Class: "a"},
			config.SnapshotClassRule{Match: config.Match{Claims: byLabel("tier", "gold"), Backups: byLabel("velero.io/schedule-name", "nightly")}, Class: "b"}),
		"b", "snapshotClasses[1] of the configuration",
	},
	"configuration, no match": {
		func(in *Input) {
			in.Rules = []config.SnapshotClassRule{{Match: config.Match{Namespaces: []string{"office"}}, Class: "b"}}
			in.Classes = []snapshotv1.VolumeSnapshotClass{class("a", driver)}
		},
		"a", "the only VolumeSnapshotClass of driver csi.example.com",
	},
	"configuration, no such class": {
		rules(config.SnapshotClassRule{Class: "c"}),
		"", "snapshotClasses[0] of the configuration gives VolumeSnapshotClass c, which does not exist; VolumeSnapshotClasses of driver csi.example.com: a, b",
	},
	"configuration, other driver and no drivers in the match": {
		rules(config.SnapshotClassRule{Match: config.Match{Namespaces: []string{"shop"}}, Class: "foreign"}),
		"", "snapshotClasses[0] of the configuration gives VolumeSnapshotClass foreign, which is of driver csi.example.org, to a volume of driver csi.example.com; add match.drivers: [csi.example.org] to it",
	},
	"configuration, other driver than the match": {
		rules(config.SnapshotClassRule{Match: config.Match{Drivers: []string{driver}}, Class: "foreign"}),
		"", "snapshotClasses[0] of the configuration gives VolumeSnapshotClass foreign, which is of driver csi.example.org; VolumeSnapshotClasses of driver csi.example.com: a, b",
	},

	"StorageClass": {
		func(in *Input) { in.StorageClass.Annotations["stillpoint.io/volume-snapshot-class"] = "b" },
		"b", "annotation stillpoint.io/volume-snapshot-class of StorageClass fast",
	},
	"StorageClass, K10": {
		func(in *Input) { in.StorageClass.Annotations["k10.kasten.io/volume-snapshot-class"] = "b" },
		"b", "annotation k10.kasten.io/volume-snapshot-class of StorageClass fast",
	},
	"StorageClass, both agree": {
		func(in *Input) {
			in.StorageClass.Annotations = map[string]string{"stillpoint.io/volume-snapshot-class": "b", "k10.kasten.io/volume-snapshot-class": "b"}
		},
		"b", "annotation stillpoint.io/volume-snapshot-class of StorageClass fast",
	},
	"StorageClass, both differ": {
		func(in *Input) {
			in.StorageClass.Annotations = map[string]string{"stillpoint.io/volume-snapshot-class": "b", "k10.kasten.io/volume-snapshot-class": "a"}
		},
		"", `annotation stillpoint.io/volume-snapshot-class of StorageClass fast is "b", and annotation k10.kasten.io/volume-snapshot-class is "a"; remove one of them`,
	},
	"StorageClass, one empty": {
		func(in *Input) {
			in.StorageClass.Annotations = map[string]string{"stillpoint.io/volume-snapshot-class": "b", "k10.kasten.io/volume-snapshot-class": ""}
		},
		"", "annotation k10.kasten.io/volume-snapshot-class of StorageClass fast is empty; remove it, or name a VolumeSnapshotClass of driver csi.example.com: a, b",
	},
	"StorageClass, no such class": {
		func(in *Input) { in.StorageClass.Annotations["k10.kasten.io/volume-snapshot-class"] = "c" },
		"", "annotation k10.kasten.io/volume-snapshot-class of StorageClass fast names VolumeSnapshotClass c, which does not exist; VolumeSnapshotClasses of driver csi.example.com: a, b",
	},

	"Velero's mark":                {classes(class("a", driver), class("b", driver, "label "+isVelero+"=true")), "b", "label velero.io/csi-volumesnapshot-class of VolumeSnapshotClass b"},
	"Velero's mark, as annotation": {classes(class("a", driver), class("b", driver, "annotation "+isVelero+"=true")), "b", "annotation velero.io/csi-volumesnapshot-class of VolumeSnapshotClass b"},
	"Velero's mark, as both":       {classes(class("a", driver), class("b", driver, "label "+isVelero+"=true", "annotation "+isVelero+"=true")), "b", "label velero.io/csi-volumesnapshot-class of VolumeSnapshotClass b"},
	"Velero's mark, false":         {classes(class("a", driver, "label "+isVelero+"=false"), class("b", driver, "label "+isVelero+"=true")), "b", "label velero.io/csi-volumesnapshot-class of VolumeSnapshotClass b"},
	"Velero's mark, other driver":  {classes(class("a", driver), class("b", other, "label "+isVelero+"=true")), "a", "the only VolumeSnapshotClass of driver csi.example.com"},
	"Velero's mark, twice": {
		classes(class("b", driver, "annotation "+isVelero+"=true"), class("a", driver, "label "+isVelero+"=true"), class("c", driver)),
		"", "several VolumeSnapshotClasses of driver csi.example.com are marked: label velero.io/csi-volumesnapshot-class of VolumeSnapshotClass a, annotation velero.io/csi-volumesnapshot-class of VolumeSnapshotClass b; " +
			"leave the mark on one, or name one in annotation velero.io/csi-volumesnapshot-class of the claim or in a rule under snapshotClasses of the configuration",
	},
	"K10's mark":                   {classes(class("a", driver), class("b", driver, "annotation "+isK10+"=true")), "b", "annotation k10.kasten.io/is-snapshot-class of VolumeSnapshotClass b"},
	"K10's mark is no label":       {classes(class("a", driver, "label "+isK10+"=true"), class("b", driver, "annotation "+isDefault+"=true")), "b", "annotation snapshot.storage.kubernetes.io/is-default-class of VolumeSnapshotClass b"},
	"CloudCasa's mark":             {classes(class("a", driver), class("b", driver, "label "+isCloudCasa+"=true")), "b", "label cloudcasa.io/csi-volumesnapshot-class of VolumeSnapshotClass b"},
	"CloudCasa's mark, annotation": {classes(class("a", driver), class("b", driver, "annotation "+isCloudCasa+"=true")), "b", "annotation cloudcasa.io/csi-volumesnapshot-class of VolumeSnapshotClass b"},
	"default":                      {classes(class("a", driver), class("b", driver, "annotation "+isDefault+"=true")), "b", "annotation snapshot.storage.kubernetes.io/is-default-class of VolumeSnapshotClass b"},
	"default, false":               {classes(class("a", driver, "annotation "+isDefault+"=false"), class("b", driver, "annotation "+isDefault+"=true")), "b", "annotation snapshot.storage.kubernetes.io/is-default-class of VolumeSnapshotClass b"},
	"default is no label":          {classes(class("a", driver, "label "+isDefault+"=true")), "a", "the only VolumeSnapshotClass of driver csi.example.com"},
	"default, twice": {
		classes(class("a", driver, "annotation "+isDefault+"=true"), class("b", driver, "annotation "+isDefault+"=true")),
		"", "several VolumeSnapshotClasses of driver csi.example.com are marked: annotation snapshot.storage.kubernetes.io/is-default-class of VolumeSnapshotClass a, annotation snapshot.storage.kubernetes.io/is-default-class of VolumeSnapshotClass b; " +
			"leave the mark on one, or name one in annotation velero.io/csi-volumesnapshot-class of the claim or in a rule under snapshotClasses of the configuration",
	},
	"marks of other values": {
		classes(class("a", driver, "label "+isVelero+"=True", "annotation "+isK10+"=yes"), class("b", driver, "annotation "+isDefault+"=")),
		"", undecided,
	},

	"only":            {classes(class("foreign", other), class("a", driver)), "a", "the only VolumeSnapshotClass of driver csi.example.com"},
	"only, marked no": {classes(class("a", driver, "label "+isVelero+"=false")), "a", "the only VolumeSnapshotClass of driver csi.example.com"},
	"StorageClass gone": {func(in *Input) {
		in.StorageClass, in.Classes = nil, []snapshotv1.VolumeSnapshotClass{class("a", driver)}
	}, "a", "the only VolumeSnapshotClass of driver csi.example.com"},
	"other provisioner": {
		func(in *Input) {
			in.StorageClass, in.Classes = storageClass(other), []snapshotv1.VolumeSnapshotClass{class("a", driver), class("foreign", other)}
		},
		"a", "the only VolumeSnapshotClass of driver csi.example.com",
	},
	"driver in other capitals": {
		func(in *Input) {
			in.StorageClass, in.Classes = storageClass("CSI.example.com"), []snapshotv1.VolumeSnapshotClass{class("a", driver)}
			in.Claim.Annotations[isVelero] = "a"
		},
		"a", "annotation velero.io/csi-volumesnapshot-class of PersistentVolumeClaim shop/data",
	},
	"undecided":      {func(*Input) {}, "", undecided},
	"none":           {classes(class("foreign", other)), "", "there is no VolumeSnapshotClass of driver csi.example.com; create one with driver: csi.example.com"},
	"not CSI at all": {func(in *Input) { in.Driver = "" }, "", "the volume has no CSI driver; only CSI volumes have VolumeSnapshots"},
}

const undecided = `driver csi.example.com has several VolumeSnapshotClasses, and nothing says which of them to take: a, b; set label velero.io/csi-volumesnapshot-class to "true" on one, ` +
	"or name one in annotation velero.io/csi-volumesnapshot-class of the claim or in a rule under snapshotClasses of the configuration"

func TestChoose(t *testing.T) {
	for name, test := range choices {
		t.Run(name, func(t *testing.T) {
			in := input()
			test.change(&in)
			choice, err := Choose(in)
			if test.class == "" {
				require.EqualError(t, err, "choose the VolumeSnapshotClass for PersistentVolumeClaim shop/data: "+test.reason)
				require.Zero(t, choice)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.class, choice.Class.Name)
			require.Equal(t, test.reason, choice.Reason)
		})
	}
}

// TestOrder starts with all inputs, each for another class, and removes the one that
// decides.
func TestOrder(t *testing.T) {
	in := input()
	in.Claim.Annotations[isVelero] = "by-claim"
	in.Backup.Annotations[isVelero+"_csi.example.com"] = "by-backup"
	in.Location = map[string]string{*in.Claim.Spec.StorageClassName: "by-location", "another": "nowhere"}
	in.Rules = []config.SnapshotClassRule{{Class: "by-rule"}}
	in.StorageClass.Annotations["k10.kasten.io/volume-snapshot-class"] = "by-storage-class"
	in.Classes = []snapshotv1.VolumeSnapshotClass{
		class("by-claim", driver), class("by-backup", driver), class("by-location", driver), class("by-rule", driver), class("by-storage-class", driver),
		class("default", driver, "annotation "+isDefault+"=true"),
		class("cloudcasa", driver, "label "+isCloudCasa+"=true"),
		class("k10", driver, "annotation "+isK10+"=true"),
		class("velero", driver, "label "+isVelero+"=true"),
	}
	unmark := func(key string) func() {
		return func() {
			for _, class := range in.Classes {
				delete(class.Labels, key)
				delete(class.Annotations, key)
			}
		}
	}
	for _, step := range []struct {
		class string
		take  func()
	}{
		{"by-claim", func() { delete(in.Claim.Annotations, isVelero) }},
		{"by-backup", func() { clear(in.Backup.Annotations) }},
		{"by-location", func() { in.Location = nil }},
		{"by-rule", func() { in.Rules = nil }},
		{"by-storage-class", func() { clear(in.StorageClass.Annotations) }},
		{"velero", unmark(isVelero)},
		{"k10", unmark(isK10)},
		{"cloudcasa", unmark(isCloudCasa)},
		{"default", unmark(isDefault)},
	} {
		choice, err := Choose(in)
		require.NoError(t, err, step.class)
		require.Equal(t, step.class, choice.Class.Name)
		step.take()
	}
	_, err := Choose(in)
	require.ErrorContains(t, err, "nothing says which of them to take")
	in.Classes = in.Classes[:1]
	choice, err := Choose(in)
	require.NoError(t, err)
	require.Equal(t, "by-claim", choice.Class.Name)
	in.Classes = nil
	_, err = Choose(in)
	require.ErrorContains(t, err, "create one")
}

func TestForContent(t *testing.T) {
	two := []snapshotv1.VolumeSnapshotClass{class("b", driver), class("a", driver), class("foreign", other)}
	for name, test := range map[string]struct {
		rules   []config.SnapshotClassRule
		classes []snapshotv1.VolumeSnapshotClass
		class   string
		reason  string
	}{
		"rule for the driver": {[]config.SnapshotClassRule{{Match: config.Match{Drivers: []string{driver}}, Class: "b"}}, two, "b", "snapshotClasses[0] of the configuration"},
		"rule for all":        {[]config.SnapshotClassRule{{Class: "b"}}, two, "b", "snapshotClasses[0] of the configuration"},
		"rules that ask for more": {
			[]config.SnapshotClassRule{
				{Match: config.Match{Drivers: []string{driver}, Namespaces: []string{"*"}}, Class: "b"},
				{Match: config.Match{StorageClasses: []string{"*"}}, Class: "b"},
				{Match: config.Match{Claims: byLabel("tier", "gold")}, Class: "b"},
				{Match: config.Match{Backups: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "x", Operator: "DoesNotExist"}}}}, Class: "b"},
				{Match: config.Match{Drivers: []string{other}}, Class: "foreign"},
				{Match: config.Match{Drivers: []string{other, driver}}, Class: "a"},
			}, two, "a", "snapshotClasses[5] of the configuration",
		},
		"rule before mark": {
			[]config.SnapshotClassRule{{Class: "b"}},
			[]snapshotv1.VolumeSnapshotClass{class("b", driver), class("a", driver, "label "+isVelero+"=true")},
			"b", "snapshotClasses[0] of the configuration",
		},
		"mark":    {nil, []snapshotv1.VolumeSnapshotClass{class("b", driver), class("a", driver, "annotation "+isK10+"=true")}, "a", "annotation k10.kasten.io/is-snapshot-class of VolumeSnapshotClass a"},
		"default": {nil, []snapshotv1.VolumeSnapshotClass{class("b", driver), class("a", driver, "annotation "+isDefault+"=true")}, "a", "annotation snapshot.storage.kubernetes.io/is-default-class of VolumeSnapshotClass a"},
		"only":    {nil, two[1:], "a", "the only VolumeSnapshotClass of driver csi.example.com"},

		"rule for all, of another driver": {
			[]config.SnapshotClassRule{{Class: "foreign"}},
			two,
			"", "snapshotClasses[0] of the configuration gives VolumeSnapshotClass foreign, which is of driver csi.example.org, to a volume of driver csi.example.com; add match.drivers: [csi.example.org] to it",
		},
		"rule, no such class": {
			[]config.SnapshotClassRule{{Class: "c"}},
			two,
			"", "snapshotClasses[0] of the configuration gives VolumeSnapshotClass c, which does not exist; VolumeSnapshotClasses of driver csi.example.com: a, b",
		},
		"undecided": {
			nil, two,
			"", `driver csi.example.com has several VolumeSnapshotClasses, and nothing says which of them to take: a, b; set label velero.io/csi-volumesnapshot-class to "true" on one, ` +
				"or add a rule with match.drivers: [csi.example.com] and nothing else to match under snapshotClasses of the configuration",
		},
		"none": {nil, two[2:], "", "there is no VolumeSnapshotClass of driver csi.example.com; create one with driver: csi.example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			choice, err := ForContent(driver, test.rules, test.classes)
			if test.class == "" {
				require.EqualError(t, err, "choose the VolumeSnapshotClass for a restored snapshot: "+test.reason)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.class, choice.Class.Name)
			require.Equal(t, test.reason, choice.Reason)
		})
	}
}

func TestChooseLeavesItsInput(t *testing.T) {
	in := input()
	_, err := Choose(in)
	require.Error(t, err)
	_, _ = in.Velero().Class()
	require.Equal(t, input(), in)
}
