package quiesce

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
)

// client replaces a database client. Its statements are lines of shell script. It writes
// down its PID and the end of its session.
const client = `echo $$ >"$1"; trap 'exit 1' TERM
while IFS= read -r statement; do eval "$statement" || exit 3; done
echo closed >>"$2"`

// database is a plan with one held session.
type database struct {
	application
	pid string
}

func newDatabase(t *testing.T) database {
	return database{newApplication(t), filepath.Join(t.TempDir(), "pid")}
}

func (d database) plan(begin, end string) *Plan {
	call := render.Call{
		Namespace: "shop", Pod: "db-0", Container: "db",
		Command: []string{"sh", "-c", client, "client", d.pid, d.journal},
		Env:     map[string]string{"PGPASSWORD": "it's $ecret\nindeed", sessionVariable: "session-1"},
		Hold:    &render.Hold{Begin: begin, End: end},
	}
	return &Plan{
		rescue: noRescue{},
		Name:   "StatefulSet shop/db",
		Hooks: []Hook{{
			Blueprint: "postgresql",
			Pre:       []*render.Step{{Phase: "lock", Func: holdFunction, Calls: []render.Call{call}}},
			Post:      []*render.Step{{Phase: "unlock", Func: releaseFunction, Calls: []render.Call{call}}},
		}},
		PrepareTimeout: 10 * time.Second,
		QuiesceTimeout: 10 * time.Second,
	}
}

func (d database) statement(line, word string) string {
	return fmt.Sprintf("echo %s >>%s; echo a row; echo 'stillpoint: %s'", line, d.journal, word)
}

// process waits for the client's PID.
func (d database) process(t *testing.T) int {
	t.Helper()
	var pid int
	require.Eventually(t, func() bool {
		content, err := os.ReadFile(d.pid)
		if err != nil {
			return false
		}
		pid, err = strconv.Atoi(strings.TrimSpace(string(content)))
		return err == nil
	}, 5*time.Second, 10*time.Millisecond)
	return pid
}

func gone(t *testing.T, pid int, within time.Duration) {
	t.Helper()
	assert.Eventually(t, func() bool { return syscall.Kill(pid, 0) != nil }, within, 20*time.Millisecond, "process %d still runs", pid)
}

func TestHeldSession(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		d := newDatabase(t)
		session, err := Freeze(t.Context(), Tools{Executor: h}, d.plan(d.statement("begin", "held"), d.statement("end", "released")), quiet())
		require.NoError(t, err)
		assert.Equal(t, []string{"begin"}, d.lines(t))
		pid := d.process(t)
		command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		require.NoError(t, err)
		assert.NotContains(t, string(command), "ecret", "the password stands in the process list")
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		require.NoError(t, err)
		assert.Contains(t, string(environ), "PGPASSWORD=it's $ecret\nindeed\x00")

		session.Thaw(t.Context())
		assert.NoError(t, session.Report().Stuck)
		assert.NoError(t, session.Report().Broken)
		gone(t, pid, 5*time.Second)
		assert.Equal(t, []string{"begin", "end", "closed"}, d.lines(t))
	})
}

func TestHeldSessionEndsWithItsHolder(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		d := newDatabase(t)
		_, err := Freeze(t.Context(), Tools{Executor: h}, d.plan(d.statement("begin", "held"), d.statement("end", "released")), quiet())
		require.NoError(t, err)
		h.disconnect()
		gone(t, d.process(t), 5*time.Second)
	})
}

func TestHeldSessionIsReleasedAtTheDeadline(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		d := newDatabase(t)
		plan := d.plan(d.statement("begin", "held"), d.statement("end", "released"))
		plan.QuiesceTimeout = time.Second
		session, err := Freeze(t.Context(), Tools{Executor: h}, plan, quiet())
		require.NoError(t, err)
		<-session.Thawed()
		assert.ErrorContains(t, session.Report().Broken, "quiesce-timeout")
		assert.NoError(t, session.Report().Stuck)
		gone(t, d.process(t), 5*time.Second)
	})
}

// A client that waits for its server does not see the end of its input.
func TestHeldSessionThatHangsIsKilled(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		d := newDatabase(t)
		plan := d.plan("sleep 60; echo 'stillpoint: held'", d.statement("end", "released"))
		plan.PrepareTimeout = time.Second
		begun := time.Now()
		_, err := Freeze(t.Context(), Tools{Executor: h}, plan, quiet())
		require.ErrorContains(t, err, `the client did not say "stillpoint: held" within prepare-timeout 1s`)
		gone(t, d.process(t), 8*time.Second)
		assert.Less(t, time.Since(begun), 25*time.Second)
	})
}

func TestHeldSessionThatFails(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		d := newDatabase(t)
		_, err := Freeze(t.Context(), Tools{Executor: h}, d.plan("echo no such role >&2; false", d.statement("end", "released")), quiet())
		require.ErrorContains(t, err, "the client ended with exit code 3: no such role")
	})
}

// lateStderr is a host that delivers standard error after standard output, as separate
// streams can.
type lateStderr struct{ *host }

func (l lateStderr) Exec(ctx context.Context, container podexec.Container, command []string, streams podexec.Streams) error {
	streams.Stderr = slowly{streams.Stderr}
	return l.host.Exec(ctx, container, command, streams)
}

type slowly struct{ io.Writer }

func (s slowly) Write(p []byte) (int, error) {
	time.Sleep(300 * time.Millisecond)
	return s.Writer.Write(p)
}

// mariadb prints the statement to standard output and its error to standard error.
func TestErrorContainsLateStandardError(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		d := newDatabase(t)
		_, err := Freeze(t.Context(), Tools{Executor: lateStderr{h}}, d.plan("echo LOCK; echo no such role >&2; false", d.statement("end", "released")), quiet())
		require.ErrorContains(t, err, "the client ended with exit code 3: LOCK\nno such role")
	})
}

func TestLostHeldSessionBreaksFreeze(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		d := newDatabase(t)
		session, err := Freeze(t.Context(), Tools{Executor: h}, d.plan(d.statement("begin", "held"), d.statement("end", "released")), quiet())
		require.NoError(t, err)
		require.NoError(t, syscall.Kill(d.process(t), syscall.SIGKILL))
		<-session.Thawed()
		assert.ErrorContains(t, session.Report().Broken, "was lost while frozen")
		assert.NoError(t, session.Report().Stuck, "the death of the client frees what it held")
	})
}

func TestEndClientSparesOtherSessions(t *testing.T) {
	eachShell(t, func(t *testing.T, h *host) {
		d := newDatabase(t)
		session, err := Freeze(t.Context(), Tools{Executor: h}, d.plan(d.statement("begin", "held"), d.statement("end", "released")), quiet())
		require.NoError(t, err)
		pid := d.process(t)
		other := endClient(session.targets()[0])
		other.Command[len(other.Command)-1] = "session-2"
		_, _, err = session.runInNewShell(t.Context(), other)
		require.NoError(t, err)
		assert.NoError(t, syscall.Kill(pid, 0), "a process of another session was killed")
		_, _, err = session.runInNewShell(t.Context(), endClient(session.targets()[0]))
		require.NoError(t, err)
		<-session.Thawed()
		gone(t, pid, 5*time.Second)
	})
}
