package snapshotclass

import (
	"os"
	"path/filepath"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"github.com/vmware-tanzu/velero/pkg/client"
	"github.com/vmware-tanzu/velero/pkg/util/csi"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"stillpoint.io/stillpoint/internal/config"
)

// veleroScheme returns the scheme of Velero's own client. No server is contacted.
func veleroScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	config := filepath.Join(t.TempDir(), "config")
	require.NoError(t, os.WriteFile(config, []byte(`{
		"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
		"contexts": [{"name": "c", "context": {"cluster": "c"}}],
		"current-context": "c"
	}`), 0o600))
	t.Setenv("KUBECONFIG", config)
	made, err := client.NewFactory("stillpoint", client.VeleroConfig{}).KubebuilderClient()
	require.NoError(t, err)
	return made.Scheme()
}

// byVelero returns the class that Velero's own code chooses.
func byVelero(t *testing.T, scheme *runtime.Scheme, in Input) string {
	t.Helper()
	if in.StorageClass == nil {
		return "" // Velero's action ends before it chooses a class
	}
	var objects []runtime.Object
	for i := range in.Classes {
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&in.Classes[i])
		require.NoError(t, err)
		object := &unstructured.Unstructured{Object: content}
		object.SetGroupVersionKind(snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshotClass"))
		objects = append(objects, object)
	}
	quiet := logrus.New()
	quiet.SetLevel(logrus.PanicLevel)
	class, err := csi.GetVolumeSnapshotClass(in.StorageClass.Provisioner, in.Backup, in.Claim, quiet,
		fake.NewClientBuilder().WithScheme(scheme).WithRuntimeObjects(objects...).Build())
	if err != nil {
		return ""
	}
	return class.Name
}

func TestVelero(t *testing.T) {
	type scene = struct {
		change func(in *Input)
		want   string // "?" if only the comparison matters
	}
	scenes := map[string]scene{
		"name that does not serve, and a mark": {func(in *Input) {
			in.Claim.Annotations[isVelero] = "foreign"
			in.Classes = []snapshotv1.VolumeSnapshotClass{class("foreign", other), class("a", driver), class("b", driver, "label "+isVelero+"=true")}
		}, "b"},
		"claim before backup": {func(in *Input) {
			in.Claim.Annotations[isVelero], in.Backup.Annotations[isVelero+"_csi.example.com"] = "b", "a"
		}, "b"},
		"backup where the claim's does not exist": {func(in *Input) {
			in.Claim.Annotations[isVelero], in.Backup.Annotations[isVelero+"_csi.example.com"] = "c", "a"
		}, "a"},
		"mark by presence":            {classes(class("b", driver, "label "+isVelero+"=false"), class("c", driver, "annotation "+isDefault+"=true")), "b"},
		"two marks, the first listed": {classes(class("b", driver, "label "+isVelero+"=true"), class("a", driver, "label "+isVelero+"=true")), "a"},
		"mark as annotation":          {classes(class("b", driver, "annotation "+isVelero+"=true"), class("a", driver)), ""},
		"default by presence":         {classes(class("b", driver, "annotation "+isDefault+"=false"), class("a", driver)), "b"},
		"mark before default":         {classes(class("a", driver, "annotation "+isDefault+"=true"), class("b", driver, "label "+isVelero+"=true")), "b"},
		"K10's mark is nothing to it": {classes(class("a", driver), class("b", driver, "annotation "+isK10+"=true")), ""},
		"mark of capitals":            {func(in *Input) { in.StorageClass.Provisioner = "CSI.example.com" }, ""},
		"name of capitals": {func(in *Input) {
			in.StorageClass.Provisioner, in.Backup.Annotations[isVelero+"_csi.example.com"] = "CSI.example.com", "B"
		}, "b"},
		"another provisioner": {func(in *Input) { in.StorageClass.Provisioner = other }, "foreign"},
		"no StorageClass":     {func(in *Input) { in.StorageClass, in.Claim.Annotations[isVelero] = nil, "a" }, ""},
	}
	for name, choice := range choices {
		scenes["choose: "+name] = scene{choice.change, "?"}
	}
	scheme := veleroScheme(t)
	for name, test := range scenes {
		t.Run(name, func(t *testing.T) {
			in := input()
			test.change(&in)
			want := byVelero(t, scheme, in)
			taken, _ := in.Velero().Class()
			require.Equal(t, want, taken)
			if test.want != "?" {
				require.Equal(t, test.want, want)
			}
		})
	}
}

func TestAnnotation(t *testing.T) {
	for name, test := range map[string]struct {
		change func(in *Input)
		want   string
	}{
		"they agree":                {func(in *Input) { in.Claim.Annotations[isVelero] = "a" }, ""},
		"by configuration":          {rules(config.SnapshotClassRule{Class: "b"}), "velero.io/csi-volumesnapshot-class=b"},
		"Velero has another":        {classes(class("a", driver, "label "+isVelero+"=false"), class("b", driver, "annotation "+isDefault+"=true")), "velero.io/csi-volumesnapshot-class=b"},
		"Velero has none":           {func(in *Input) { in.StorageClass.Annotations["k10.kasten.io/volume-snapshot-class"] = "b" }, "velero.io/csi-volumesnapshot-class=b"},
		"the only one":              {classes(class("a", driver)), ""},
		"no StorageClass":           {func(in *Input) { in.StorageClass, in.Classes = nil, in.Classes[:1] }, ""},
		"of another provisioner":    {func(in *Input) { in.StorageClass.Provisioner, in.Classes = other, in.Classes[:1] }, ""},
		"provisioner with capitals": {func(in *Input) { in.StorageClass.Provisioner, in.Classes = "CSI.example.com", in.Classes[:1] }, "velero.io/csi-volumesnapshot-class=b"},
	} {
		t.Run(name, func(t *testing.T) {
			in := input()
			test.change(&in)
			choice, err := Choose(in)
			require.NoError(t, err)
			require.Equal(t, test.want, in.Velero().Annotation(choice.Class))
		})
	}
}

// TestAnnotationHelps sets the annotation and calls Velero's own code again.
func TestAnnotationHelps(t *testing.T) {
	scheme := veleroScheme(t)
	helped := 0
	for name, test := range choices {
		in := input()
		test.change(&in)
		choice, err := Choose(in)
		if err != nil {
			continue
		}
		if in.Velero().Annotation(choice.Class) != "" {
			helped++
			in.Claim.Annotations[isVelero] = choice.Class.Name
		} else if in.StorageClass == nil || in.StorageClass.Provisioner == other {
			continue
		}
		require.Equal(t, choice.Class.Name, byVelero(t, scheme, in), name)
	}
	require.Positive(t, helped)
}
