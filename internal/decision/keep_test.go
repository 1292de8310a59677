package decision

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/config"
)

func TestKeepOf(t *testing.T) {
	rules := []config.LocalSnapshotRule{
		{Match: config.Match{StorageClasses: []string{"fast-*"}}, Policy: config.LocalSnapshotKeepLast, Count: 3},
		{Match: config.Match{Drivers: []string{"other"}}, Policy: config.LocalSnapshotRetain},
		{Match: config.Match{Namespaces: []string{"shop"}}, Policy: config.LocalSnapshotDelete},
		{Policy: config.LocalSnapshotRetain},
	}
	const (
		local = "stillpoint.io/local-snapshots"
		keep  = "stillpoint.io/keep-snapshot"
		claim = "PersistentVolumeClaim shop/data"
	)
	for name, c := range map[string]struct {
		annotations map[string]string
		class       string
		rules       []config.LocalSnapshotRule
		want        Keep
		err         string
	}{
		"nothing said":   {want: Keep{Reason: "the default"}},
		"a rule":         {class: "fast-1", rules: rules, want: Keep{Second: true, Last: 3, Reason: "localSnapshots[0] of the configuration"}},
		"a later rule":   {rules: rules, want: Keep{Reason: "localSnapshots[2] of the configuration"}},
		"retain":         {annotations: map[string]string{local: "retain"}, rules: rules, want: Keep{Second: true, Reason: "annotation " + local + " of " + claim}},
		"delete":         {annotations: map[string]string{local: "delete"}, class: "fast-1", rules: rules, want: Keep{Reason: "annotation " + local + " of " + claim}},
		"keepLast":       {annotations: map[string]string{local: "keepLast=12"}, want: Keep{Second: true, Last: 12, Reason: "annotation " + local + " of " + claim}},
		"veto":           {annotations: map[string]string{keep: "true"}, want: Keep{Second: true, Reason: "annotation " + keep + " of " + claim}},
		"no veto":        {annotations: map[string]string{keep: "false"}, want: Keep{Reason: "the default"}},
		"no such policy": {annotations: map[string]string{local: "keep"}, err: claim + `: annotation ` + local + ` is "keep", must be delete, retain or keepLast=<number>`},
		"no number":      {annotations: map[string]string{local: "keepLast=many"}, err: claim + `: annotation ` + local + ` is "keepLast=many", must be keepLast=<number>, at least 1`},
		"none":           {annotations: map[string]string{local: "keepLast=0"}, err: claim + `: annotation ` + local + ` is "keepLast=0", must be keepLast=<number>, at least 1`},
		"half a veto":    {annotations: map[string]string{keep: "yes"}, err: claim + `: annotation ` + keep + ` is "yes", must be true or false`},
		"both":           {annotations: map[string]string{keep: "true", local: "delete"}, err: claim + ` has both annotation ` + keep + ` and ` + local + `; remove one of them`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := keepOf(c.rules, &corev1.PersistentVolumeClaim{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", Annotations: c.annotations},
				Spec:       corev1.PersistentVolumeClaimSpec{StorageClassName: ptr.To(c.class)},
			}, "csi.example.com", &velerov1.Backup{})
			if c.err != "" {
				require.EqualError(t, err, c.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
}
