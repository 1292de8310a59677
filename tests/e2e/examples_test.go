package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/tests/cluster"
)

const (
	examplesDir = "../../examples"
	// exampleLimit is how long all commands of one example may take, and
	// commandLimit how long one of kubectl or velero.
	exampleLimit, commandLimit = 8 * time.Minute, 4 * time.Minute
	// clearLimit is how long after an example what it made may take to go.
	clearLimit = time.Minute
	// markOfVelero makes a VolumeSnapshotClass Velero's.
	markOfVelero = "velero.io/csi-volumesnapshot-class"
)

// prepares has what a reader of these examples has and the bed has not. It may
// change the copy of the example's folder.
var prepares = map[string]func(t *testing.T, c *cluster.Cluster, dir string){
	"from-cloudcasa":          func(t *testing.T, c *cluster.Cluster, _ string) { t.Helper(); withoutMark(t, c) },
	"from-k10":                asWithK10,
	"linstor-s3":              asWithLINSTOR,
	"schedule-with-locations": func(t *testing.T, c *cluster.Cluster, _ string) { t.Helper(); withoutCSI(t, c) },
}

// apart are the examples that change what others depend on: the configuration,
// the marks of VolumeSnapshotClasses, or the features of the server. Those of one set do not mind each other:
// LINSTOR's configuration asks nothing of the guest book that it does not do.
var apart = [][]string{{"from-cloudcasa", "linstor-s3"}, {"from-k10"}, {"schedule-with-locations"}}

// Every example does what its README says, by the commands that stand there.
func TestExamples(t *testing.T) {
	serverFlags(t, connect(t), concurrent(atOnce))
	runTogether(t, slices.DeleteFunc(exampleNames(t), func(name string) bool { return prepares[name] != nil })...)
}

func TestExamplesApart(t *testing.T) {
	for _, names := range apart {
		t.Run(names[0], func(t *testing.T) { runTogether(t, names...) })
	}
}

// runTogether runs examples at the same time: most of it they wait for Velero.
func runTogether(t *testing.T, names ...string) {
	t.Helper()
	c := connect(t)
	dirs := map[string]string{}
	for _, name := range names {
		dirs[name] = copyExample(t, name)
		if prepare := prepares[name]; prepare != nil {
			prepare(t, c, dirs[name])
		}
	}
	clearsAway(t, c)
	// Most apply it, and two that do so for the first time at once are one too many.
	_, err := c.Kubectl(t.Context(), nil, "apply", "--filename", "../../deploy/volume-policy.yaml")
	require.NoError(t, err)
	path := withLimits(t) + string(os.PathListSeparator) + os.Getenv("PATH")
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			commands := commandsOf(t, dirs[name])
			run(t.Context(), dirs[name], path, commands).judge(t, commands)
		})
	}
}

// The list of examples has all of them, and each says how to run it.
func TestExamplesAreListed(t *testing.T) {
	list, err := os.ReadFile(filepath.Join(examplesDir, "README.md"))
	require.NoError(t, err)
	for _, name := range exampleNames(t) {
		assert.Contains(t, string(list), "]("+name+"/README.md)")
		assert.NotEmpty(t, commandsOf(t, filepath.Join(examplesDir, name)), name)
	}
	for name := range prepares {
		assert.Contains(t, slices.Concat(apart...), name)
	}
}

// The blueprint that is published and the one of the example are the same.
func TestExampleOfMongoDBIsUnchanged(t *testing.T) {
	var published, ours map[string]any
	for file, into := range map[string]*map[string]any{
		"../../internal/function/testdata/mongodb-hooks.yaml":        &published,
		filepath.Join(examplesDir, "mongodb-lock", "blueprint.yaml"): &ours,
	} {
		document, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, yaml.UnmarshalStrict(document, into))
	}
	assert.Equal(t, published, ours)
}

func exampleNames(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(examplesDir)
	require.NoError(t, err)
	var names []string
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	require.NotEmpty(t, names)
	return names
}

// copyExample copies an example, with the way to deploy/ that its commands take.
func copyExample(t *testing.T, name string) (dir string) {
	t.Helper()
	root := t.TempDir()
	dir = filepath.Join(root, "examples", name)
	require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(examplesDir, name))))
	deploy, err := filepath.Abs("../../deploy")
	require.NoError(t, err)
	require.NoError(t, os.Symlink(deploy, filepath.Join(root, "deploy")))
	return dir
}

// command is a block of a README whose lines are run.
type command struct {
	line  int // of the fence before it
	lines []string
	// prints are lines, or parts of lines, that it prints.
	prints []string
}

// blocksOf reads a README by the convention of examples/README.md.
func blocksOf(readme string) ([]command, error) {
	var commands []command
	var fence, indent string
	var take func(line string)
	for i, line := range strings.Split(readme, "\n") {
		text := strings.TrimSpace(line)
		switch {
		case fence == "" && strings.HasPrefix(text, "```"):
			fence, indent, take = "```", line[:strings.Index(line, "```")], func(string) {}
			switch language := strings.TrimPrefix(text, "```"); language {
			case "sh":
				commands = append(commands, command{line: i + 1})
				of := &commands[len(commands)-1]
				take = func(line string) { of.lines = append(of.lines, strings.TrimPrefix(line, indent)) }
			case "":
				if len(commands) == 0 {
					return nil, fmt.Errorf("line %d: no command comes before this output", i+1)
				}
				of := &commands[len(commands)-1]
				take = func(line string) { of.prints = append(of.prints, strings.TrimSpace(line)) }
			}
		case text == fence && fence != "":
			fence = ""
		case fence != "":
			take(line)
		}
	}
	if fence != "" {
		return nil, fmt.Errorf("the last block has no end")
	}
	return commands, nil
}

var digits = regexp.MustCompile(`\d+`)

// printed tells whether one of these lines has what is expected in it: blanks
// count as one, any number stands for any other, and ... for anything.
func printed(output, want string) bool {
	pattern := regexp.QuoteMeta(strings.Join(strings.Fields(want), " "))
	pattern = strings.ReplaceAll(digits.ReplaceAllString(pattern, `\d+`), `\.\.\.`, `.*`)
	expected := regexp.MustCompile(pattern)
	return slices.ContainsFunc(strings.Split(output, "\n"), func(line string) bool {
		return expected.MatchString(strings.Join(strings.Fields(line), " "))
	})
}

func TestReadingOfExamples(t *testing.T) {
	blocks, err := blocksOf("# Title\n\n1. So:\n\n   ```sh\n   echo 1 \\\n     2\n   ```\n\n   ```\n   1 7\n   ```\n\n```yaml\na: b\n```\n\n```sh\ntrue\n```\n")
	require.NoError(t, err)
	assert.Equal(t, []command{
		{line: 5, lines: []string{"echo 1 \\", "  2"}, prints: []string{"1 7"}},
		{line: 18, lines: []string{"true"}},
	}, blocks)
	for _, wrong := range []string{"```\nx\n```\n", "```sh\nx\n"} {
		_, err := blocksOf(wrong)
		assert.Error(t, err, wrong)
	}
	log := "NAME    STATUS\nshop-1  Completed  0\nmsg=\"Thawed Deployment shop/db: frozen for 1170 ms, 2 volumes cut\"\n"
	assert.True(t, printed(log, "shop-1   Completed"))
	assert.True(t, printed(log, "Thawed Deployment ...: frozen for 9 ms"))
	assert.False(t, printed(log, "shop-1 PartiallyFailed"))
	assert.False(t, printed(log, "Thawed Deployment shop/db: frozen for ms"))
}

func commandsOf(t *testing.T, dir string) []command {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
	require.NoError(t, err)
	commands, err := blocksOf(string(readme))
	require.NoError(t, err, dir)
	return commands
}

// outcome is how the commands of a README ended.
type outcome struct {
	printed string
	trace   string // with the commands, by their lines in the README, and complaints
	took    time.Duration
	err     error
}

// run runs the commands of a README in one shell, which ends at the first that fails.
func run(ctx context.Context, dir, path string, commands []command) outcome {
	var script []string
	for _, c := range commands {
		// Lines are numbered as in the README: that is what the trace says.
		script = append(script, make([]string, c.line-1-len(script))...)
		script = append(script, "{ echo '"+c.mark()+"'; } 2> /dev/null")
		script = append(script, c.lines...)
	}
	// bash takes none from root's environment. A README's first line is its title.
	script[0] = "PS4='+ README.md:$LINENO, ${SECONDS} s: '"
	file := dir + ".sh"
	if err := os.WriteFile(file, []byte(strings.Join(script, "\n")), 0o600); err != nil {
		return outcome{err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, exampleLimit)
	defer cancel()
	shell := exec.CommandContext(ctx, "bash", "-o", "errexit", "-o", "nounset", "-o", "pipefail", "-o", "xtrace", file)
	shell.Dir = dir
	shell.Env = append(os.Environ(), "PATH="+path)
	// What it has started ends with it.
	shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	shell.Cancel = func() error { return syscall.Kill(-shell.Process.Pid, syscall.SIGKILL) }
	shell.WaitDelay = 5 * time.Second
	var lock sync.Mutex
	var printed, trace bytes.Buffer
	shell.Stdout = &shared{lock: &lock, to: io.MultiWriter(&printed, &trace)}
	shell.Stderr = &shared{lock: &lock, to: &trace}
	begin := time.Now()
	err := shell.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return outcome{printed: printed.String(), trace: trace.String(), took: time.Since(begin), err: err}
}

// judge fails a test whose commands have failed, or print something else than the
// README says.
func (o outcome) judge(t *testing.T, commands []command) {
	t.Helper()
	t.Logf("%s\nin %s", o.trace, o.took.Round(time.Second))
	require.NoError(t, o.err, "the last command of the trace has failed, or its time was up")
	for i, c := range commands {
		_, rest, found := strings.Cut(o.printed, c.mark()+"\n")
		require.True(t, found)
		if i+1 < len(commands) {
			rest, _, _ = strings.Cut(rest, commands[i+1].mark()+"\n")
		}
		for _, want := range c.prints {
			assert.True(t, printed(rest, want), "README.md:%d: it does not print %q but\n%s", c.line, want, rest)
		}
	}
}

func (c command) mark() string { return fmt.Sprintf("--- README.md:%d", c.line) }

// shared writes where others do.
type shared struct {
	lock *sync.Mutex
	to   io.Writer
}

func (s *shared) Write(p []byte) (int, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.to.Write(p)
}

// withLimits is a directory with programs of the bed that end when their time is
// up: kubectl exec can hang for ever. Before a namespace go its claims and what
// runs in it, for the namespace's controller looks after what has finalizers every
// 8 s only.
func withLimits(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	const hasten = `case "$1 $2" in
"delete namespace") for name in $(echo "$@" | cut --delimiter=' ' --fields=3-); do
	timeout 60 "$program" --namespace "$name" delete deployments,statefulsets,persistentvolumeclaims --all > /dev/null
done ;;
esac
`
	for program, first := range map[string]string{"kubectl": hasten, "velero": ""} {
		path, err := exec.LookPath(program)
		require.NoError(t, err)
		script := fmt.Sprintf("#!/bin/sh\nprogram='%s'\n%sexec timeout --foreground %d \"$program\" \"$@\"\n", path, first, int(commandLimit.Seconds()))
		require.NoError(t, os.WriteFile(filepath.Join(dir, program), []byte(script), 0o700))
	}
	return dir
}

// volumePolicy is what examples leave in the cluster, since others use it.
const volumePolicy = "configmap/stillpoint-volume-policy"

// clearsAway makes a test fail whose examples leave anything in the cluster, and
// clears it away. So it does when they have failed on their way: what is frozen is
// thawed, and Velero deletes their backups.
func clearsAway(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	before, err := inventory(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 4*clearLimit)
		defer cancel()
		// Velero and Kubernetes take their time to delete.
		for deadline := time.Now().Add(clearLimit); !t.Failed(); time.Sleep(time.Second) {
			left, err := madeSince(ctx, c, append(before, volumePolicy))
			if err == nil && len(left) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("the examples have left %v (%v)", left, err)
			}
		}
		for {
			left, err := madeSince(ctx, c, before)
			if err == nil && len(left) == 0 {
				return
			}
			for _, object := range left {
				err = errors.Join(err, clearAway(ctx, c, object))
			}
			if ctx.Err() != nil {
				t.Errorf("clear away %v: %v", left, err)
				return
			}
			time.Sleep(time.Second)
		}
	})
}

// inventory names what examples may make in the cluster, schedules and backups
// first, as it is to be cleared away.
func inventory(ctx context.Context, c *cluster.Cluster) ([]string, error) {
	var names []string
	for _, kinds := range []string{
		"schedules.velero.io,backups.velero.io,restores.velero.io,volumesnapshotlocations.velero.io,configmaps",
		"namespaces,storageclasses,volumesnapshotclasses.snapshot.storage.k8s.io,customresourcedefinitions",
	} {
		output, err := c.Kubectl(ctx, nil, "--namespace", cluster.VeleroNamespace, "get", kinds, "--output", "name")
		if err != nil {
			return nil, err
		}
		names = append(names, strings.Fields(output)...)
	}
	return names, nil
}

func madeSince(ctx context.Context, c *cluster.Cluster, before []string) ([]string, error) {
	now, err := inventory(ctx, c)
	return slices.DeleteFunc(now, func(name string) bool { return slices.Contains(before, name) }), err
}

// clearAway has one thing deleted. It may have to be called again.
func clearAway(ctx context.Context, c *cluster.Cluster, object string) error {
	kind, name, _ := strings.Cut(object, "/")
	var err error
	switch kind {
	case "namespace":
		err = c.DeleteNamespace(ctx, name)
	case "backup.velero.io":
		_, err = c.Velero(ctx, "backup", "delete", name, "--confirm")
	default:
		_, err = c.Kubectl(ctx, nil, "--namespace", cluster.VeleroNamespace, "delete", object, "--ignore-not-found", "--timeout=30s")
	}
	return err
}

// withoutMark takes Velero's mark off the bed's VolumeSnapshotClass for one test:
// where another product was used, only that one's is there.
func withoutMark(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	mark := func(ctx context.Context, value string) error {
		_, err := c.Kubectl(ctx, nil, "label", "volumesnapshotclass", cluster.SnapshotClass, "--overwrite", markOfVelero+value)
		return err
	}
	require.NoError(t, mark(t.Context(), "-"))
	t.Cleanup(func() { assert.NoError(t, mark(context.Background(), "=true")) })
}

// asWithK10 has what K10 has installed: Kanister's kind, and its own namespace.
func asWithK10(t *testing.T, c *cluster.Cluster, _ string) {
	t.Helper()
	withoutMark(t, c)
	// Velero looks every five minutes which kinds there are. Until then its backups
	// fail for one that has gone.
	t.Cleanup(func() {
		for _, args := range [][]string{{"restart"}, {"status", "--timeout=90s"}} {
			_, err := c.Kubectl(context.Background(), nil, append([]string{"--namespace", cluster.VeleroNamespace, "rollout", args[0], "deployment/velero"}, args[1:]...)...)
			assert.NoError(t, err)
		}
	})
	kanisterKind(t, c)
	namespaceNamed(t, c, "kasten-io")
}

func namespaceNamed(t *testing.T, c *cluster.Cluster, name string) {
	t.Helper()
	c.Adopt(t, name)
	require.NoError(t, c.Objects().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}))
}

var parameterOfLINSTOR = regexp.MustCompile(`(?m)^ *(snap\.)?linstor\.csi\.linbit\.com/.*\n`)

// asWithLINSTOR has the API server and Stillpoint look at the files as they are,
// and then the bed's driver stand in for LINSTOR, which is not to be had here: it
// exports to S3 by itself, too, and its parameters are called otherwise.
func asWithLINSTOR(t *testing.T, c *cluster.Cluster, dir string) {
	t.Helper()
	const linstor = "linstor.csi.linbit.com"
	namespaceNamed(t, c, "piraeus-datastore")
	for _, name := range []string{"storage.yaml", "configuration.yaml"} {
		_, err := c.Kubectl(t.Context(), nil, "apply", "--dry-run=server", "--validate=strict", "--filename", filepath.Join(dir, name))
		require.NoError(t, err)
	}
	document, err := os.ReadFile(filepath.Join(dir, "configuration.yaml"))
	require.NoError(t, err)
	var configMap corev1.ConfigMap
	require.NoError(t, yaml.UnmarshalStrict(document, &configMap))
	settings, err := config.Decode(&configMap)
	require.NoError(t, err)
	classes, err := os.ReadFile(filepath.Join(dir, "storage.yaml"))
	require.NoError(t, err)
	exporting := 0
	for document := range strings.SplitSeq(string(classes), "\n---\n") {
		var class snapshotv1.VolumeSnapshotClass
		require.NoError(t, yaml.Unmarshal([]byte(document), &class))
		if class.Kind == "VolumeSnapshotClass" {
			exporting++
			assert.True(t, settings.Driver(linstor).Exported(class.Parameters), class.Name)
			assert.True(t, config.Default(cluster.VeleroNamespace).Driver(linstor).Exported(class.Parameters), class.Name)
		}
	}
	assert.Equal(t, 1, exporting)

	class := &snapshotv1.VolumeSnapshotClass{}
	require.NoError(t, c.Objects().Get(t.Context(), crclient.ObjectKey{Name: cluster.SnapshotClass}, class))
	for _, name := range []string{"storage.yaml", "configuration.yaml"} {
		file := filepath.Join(dir, name)
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		played := strings.NewReplacer(
			"parameter: snap."+linstor+"/type, value: S3", "parameter: export, value: s3",
			"snap."+linstor+"/type: S3", "export: s3",
			"snap."+linstor+"/delete-local", "delete-local",
		).Replace(string(text))
		played = parameterOfLINSTOR.ReplaceAllString(played, "")
		played = strings.ReplaceAll(played, linstor, class.Driver)
		require.NoError(t, os.WriteFile(file, []byte(played), 0o600))
	}
}
