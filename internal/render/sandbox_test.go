package render

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillpoint.io/stillpoint/internal/blueprint"
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
		"printf with a given width": `{{ printf "%*d" 1000000 1 }}{{ printf "%*d" 1000000 1 }}`,
		"wrap with":                 big + `{{ wrapWith 1 $x (repeat 10000 "x ") }}`,
		"cat":                       big + `{{ cat` + strings.Repeat(" $x", 5000) + ` }}`,
		"quote":                     big + `{{ quote` + strings.Repeat(" $x", 5000) + ` }}`,
		"JSON":                      big + `{{ $l := list }}{{ range until 10000 }}{{ $l = append $l $x }}{{ end }}{{ toJson $l }}`,
		"split":                     big + `{{ range until 1000 }}{{ $_ := split "" $x }}{{ end }}`,
		"keys":                      `{{ range until 1000 }}{{ range until 1000 }}{{ $_ := genPrivateKey "ecdsa" }}{{ end }}{{ end }}`,
		"long":                      strings.Repeat(`{{if 1}}`, 100_000) + strings.Repeat(`{{end}}`, 100_000),
		"recursion with a variable": `{{ define "a" }}{{ $x := repeat 1000000 "x" }}{{ template "a" }}{{ $x }}{{ end }}{{ template "a" }}`,
		"unique elements":           `{{ uniq (until 1000000) }}`,
		"elements of a list":        `{{ $l := until 100000 }}{{ range $l }}{{ $_ := has . $l }}{{ end }}`,
		"RSA keys":                  `{{ range until 1000 }}{{ genPrivateKey "rsa" | len }}{{ end }}`,
		"a long text":               `{{ $x := repeat 1000000 "x" }}{{ range 1000000 }}{{ $x }}{{ end }}`,
		"a long error":              `{{ fail (repeat 100000000 "x") }}`,
		"nested regular expression": `{{ $t := repeat 10000 "a" }}{{ range until 100000 }}{{ $_ := regexFindAll "(a?){500}b" $t -1 }}{{ end }}`,
		"deep":                      strings.Repeat(`{{if 1}}`, 15_000) + `{{ .Absent }}` + strings.Repeat(`{{end}}`, 15_000),
		"nested parentheses":        `{{` + strings.Repeat(`(`, 100_000) + `1` + strings.Repeat(`)`, 100_000) + `}}`,
	}
}

// renderers are the processes that render for this one.
func renderers() []int {
	var pids []int
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getpid()))
	for _, file := range children {
		text, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// sampled watches the memory of this process and of the one that renders while do
// runs, and returns by how much the first has grown and how much the second took.
func sampled(do func()) (grown, taken int) {
	var peak, other atomic.Int64
	own := func() int64 {
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapInuse + stats.StackInuse)
	}
	runtime.GC()
	before := own()
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ticker := time.NewTicker(2 * time.Millisecond); ; {
			select {
			case <-done:
				ticker.Stop()
				return
			case <-ticker.C:
				peak.Store(max(peak.Load(), own()))
				for _, pid := range renderers() {
					other.Store(max(other.Load(), int64(memoryOf(pid))))
				}
			}
		}
	}()
	do()
	close(done)
	<-ended
	return int(peak.Load() - before), int(other.Load())
}

// A template takes neither memory nor time of the process that freezes and thaws,
// and the next one is rendered.
func TestTemplatesAreBounded(t *testing.T) {
	for name, template := range bombs() {
		t.Run(name, func(t *testing.T) {
			phases := fmt.Sprintf("    - func: KubeExec\n      name: run\n      args: {namespace: shop, pod: app-1, command: [%q]}\n", template)
			began := time.Now()
			grown, taken := sampled(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
				defer cancel()
				_, _, err := steps(ctx, renderer("shop"), phases, deployment())
				require.Error(t, err)
				require.Less(t, len(err.Error()), 2*maxError)
			})
			require.Less(t, time.Since(began), time.Minute) // the machine may be busy
			require.Less(t, grown, 64<<20)
			require.Less(t, taken, 2*memoryLimit)
			_, _, err := steps(t.Context(), renderer("shop"), exec("{{ .Time }}"), deployment())
			require.NoError(t, err)
		})
	}
}

func TestTemplatesSayWhatTheyTakeTooMuchOf(t *testing.T) {
	for template, want := range map[string]string{
		`{{ repeat 1000000000 "x" }}`: "the template takes too much memory; a template may take 128 MiB",
		`{{ define "a" }}{{ $x := repeat 1000000 "x" }}{{ template "a" }}{{ $x }}{{ end }}{{ template "a" }}`:                  "the template takes too much memory; a template may take 128 MiB",
		`{{ define "a" }}{{ if true }}{{ if true }}{{ template "a" (list .) }}{{ end }}{{ end }}{{ end }}{{ template "a" 1 }}`: "the template takes too much memory; a template may take 128 MiB",
	} {
		_, _, err := steps(t.Context(), renderer("shop"), exec(template), deployment())
		require.ErrorContains(t, err, "args.command[2]: "+want, template)
	}
	box := &sandbox{turn: make(chan struct{}, 1)}
	began := time.Now()
	_, err := box.render(t.Context(), &question{Source: `{{ range 1000000000 }}{{ end }}`, Data: &data{DeferPhase: &phaseData{}}}, 100*time.Millisecond)
	require.EqualError(t, err, "the template takes too much time; a template may take 10s, and all of a blueprint 30s")
	require.Less(t, time.Since(began), 10*time.Second)
	require.Nil(t, box.child)
}

// Many templates that each take less than they may take too much together.
func TestBlueprintsAreBounded(t *testing.T) {
	run := renderer("shop").newRendering(&blueprint.Blueprint{}, blueprint.Prehook, deployment(), &secrecy{spent: scriptLimit - time.Nanosecond})
	run.enter(0)
	_, err := run.text(t.Context(), "args.x", "{{ .Time }}")
	require.ErrorContains(t, err, "args.x: the template takes too much time")
	require.Greater(t, run.spent, scriptLimit)
}

// Conditions are templates, too, and run again and again.
func TestConditionsAreBounded(t *testing.T) {
	many := make([]any, 10_000)
	for i := range many {
		many[i] = int64(i)
	}
	object := map[string]any{"data": map[string]any{"many": many, "long": strings.Repeat("x", 100_000)}}
	for name, condition := range map[string]struct{ function, text string }{
		"loops":     {WaitV2Function, strings.Repeat(`{{ range $.data.many }}`, 5) + strings.Repeat(`{{ end }}`, 5)},
		"doubling":  {WaitV2Function, `{{ $x := $.data.long }}{{ range $.data.many }}{{ $x = print $x $x }}{{ end }}`},
		"printf":    {WaitV2Function, `{{ $x := $.data.long }}{{ printf "` + strings.Repeat("%[1]s", 10_000) + `" $x }}`},
		"recursion": {WaitV2Function, `{{ define "a" }}{{ template "a" }}{{ template "a" }}{{ end }}{{ template "a" }}`},
		"paths":     {WaitFunction, strings.Repeat("{$.data.long}", 10_000)},
		"filled in": {WaitFunction, `{{ range until {$.data.many[9999]} }}{{ range until 9999 }}{{ repeat 9999999 "x" }}{{ end }}{{ end }}`},
		"descent":   {WaitFunction, "{$" + strings.Repeat("..*", 50) + "}"},
	} {
		t.Run(name, func(t *testing.T) {
			grown, taken := sampled(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
				defer cancel()
				_, err := Condition(ctx, condition.function, condition.text, object)
				require.Error(t, err)
			})
			require.Less(t, grown, 64<<20)
			require.Less(t, taken, 2*memoryLimit)
		})
	}
}

// The process that renders has nothing of the plugin's environment, and ends with the
// plugin, in the midst of a template too.
func TestRendererStandsAlone(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hush")
	c, err := startChild()
	require.NoError(t, err)
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.Process.Pid))
	require.NoError(t, err)
	names := strings.FieldsFunc(string(environment), func(r rune) bool { return r == 0 })
	for i, name := range names {
		names[i], _, _ = strings.Cut(name, "=")
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name == "TZ" })
	require.ElementsMatch(t, []string{renderingVariable, "GOMAXPROCS", "GOMEMLIMIT"}, names)

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = c.ask(ctx, &question{Source: `{{ range 100000000000 }}{{ end }}`, Data: &data{DeferPhase: &phaseData{}}}, time.Minute)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, c.in.Close())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.Wait() // killed or not
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		c.end()
		t.Fatal("it goes on")
	}
}

// One that has died while it was idle says nothing of the next template.
func TestRendererIsStartedAgain(t *testing.T) {
	box := &sandbox{turn: make(chan struct{}, 1)}
	ask := &question{Source: `{{ "x" | upper }}`, Data: &data{DeferPhase: &phaseData{}}}
	for range 3 {
		reply, err := box.render(t.Context(), ask, time.Minute)
		require.NoError(t, err)
		require.Equal(t, "X", string(reply.Text))
		require.NoError(t, box.child.Process.Kill())
	}
	box.child.end()
}

// A program that does not serve the subcommand does not start itself for ever.
func TestRendererStartsNoOther(t *testing.T) {
	t.Setenv(renderingVariable, "1")
	_, err := startChild()
	require.ErrorContains(t, err, "does not serve render-templates")
}

// A text that is no UTF-8, and numbers, arrive as they are.
func TestValuesArriveAsTheyAre(t *testing.T) {
	p := deployment()
	p.Object["spec"] = map[string]any{"whole": int64(9007199254740993), "float": float64(3), "large": 1e300, "part": 0.1, "none": nil, "empty": []any{}, "text": "\u2028<&>"}
	p.Deployment.Pods = nil
	for template, want := range map[string]string{
		"{{ .Object.spec.whole }}":                                      "9007199254740993",
		`{{ printf "%T %T" .Object.spec.whole .Object.spec.float }}`:    "int64 float64",
		"{{ .Object.spec.float }} {{ .Object.spec.float | toJson }}":    "3 3",
		"{{ .Object.spec.large }} {{ .Object.spec.part }}":              "1e+300 0.1",
		"{{ .Object.spec.none }} {{ .Object.spec.empty | toJson }}":     "<no value> []",
		"{{ .Object.spec.text }} {{ .Object.spec.text | toRawJson }}":   "\u2028<&> \"\\u2028<&>\"",
		"{{ .Deployment.Pods }} {{ .Deployment.Pods | toJson }}":        "[] null",
		`{{ "AP/+" | b64dec }}{{ print "\xff" }}`:                       "\x00\xff\xfe\xff",
		`{{ with .Deployment }}{{ .PersistentVolumeClaims }}{{ end }}`:  "map[app-1:map[data:/mnt]]",
		`{{ typeOf .Object }} {{ typeOf .Options }} {{ kindOf .Time }}`: "map[string]interface {} map[string]string string",
	} {
		got, _, err := steps(t.Context(), renderer("shop"), exec(template), p)
		require.NoError(t, err, template)
		require.Equal(t, want, got[0].Calls[0].Command[2], template)
	}
	got, _, err := steps(t.Context(), renderer("shop"), withSecret(`{{ .Phases.run.Secrets.db.Data.pin }} {{ typeOf .Phases.run.Secrets.db }} {{ .Phases.run.Secrets.db.CreationTimestamp }}`), p)
	require.NoError(t, err)
	require.Equal(t, "[49 50] v1.Secret 0001-01-01 00:00:00 +0000 UTC", got[0].Calls[0].Command[2])
}
