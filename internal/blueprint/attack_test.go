package blueprint

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// bombs are templates that cost as much as they can. Those that need a long
// text are written by it.
func bombs() map[string]string {
	const big = `{{ $x := repeat 1000000 "x" }}`
	return map[string]string{
		"loop":                      `{{ range $i := until 1000000000 }}x{{ end }}`,
		"loop over a number":        `{{ range 1000000000 }}{{ end }}`,
		"loops in loops":            strings.Repeat(`{{ range until 1000 }}`, 5) + strings.Repeat(`{{ end }}`, 5),
		"recursion":                 `{{ define "a" }}{{ template "a" }}{{ end }}{{ template "a" }}`,
		"recursion that forks":      `{{ define "a" }}{{ if lt . 60 }}{{ template "a" (add 1 .) }}{{ template "a" (add 1 .) }}{{ end }}{{ end }}{{ template "a" 0 }}`,
		"repeat":                    `{{ repeat 1000000000 "x" }}`,
		"repeat of repeats":         big + `{{ repeat 1000000 $x }}`,
		"doubling":                  `{{ $x := "xxxx" }}{{ range until 60 }}{{ $x = print $x $x }}{{ end }}{{ $x }}`,
		"doubling of a list":        `{{ $x := list 1 }}{{ range until 60 }}{{ $x = concat $x $x }}{{ end }}{{ $x }}`,
		"list of itself":            `{{ $x := list 1 }}{{ range until 60 }}{{ $x = list $x $x }}{{ end }}{{ $x | toJson }}`,
		"map that has itself":       `{{ $x := dict }}{{ $_ := set $x "x" $x }}{{ $x }}`,
		"numbers":                   `{{ seq 1 1000000000 }}`,
		"steps":                     `{{ untilStep 0 1000000000 1 }}`,
		"indent":                    `{{ indent 100000000 "x" }}`,
		"random":                    `{{ randAlphaNum 1000000000 }}`,
		"replace":                   big + `{{ replace "x" $x $x }}`,
		"regular expression":        big + `{{ regexReplaceAll "x" $x $x }}`,
		"join":                      big + `{{ $l := list }}{{ range until 10000 }}{{ $l = append $l $x }}{{ end }}{{ join "" $l }}`,
		"print":                     big + `{{ print` + strings.Repeat(" $x", 5000) + ` }}`,
		"printf of one often":       big + `{{ printf (repeat 10000 "%[1]s") $x }}`,
		"printf with width":         `{{ printf (repeat 100000 "%[1]9999d") 1 }}`,
		"printf with a given width": `{{ printf "%*d" 1000000 1 }}`,
		"wrap with":                 big + `{{ wrapWith 1 $x (repeat 10000 "x ") }}`,
		"cat":                       big + `{{ cat` + strings.Repeat(" $x", 5000) + ` }}`,
		"quote":                     big + `{{ quote` + strings.Repeat(" $x", 5000) + ` }}`,
		"JSON":                      big + `{{ $l := list }}{{ range until 10000 }}{{ $l = append $l $x }}{{ end }}{{ toJson $l }}`,
		"split":                     big + `{{ range until 1000 }}{{ $_ := split "" $x }}{{ end }}`,
		"keys":                      `{{ range until 1000 }}{{ range until 1000 }}{{ $_ := genPrivateKey "ecdsa" }}{{ end }}{{ end }}`,
		"long":                      strings.Repeat(`{{if 1}}`, 100_000) + strings.Repeat(`{{end}}`, 100_000),
		"deep":                      strings.Repeat(`{{if 1}}`, 15_000) + `{{ .Absent }}` + strings.Repeat(`{{end}}`, 15_000),
		"nested parentheses":        `{{` + strings.Repeat(`(`, 100_000) + `1` + strings.Repeat(`)`, 100_000) + `}}`,
	}
}

// cheaply runs something that may take neither much time nor much memory, here
// where Velero's own is at stake.
func cheaply(t *testing.T, run func(ctx context.Context)) {
	t.Helper()
	const (
		limit  = time.Second
		slack  = 5 * time.Second // the machine may be busy
		memory = 200 << 20
	)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	used := func() uint64 {
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapInuse + stats.StackInuse
	}
	runtime.GC()
	before, peak := used(), uint64(0)
	done, sampled := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sampled)
		for ticker := time.NewTicker(10 * time.Millisecond); ; {
			select {
			case <-done:
				ticker.Stop()
				return
			case <-ticker.C:
				peak = max(peak, used())
			}
		}
	}()
	began := time.Now()
	run(ctx)
	require.Less(t, time.Since(began), limit+slack)
	close(done)
	<-sampled
	require.Less(t, peak, before+memory)
}

func TestTemplatesAreBounded(t *testing.T) {
	for name, template := range bombs() {
		t.Run(name, func(t *testing.T) {
			phases := fmt.Sprintf("    - func: KubeExec\n      name: run\n      args: {namespace: shop, pod: app-1, command: [%q]}\n", template)
			cheaply(t, func(ctx context.Context) {
				_, _, err := steps(ctx, renderer("shop"), phases, deployment())
				require.Error(t, err)
			})
		})
	}
}

// Conditions are templates, too, and run again and again.
func TestConditionsAreBounded(t *testing.T) {
	many := make([]any, 10_000)
	for i := range many {
		many[i] = int64(i)
	}
	object := map[string]any{"data": map[string]any{"many": many, "long": strings.Repeat("x", 100_000)}}
	for name, condition := range map[string]struct{ function, text string }{
		"loops":     {waitV2Function, strings.Repeat(`{{ range $.data.many }}`, 5) + strings.Repeat(`{{ end }}`, 5)},
		"doubling":  {waitV2Function, `{{ $x := $.data.long }}{{ range $.data.many }}{{ $x = print $x $x }}{{ end }}`},
		"printf":    {waitV2Function, `{{ $x := $.data.long }}{{ printf "` + strings.Repeat("%[1]s", 10_000) + `" $x }}`},
		"recursion": {waitV2Function, `{{ define "a" }}{{ template "a" }}{{ template "a" }}{{ end }}{{ template "a" }}`},
		"paths":     {waitFunction, strings.Repeat("{$.data.long}", 10_000)},
		"filled in": {waitFunction, `{{ range until {$.data.many[9999]} }}{{ range until 9999 }}{{ repeat 9999999 "x" }}{{ end }}{{ end }}`},
	} {
		t.Run(name, func(t *testing.T) {
			cheaply(t, func(ctx context.Context) {
				_, err := evaluate(ctx, condition.function, condition.text, object)
				require.Error(t, err)
			})
		})
	}
}

func TestOutputsAreBounded(t *testing.T) {
	var log strings.Builder
	for i := range 30 {
		fmt.Fprintf(&log, "###Phase-output###: {\"key\": \"k%d\", \"value\": %q}\n", i, strings.Repeat("x", 100_000))
	}
	_, err := ParseOutputs([]byte(log.String()))
	require.EqualError(t, err, "line 11: the outputs are longer than 1048576 bytes")
}
