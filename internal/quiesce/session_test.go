package quiesce

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
)

// host runs commands in local shells instead of containers. Closing a connection only
// closes the command's standard input, as with container runtimes.
type host struct {
	shell []string
	path  string // prepended to PATH

	mu      sync.Mutex
	running map[string][]*exec.Cmd
	broken  map[string]bool
	cancels []context.CancelFunc
}

func newHost() *host {
	return &host{shell: []string{"sh"}, running: map[string][]*exec.Cmd{}, broken: map[string]bool{}}
}

func (h *host) Exec(ctx context.Context, container podexec.Container, command []string, streams podexec.Streams) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h.mu.Lock()
	if h.broken[container.Name] {
		h.mu.Unlock()
		return fmt.Errorf("%s is gone", container)
	}
	argv := append([]string{}, command...)
	if argv[0] == "sh" {
		argv = append(append([]string{}, h.shell...), argv[1:]...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	if h.path != "" {
		cmd.Env = append(os.Environ(), "PATH="+h.path+":"+os.Getenv("PATH"))
	}
	cmd.Stdout, cmd.Stderr = streams.Stdout, streams.Stderr
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		h.running[container.Name] = append(h.running[container.Name], cmd)
		h.cancels = append(h.cancels, cancel)
	}
	h.mu.Unlock()
	if err != nil {
		return err
	}
	if streams.Stdin != nil {
		go func() {
			buffer := make([]byte, 4096)
			for {
				n, err := streams.Stdin.Read(buffer)
				_, _ = stdin.Write(buffer[:n])
				if err != nil {
					_ = stdin.Close()
					return
				}
			}
		}()
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		_ = stdin.Close()
		return ctx.Err()
	}
}

// kill ends all commands of a container and lets no other command start.
func (h *host) kill(container string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken[container] = true
	for _, cmd := range h.running[container] {
		_ = cmd.Process.Kill()
	}
}

// disconnect closes all connections.
func (h *host) disconnect() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, cancel := range h.cancels {
		cancel()
	}
}

// eachShell runs a test with each common shell, in parallel.
func eachShell(t *testing.T, test func(t *testing.T, h *host)) {
	t.Helper()
	t.Parallel()
	for _, shell := range []string{"dash", "bash", "busybox sh"} {
		t.Run(strings.Fields(shell)[0], func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(strings.Fields(shell)[0]); err != nil {
				t.Skip("not installed here:", err)
			}
			h := newHost()
			h.shell = strings.Fields(shell)
			test(t, h)
		})
	}
}

func quiet() logrus.FieldLogger {
	log := logrus.New()
	log.SetLevel(logrus.PanicLevel)
	return log
}

// application replaces an application. Its commands append lines to a file.
type application struct{ journal string }

func newApplication(t *testing.T) application {
	return application{filepath.Join(t.TempDir(), "journal")}
}

func (a application) call(container, line string) render.Call {
	return render.Call{Namespace: "shop", Pod: "db-0", Container: container, Command: []string{"sh", "-c", fmt.Sprintf("echo %s >>%s", line, a.journal)}}
}

func (a application) lines(t *testing.T) []string {
	t.Helper()
	content, err := os.ReadFile(a.journal)
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(t, err)
	return strings.Fields(string(content))
}

func step(name string, calls ...render.Call) []*render.Step {
	return []*render.Step{{Phase: name, Func: "KubeExec", Calls: calls}}
}

func (a application) plan() *Plan {
	return &Plan{
		rescue: noRescue{},
		Name:   "StatefulSet shop/db",
		Hooks: []Hook{
			{Blueprint: "lock", Pre: step("lock", a.call("db", "lock")), Post: step("unlock", a.call("db", "unlock"))},
			{Blueprint: "fsfreeze", Pre: step("freeze", a.call("side", "freeze")), Post: step("thaw", a.call("side", "thaw"))},
		},
		PrepareTimeout: 10 * time.Second,
		QuiesceTimeout: 10 * time.Second,
	}
}

func TestFreezesInOrderAndThawsInReverse(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		session, err := Freeze(t.Context(), Tools{Executor: h}, app.plan(), quiet())
		require.NoError(t, err)
		assert.Equal(t, []string{"lock", "freeze"}, app.lines(t))
		session.Thaw(t.Context())
		assert.Equal(t, []string{"lock", "freeze", "thaw", "unlock"}, app.lines(t))
		report := session.Report()
		require.NoError(t, report.Broken)
		require.NoError(t, report.Stuck)
		assert.Positive(t, report.Frozen)
		assert.GreaterOrEqual(t, report.Frozen, report.Prepared)
		session.Thaw(t.Context()) // has no effect
		assert.Len(t, app.lines(t), 4)
	})
}

// If the plugin or the API server dies, the container only sees a closed connection.
func TestGuardsThawWhenTheConnectionEnds(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		_, err := Freeze(t.Context(), Tools{Executor: h}, app.plan(), quiet())
		require.NoError(t, err)
		h.kill("nothing") // no rescue is possible
		h.broken["db"], h.broken["side"] = true, true
		h.disconnect()
		assert.Eventually(t, func() bool { return len(app.lines(t)) == 4 }, 2*time.Second, 10*time.Millisecond)
		assert.ElementsMatch(t, []string{"thaw", "unlock"}, app.lines(t)[2:])
	})
}

func TestDeadlineThaws(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		plan := app.plan()
		plan.QuiesceTimeout = time.Second
		session, err := Freeze(t.Context(), Tools{Executor: h}, plan, quiet())
		require.NoError(t, err)
		select {
		case <-session.Thawed():
		case <-time.After(5 * time.Second):
			t.Fatal("still frozen")
		}
		assert.Equal(t, []string{"lock", "freeze", "thaw", "unlock"}, app.lines(t))
		require.ErrorContains(t, session.Report().Broken, "quiesce-timeout of 1s")
	})
}

// A stopped process keeps its connections open, so that only the guard's deadline thaws.
func TestGuardKeepsItsOwnDeadline(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		guard, err := openShell(t.Context(), h, app.call("db", "thaw"), guardScript, Unmasked)
		require.NoError(t, err)
		defer guard.close()
		_, err = guard.ask(t.Context(), "hold 1", "holding")
		require.NoError(t, err)
		assert.Eventually(t, func() bool { return len(app.lines(t)) == 1 }, 4*time.Second, 10*time.Millisecond)
	})
}

func TestPostRunsWhereverPreHasBegun(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		plan := app.plan()
		failing := render.Call{Namespace: "shop", Pod: "db-0", Container: "side", Command: []string{"sh", "-c", "echo disk is on fire >&2; exit 7"}}
		plan.Hooks[1].Pre = step("freeze", failing)
		plan.Hooks = append(plan.Hooks, Hook{Blueprint: "never", Pre: step("a", app.call("other", "never")), Post: step("b", app.call("other", "undo-never"))})
		_, err := Freeze(t.Context(), Tools{Executor: h}, plan, quiet())
		require.EqualError(t, err, "blueprint fsfreeze, phase freeze, container side of pod shop/db-0: exit code 7: disk is on fire")
		assert.Equal(t, []string{"lock", "thaw", "unlock"}, app.lines(t))
	})
}

func TestNothingBeginsBeforeAllIsArmed(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		h.broken["side"] = true
		_, err := Freeze(t.Context(), Tools{Executor: h}, app.plan(), quiet())
		require.ErrorContains(t, err, "nothing was frozen")
		require.ErrorContains(t, err, "container side of pod shop/db-0 is gone")
		time.Sleep(200 * time.Millisecond)
		assert.Empty(t, app.lines(t))
	})
}

func TestPreThatHangsIsKilled(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		plan := app.plan()
		plan.PrepareTimeout = time.Second
		hanging := render.Call{Namespace: "shop", Pod: "db-0", Container: "side", Command: []string{"sleep", "30"}}
		plan.Hooks[1].Pre = step("freeze", hanging)
		begun := time.Now()
		_, err := Freeze(t.Context(), Tools{Executor: h}, plan, quiet())
		require.ErrorContains(t, err, "killed after prepare-timeout 1s")
		assert.Less(t, time.Since(begun), 8*time.Second)
		assert.Equal(t, []string{"lock", "thaw", "unlock"}, app.lines(t))
	})
}

func TestAnotherContainerThawsForOneThatDied(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		plan := app.plan()
		plan.Hooks[1].Post[0].Calls[0].Command[2] += " # fsfreeze"
		plan.rescue = noRescue{container: "rescuer"}
		session, err := Freeze(t.Context(), Tools{Executor: h}, plan, quiet())
		require.NoError(t, err)
		h.kill("side")
		select {
		case <-session.Thawed():
		case <-time.After(5 * time.Second):
			t.Fatal("still frozen")
		}
		assert.ElementsMatch(t, []string{"lock", "freeze", "thaw", "unlock"}, app.lines(t))
		require.ErrorContains(t, session.Report().Broken, "the guard in container side of pod shop/db-0 was lost while frozen")
		require.NoError(t, session.Report().Stuck)
	})
}

func TestPostIsTriedAgain(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		plan := app.plan()
		marker := filepath.Join(t.TempDir(), "tried")
		plan.Hooks[1].Post = step("thaw", render.Call{
			Namespace: "shop", Pod: "db-0", Container: "side",
			Command: []string{"sh", "-c", fmt.Sprintf("test -e %s || { touch %s; exit 1; }; echo thaw >>%s", marker, marker, app.journal)},
		})
		session, err := Freeze(t.Context(), Tools{Executor: h}, plan, quiet())
		require.NoError(t, err)
		session.Thaw(t.Context())
		assert.ElementsMatch(t, []string{"lock", "freeze", "thaw", "unlock"}, app.lines(t))
		require.NoError(t, session.Report().Stuck)
	})
}

// Commands arrive on standard input, so that secrets appear in no process list.
func TestCommandsAreInNoProcessList(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		plan := app.plan()
		secret := fmt.Sprintf("s3cret-%d", time.Now().UnixNano())
		plan.Hooks[0].Post[0].Calls[0].Command = append(plan.Hooks[0].Post[0].Calls[0].Command, secret, "it's\nmore")
		session, err := Freeze(t.Context(), Tools{Executor: h}, plan, quiet())
		require.NoError(t, err)
		processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
		require.NoError(t, err)
		for _, process := range processes {
			if line, err := os.ReadFile(process); err == nil {
				assert.NotContains(t, string(line), secret, process)
			}
		}
		session.Thaw(t.Context())
		require.NoError(t, session.Report().Stuck)
	})
}

func TestNothingIsLeftRunning(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		app := newApplication(t)
		plan := app.plan()
		plan.QuiesceTimeout = 4321 * time.Second
		session, err := Freeze(t.Context(), Tools{Executor: h}, plan, quiet())
		require.NoError(t, err)
		session.Thaw(t.Context())
		var shells []string
		for _, commands := range h.running {
			for _, cmd := range commands {
				shells = append(shells, fmt.Sprint(cmd.Process.Pid))
			}
		}
		assert.Eventually(t, func() bool {
			statuses, err := filepath.Glob("/proc/[0-9]*/status")
			require.NoError(t, err)
			for _, file := range statuses {
				status, err := os.ReadFile(file)
				if err != nil {
					continue
				}
				for _, shell := range shells {
					if strings.Contains(string(status), "\nPPid:\t"+shell+"\n") {
						return false
					}
				}
			}
			line, _ := exec.Command("pgrep", "-fc", "^sleep 432").Output()
			return strings.TrimSpace(string(line)) == "0"
		}, 3*time.Second, 50*time.Millisecond)
	})
}
