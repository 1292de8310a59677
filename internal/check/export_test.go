package check

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/export"
	"stillpoint.io/stillpoint/internal/selection"
)

func TestJudgeExport(t *testing.T) {
	of := func(path selection.Path, change func(*volume)) volume {
		v := volume{
			claim:   &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data"}},
			volume:  &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}},
			verdict: selection.Verdict{Path: path},
		}
		change(&v)
		return v
	}
	for name, c := range map[string]struct {
		volume                    volume
		quiet                     bool
		failures, warnings, notes string
	}{
		"nothing":          {volume: of(selection.Group, func(*volume) {})},
		"must be quiesced": {volume: of(selection.Group, func(v *volume) { v.driver.Quiesce = config.QuiesceRequired }), failures: "its workload is not quiesced"},
		"is quiesced":      {volume: of(selection.Group, func(v *volume) { v.driver.Quiesce = config.QuiesceRequired }), quiet: true},
		"bad annotation":   {volume: of(selection.Group, func(v *volume) { v.policyErr = errors.New("must be delete") }), failures: "must be delete"},
		"kept":             {volume: of(selection.Group, func(v *volume) { v.policy = export.Policy{Keep: true, Reason: "rule"} }), notes: "A second snapshot of claim shop/data is kept beside the export: rule."},
		"cannot be kept":   {volume: of(selection.Velero, func(v *volume) { v.policy = export.Policy{Keep: true, Reason: "rule"} }), warnings: "claim shop/data: no local snapshot is kept"},
	} {
		t.Run(name, func(t *testing.T) {
			var r Unit
			r.judgeExport(c.volume, c.quiet)
			for _, said := range []struct {
				have []string
				want string
			}{{r.Failures, c.failures}, {r.Warnings, c.warnings}, {r.Notes, c.notes}} {
				if said.want == "" {
					assert.Empty(t, said.have)
				} else if assert.Len(t, said.have, 1) {
					assert.Contains(t, said.have[0], said.want)
				}
			}
		})
	}
}
