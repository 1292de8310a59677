package location

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/api"
)

func TestDecode(t *testing.T) {
	var (
		class   string
		limit   time.Duration
		drivers []string
	)
	for name, test := range map[string]struct {
		config map[string]string
		texts  []string // expected in the error; empty means no error
	}{
		"nothing":        {},
		"Velero's own":   {config: map[string]string{"credentialsFile": "/tmp/x"}},
		"all":            {config: map[string]string{"class": "fast", "limit": "90s", "drivers": "a.csi, b.*", "of/fast.ssd": "x"}},
		"unknown":        {config: map[string]string{"classes": "x"}, texts: []string{"provider example.com/x: spec.config: key classes: unknown key; valid keys: class, limit, drivers, of/<StorageClass>"}},
		"no family":      {config: map[string]string{"class/x": "y", "of": "x"}, texts: []string{"key class/x: unknown key", "key of: unknown key"}},
		"no object":      {config: map[string]string{"class": "Fast"}, texts: []string{`key class: value "Fast": not the name of an object`}},
		"no such family": {config: map[string]string{"of/": "x"}, texts: []string{`key of/: "" cannot be the name of a StorageClass`}},
		"family value":   {config: map[string]string{"of/a": ""}, texts: []string{`key of/a: value "": not the name`}},
		"no time":        {config: map[string]string{"limit": "soon"}, texts: []string{"must be a positive duration, such as 90s or 10m"}},
		"zero":           {config: map[string]string{"limit": "0s"}, texts: []string{"positive duration"}},
		"negative":       {config: map[string]string{"limit": "-1s"}, texts: []string{"positive duration"}},
		"empty entry":    {config: map[string]string{"drivers": "a,,b"}, texts: []string{"has an empty entry"}},
		"bad pattern":    {config: map[string]string{"drivers": "[a"}, texts: []string{`pattern "[a"`}},
		"several":        {config: map[string]string{"limit": "x", "drivers": ""}, texts: []string{"key limit", "key drivers"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := Decode("example.com/x", test.config, Name("class", &class), Duration("limit", &limit), Globs("drivers", &drivers), Names("of", "StorageClass", map[string]string{}))
			if len(test.texts) == 0 {
				require.NoError(t, err)
			}
			for _, text := range test.texts {
				require.ErrorContains(t, err, text)
			}
		})
	}
	require.NoError(t, Decode("", map[string]string{"drivers": "a.csi, b.*"}, Globs("drivers", &drivers)))
	assert.True(t, Matches(drivers, "a.csi") && Matches(drivers, "b.anything"))
	assert.False(t, Matches(drivers, "c.csi"))
	assert.True(t, Matches(nil, "c.csi"))
}

func TestID(t *testing.T) {
	type fields struct {
		Handle string `json:"handle"`
	}
	id, err := EncodeID("example.com/x", fields{"a:b"})
	require.NoError(t, err)
	assert.Equal(t, `example.com/x:v1:{"handle":"a:b"}`, id)
	var read fields
	require.NoError(t, DecodeID("example.com/x", id, &read))
	assert.Equal(t, "a:b", read.Handle)
	for id, text := range map[string]string{
		"snap-1":                             `is not one of provider example.com/x, which begin with "example.com/x:v1:"`,
		`example.com/y:v1:{}`:                "is of provider example.com/y, and not of example.com/x",
		`example.com/x:v2:{}`:                "has the version v2, and this Stillpoint knows v1",
		`example.com/x:v1:{"handles":"a"}`:   `unknown field "handles"`,
		`example.com/x:v1:{"handle":"a"`:     "unexpected EOF",
		`example.com/x:v1:{"handle":"a"} {}`: "goes on after its end",
	} {
		require.ErrorContains(t, DecodeID("example.com/x", id, &read), text, id)
	}
}

func TestNodes(t *testing.T) {
	node := func(name, zone string, change func(*corev1.Node)) corev1.Node {
		n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}}}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		if change != nil {
			change(&n)
		}
		return n
	}
	all := []corev1.Node{
		node("b", "west", nil), node("a", "east", nil), node("c", "east", nil),
		node("down", "east", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }),
		node("drained", "east", func(n *corev1.Node) { n.Spec.Unschedulable = true }),
	}
	in := func(zones ...string) *storagev1.StorageClass {
		return &storagev1.StorageClass{AllowedTopologies: []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: corev1.LabelTopologyZone, Values: zones}}}}}
	}
	assert.Equal(t, []string{"a", "b", "c"}, nodesFor(all, &storagev1.StorageClass{}, ""))
	assert.Equal(t, []string{"b", "a", "c"}, nodesFor(all, &storagev1.StorageClass{}, "west"), "those of the zone come first")
	assert.Equal(t, []string{"a", "c"}, nodesFor(all, in("east", "south"), "west"))
	assert.Empty(t, nodesFor(all, in("south"), ""))
}

// The replacement has the fields of the backup, and the location of the promoted volume.
func TestAdopt(t *testing.T) {
	size := func(s string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(s)}
	}
	item := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name: "pvc-old", Labels: map[string]string{"team": "shop", corev1.LabelTopologyZone: "east"},
			Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": "old.csi", "note": "mine"},
		},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/old"}},
			Capacity:               size("1Gi"), StorageClassName: "fast", PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef: &corev1.ObjectReference{Namespace: "shop", Name: "data"}, MountOptions: []string{"noatime"},
		},
	}
	promoted := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name: "pvc-new", Labels: map[string]string{api.LabelPromoted: "here", corev1.LabelTopologyZone: "west"},
			Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": "new.csi", "pv.kubernetes.io/bound-by-controller": "yes", api.AnnotationReplacedBy: "pvc-old"},
		},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "new.csi", VolumeHandle: "v"}},
			Capacity:               size("2Gi"), StorageClassName: "temporary", PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef:     &corev1.ObjectReference{Namespace: "velero", Name: "stillpoint-restore-x"},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{}},
		},
	}
	adopted := adopt(item, promoted)
	assert.Equal(t, "pvc-old", adopted.Name)
	assert.Equal(t, map[string]string{"team": "shop", corev1.LabelTopologyZone: "west"}, adopted.Labels)
	assert.Equal(t, map[string]string{"pv.kubernetes.io/provisioned-by": "new.csi", "note": "mine"}, adopted.Annotations)
	assert.Equal(t, promoted.Spec.PersistentVolumeSource, adopted.Spec.PersistentVolumeSource)
	assert.Equal(t, promoted.Spec.Capacity, adopted.Spec.Capacity)
	assert.Equal(t, promoted.Spec.NodeAffinity, adopted.Spec.NodeAffinity)
	assert.Equal(t, item.Spec.ClaimRef, adopted.Spec.ClaimRef)
	assert.Equal(t, "fast", adopted.Spec.StorageClassName)
	assert.Equal(t, corev1.PersistentVolumeReclaimDelete, adopted.Spec.PersistentVolumeReclaimPolicy)
	assert.Equal(t, []string{"noatime"}, adopted.Spec.MountOptions)
	assert.Equal(t, "/old", item.Spec.HostPath.Path, "the item itself stays")
}
