package process

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func newTable(t *testing.T) Table {
	t.Helper()
	dir := t.TempDir()
	table := Table{Records: dir, Logs: dir, Mark: dir}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // the test's own has ended
		defer cancel()
		require.NoError(t, KillAll(ctx, table.Marked, func() {}))
	})
	return table
}

// sleeper is a process that lives for as long as a test, and some argument to
// tell one from another.
func sleeper(t *testing.T, args ...string) Spec {
	t.Helper()
	sh, err := exec.LookPath("sh")
	require.NoError(t, err)
	return Spec{Name: "sleeper", Args: append([]string{sh, "-c", "while :; do sleep 1; done", "sleeper"}, args...)}
}

func start(t *testing.T, table Table, spec Spec) (pid int, started bool) {
	t.Helper()
	started, err := table.Start(t.Context(), spec)
	require.NoError(t, err)
	pid = table.PID(spec.Name)
	require.NotZero(t, pid)
	return pid, started
}

func TestStartLeavesAloneWhatRuns(t *testing.T) {
	table := newTable(t)
	first, started := start(t, table, sleeper(t))
	require.True(t, started)
	again, started := start(t, table, sleeper(t))
	require.False(t, started)
	require.Equal(t, first, again)
}

// A component that kept the lock of whoever started it would hold it for ever.
func TestStartPassesNoOpenFileOn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	fd, err := unix.Open(file, unix.O_CREAT|unix.O_RDWR, 0o600) // not O_CLOEXEC, as it is inherited
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Close(fd)) }()
	pid, _ := start(t, newTable(t), sleeper(t))
	open, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
	require.NoError(t, err)
	require.NotEmpty(t, open)
	for _, link := range open {
		to, err := os.Readlink(link)
		if err == nil { // else it is closed again
			require.NotEqual(t, file, to)
		}
	}
}

func TestStartReplacesWhatRunsOtherwise(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"arguments":     func(s *Spec) { s.Args = append(s.Args, "other") },
		"environment":   func(s *Spec) { s.Env = []string{"OTHER=1"} },
		"configuration": func(s *Spec) { s.Config = "other" },
	} {
		t.Run(name, func(t *testing.T) {
			table := newTable(t)
			first, _ := start(t, table, sleeper(t))
			spec := sleeper(t)
			change(&spec)
			second, started := start(t, table, spec)
			require.True(t, started)
			require.NotEqual(t, first, second)
			require.Empty(t, Args(first), "the first has ended")
		})
	}
}

func TestKilledIsStartedAgain(t *testing.T) {
	table := newTable(t)
	first, _ := start(t, table, sleeper(t))
	require.NoError(t, table.Kill(t.Context(), "sleeper"))
	require.Zero(t, table.PID("sleeper"))
	second, started := start(t, table, sleeper(t))
	require.True(t, started)
	require.NotEqual(t, first, second)
}

func TestStopIsNotForSomebodyElsesProcess(t *testing.T) {
	table := newTable(t)
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	require.NoError(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	st, err := readStat(cmd.Process.Pid)
	require.NoError(t, err)
	for name, r := range map[string]record{
		"started at another time": {PID: cmd.Process.Pid, Start: st.start - 1, Boot: bootID()},
		"before a reboot":         {PID: cmd.Process.Pid, Start: st.start, Boot: "another"},
	} {
		r.Name = "sleeper"
		require.NoError(t, table.write(r))
		require.NoError(t, table.Stop(t.Context(), "sleeper", time.Second), name)
		require.NotEmpty(t, Args(cmd.Process.Pid), "%s: it still runs", name)
	}
}

func TestStartEndsWhatWasNeverRecorded(t *testing.T) {
	table := newTable(t)
	lost, _ := start(t, table, sleeper(t))
	require.NoError(t, os.Remove(filepath.Join(table.Records, "sleeper.json"))) // as if killed before it was written
	require.Contains(t, table.Marked(), lost)
	found, started := start(t, table, sleeper(t))
	require.True(t, started)
	require.NotEqual(t, lost, found)
	require.NotContains(t, table.Marked(), lost)
}

func TestLives(t *testing.T) {
	require.True(t, Lives(Self()))
	for _, name := range []string{"", "x", "another-boot/1/1", bootID() + "/1/0", bootID() + "/" + strconv.Itoa(os.Getpid()) + "/1"} {
		require.False(t, Lives(name), name)
	}
}
